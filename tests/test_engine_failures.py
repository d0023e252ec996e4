"""What goes wrong in a run is raised, and nothing is left behind."""

import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from engine_cases import BrokenError, BrokenSource, ShuffledEngine, on_one_thread, output, planned, results_of

import cqs
from cqs.backend import compute_threads
from cqs.engines import ExecutorEngine, LocalEngine
from cqs.errors import OptionError
from cqs.masks import Predicate
from cqs.worker import TaskResult

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


def engines() -> dict[str, Any]:
    return {f"{n} threads": LocalEngine(n) for n in (1, 2, 3, 5)} | {"shuffled": ShuffledEngine(1)}


@pytest.mark.parametrize("engine", engines())
def test_an_error_in_a_task_is_raised_and_ends_every_thread(engine: str) -> None:
    before = set(threading.enumerate())
    with pytest.raises(BrokenError, match="group"):
        results_of(engines()[engine], source=BrokenSource)
    assert set(threading.enumerate()) <= before
    assert output("many small tasks", engines()[engine]) == on_one_thread("many small tasks")


def test_an_error_in_a_task_of_a_pool_is_raised_and_cancels_what_waits() -> None:
    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(BrokenError, match="group"):
            results_of(ExecutorEngine(pool), source=BrokenSource)
        assert output("many small tasks", pool) == on_one_thread("many small tasks")


def test_an_error_in_another_process_is_raised(processes: ProcessPoolExecutor) -> None:
    with pytest.raises(BrokenError, match="group"):
        results_of(ExecutorEngine(processes), source=BrokenSource)
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
def test_a_run_whose_results_are_refused_ends_its_threads(n_threads: int, n_results: int) -> None:
    before, taken = set(threading.enumerate()), []

    def accept(result: TaskResult) -> None:
        if len(taken) == n_results:
            raise BrokenError("enough")
        taken.append(result)

    with pytest.raises(BrokenError, match="enough"):
        LocalEngine(n_threads).run(*planned(), accept)
    assert len(taken) == n_results
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_an_error_in_progress_is_raised_and_ends_every_thread(n_threads: int) -> None:
    def fail(done: int, total: int) -> None:
        raise BrokenError(f"{done} of {total}")

    before = set(threading.enumerate())
    with pytest.raises(BrokenError, match="1 of 31"):
        output("many small tasks", LocalEngine(n_threads), progress=fail)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("option", ["score_mod", "mask"])
def test_a_function_that_cannot_be_pickled_is_refused(option: str, processes: ProcessPoolExecutor) -> None:
    def unnamed(*of: Any) -> Any:
        return of[0]

    options = {option: unnamed if option == "score_mod" else Predicate(lambda b, h, q_idx, k_idx: q_idx >= k_idx)}
    x = np.ones((2, 64, 8), np.float32)
    with pytest.raises(OptionError, match=r"`engine` must be able to pickle .* with `def`, at the top of a module"):
        cqs.attention(x, x, x, workers=3, engine=processes, **options)
