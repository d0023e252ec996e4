"""Engines: bitwise the same output from every one, and nothing left behind, whatever goes wrong."""

import multiprocessing
import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

import cqs
from cqs.backend import Threads, blas_libraries, compute_threads, single_threaded_blas
from cqs.engines import ExecutorEngine, LocalEngine, as_engine
from cqs.errors import OptionError
from cqs.kernels import KERNELS
from cqs.schedule import Group, Plan
from cqs.sources import ArraySource
from cqs.worker import TaskResult, Worker

# Large enough that a task alone is shared out over threads, small enough to take a fraction of a second
PROBLEMS = {
    "many small tasks": {"shape": (2, 300, 8), "workers": 31},
    "even tasks": {"shape": (4, 900, 32), "workers": 6},
    "tasks on all threads": {"shape": (8, 1600, 64), "workers": 1},
    "a remainder on all threads": {"shape": (8, 1600, 64), "workers": 3},
}


def arrays(name: str) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(PROBLEMS[name]["shape"], dtype=np.float32) for _ in range(3)]


def output(name: str, engine: Any = None, is_causal: bool = True, **options: Any) -> tuple[bytes, bytes]:
    workers = PROBLEMS[name]["workers"]
    options |= {"engine": engine, "workers": workers, "is_causal": is_causal, "return_lse": True}
    out, lse = cqs.attention(*arrays(name), **options)
    return out.tobytes(), lse.tobytes()


@cache
def on_one_thread(name: str, is_causal: bool = True) -> tuple[bytes, bytes]:
    return output(name, LocalEngine(1), is_causal)


def planned(name: str = "many small tasks", source: type = ArraySource) -> tuple[Plan, Worker]:
    q, k, v = arrays(name)
    plan = cqs.plan(q, k, v, workers=PROBLEMS[name]["workers"])
    return plan, Worker(plan.problem, source(q, k, v), KERNELS["numpy"].attend)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """No thread outlives a test, and BLAS has the threads that it had."""
    threads, libraries = set(threading.enumerate()), blas_libraries()
    yield
    assert set(threading.enumerate()) <= threads
    assert blas_libraries()[: len(libraries)] == libraries


class LazyFuture(Future):
    """Asks its executor to work when somebody wants the result."""

    def __init__(self, executor: "ShufflingExecutor") -> None:
        super().__init__()
        self._executor = executor

    def result(self, timeout: float | None = None) -> Any:
        self._executor.work()
        return super().result(timeout)


class ShufflingExecutor(Executor):
    """Finishes what was submitted in an order of its own, and no sooner than somebody waits for it."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._waiting: list[tuple[LazyFuture, Any, tuple]] = []
        self.finished: list[int] = []

    def submit(self, fn, /, *args) -> LazyFuture:
        future = LazyFuture(self)
        self._waiting.append((future, fn, args))
        return future

    def work(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._random.shuffle(waiting)
        for future, fn, args in waiting:
            self.finished.append(args[0].index)
            if not future.cancelled():
                future.set_result(fn(*args))


@dataclass
class ShuffledEngine:
    """An engine of one's own, which hands results back in any order."""

    seed: int

    def run(self, plan: Plan, worker: Worker) -> Iterator[TaskResult]:
        tasks = list(plan.tasks())
        random.Random(self.seed).shuffle(tasks)
        return map(worker.run, tasks)


# The same bits


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("name", PROBLEMS)
def test_any_number_of_threads_gives_the_same_bits(name: str, threads: int, is_causal: bool) -> None:
    assert output(name, LocalEngine(threads), is_causal) == on_one_thread(name, is_causal)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_default_engine_gives_the_same_bits(name: str) -> None:
    assert output(name) == on_one_thread(name)


@pytest.mark.parametrize("in_flight", [1, 2, 100])
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_pool_of_threads_gives_the_same_bits(name: str, in_flight: int) -> None:
    expected = on_one_thread(name)
    with ThreadPoolExecutor(3) as pool:
        assert output(name, pool) == expected
        assert output(name, ExecutorEngine(pool, in_flight)) == expected
        assert pool.submit(int).result() == 0  # it is used, not closed


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(int, range(4)))  # its own threads start here, not in a test
        yield pool


