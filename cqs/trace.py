"""What happened in a run: kept and counted, or written as a trace that Perfetto and Chrome open."""

import json
import math
import os
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, fields
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from cqs.checks import whole_number
from cqs.errors import SinkError
from cqs.events import (
    BytesRead,
    BytesWritten,
    DeviceBusy,
    Event,
    ResultLoaded,
    ResultMerged,
    ResultSaved,
    TaskDone,
    TaskRetried,
    TaskStarted,
    TileDone,
)

__all__ = ["Counters", "Recorder", "TraceFile", "hidden_share", "write_chrome_trace"]

_LABELS = {"TileDone": "tile", "ResultMerged": "merge"}  # where `Event.name` says no more than which task
_NOT_ARGS = {"start", "stop", "lane"}
_PID = 1  # all lanes are shown together, whatever process they were in


@dataclass(frozen=True, slots=True)
class Counters:
    """What the events of a run come to. Bytes that `Plan.traffic` predicts have the same names there.

    Parameters
    ----------
    n_tasks, n_tiles, n_retries : int
        Tasks that were done, kernel calls, and how often a task was divided because memory ran out.
    read : int
        Bytes of queries, keys and values that workers took from the source.
    results : int
        Bytes of partial results that tasks gave to the Tiler.
    spilled : int
        Bytes written to and read from a scratch file.
    written : int
        Bytes of the output.
    saved, loaded : int
        Bytes of results written to, and read from, the directory of a job.
    """

    n_tasks: int = 0
    n_tiles: int = 0
    n_retries: int = 0
    read: int = 0
    results: int = 0
    spilled: int = 0
    written: int = 0
    saved: int = 0
    loaded: int = 0

    @classmethod
    def of(cls, events: Iterable[Event]) -> Self:
        """Count some events."""
        totals = dict.fromkeys((field.name for field in fields(cls)), 0)
        for event in events:
            for name, n in _counts(event):
                totals[name] += n
        return cls(**totals)


def _counts(event: Event) -> Iterable[tuple[str, int]]:
    """Return what an event adds to which counters."""
    match event:
        case BytesRead():
            return (("read", event.n_bytes),)
        case TileDone():
            return (("n_tiles", 1),)
        case TaskDone():
            return (("n_tasks", 1),)
        case TaskRetried():
            return (("n_retries", 1),)
        case ResultMerged():
            return ("results", event.n_bytes), ("spilled", event.spilled_bytes)
        case ResultSaved():
            return (("saved", event.n_bytes),)
        case ResultLoaded():
            return (("loaded", event.n_bytes),)
        case BytesWritten():
            return ("written", event.n_bytes), ("spilled", event.spilled_bytes)
    return ()


class Recorder:
    """Keeps the events of a run, and counts all of them; give it to `cqs.attention(..., on_event=)`.

    Parameters
    ----------
    most : int
        How many events are kept, about 300 bytes each: with the default at most 3 MiB, beside any budget. Of more, the
        last are kept. With 0 events are only counted.

    Notes
    -----
    It may be called from any thread. To keep all events of a long run, write them to a file: `TraceFile`.

    Examples
    --------
    >>> import numpy as np, cqs
    >>> from cqs.trace import Recorder
    >>> x, recorder = np.ones((2, 700, 8), np.float32), Recorder()
    >>> plan = cqs.plan(x, x, x, workers=7)
    >>> _ = cqs.attention(x, x, x, workers=7, on_event=recorder)
    >>> recorder.counters.read == plan.traffic.read
    True
    """

    def __init__(self, most: int = 10_000) -> None:
        self._lock = threading.Lock()
        self._kept: deque[Event] = deque(maxlen=whole_number("most", most, 0, "with 0 events are only counted"))
        self._totals = dict.fromkeys((field.name for field in fields(Counters)), 0)
        self._n_events = 0

    def __call__(self, event: Event) -> None:
        """Take an event."""
        with self._lock:
            self._kept.append(event)
            self._n_events += 1
            for name, n in _counts(event):
                self._totals[name] += n

    @property
    def events(self) -> tuple[Event, ...]:
        """The events that are kept, in the order in which they came; `cqs.plot.timeline` draws them."""
        with self._lock:
            return tuple(self._kept)

    @property
    def n_dropped(self) -> int:
        """How many events are not kept any more."""
        with self._lock:
            return self._n_events - len(self._kept)

    @property
    def counters(self) -> Counters:
        """What all events come to, those that are not kept included."""
        with self._lock:
            return Counters(**self._totals)


