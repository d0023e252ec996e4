"""What happens in a run, as values: for progress, traces and counters. Times are `time.perf_counter`, in seconds."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeAlias

__all__ = [
    "BytesRead",
    "BytesUploaded",
    "BytesWritten",
    "DeviceBusy",
    "Emit",
    "Event",
    "ResultLoaded",
    "ResultMerged",
    "ResultSaved",
    "TaskDone",
    "TaskRetried",
    "TaskStarted",
    "TileDone",
    "task_events",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that took from `start` to `stop` in a thread.

    Parameters
    ----------
    task : int
        Whose task it was; -1 if of none.
    start, stop : float
        Seconds, of the machine's steady clock.
    lane : str
        Name of the thread.
    """

    task: int
    start: float
    stop: float = field(default_factory=perf_counter)
    lane: str = field(default_factory=lambda: threading.current_thread().name)

    @property
    def kind(self) -> str:
        """The name of its type."""
        return type(self).__name__

    @property
    def name(self) -> str:
        """A few words for a picture."""
        return f"task {self.task}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStarted(Event):
    """A worker took up a task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesRead(Event):
    """Queries, or keys with their values, were read from the source, or viewed where they are.

    Parameters
    ----------
    what : {"queries", "keys"}
        Which.
    n_bytes : int
        How much.
    """

    what: str
    n_bytes: int

    @property
    def name(self) -> str:
        """What was read."""
        return f"read {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesUploaded(Event):
    """What was read was sent off to a device, which copies it by itself while it computes something else.

    Parameters
    ----------
    n_bytes : int
        How much.
    """

    n_bytes: int

    @property
    def name(self) -> str:
        """Where it goes."""
        return "copy to device"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBusy(Event):
    """A device copied or computed, from `start` to `stop` by its own clock; told some time after.

    `BytesUploaded` and `TileDone` say when a device was told to. Its lane is of the device and what it did, since it
    copies both ways while it computes. Of no task, unless it computed.

    Parameters
    ----------
    device : str
        Which.
    what : {"copy in", "compute", "copy out"}
        What it did.
    n_bytes : int
        How much it copied.
    """

    device: str
    what: str
    n_bytes: int = 0

    @property
    def kind(self) -> str:
        """What it did."""
        return self.what

    @property
    def name(self) -> str:
        """What it did, and for which task."""
        return self.what if self.task < 0 else f"{self.what} {self.task}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TileDone(Event):
    """A kernel call ended, or none was needed: some rows against some columns, of the task's heads.

    Parameters
    ----------
    n_rows, n_columns : int
        Their number.
    """

    n_rows: int
    n_columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDone(Event):
    """A task has its result; `start` is when it was taken up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRetried(Event):
    """A task ran out of memory, was divided, and is computed part by part.

    Parameters
    ----------
    depth : int
        How often it has been divided.
    reason : str
        The error.
    """

    depth: int
    reason: str

    @property
    def name(self) -> str:
        """Which task at which depth."""
        return f"task {self.task} divided ({self.depth})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultMerged(Event):
    """The Tiler took the result of a task, and merged it if its rows had met other keys before.

    Parameters
    ----------
    n_bytes : int
        Size of the result.
    spilled_bytes : int
        Bytes written to or read from a scratch file for it.
    """

    n_bytes: int
    spilled_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultSaved(Event):
    """The result of a task was written to the directory of a job.

    Parameters
    ----------
    n_bytes : int
        How much.
    """

    n_bytes: int

    @property
    def name(self) -> str:
        """Whose result."""
        return f"keep {self.task}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultLoaded(Event):
    """The result of a task that an earlier run has kept was read from the directory of a job.

    Parameters
    ----------
    n_bytes : int
        How much.
    """

    n_bytes: int

    @property
    def name(self) -> str:
        """Whose result."""
        return f"resume {self.task}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesWritten(Event):
    """Rows of the output were written.

    Parameters
    ----------
    n_bytes : int
        How much.
    spilled_bytes : int
        Bytes read back from a scratch file for it.
    """

    n_bytes: int
    spilled_bytes: int = 0

    @property
    def name(self) -> str:
        """What was written."""
        return "write output"


# Is called with each event, from whichever thread it happened in; None where nobody listens
Emit: TypeAlias = Callable[[Event], object] | None


@contextmanager
def task_events(task: int, emit: Emit, records: bool) -> Iterator[tuple[Emit, list[Event]]]:
    """Tell that a worker takes up a task, and that it is done with it.

    Give what it is to tell of the rest, and the list of what was told, which is only kept if the worker `records`.
    """
    kept: list[Event] = []
    tell, start = kept.append if records else emit, perf_counter()
    if tell is not None:
        tell(TaskStarted(task=task, start=start))
    yield tell, kept
    if tell is not None:
        tell(TaskDone(task=task, start=start))
