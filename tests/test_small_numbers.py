"""Numbers near the smallest of float32 in the kernels for NumPy arrays: weights, queries, keys, values, scales."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cqs
from cqs.testing import assert_exact


@pytest.mark.parametrize("kernel", ["numba", "numpy"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_too_small_to_have_all_digits_count_for_nothing_and_no_other_do(kernel: str, dtype: str) -> None:
    numpy_dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    S = 128
    q, k = np.full((1, 20, 1), -1, numpy_dtype), np.arange(S, dtype=np.float32).astype(numpy_dtype)[None, :, None]
    v = np.eye(S, dtype=numpy_dtype)[None]
    out, lse = cqs.attention(q, k, v, scale=1.0, kernel=kernel, return_lse=True)
    assert_exact(out, q, k, v, scale=1.0, lse=lse)
    if dtype == "float32":
        weights = np.exp(-np.arange(S, dtype=np.float64)) * (1 - np.exp(-1))
        np.testing.assert_allclose(out[0, 0, :86], weights[:86], rtol=1e-5, atol=2.0**-126)
        np.testing.assert_array_equal(out[0, :, 105:], 0)
    assert np.float32(1e-40) * np.float32(0.5) > 0  # elsewhere small numbers are as they were


SMALL_WEIGHTS = {  # score of the first key, values of the first key and of the 1999 others
    "a column of small values beside ones": (18.4, [0, 1], [2.0**-101, 1]),
    "a column of smaller values beside ones": (60.0, [0, 1], [2.0**-40, 1]),
    "large values": (88.0, [0], [1e30]),
    "large values beside ones": (88.0, [0, 1], [1e30, 1]),
    "labels": (87.5, [0, 1], [1, 0]),
    "labels of magnitudes": (87.5, [0, 1000], [1000, 0]),
}


@pytest.mark.parametrize("kernel", ["numba", "numpy"])
@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("case", SMALL_WEIGHTS)
def test_small_weights_count_where_nothing_else_does(case: str, is_last: bool, kernel: str) -> None:
    score, of_first, of_others = SMALL_WEIGHTS[case]
    q, k = np.full((1, 1, 1), score, np.float32), np.zeros((1, 2000, 1), np.float32)
    v = np.tile(np.array(of_others, np.float32), (1, 2000, 1))
    k[0, -1 if is_last else 0], v[0, -1 if is_last else 0] = 1, of_first
    out, lse = cqs.attention(q, k, v, scale=1.0, workers=1, kernel=kernel, return_lse=True)
    assert_exact(out, q, k, v, scale=1.0, lse=lse)


@given(seed=st.integers(0, 99), kind=st.sampled_from(["identity", "any magnitude"]), workers=st.integers(1, 7))
@pytest.mark.parametrize("kernel", ["numba", "numpy"])
def test_scores_that_differ_by_hundreds_are_exact(kernel: str, seed: int, kind: str, workers: int) -> None:
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, 2, 200, 32), dtype=np.float32)
    if kind == "identity":
        v = np.broadcast_to(1000 * np.eye(200, dtype=np.float32), (2, 200, 200))
    else:
        v = (10 ** rng.uniform(-44, 30, (2, 200, 10))).astype(np.float32)
    out = cqs.attention(q, k, v, scale=4.0, workers=workers, kernel=kernel)
    assert_exact(out, q, k, v, scale=4.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_keys_may_be_as_small_as_queries_are_large(dtype: str, order: str) -> None:
    q, k = np.full((1, 1, 4), 1e37, np.float32), np.zeros((1, 2, 4), np.float32)
    k[0, 0], v = 5e-39, np.array([[[1.0], [0]]], np.float32)
    q, k, v = (np.asarray(x, getattr(ml_dtypes, dtype, dtype), order=order) for x in (q, k, v))
    out, lse = cqs.attention(q, k, v, scale=1.0, kernel="numba", return_lse=True)
    assert_exact(out, q, k, v, scale=1.0, lse=lse)


def test_products_may_be_as_small_as_their_scale_is_large() -> None:
    q = np.full((1, 1, 64), 2.0**-74, np.float32)
    k, v = np.stack([q[0, 0] / 2, q[0, 0] * 0])[None], np.array([[[1.0], [0]]], np.float32)
    out, lse = cqs.attention(q, k, v, scale=2.0**126, kernel="numba", return_lse=True)
    assert_exact(out, q, k, v, scale=2.0**126, lse=lse)


@pytest.mark.parametrize("kernel", ["numba", "numpy"])
@pytest.mark.parametrize(("of_q", "scale"), [(3e-38, 0.125), (1e-40, 16.0), (2.0, 1e-38)])
def test_queries_may_be_as_small_as_keys_are_large(of_q: float, scale: float, kernel: str) -> None:
    q, k, v = np.random.default_rng(8).standard_normal((3, 1, 50, 16), dtype=np.float32)
    q, k = q * np.float32(of_q), np.clip(k, -3, 3) * np.float32(1e37)
    out, lse = cqs.attention(q, k, v, scale=scale, kernel=kernel, return_lse=True)
    assert_exact(out, q, k, v, scale=scale, lse=lse)


def test_the_smallest_numbers_of_a_narrow_type_are_read() -> None:
    bits = np.arange(1, 1024, dtype=np.uint16).view(np.float16)
    q, k, v = (x[None] for x in (np.ones((3, 1), np.float16), bits[:, None], bits[:, None]))
    out, lse = cqs.attention(q, k, v, scale=2.0**14, kernel="numba", return_lse=True)
    assert_exact(out, q, k, v, scale=2.0**14, lse=lse)


@pytest.mark.parametrize("kernel", ["numba", "numpy", "blockwise"])
@pytest.mark.parametrize("magnitude", [1e-36, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize(("name", "bad"), [("v", np.nan), ("v", np.inf), ("v", 3e38), ("q", np.nan), ("k", np.nan)])
def test_what_is_not_finite_takes_no_digits_from_rows_that_do_not_see_it(
    name: str, bad: float, magnitude: float, kernel: str
) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 64, 8)).astype(np.float32)
    v *= np.float32(magnitude)
    given = {"q": q, "k": k, "v": v}
    given[name][1, 40, 3] = bad
    out = cqs.attention(q, k, v, is_causal=True, workers=1, kernel=kernel)
    given[name][1, 40, 3] = 0
    assert_exact(out[:, :40], q[:, :40], k[:, :40], v[:, :40], is_causal=True)