class TraceFile:
    """Writes events to a file as they come, in Chrome's trace event format, and holds none of them.

    https://ui.perfetto.dev and chrome://tracing open it: a row for each thread, with what it did when. A trace that was
    cut off can be opened, too.

    Parameters
    ----------
    path : str or Path
        The file; one that is there is replaced.
    zero : float, optional
        The time that the trace begins at, by default now.

    Raises
    ------
    SinkError
        If it cannot be created; and from `close`, if it could not be written to the end. The run goes on all the same.

    Examples
    --------
    >>> import numpy as np, cqs, tempfile
    >>> x = np.ones((2, 700, 8), np.float32)
    >>> with tempfile.TemporaryDirectory() as folder, TraceFile(f"{folder}/trace.json") as trace:
    ...     out = cqs.attention(x, x, x, on_event=trace)
    """

    def __init__(self, path: str | os.PathLike[str], zero: float | None = None) -> None:
        self.path = os.fspath(path)
        self._zero = perf_counter() if zero is None else zero
        self._lock = threading.Lock()
        self._lanes: dict[str, int] = {}
        self._failure: OSError | None = None
        try:
            # by lines, so that what happened before the process is killed is there
            self._file = open(self.path, "w", buffering=1, encoding="utf-8")  # noqa: SIM115  # closed by `close`
        except OSError as error:
            raise SinkError(f"{self.path} cannot be written: {error.strerror}; write the trace elsewhere") from None
        self._write({"name": "process_name", "ph": "M", "pid": _PID, "args": {"name": "cqs"}}, first=True)

    def __call__(self, event: Event) -> None:
        """Write an event."""
        with self._lock:
            if self._failure is not None or self._file.closed:
                return
            if event.lane not in self._lanes:
                self._lanes[event.lane] = len(self._lanes) + 1
                name = {"name": "thread_name", "ph": "M", "pid": _PID, "tid": self._lanes[event.lane]}
                self._write(name | {"args": {"name": event.lane}})
            self._write(_entry(event, self._lanes[event.lane], self._zero))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except SinkError:
            if error is None:  # else that is what is to be told
                raise

    def close(self) -> None:
        """End the file. Events that still come are not written."""
        with self._lock:
            if not self._file.closed:
                try:
                    self._file.write("\n]\n")
                    self._file.close()
                except OSError as error:
                    self._failure = self._failure or error
            if self._failure is not None:
                raise SinkError(f"{self.path} cannot be written: {self._failure.strerror}; the trace is not complete")

    def _write(self, entry: dict[str, Any], first: bool = False) -> None:
        try:
            self._file.write(("[\n" if first else ",\n") + json.dumps(entry, separators=(",", ":")))
        except OSError as error:
            self._failure = error


def write_chrome_trace(events: Iterable[Event], path: str | os.PathLike[str]) -> None:
    """Write events, as of a `Recorder`, to a file in Chrome's trace event format, which Perfetto opens.

    Parameters
    ----------
    events : iterable of Event
        In any order. Times count from the earliest.
    path : str or Path
        The file; one that is there is replaced.

    Raises
    ------
    SinkError
        If it cannot be written.

    References
    ----------
    *Trace Event Format*, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
    """
    found = list(events)
    with TraceFile(path, zero=min((event.start for event in found), default=0.0)) as trace:
        for event in found:
            trace(event)


def hidden_share(events: Iterable[Event]) -> float | None:
    """Return the share of the time that devices copied in which they also computed; None if nothing was copied.

    Parameters
    ----------
    events : iterable of Event
        In any order; only `cqs.events.DeviceBusy` counts. Copies both ways at once are counted once.

    Examples
    --------
    >>> from cqs.events import DeviceBusy
    >>> copy = DeviceBusy(task=-1, start=0.0, stop=4.0, device="a", what="copy in")
    >>> hidden_share([copy, DeviceBusy(task=0, start=1.0, stop=9.0, device="a", what="compute")])
    0.75
    """
    spans: dict[str, tuple[list[tuple[float, float]], list[tuple[float, float]]]] = {}
    for event in events:
        if isinstance(event, DeviceBusy):
            copies, computes = spans.setdefault(event.device, ([], []))
            (computes if event.what == "compute" else copies).append((event.start, event.stop))
    copied = sum(_length(copies) for copies, _ in spans.values())
    computed = sum(_length(computes) for _, computes in spans.values())
    either = sum(_length([*copies, *computes]) for copies, computes in spans.values())
    return (copied + computed - either) / copied if copied else None


def _length(spans: Iterable[tuple[float, float]]) -> float:
    """Return how long at least one of some spans lasted."""
    length, end = 0.0, -math.inf
    for start, stop in sorted(spans):
        length += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return length


def _entry(event: Event, tid: int, zero: float) -> dict[str, Any]:
    """Return an event in the trace format: a span ("X"), or an instant ("i") of its thread."""
    args = {field.name: getattr(event, field.name) for field in fields(event) if field.name not in _NOT_ARGS}
    name = _LABELS.get(event.kind, event.name)
    entry = {"name": name, "cat": event.kind, "pid": _PID, "tid": tid, "ts": _microseconds(event.start - zero)}
    if isinstance(event, (TaskStarted, TaskRetried)):
        return entry | {"ph": "i", "s": "t", "args": args}
    return entry | {"ph": "X", "dur": _microseconds(event.stop - event.start), "args": args}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
