"""Calls at the same time, within each other and in forked processes: the same bits, and BLAS as it was."""

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from engine_cases import (
    BrokenError,
    BrokenSource,
    blas_threads,
    on_one_thread,
    output,
    results_of,
)

from cqs.backend import Threads, blas, compute_threads, raise_if_stopped, single_threaded_blas
from cqs.engines import LocalEngine
from cqs.schedule import Group
from cqs.sources import ArraySource

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


# BLAS


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_a_forked_process_is_not_inside() -> None:
    before, (receiver, sender) = blas_threads(), os.pipe()
    with single_threaded_blas():
        child = os.fork()
        if child == 0:
            found = [blas_threads() == before]
    if child == 0:  # which has left now what it never entered
        with single_threaded_blas():
            found.append(set(blas_threads()) == {1})
        os.write(sender, bytes([*found, blas_threads() == before]))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(receiver, 10) == bytes([True, True, True])
    assert blas_threads() == before


def test_blas_is_as_before_if_it_cannot_be_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    before = blas_threads()

    def fail() -> None:
        raise BrokenError

    with monkeypatch.context() as patch:
        patch.setattr(blas, "_change", lambda limits: fail())
        with pytest.raises(BrokenError):
            single_threaded_blas().__enter__()
    with single_threaded_blas():
        assert set(blas_threads()) == {1}
    assert blas_threads() == before


@pytest.mark.parametrize("n_threads", [1, 3])
def test_blas_is_restored_after_an_error_in_a_task(n_threads: int) -> None:
    before = blas_threads()
    with pytest.raises(BrokenError):
        results_of(LocalEngine(n_threads), source=BrokenSource)
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

    results = results_of(LocalEngine(n_threads), source=NestedSource)
    assert len(results) == 31
    assert nested == {on_one_thread("a remainder on all threads")}


NESTED = """
import faulthandler
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import cqs

faulthandler.dump_traceback_later(60, exit=True)
rng = np.random.default_rng(0)
x, other = (rng.standard_normal((1, 2048, 64), dtype=np.float32) for _ in range(2))
local, n_calls = cqs.engines.LocalEngine(2), 0
expected = cqs.attention(other, other, other, workers=1, engine=local)


def call():
    global n_calls
    if n_calls >= 30:
        return
    found = cqs.attention(other, other, other, workers=1, engine=local)
    assert found.tobytes() == expected.tobytes()
    n_calls += 1


def score_mod(scores, b, h, q_idx, k_idx):
    {how}
    return scores


def visible(b, h, q_idx, k_idx):
    {how}
    return q_idx >= k_idx


options = {options}
cqs.attention(x, x, x, workers=1, memory="512 MiB", engine=local, **options)
print("calls" if n_calls else "no calls")
"""


IN_A_THREAD = "with ThreadPoolExecutor(1) as pool: pool.submit(call).result()"


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ("{'score_mod': score_mod}", "call()"),
        ("{'score_mod': score_mod}", IN_A_THREAD),
        ("{'mask': cqs.masks.Predicate(visible)}", "call()"),
    ],
    ids=["score", "score, in a thread", "mask"],
)
def test_a_call_from_within_a_score_or_a_mask_comes_back(options: str, how: str) -> None:
    script = NESTED.format(options=options, how=how)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "calls\n", done.stderr


WAITING = """
import faulthandler
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import cqs

faulthandler.dump_traceback_later(60, exit=True)
x, small = np.ones((1, 512, 8), np.float32), np.ones((1, 8, 8), np.float32)


def visible(b, h, q_idx, k_idx):
    pool.submit(cqs.attention, small, small, small).result()
    return q_idx >= k_idx


with ThreadPoolExecutor(1) as pool:
    cqs.attention(x, x, x, mask=cqs.masks.Predicate(visible))
print("done")
"""


def test_a_mask_may_wait_for_a_call_in_another_thread() -> None:
    done = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "done\n", done.stderr


def test_work_that_is_called_off_ends_what_it_has_shared_out_itself() -> None:
    inside, ended = threading.Event(), threading.Event()

    def inner(item: int, _: object) -> None:
        inside.set()
        while True:
            raise_if_stopped()

    def outer(item: int, _: object) -> None:
        if threading.current_thread() is threading.main_thread():
            inside.wait(60)
            raise BrokenError
        try:
            threads.share(range(2), inner, 2)
        finally:
            ended.set()

    threads = Threads()
    with pytest.raises(BrokenError):
        threads.share(range(2), outer, 2)
    assert ended.wait(60)
    threads.shutdown()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="fork is not to be relied on here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")  # the latter is JAX's
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
