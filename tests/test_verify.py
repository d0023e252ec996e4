"""Checking rows of an output: no false alarms, every error found, in bounded memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import Problem, problems

import cqs
import cqs.cli.files
import cqs.oracle
import cqs.verify
from cqs.testing import reference_attention
from cqs.verify import verify_rows


@settings(derandomize=True)
@given(problems(scales=(1.0,), value_magnitudes=(1e-3, 1.0)), st.sampled_from([64, None]), st.integers(0, 1000))
def test_verify_rows_has_no_false_alarms(problem: Problem, n_rows: int | None, seed: int) -> None:
    out = cqs.attention(problem.q, problem.k, problem.v, **problem.options, workers=problem.workers)
    assume(out.size >= 64)  # on a handful of numbers luck decides what the plain formula's error is
    found = verify_rows(out, problem.q, problem.k, problem.v, **problem.options, n_rows=n_rows, seed=seed)
    assert found.passed, found


@pytest.mark.parametrize("is_causal", [False, True])
def test_verify_rows_finds_the_error_that_float64_finds(monkeypatch: pytest.MonkeyPatch, is_causal: bool) -> None:
    monkeypatch.setattr(cqs.oracle, "_AREA", 1000)  # many blocks of keys
    monkeypatch.setattr(cqs.verify, "_MOST_ROWS", 30)
    rng = np.random.default_rng(1)
    q, k = (rng.standard_normal((2, n, 50, 8), dtype=np.float32) for n in (6, 3))
    out = cqs.attention(q, k, k, is_causal=is_causal)
    exact, _ = reference_attention(q, k, k, scale=8**-0.5, mask=cqs.masks.Causal() if is_causal else None)
    found = verify_rows(out, q, k, k, is_causal=is_causal, n_rows=None)
    assert found.n_rows == 2 * 6 * 50
    assert found.error == pytest.approx(abs(out - exact).max(), rel=1e-6)
    assert abs(out - exact)[found.worst] == pytest.approx(found.error, rel=1e-6)


def test_verify_rows_expects_infinities_and_nan_where_float64_has_them() -> None:
    q = np.random.default_rng(2).standard_normal((1, 20, 4))
    v = q.copy()
    v[0, 3, 1], v[0, 4, 2] = np.inf, np.nan
    out = cqs.attention(q, q, v)
    assert not np.isfinite(out[..., 1:3]).any()
    assert verify_rows(out, q, q, v).passed
    out[0, 7, 2] = 1
    assert verify_rows(out, q, q, v).n_broken == 1


def test_verify_rows_memory_does_not_grow_with_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cqs.oracle, "_AREA", 1 << 16)  # blocks of 512 KiB in float64
    k = np.random.default_rng(3).standard_normal((1, 100_000, 4), dtype=np.float32)
    q = k[:, :100]
    out = cqs.attention(q, k, k)
    tracemalloc.start()
    try:
        assert verify_rows(out, q, k, k).passed  # 64 rows: the scores would be 49 MiB
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