@pytest.mark.parametrize("name", ["many small tasks", "even tasks"])
def test_a_pool_of_processes_gives_the_same_bits(name: str, processes: ProcessPoolExecutor) -> None:
    assert output(name, processes) == on_one_thread(name)
    assert output(name, ExecutorEngine(processes, in_flight=1)) == on_one_thread(name)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("in_flight", [1, 4, 100])
def test_an_executor_that_finishes_tasks_in_any_order_gives_the_same_bits(seed: int, in_flight: int) -> None:
    executor = ShufflingExecutor(seed)
    assert output("many small tasks", ExecutorEngine(executor, in_flight)) == on_one_thread("many small tasks")
    assert sorted(executor.finished) == list(range(31))
    assert (executor.finished == sorted(executor.finished)) == (in_flight == 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["many small tasks", "even tasks"])
def test_an_engine_that_hands_results_back_in_any_order_gives_the_same_bits(name: str, seed: int) -> None:
    assert output(name, ShuffledEngine(seed)) == on_one_thread(name)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_same_call_gives_the_same_bits_again(name: str) -> None:
    assert len({output(name, LocalEngine(2)) for _ in range(5)}) == 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_gives_the_same_bits_on_any_number_of_threads(kernel: str) -> None:
    outputs = [output("many small tasks", LocalEngine(n), kernel=kernel) for n in (1, 2, 5)]
    assert len(set(outputs)) == 1


@pytest.mark.parametrize(
    "engine",
    [LocalEngine(1), LocalEngine(3), ExecutorEngine(ShufflingExecutor(0))],
    ids=["one thread", "three threads", "shuffled"],
)
def test_every_task_is_run_once(engine: Any) -> None:
    plan, worker = planned()
    results = list(engine.run(plan, worker))
    assert sorted(result.task.index for result in results) == list(range(len(plan)))
    assert all(result.task == plan.task(result.task.index) for result in results)


@pytest.mark.parametrize("name", ["tasks on all threads", "a remainder on all threads"])
def test_a_large_task_is_shared_out_over_the_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, share = [], Threads.share

    def spy(self: Threads, items: Any, work: Any, n_threads: int) -> None:
        shared.append(min(n_threads, len(items)))
        share(self, items, work, n_threads)

    monkeypatch.setattr(Threads, "share", spy)
    output(name, LocalEngine(2))
    assert 2 in shared


# Progress


@pytest.mark.parametrize("threads", [1, 3])
def test_progress_counts_every_task(threads: int) -> None:
    told = []
    output("many small tasks", LocalEngine(threads), progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 31) for i in range(1, 32)]


# What goes wrong


class BrokenError(Exception):
    """What a broken source raises."""


class BrokenSource(ArraySource):
    """Fails on the groups from the twelfth."""

    def queries(self, group: Group) -> Any:
        if group.index >= 12:
            raise BrokenError(f"group {group.index}")
        return super().queries(group)


def engines() -> dict[str, Any]:
    return {f"{n} threads": LocalEngine(n) for n in (1, 2, 3, 5)} | {"shuffled": ShuffledEngine(1)}


@pytest.mark.parametrize("engine", engines())
def test_an_error_in_a_task_is_raised_and_ends_every_thread(engine: str) -> None:
    before = set(threading.enumerate())
    with pytest.raises(BrokenError, match="group"):
        list(engines()[engine].run(*planned(source=BrokenSource)))
    assert set(threading.enumerate()) <= before
    assert output("many small tasks", engines()[engine]) == on_one_thread("many small tasks")


def test_an_error_in_a_task_of_a_pool_is_raised_and_cancels_what_waits() -> None:
    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(BrokenError, match="group"):
            list(ExecutorEngine(pool).run(*planned(source=BrokenSource)))
        assert output("many small tasks", pool) == on_one_thread("many small tasks")


