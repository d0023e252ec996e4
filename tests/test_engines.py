"""Engines: bitwise the same output from every one, told as it comes, and what is no engine."""

import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from engine_cases import (
    PROBLEMS,
    ShuffledEngine,
    ShufflingExecutor,
    arrays,
    on_one_thread,
    output,
    planned,
    results_of,
)
from problems import ON_NUMPY

import cqs
from cqs.backend import Threads
from cqs.engines import ExecutorEngine, LocalEngine, as_engine
from cqs.errors import OptionError
from cqs.schedule import Task
from cqs.worker import TaskResult

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


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


def test_an_executor_gets_no_more_tasks_than_the_plan_has_memory_for() -> None:
    class Counting(ShufflingExecutor):
        most = 0

        def submit(self, fn, /, *args):
            future = super().submit(fn, *args)
            self.most = max(self.most, len(self._waiting))
            return future

    q = np.zeros((2, 4000, 16), np.float32)
    executor = Counting(0)
    options: dict[str, Any] = {"engine": ExecutorEngine(executor, in_flight=8), "workers": 21, "memory": "4.5 MiB"}
    in_flight = cqs.plan(q, q, q, **options).setting.in_flight
    assert 1 <= in_flight < 8
    cqs.attention(q, q, q, **options)
    assert executor.most == in_flight


def test_anything_that_submits_is_an_executor() -> None:
    class Own:
        def __init__(self) -> None:
            self.pool = ThreadPoolExecutor(1)

        def submit(self, *given: Any, **options: Any) -> Any:
            return self.pool.submit(*given, **options)

    own = Own()
    with own.pool:
        assert isinstance(as_engine(own), ExecutorEngine)
        x = np.ones((1, 50, 4), np.float32)
        np.testing.assert_allclose(cqs.attention(x, x, x, workers=3, engine=own), x, rtol=1e-6)


@pytest.mark.parametrize("kernel", ["numpy", "blockwise", "reference"])
def test_every_kernel_gives_the_same_bits_in_an_executor_and_step_by_step(kernel: str) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 300, 64)).astype(np.float32)
    options: dict[str, Any] = {"workers": 3, "kernel": kernel}
    out = cqs.attention(q, k, v, **options, engine=LocalEngine(1))
    with ThreadPoolExecutor(2) as pool:
        assert out.tobytes() == cqs.attention(q, k, v, **options, engine=pool).tobytes()
    plan = cqs.plan(q, k, v, **options)
    worker = cqs.Worker(plan.problem, cqs.ArraySource(q, k, v), cqs.kernels.KERNELS[kernel].attend, grain=plan.grain)
    tiler = cqs.Tiler(plan, np.empty_like(q))
    for task in plan.tasks():
        tiler.add(worker.run(task))
    assert out.tobytes() == tiler.result().out.tobytes()


@pytest.mark.parametrize("kernel", ON_NUMPY)
def test_every_kernel_gives_the_same_bits_on_any_number_of_threads(kernel: str) -> None:
    outputs = [output("many small tasks", LocalEngine(n), kernel=kernel) for n in (1, 2, 5)]
    assert len(set(outputs)) == 1


@pytest.mark.parametrize(
    "engine",
    [LocalEngine(1), LocalEngine(3), ExecutorEngine(ShufflingExecutor(0))],
    ids=["one thread", "three threads", "shuffled"],
)
def test_every_task_is_run_once(engine: Any) -> None:
    plan, _ = planned()
    results = results_of(engine)
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


@pytest.mark.parametrize("n_threads", [2, 3, 5])
def test_a_thread_does_not_run_far_ahead_of_the_others(n_threads: int) -> None:
    started: list[int] = []
    accepted: list[int] = []
    ahead: list[int] = []
    waits = threading.Event()

    class SlowAtFirst:
        def run(self, task: Task, threads: int = 1) -> TaskResult:
            started.append(task.index)
            if task.index == 0:
                waits.wait(0.2)  # nobody sets it: time for the others to go as far as they may
                ahead.append(max(started))
            return TaskResult(task, ())

    plan, _ = planned()
    LocalEngine(n_threads).run(plan, SlowAtFirst(), lambda result: accepted.append(result.task.index))
    assert accepted == list(range(len(plan)))
    assert ahead[0] < 2 * n_threads


# Progress


@pytest.mark.parametrize("threads", [1, 3])
def test_progress_counts_every_task(threads: int) -> None:
    told = []
    output("many small tasks", LocalEngine(threads), progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 31) for i in range(1, 32)]


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


@pytest.mark.parametrize("engine", ["threads", 3, ..., [LocalEngine(1)], {"run": 1}, LocalEngine], ids=str)
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


def test_an_engine_of_something_else_than_an_executor_is_refused() -> None:
    with pytest.raises(OptionError, match=r"`executor` must be a `concurrent.futures.Executor`, got None; as in"):
        ExecutorEngine(None)  # type: ignore[arg-type]
