"""Running a plan: on this machine's threads, or on any `concurrent.futures.Executor`."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Protocol

from cqs.backend import Threads, compute_threads
from cqs.checks import whole_number
from cqs.errors import OptionError
from cqs.machine import available_cpus
from cqs.schedule import Plan
from cqs.worker import TaskResult, Worker

__all__ = ["Accept", "Engine", "ExecutorEngine", "LocalEngine", "as_engine"]


# Takes one result; a `Tiler.add`, say
Accept = Callable[[TaskResult], object]


class Engine(Protocol):
    """Anything that runs the tasks of a plan."""

    def run(self, plan: Plan, worker: Worker, accept: Accept) -> None:
        """Run every task once and pass each result to `accept`, one at a time, in any order and from any thread."""


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """Threads of this process.

    Parameters
    ----------
    threads : int
        By default the number of CPUs this process may run on.
    """

    threads: int = field(default_factory=available_cpus)

    def __post_init__(self) -> None:
        object.__setattr__(self, "threads", whole_number("threads", self.threads, 1, "leave it out for one a CPU"))

    def run(self, plan: Plan, worker: Worker, accept: Accept) -> None:
        """Pass on results in the plan's order, holding at most two for each thread.

        As many tasks as can be divided evenly run one to a thread, and the thread that completes the order passes the
        results on: no thread has to wake another. Each of the rest runs on all threads.
        """
        n_alone = len(plan) - len(plan) % self.threads if self.threads > 1 else 0
        turns = _Turns(accept, most_ahead=self.threads)

        def work(i: int, _: object) -> None:
            try:
                turns.add(i, worker.run(plan.task(i)))
            except BaseException:
                turns.close()
                raise

        with compute_threads():
            own = Threads()  # a source may itself call `attention`, whose kernels must not wait for these
            try:
                own.share(range(n_alone), work, self.threads)
            finally:
                own.shutdown()
            for i in range(n_alone, len(plan)):
                accept(worker.run(plan.task(i), self.threads))


class _Turns:
    """Passes results on in the order of their tasks, and holds up a thread that is too far ahead of the others."""

    def __init__(self, accept: Accept, most_ahead: int) -> None:
        self._accept = accept
        self._most_ahead = most_ahead
        self._waiting: dict[int, TaskResult] = {}
        self._next = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def add(self, i: int, result: TaskResult) -> None:
        """Take the result of task i, and pass on all whose turn it is."""
        with self._changed:
            self._waiting[i] = result
            while self._next in self._waiting and not self._is_closed:
                self._accept(self._waiting.pop(self._next))
                self._next += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_closed or i < self._next + self._most_ahead)

    def close(self) -> None:
        """Let every thread go on: nothing is passed on any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class ExecutorEngine:
    """Any `concurrent.futures.Executor`: processes, Dask's `Client.get_executor()`, MPI.

    The worker is pickled with each task when the executor's workers are other processes, arrays included.

    Parameters
    ----------
    executor : Executor
        It is used, not closed.
    in_flight : int
        Most tasks submitted and not yet merged; it bounds the memory that waiting results hold.
    """

    executor: Executor
    in_flight: int = field(default_factory=lambda: 2 * available_cpus())

    def __post_init__(self) -> None:
        remedy = "leave it out for two a CPU"
        object.__setattr__(self, "in_flight", whole_number("in_flight", self.in_flight, 1, remedy))

    def run(self, plan: Plan, worker: Worker, accept: Accept) -> None:
        """Pass on results in the plan's order."""
        pending: deque[Future[TaskResult]] = deque()
        try:
            for task in plan.tasks():
                pending.append(self.executor.submit(worker.run, task))
                if len(pending) == self.in_flight:
                    accept(pending.popleft().result())
            while pending:
                accept(pending.popleft().result())
        finally:
            for future in pending:
                future.cancel()


def as_engine(engine: "Engine | Executor | None") -> Engine:
    """Return the engine that an `engine=` argument means: None is `LocalEngine()`.

    Raises
    ------
    OptionError
        If it is neither an engine nor an executor.
    """
    if engine is None:
        return LocalEngine()
    if isinstance(engine, Executor):
        return ExecutorEngine(engine)
    if isinstance(engine, type) or not callable(getattr(engine, "run", None)):
        rule = "be an engine from `cqs.engines` or a `concurrent.futures.Executor`"
        raise OptionError.of("engine", rule, repr(engine), "leave it out to use this machine's threads")
    return engine