def test_an_error_in_another_process_is_raised(processes: ProcessPoolExecutor) -> None:
    with pytest.raises(BrokenError, match="group"):
        list(ExecutorEngine(processes).run(*planned(source=BrokenSource)))
    assert output("many small tasks", processes) == on_one_thread("many small tasks")


def failing_share(n_threads: int, bad: int) -> int:
    """Share 300 pieces of which one fails; return how many were done. The first two are on two threads at once."""
    done: list[int] = []
    both = threading.Barrier(min(n_threads, 2))

    def work(item: int, space: object) -> None:
        if item < 2:
            both.wait()
        if item == bad:
            raise BrokenError(f"item {item}")
        time.sleep(0.001)
        done.append(item)

    with compute_threads() as threads:
        with pytest.raises(BrokenError, match=f"item {bad}"):
            threads.share(range(300), work, n_threads)
        n_done = len(done)
        threads.share(range(2, 20), work, n_threads)  # the threads are still good
        assert set(range(2, 20)) <= set(done[n_done:])
    return n_done


@pytest.mark.parametrize("bad", [0, 1, 20, 299])
@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_an_error_in_a_piece_of_shared_work_is_raised(n_threads: int, bad: int) -> None:
    failing_share(n_threads, bad)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_an_error_in_a_piece_of_shared_work_ends_the_sharing_soon(n_threads: int) -> None:
    assert max(failing_share(n_threads, bad) for bad in (0, 1)) < 100


@pytest.mark.parametrize("n_results", [0, 1, 5])
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_a_run_that_is_given_up_ends_its_threads(n_threads: int, n_results: int) -> None:
    before = set(threading.enumerate())
    run = LocalEngine(n_threads).run(*planned())
    for _ in range(n_results):
        next(run)
    run.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_an_error_in_progress_is_raised_and_ends_every_thread(n_threads: int) -> None:
    def fail(done: int, total: int) -> None:
        raise BrokenError(f"{done} of {total}")

    before = set(threading.enumerate())
    with pytest.raises(BrokenError, match="1 of 31"):
        output("many small tasks", LocalEngine(n_threads), progress=fail)
    assert set(threading.enumerate()) <= before


# BLAS


def blas_threads() -> list[int]:
    return [library.n_threads for library in blas_libraries()]


def test_blas_has_one_thread_during_a_run_and_its_own_afterwards() -> None:
    before, during = blas_threads(), []
    output("many small tasks", LocalEngine(2), progress=lambda done, total: during.append(blas_threads()))
    assert before
    assert all(n == 1 for counts in during for n in counts)
    assert blas_threads() == before


def test_blas_is_restored_when_the_last_of_those_who_limit_it_leaves() -> None:
    before = blas_threads()
    with single_threaded_blas():
        with single_threaded_blas():
            assert set(blas_threads()) == {1}
        assert set(blas_threads()) == {1}
    assert blas_threads() == before


def test_blas_is_limited_by_any_thread_and_restored_by_any_other() -> None:
    before = blas_threads()
    with single_threaded_blas():  # by this thread first
        pass
    with ThreadPoolExecutor(1) as pool, ExitStack() as elsewhere:
        pool.submit(elsewhere.enter_context, single_threaded_blas()).result()
        assert set(blas_threads()) == {1}
        with single_threaded_blas():
            pool.submit(elsewhere.close).result()
            assert set(blas_threads()) == {1}
        assert blas_threads() == before


@pytest.mark.parametrize("n_threads", [1, 3])
def test_blas_is_restored_after_an_error_in_a_task(n_threads: int) -> None:
    before = blas_threads()
    with pytest.raises(BrokenError):
        list(LocalEngine(n_threads).run(*planned(source=BrokenSource)))
    assert blas_threads() == before


# Calls at the same time


