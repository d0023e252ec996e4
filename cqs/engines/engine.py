"""Running a plan: on this machine's threads, or on any `concurrent.futures.Executor`."""

import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pickle import PicklingError
from typing import Protocol, cast

from cqs.backend import Threads, compute_threads, stopped_by
from cqs.checks import whole_number
from cqs.engines.turns import Accept, Turns
from cqs.errors import OptionError
from cqs.machine import available_cpus
from cqs.reading import Feed, ReadAhead
from cqs.schedule import Plan
from cqs.worker import TaskResult, Worker

__all__ = ["Accept", "Engine", "ExecutorEngine", "LocalEngine", "as_engine", "concurrency"]


class Engine(Protocol):
    """Anything that runs the tasks of a plan."""

    def run(self, plan: Plan, worker: Worker, accept: Accept, tasks: Sequence[int] | None = None) -> None:
        """Run tasks once and pass each result to `accept`, one at a time, in any order and from any thread.

        Parameters
        ----------
        plan : Plan
            What the tasks are of.
        worker : Worker
            Runs one of them.
        accept : function
            Takes one result.
        tasks : sequence of int, optional
            Which tasks, in increasing order; by default all.
        """


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

    def run(self, plan: Plan, worker: Worker, accept: Accept, tasks: Sequence[int] | None = None) -> None:
        """Pass on results in the plan's order, holding at most two for each thread.

        If the plan has one task in flight, each runs on all threads, while the next inputs are read. Else as many tasks
        as can be divided evenly run one to a thread, and the thread that completes the order passes the results on: no
        thread has to wake another. Each of the rest runs on all threads.
        """
        tasks = range(len(plan)) if tasks is None else tasks
        if plan.setting.in_flight == 1:
            self._one_by_one(plan, worker, accept, tasks)
            return
        n_alone = len(tasks) - len(tasks) % self.threads if self.threads > 1 else 0
        turns = Turns(accept, tasks, most_ahead=self.threads)
        stop = threading.Event()

        def work(i: int, _: object) -> None:
            try:
                with stopped_by(stop):
                    turns.add(worker.run(plan.task(i)))
            except BaseException:
                turns.close()
                raise

        with compute_threads():
            own = Threads()  # a source may itself call `attention`, whose kernels must not wait for these
            try:
                own.share(tasks[:n_alone], work, self.threads)
            finally:
                stop.set()
                turns.close()
                own.shutdown()
            for i in tasks[n_alone:]:
                accept(worker.run(plan.task(i), self.threads))

    def _one_by_one(self, plan: Plan, worker: Worker, accept: Accept, tasks: Sequence[int]) -> None:
        """Run each task on all threads; inputs that are read into memory are read ahead."""
        threads = min(self.threads, plan.setting.threads)
        with compute_threads(), ExitStack() as reading:
            feed: Feed | None = None
            if plan.setting.is_staged:
                ahead = ReadAhead(worker.source, plan.reads(tasks), plan.footprint.inputs, worker.emit)
                feed = reading.enter_context(ahead.running())
            for i in tasks:
                accept(worker.run(plan.task(i), threads, feed))


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
        if not _has(self.executor, "submit"):
            rule, remedy = "be a `concurrent.futures.Executor`", "as in `ExecutorEngine(ThreadPoolExecutor(4))`"
            raise OptionError.of("executor", rule, repr(self.executor), remedy)
        remedy = "leave it out for two a CPU"
        object.__setattr__(self, "in_flight", whole_number("in_flight", self.in_flight, 1, remedy))

    def run(self, plan: Plan, worker: Worker, accept: Accept, tasks: Sequence[int] | None = None) -> None:
        """Pass on results in the plan's order, and what happened in a task when it is done."""
        pending: deque[Future[TaskResult]] = deque()
        most, emit = min(self.in_flight, plan.setting.in_flight), worker.emit
        # a listener cannot go to another process, but what it is to hear can come back
        sent = worker if emit is None else replace(worker, emit=None, records=True)

        def pass_on() -> None:
            with _pickling():
                result = pending.popleft().result()
            if emit is not None:
                for event in result.events:
                    emit(event)
            accept(result)

        try:
            for i in range(len(plan)) if tasks is None else tasks:
                pending.append(self.executor.submit(sent.run, plan.task(i)))
                if len(pending) == most:
                    pass_on()
            while pending:
                pass_on()
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def _pickling() -> Iterator[None]:
    try:
        yield
    except (PicklingError, AttributeError, TypeError) as error:
        if not re.match("can('t|not) (pickle|get local object)", str(error), re.IGNORECASE):
            raise
        rule = "be able to pickle what its workers are to run"
        remedy = "define the functions of a `score_mod` or `Predicate` with `def`, at the top of a module"
        raise OptionError.of("engine", rule, f"{type(error).__name__}: {error}", remedy) from error


def as_engine(engine: "Engine | Executor | None") -> Engine:
    """Return the engine that an `engine=` argument means: None is `LocalEngine()`.

    Raises
    ------
    OptionError
        If it is neither an engine nor an executor.
    """
    if engine is None:
        return LocalEngine()
    if isinstance(engine, Executor) or (_has(engine, "submit") and not _has(engine, "run")):
        return ExecutorEngine(cast(Executor, engine))
    if not _has(engine, "run"):
        rule = "be an engine from `cqs.engines` or a `concurrent.futures.Executor`"
        raise OptionError.of("engine", rule, repr(engine), "leave it out to use this machine's threads")
    return engine


def _has(engine: object, method: str) -> bool:
    return not isinstance(engine, type) and callable(getattr(engine, method, None))


def concurrency(engine: Engine, needs_little: bool) -> tuple[int, int]:
    """Return the threads that an engine computes on, and how many tasks it has in flight.

    With `needs_little`, threads of this process take one task together, and not each its own.
    """
    if isinstance(engine, ExecutorEngine):
        return 1, engine.in_flight
    threads = engine.threads if isinstance(engine, LocalEngine) else available_cpus()
    return threads, 1 if needs_little else threads
