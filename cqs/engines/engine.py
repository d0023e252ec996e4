"""Running a plan: on this machine's threads, or on any `concurrent.futures.Executor`."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from cqs.backend import compute_threads
from cqs.checks import whole_number
from cqs.errors import OptionError
from cqs.machine import available_cpus
from cqs.schedule import Plan, Task
from cqs.worker import TaskResult, Worker

__all__ = ["Engine", "ExecutorEngine", "LocalEngine", "as_engine"]


class Engine(Protocol):
    """Anything that runs the tasks of a plan."""

    def run(self, plan: Plan, worker: Worker) -> Iterator[TaskResult]:
        """Run every task once and yield its result; any order will do."""


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

    def run(self, plan: Plan, worker: Worker) -> Iterator[TaskResult]:
        """Yield results in the plan's order, holding at most one task a thread.

        As many tasks as can be divided evenly run one to a thread; each of the rest runs on all threads.
        """
        n_alone = len(plan) - len(plan) % self.threads if self.threads > 1 else 0
        with compute_threads():
            if n_alone:
                with ThreadPoolExecutor(self.threads, thread_name_prefix="cqs-task") as pool:
                    yield from _in_order(pool, self.threads, map(plan.task, range(n_alone)), worker)
            for i in range(n_alone, len(plan)):
                yield worker.run(plan.task(i), self.threads)


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

    def run(self, plan: Plan, worker: Worker) -> Iterator[TaskResult]:
        """Yield results in the plan's order."""
        return _in_order(self.executor, self.in_flight, plan.tasks(), worker)


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


def _in_order(executor: Executor, in_flight: int, tasks: Iterable[Task], worker: Worker) -> Iterator[TaskResult]:
    pending: deque[Future[TaskResult]] = deque()
    try:
        for task in tasks:
            pending.append(executor.submit(worker.run, task))
            if len(pending) == in_flight:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