@pytest.mark.parametrize("engines", [[None] * 4, [LocalEngine(n) for n in (1, 2, 2, 3)]], ids=["default", "mixed"])
def test_calls_from_several_threads_at_once_give_the_same_bits(engines: list[Any]) -> None:
    before, start = blas_threads(), threading.Barrier(len(engines))
    names = ["many small tasks", "even tasks", "a remainder on all threads"]
    expected = [on_one_thread(name) for name in names]

    def call(engine: Any) -> list[tuple[bytes, bytes]]:
        start.wait()
        return [output(name, engine) for name in names]

    with ThreadPoolExecutor(len(engines)) as pool:
        for outputs in pool.map(call, engines):
            assert outputs == expected
    assert blas_threads() == before


@pytest.mark.parametrize("inner", [1, 2, 3])
@pytest.mark.parametrize("outer", [1, 2])
def test_a_call_from_within_a_call_gives_the_same_bits(outer: int, inner: int) -> None:
    nested = set()
    expected = on_one_thread("many small tasks")
    progress = lambda done, total: nested.add(output("even tasks", LocalEngine(inner)))  # noqa: E731
    assert output("many small tasks", LocalEngine(outer), progress=progress) == expected
    assert nested == {on_one_thread("even tasks")}


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_a_call_from_within_a_task_gives_the_same_bits(n_threads: int) -> None:
    nested = set()

    class NestedSource(ArraySource):
        def queries(self, group: Group) -> Any:
            if group.index == 3:
                nested.add(output("a remainder on all threads", LocalEngine(n_threads)))
            return super().queries(group)

    results = list(LocalEngine(n_threads).run(*planned(source=NestedSource)))
    assert len(results) == 31
    assert nested == {on_one_thread("a remainder on all threads")}


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="fork is not to be relied on here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_forked_during_a_run_computes_on_threads_of_its_own() -> None:
    fork, name = multiprocessing.get_context("fork"), "a remainder on all threads"
    expected, both = on_one_thread(name), threading.Barrier(2)
    receiver, sender = fork.Pipe(duplex=False)
    own = blas_threads()
    child = fork.Process(target=lambda: sender.send((output(name, LocalEngine(2)) == expected, blas_threads() == own)))
    with compute_threads() as threads:
        threads.share(range(2), lambda item, space: both.wait(), 2)  # starts both threads; a child has neither
        child.start()
        try:
            assert receiver.poll(60), "the child waits for threads that it does not have"
            assert receiver.recv() == (True, True)  # nor is BLAS limited there any more
        finally:
            child.kill()
            child.join()


# What is refused


@pytest.mark.parametrize("number", [0, -1, 1.5, 2.0, "2", None, True], ids=repr)
@pytest.mark.parametrize(
    ("name", "make"), [("threads", LocalEngine), ("in_flight", lambda n: ExecutorEngine(ShufflingExecutor(0), n))]
)
def test_threads_and_tasks_in_flight_are_refused_unless_whole_and_at_least_one(name: str, make, number: Any) -> None:
    with pytest.raises(OptionError, match=rf"`{name}` must be a whole number of at least 1, got {number!r};"):
        make(number)


def test_threads_may_be_any_kind_of_integer() -> None:
    assert LocalEngine(np.int64(2)) == LocalEngine(2)


@pytest.mark.parametrize("engine", ["threads", 3, ..., [LocalEngine()], {"run": 1}, LocalEngine], ids=str)
def test_what_cannot_run_a_plan_is_refused_as_an_engine(engine: Any) -> None:
    rule = r"`engine` must be an engine from `cqs\.engines` or a `concurrent\.futures\.Executor`, got"
    with pytest.raises(OptionError, match=rule):
        as_engine(engine)
    with pytest.raises(OptionError, match=rule):
        cqs.attention(*arrays("many small tasks"), engine=engine)


def test_an_engine_argument_may_be_nothing_an_executor_or_anything_that_runs() -> None:
    assert as_engine(None) == LocalEngine()
    assert as_engine(engine := ShuffledEngine(0)) is engine
    assert as_engine(executor := ShufflingExecutor(0)).executor is executor
