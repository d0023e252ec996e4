"""Few queries against many keys, as where a model writes token by token: dot products, and tasks that cut the keys."""

import ctypes
import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

import cqs
from cqs import AttentionProblem, Scheduler
from cqs.masks import Causal, KeyLengths, Sinks, SlidingWindow
from cqs.schedule import CallShape, Setting, call_shape
from cqs.scores import ALiBi
from cqs.testing import assert_exact

pytest.importorskip("numba")


def inputs(H: int, G: int, T: int, S: int, D: int, E: int, dtype: object = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(H * T + S)
    return [rng.standard_normal(shape).astype(dtype) for shape in ((H, T, D), (G, S, D), (G, S, E))]


MASKS = {
    "none": lambda T, S: None,
    "at the end": lambda T, S: Causal(max(S - T, 0)),
    "window": lambda T, S: SlidingWindow(7, 0) | Sinks(2),
    "padding": lambda T, S: KeyLengths((S + 1) // 2),
    "pairs": lambda T, S: np.random.default_rng(S).random((T, S)) < 0.7,
}


@given(
    T=st.integers(1, 7),
    S=st.integers(1, 300),
    heads=st.sampled_from([(1, 1), (3, 3), (4, 2), (6, 1)]),
    widths=st.sampled_from([(16, 16), (64, 8), (32, 40), (48, 1), (20, 16), (7, 3)]),
    dtype=st.sampled_from([np.float32, np.float16, bfloat16]),
    mask=st.sampled_from(sorted(MASKS)),
    change=st.sampled_from([{}, {"softcap": 2.0}, {"bias": ALiBi.standard}, {"scale": 30.0}, {"scale": -0.1}]),
)
def test_few_queries_are_exact(T, S, heads, widths, dtype, mask, change) -> None:
    q, k, v = inputs(*heads, T, S, *widths, dtype)
    change = {name: value(heads[0]) if callable(value) else value for name, value in change.items()}
    out, lse = cqs.attention(
        q, k, v, strategy="tiles", mask=MASKS[mask](T, S), return_lse=True, kernel="numba", **change
    )
    assert_exact(out, q, k, v, lse=lse, mask=MASKS[mask](T, S), **change)


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("n_keys", [5, 37])
def test_special_numbers_go_where_they_go_with_many_queries(special: float, which: int, n_keys: int) -> None:
    arrays = inputs(2, 2, 2, n_keys, 16, 16)
    arrays[which][1, 1, 3] = special
    found = cqs.attention(*arrays, strategy="tiles", kernel="numba")
    np.testing.assert_allclose(found, cqs.attention(*arrays, strategy="tiles", kernel="numpy"), atol=1e-6)


@pytest.mark.parametrize("n_keys", [1, 15, 16, 17, 95, 96, 97, 113])
def test_keys_beyond_the_last_are_not_looked_at(n_keys: int) -> None:
    q, k, v = inputs(2, 2, 3, n_keys + 20, 32, 16)
    alone = [x[:, :n_keys].copy() for x in (k, v)]
    k[:, n_keys:] = v[:, n_keys:] = np.nan
    found, expected = (cqs.attention(q, *own, strategy="tiles") for own in ((k[:, :n_keys], v[:, :n_keys]), alone))
    assert np.array_equal(found, expected)
    assert np.isfinite(found).all()


def problem(H: int, G: int, T: int, S: int, D: int = 128) -> AttentionProblem:
    return AttentionProblem.of(*(np.broadcast_to(np.float32(0), shape) for shape in ((H, T, D), (G, S, D), (G, S, D))))


@pytest.mark.parametrize(
    ("shape", "n_cpus", "expected"),
    [
        ((1, 1, 1, 1_000_000), 16, 16),
        ((4, 1, 1, 1_000_000), 16, 16),  # heads that share a key head are computed together
        ((8, 8, 1, 1_000_000), 2, 1),  # four heads for each CPU
        ((8, 8, 1, 1_000_000), 16, 16),
        ((8, 8, 1, 30_000), 16, 3),  # less work
        ((8, 8, 1, 1000), 16, 1),
        ((1, 1, 256, 1_000_000), 2, 2),
        ((1, 1, 512, 1_000_000), 2, 1),  # blocks of rows enough
    ],
)
def test_keys_are_cut_where_queries_are_no_work_for_all_cpus(shape, n_cpus, expected, monkeypatch) -> None:
    monkeypatch.setattr("cqs.schedule.scheduler.available_cpus", lambda: n_cpus)
    plan = Scheduler().plan(problem(*shape))
    assert len(plan) == expected
    assert {len(plan.task(i).strips[0].query) for i in range(len(plan))} == {shape[2]}


def test_keys_are_not_cut_for_one_thread() -> None:
    alone = Scheduler(setting=Setting(threads=1, in_flight=1))
    assert len(alone.plan(problem(1, 1, 1, 1_000_000))) == 1


def test_reading_many_keys_is_work_for_several_threads() -> None:
    def is_shared(n_keys: int, T: int, shared: int) -> bool:
        return CallShape(1, 8, shared, T, n_keys, 64, 64, 4, False, False).is_shared

    assert is_shared(100_000, 1, 1)
    assert not is_shared(10_000, 1, 1)
    assert not is_shared(10_000, 1, 8)
    assert is_shared(10_000, 8, 8)


@settings(max_examples=20)
@given(T=st.integers(1, 6), threads=st.sampled_from([2, 3]), shared=st.sampled_from([1, 2]))
def test_threads_do_not_matter(T: int, threads: int, shared: int) -> None:
    arrays = inputs(6 * shared, 6, T, 400, 16, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call_shape, "SHARED_FLOPS", 0)
        one, more = (
            cqs.attention(*arrays, strategy="tiles", workers=1, engine=cqs.engines.LocalEngine(n)) for n in (1, threads)
        )
    assert np.array_equal(one, more)


@pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="needs pages that can be forbidden")
@pytest.mark.parametrize("n_keys", [1, 5, 15, 17, 95, 97])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_nothing_is_read_beyond_the_arrays(n_keys: int, dtype: type) -> None:
    """The page after each array must not be touched: whoever does so ends the process."""
    given = [guarded(x) for x in inputs(2, 2, 3, n_keys, 32, 32, dtype)]
    assert_exact(cqs.attention(*given, strategy="tiles", kernel="numba"), *given)


def guarded(x: np.ndarray) -> np.ndarray:
    """The array at the end of a page, before one that is forbidden."""
    n_pages = -(-x.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (n_pages + 1) * mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + n_pages * mmap.PAGESIZE
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    found = np.ndarray(x.shape, x.dtype, memory, n_pages * mmap.PAGESIZE - x.nbytes)
    found[...] = x
    return found
