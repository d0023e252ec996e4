"""Running a plan on devices: GPUs, each with a thread of its own, and no traffic between them."""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from cqs.backend import Device, Download, Session, TimedSession, dtype_of, numbered, quiet_floats, stopped_by
from cqs.engines.turns import Accept, Turns
from cqs.errors import OptionError
from cqs.events import DeviceBusy, Event
from cqs.partial import Partial
from cqs.reading import Direct, Feed, ReadAhead
from cqs.schedule import Plan, Read, Task
from cqs.staging import DeviceSource, Uploads
from cqs.types import DType
from cqs.worker import TaskResult, Worker

__all__ = ["DeviceEngine"]

_HOST_BYTES = 256 << 20  # of inputs on disk that are read ahead, for each device
_MOST_AHEAD = 2  # tasks that one of several devices draws beyond the one it computes: one is copied, one is read


@dataclass(frozen=True, slots=True)
class DeviceEngine:
    """Devices that draw tasks from one list: whoever is done takes the next, and may have two more on their way.

    Parameters
    ----------
    devices : tuple of Device
        At least one.
    reads_ahead : bool
        Whether inputs are worth reading ahead in a thread, as from a file.
    """

    devices: tuple[Device, ...]
    reads_ahead: bool = False

    def __post_init__(self) -> None:
        if not self.devices:
            raise OptionError.of("devices", "name at least one device", "none", "leave it out for the first GPU")

    def run(self, plan: Plan, worker: Worker, accept: Accept, tasks: Sequence[int] | None = None) -> None:
        """Pass on results in the plan's order, in the memory of the machine, unless their sums stay on the device."""
        drawn = _Drawn(plan, range(len(plan)) if tasks is None else tasks, len(self.devices))
        if len(self.devices) == 1:
            self._run_on(self.devices[0], self.devices[0].name, drawn, worker, accept)
        else:
            self._run_on_all(drawn, worker, accept)

    def _run_on_all(self, drawn: "_Drawn", worker: Worker, accept: Accept) -> None:
        """Give each device a thread; the results come in the plan's order."""
        turns, stop = Turns(accept, drawn.tasks, most_ahead=2 * len(self.devices)), threading.Event()
        failures: list[BaseException] = []

        def work(device: Device, name: str) -> None:
            try:
                with stopped_by(stop), quiet_floats():
                    self._run_on(device, name, drawn, worker, turns.add)
            except BaseException as error:
                failures.append(error)
                drawn.close()
                turns.close()

        named = zip(self.devices, numbered(device.name for device in self.devices), strict=True)
        threads = [threading.Thread(target=work, args=(device, name), name=f"cqs-{name}") for device, name in named]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:  # interrupted
            stop.set()
            drawn.close()
            turns.close()
            for thread in threads:
                thread.join()
            raise
        if failures:
            raise failures[0]

    def _run_on(self, device: Device, name: str, drawn: "_Drawn", worker: Worker, pass_on: Accept) -> None:
        """Run the tasks that one device draws; `name` is its own in this run."""
        plan, mine = drawn.plan, drawn.share()
        with device.opened(plan.setting.memory) as session, ExitStack() as reading:
            own = replace(worker, source=DeviceSource(worker.source, session))
            host: Feed = Direct(worker.source, worker.emit)
            if self.reads_ahead:
                ahead = ReadAhead(worker.source, mine.reads(), _HOST_BYTES, worker.emit)
                host = reading.enter_context(ahead.running())
                reading.callback(mine.close)  # before reading ends, which may wait for a task
            feed = Uploads(session, host, mine.reads_so_far(), plan.slot_bytes, worker.emit)
            timed = session if worker.emit is not None and isinstance(session, TimedSession) else None
            if timed is not None and worker.emit is not None:
                timed.listen(_renamed(worker.emit, device.name, name))
            results = (_timed(own, timed, task).run(task, feed=feed) for task in mine.tasks())
            dtype = dtype_of(session.xp, plan.result_dtype)
            for result in results if plan.keeps_sums_on_device else _returned(results, session, dtype):
                # what is merged on the device is computed there; complete rows come back, too, which is not
                is_merged = plan.keeps_sums_on_device and not plan.completes(result.task.index)
                with timed.timed(result.task.index) if timed is not None and is_merged else nullcontext():
                    pass_on(result)


def _renamed(emit: Callable[[Event], object], before: str, name: str) -> Callable[[Event], object]:
    """Return a listener that tells of a device by another name, if it has one."""

    def rename(event: Event) -> None:
        if isinstance(event, DeviceBusy):
            event = replace(event, device=name, lane=f"{name} {event.what}")
        emit(event)

    return emit if name == before else rename


