"""`cqs.attention` is exact: every shape, type, kernel, worker count, and kind of array."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DTYPES, ON_NUMPY, Problem, problems

import cqs
from cqs.engines import LocalEngine
from cqs.masks import Causal
from cqs.sources import ArraySink
from cqs.testing import assert_exact, reference_attention


def check(problem: Problem, kernel: str = "auto") -> None:
    q, k, v = problem.q, problem.k, problem.v
    out, lse = cqs.attention(q, k, v, workers=problem.workers, kernel=kernel, return_lse=True, **problem.options)
    assert out.dtype == q.dtype
    assert lse.dtype == (np.float64 if q.dtype == np.float64 else np.float32)
    assert_exact(out, q, k, v, lse=lse, **problem.options)


@pytest.mark.parametrize("kernel", ON_NUMPY)
@given(problem=problems())
def test_any_problem_with_any_workers_is_exact(kernel: str, problem: Problem) -> None:
    check(problem, kernel)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ON_NUMPY)
@given(problem=problems(value_magnitudes=(1e-37, 1e-30, 1.0, 1e30, 5e37)))
def test_many_problems_are_exact(kernel: str, problem: Problem) -> None:
    check(problem, kernel)


@settings(derandomize=True)  # with scores in the thousands it is luck which of two sums in float32 is nearer
@given(problem=problems(dtypes=("float32",), scales=(1e3,), value_magnitudes=(1.0,)))
def test_peaked_scores_are_exact(problem: Problem) -> None:
    check(problem)


@pytest.mark.parametrize("magnitude", [1e-38, 1e-30, 1e30, 1e38])
@pytest.mark.parametrize("kernel", ON_NUMPY)
def test_values_near_the_ends_of_float32_neither_overflow_nor_vanish(magnitude: float, kernel: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.uniform(0.5, 1, (2, 300, 16)).astype(np.float32) for _ in range(3))
    v *= np.float32(magnitude)
    out = cqs.attention(q, k, v, workers=7, kernel=kernel)
    assert np.isfinite(out).all()
    assert_exact(out, q, k, v)


@pytest.mark.parametrize("shift", [-300.0, -90.0, 90.0, 300.0])
@pytest.mark.parametrize("kernel", ON_NUMPY)
def test_scores_far_from_zero_are_exact(shift: float, kernel: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 200, 8), dtype=np.float32) for _ in range(3))
    q[..., 0], k[..., 0] = shift, 1
    out, lse = cqs.attention(q, k, v, workers=13, scale=1.0, kernel=kernel, return_lse=True)
    assert_exact(out, q, k, v, scale=1.0, lse=lse)


@pytest.mark.parametrize("workers", [1, 2, 7, 31, 60])
@pytest.mark.parametrize("is_causal", [False, True])
def test_real_activations_are_exact(real_qkv, workers: int, is_causal: bool) -> None:
    q, k, v = (x[:2, :1500].astype(np.float32) for x in real_qkv)
    out, lse = cqs.attention(q, k, v, workers=workers, is_causal=is_causal, return_lse=True)
    assert_exact(out, q, k, v, is_causal=is_causal, lse=lse)


@pytest.mark.parametrize("dtype", DTYPES)
def test_real_activations_are_exact_in_every_type(real_qkv, dtype: str) -> None:
    q, k, v = (x[:1, :1000].astype(DTYPES[dtype]) for x in real_qkv)
    assert_exact(cqs.attention(q, k, v, workers=21), q, k, v)


@pytest.mark.parametrize("is_causal", [False, True])
def test_groups_larger_than_a_block_are_exact(is_causal: bool) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 5000, 16), dtype=np.float32) for _ in range(3))
    for workers in (1, 3):
        out = cqs.attention(q, k, v, workers=workers, is_causal=is_causal)
        assert_exact(out, q, k, v, is_causal=is_causal)


@given(problem=problems(dtypes=("float32", "bfloat16")), layout=st.sampled_from(["fortran", "strided", "reversed"]))
def test_strides_and_read_only_arrays_change_nothing(problem: Problem, layout: str) -> None:
    arrays = []
    for x in (problem.q, problem.k, problem.v):
        if layout == "fortran":
            x = np.asfortranarray(x)
        elif layout == "strided":
            wide = np.zeros((*x.shape[:-1], 3 * x.shape[-1]), x.dtype)
            wide[..., ::3] = x
            x = wide[..., ::3]
        else:
            x = np.ascontiguousarray(x[..., ::-1, :])[..., ::-1, :]
        x = x.view()
        x.flags.writeable = False
        arrays.append(x)
    plain = cqs.attention(problem.q, problem.k, problem.v, workers=problem.workers, **problem.options)
    out = cqs.attention(*arrays, workers=problem.workers, **problem.options)
    assert_exact(out, *arrays, **problem.options)
    np.testing.assert_array_equal(plain.astype(np.float32), out.astype(np.float32))


@given(problem=problems(), threads=st.integers(2, 5))
def test_any_number_of_threads_gives_the_same_bits(problem: Problem, threads: int) -> None:
    results = [
        cqs.attention(
            problem.q, problem.k, problem.v, workers=problem.workers, engine=LocalEngine(n), **problem.options
        )
        for n in (1, threads)
    ]
    assert results[0].tobytes() == results[1].tobytes()


def test_threads_inside_a_kernel_give_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((4, 3000, 32), dtype=np.float32) for _ in range(3))
    results = {
        cqs.attention(q, k, v, workers=W, is_causal=c, engine=LocalEngine(threads)).tobytes()
        for threads in (1, 2, 3)
        for W, c in [(1, True)]
    }
    assert len(results) == 1


@pytest.mark.parametrize("offset", [-50, -3, 0, 3, 50])
def test_causal_offsets_are_exact_and_rows_without_keys_are_zero(offset: int) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 8), dtype=np.float32) for n in (40, 60, 60))
    for kernel in ON_NUMPY:
        out, lse = cqs.attention(q, k, v, mask=Causal(offset), workers=5, kernel=kernel, return_lse=True)
        assert_exact(out, q, k, v, mask=Causal(offset), lse=lse)
        blind = np.arange(40) + offset < 0
        assert (out[:, blind] == 0).all()
        assert (lse[:, blind] == -np.inf).all()


def test_lse_is_the_natural_logarithm() -> None:
    q, k, v = np.zeros((1, 2, 4)), np.zeros((1, 5, 4)), np.ones((1, 5, 3))
    out, lse = cqs.attention(q, k, v, return_lse=True)
    np.testing.assert_allclose(lse, np.log(5))
    np.testing.assert_allclose(out, 1)


def test_more_workers_than_tokens_are_allowed() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 5, 8)) for _ in range(3))
    assert_exact(cqs.attention(q, k, v, workers=57), q, k, v)


@pytest.mark.parametrize("kernel", ON_NUMPY)
def test_empty_sequences_and_batches(kernel: str) -> None:
    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    assert cqs.attention(zeros(2, 0, 4), zeros(2, 3, 4), zeros(2, 3, 5), kernel=kernel).shape == (2, 0, 5)
    assert cqs.attention(zeros(2, 0, 4), zeros(2, 0, 4), zeros(2, 0, 5), kernel=kernel).shape == (2, 0, 5)
    assert cqs.attention(zeros(0, 2, 3, 4), zeros(0, 2, 3, 4), zeros(0, 2, 3, 4), kernel=kernel).shape == (0, 2, 3, 4)
    out, lse = cqs.attention(zeros(2, 3, 4), zeros(2, 0, 4), zeros(2, 0, 5), kernel=kernel, return_lse=True)
    assert (out == 0).all()
    assert (lse == -np.inf).all()


@pytest.mark.parametrize("kernel", ON_NUMPY)
def test_nan_and_infinity_spread_as_in_the_formula(kernel: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 30, 4), dtype=np.float32) for _ in range(3))
    q[0, 3, 1], k[0, 25, 0] = np.nan, np.nan
    v[0, 0, 2] = np.inf
    out = cqs.attention(q, k, v, workers=7, is_causal=True, kernel=kernel)
    with np.errstate(invalid="ignore"):
        expected, _ = reference_attention(q, k, v, scale=0.5, mask=Causal())
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
    np.testing.assert_array_equal(np.isposinf(out), np.isposinf(expected))


def test_out_is_used_and_returned() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 100, 8)).astype(np.float16) for _ in range(3))
    for dtype in (np.float16, np.float32):
        out = np.full((2, 100, 8), np.nan, dtype)
        assert cqs.attention(q, k, v, workers=7, out=out) is out
        assert_exact(out, q, k, v)
    backing = np.full((100, 2, 16), np.nan, np.float32)
    view = backing[:, :, ::2].transpose(1, 0, 2)
    cqs.attention(*(x.astype(np.float32) for x in (q, k, v)), workers=7, out=view)
    assert_exact(view, *(x.astype(np.float32) for x in (q, k, v)))
    assert np.isnan(backing[:, :, 1::2]).all()


def test_rows_that_are_the_whole_output_are_not_copied() -> None:
    rows, room = np.ones((2, 2, 3, 4), np.float32)
    sink = ArraySink(room.copy(), is_new=True)
    sink.write(None, 0, 3, rows)  # a view of a larger array, which would be kept
    np.testing.assert_array_equal(sink.finish(), rows)
    assert not np.shares_memory(sink.finish(), rows)
    own = rows.copy()
    sink.write(None, 0, 3, own.reshape(2, 3, 4))
    assert np.shares_memory(sink.finish(), own)
    given = ArraySink(room)
    given.write(None, 0, 3, own)
    assert given.finish() is room


def test_progress_counts_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    q = np.zeros((1, 20, 4), np.float32)
    seen: list[tuple[int, int]] = []
    cqs.attention(q, q, q, workers=7, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 7) for n in range(1, 8)]
    cqs.attention(q, q, q, workers=7, progress=True)
    assert "7/7" in capsys.readouterr().err


def test_one_row_with_huge_values_takes_nothing_from_another() -> None:
    q, k, v = (np.array([[[a], [b]]], np.float32) for a, b in ((1, 0), (0, -80), (1, 1e38)))
    assert cqs.attention(q, k, v, scale=1.0)[0, 0, 0] == pytest.approx(1 + np.exp(-80.0) * 1e38, rel=1e-5)
    v[0, 1] = np.inf
    assert cqs.attention(q[:, :1], k, v, scale=1.0)[0, 0, 0] == np.inf  # a small weight is none


def test_a_sink_beside_equal_scores_far_from_zero_is_exact() -> None:
    x, v = np.zeros((1, 300, 4), np.float32), np.random.default_rng(0).standard_normal((1, 300, 4), dtype=np.float32)
    chosen = {"bias": np.full((300, 300), -1e4, np.float32), "sink_logits": np.float32([-1e4])}
    assert_exact(cqs.attention(x, x, v, workers=1, **chosen), x, x, v, **chosen)


@pytest.mark.parametrize("memory", [None, "4 MiB"])
def test_batches_without_entries(memory: str | None, tmp_path: Path) -> None:
    x = np.zeros((0, 2, 8, 4), np.float32)
    np.save(tmp_path / "x.npy", x)
    for z in (x, tmp_path / "x.npy"):
        assert cqs.attention(z, z, z, memory=memory).shape == x.shape
        assert "Plan: " in str(cqs.plan(z, z, z, memory=memory))
    assert cqs.attention(x, x, x, mask=~Causal([]), strategy="tree", workers=3).shape == x.shape