def _timed(worker: Worker, timed: TimedSession | None, task: Task) -> Worker:
    """Return a worker whose kernel calls for a task are timed on the device, if it can and somebody listens."""
    if timed is None:
        return worker

    def attend(*args: Any, **options: Any) -> Partial:
        with timed.timed(task.index):
            return worker.attend(*args, **options)

    return replace(worker, attend=attend)


def _returned(results: Iterator[TaskResult], session: Session, dtype: DType) -> Iterator[TaskResult]:
    """Yield results as they come back from a device, rounded to a type, each while the next is computed."""
    last: _Return | None = None
    for result in results:
        returning = _Return.of(result, session, dtype)
        del result
        if last is not None:
            yield last.result()
        last = returning
    if last is not None:
        yield last.result()


@dataclass(frozen=True, slots=True, eq=False)
class _Return:
    """A result on its way back from a device."""

    task: Task
    downloads: tuple[tuple[Download, ...], ...]  # output, log-sum-exp and its rest, if there is one
    has_scores: bool

    @classmethod
    def of(cls, result: TaskResult, session: Session, dtype: DType) -> "_Return":
        astype = session.xp.astype
        parts = ((astype(p.out, dtype, copy=False), p.lse, p.rest) for p in result.partials)
        downloads = tuple(tuple(session.download(x) for x in part if x is not None) for part in parts)
        return cls(result.task, downloads, result.has_scores)

    def result(self) -> TaskResult:
        """Wait for it."""
        partials = tuple(Partial(*(part.result() for part in parts)) for parts in self.downloads)
        return TaskResult(self.task, partials, has_scores=self.has_scores)


class _Drawn:
    """The list of tasks that devices draw from, each a little ahead of what it computes."""

    def __init__(self, plan: Plan, tasks: Sequence[int], n_devices: int) -> None:
        self.plan = plan
        self.tasks = tasks
        self.is_closed = False
        self._n_devices = n_devices
        self._n_drawn = 0
        self._lock = threading.Lock()

    def next(self) -> int | None:
        """Draw a task; None if there are no more."""
        with self._lock:
            if self.is_closed or self._n_drawn == len(self.tasks):
                return None
            self._n_drawn += 1
            return self.tasks[self._n_drawn - 1]

    def may_draw(self, n_ahead: int) -> bool:
        """Whether a device may draw its so-manyth task beyond the one it computes: if the others find as many."""
        if self._n_devices == 1:
            return True
        return n_ahead <= _MOST_AHEAD and len(self.tasks) - self._n_drawn >= n_ahead * self._n_devices

    def close(self) -> None:
        """Let nobody draw any more, nor begin what was drawn."""
        with self._lock:
            self.is_closed = True

    def share(self) -> "_Share":
        """Return a share that draws when it is read."""
        return _Share(self)


class _Share:
    """The tasks of one device, drawn a little before it computes them. Read in several places, from any thread."""

    def __init__(self, drawn: _Drawn) -> None:
        self._drawn = drawn
        self._mine: list[int | None] = []
        self._n_begun = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def tasks(self) -> Iterator[Task]:
        """Yield its tasks to whoever computes them: each is begun when the one before it is done."""
        for n in itertools.count():
            with self._changed:
                self._n_begun = n + 1
                self._changed.notify_all()
                index = self._nth(n)
            if index is None or self._drawn.is_closed:
                return
            yield self._drawn.plan.task(index)

    def reads(self) -> Iterator[tuple[int, Read, int]]:
        """Yield what is read for its tasks; wait where a task may not be drawn yet."""
        for n in itertools.count():
            with self._changed:
                while not (self._is_closed or self._may_know(n)):
                    self._changed.wait()
                index = None if self._is_closed else self._nth(n)
            if index is None:
                return
            yield from self._drawn.plan.reads_of(self._drawn.plan.task(index))

    def reads_so_far(self) -> Iterator[tuple[int, Read, int] | None]:
        """Yield what is read for its tasks, and None as long as a task may not be drawn yet."""
        for n in itertools.count():
            while not self._may_know(n):
                yield None
            with self._changed:
                index = self._nth(n)
            if index is None:
                return
            yield from self._drawn.plan.reads_of(self._drawn.plan.task(index))

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _may_know(self, n: int) -> bool:
        """Whether its n-th task is drawn, or may be."""
        return n < max(len(self._mine), self._n_begun) or self._drawn.may_draw(n + 1 - self._n_begun)

    def _nth(self, n: int) -> int | None:
        """Return the number of its n-th task, drawn if it is not yet; None after the last."""
        if n == len(self._mine):
            self._mine.append(self._drawn.next())
            self._changed.notify_all()
        return self._mine[n]
