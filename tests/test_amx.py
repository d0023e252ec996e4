"""AMX: numbers are split into pieces that lack nothing, and what is multiplied by it is as exact as by vectors."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cqs
from cqs.kernels import KERNELS, numba
from cqs.kernels.compiled import pieces
from cqs.kernels.compiled.loops import has_amx
from cqs.kernels.compiled.vectors import LANES
from cqs.kernels.contract import KeyChunk
from cqs.masks import Dense, SlidingWindow
from cqs.testing import assert_exact

needs_amx = pytest.mark.skipif(not has_amx(), reason="needs a processor with AMX")
needs_long_vectors = pytest.mark.skipif(LANES != 16, reason="needs vectors of 512 bits, as processors with AMX have")
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


@pytest.fixture(params=["amx", "vectors"])
def _by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "vectors":
        monkeypatch.setattr(numba, "_pieces", lambda dtype: 0)
    elif not has_amx():
        pytest.skip("needs a processor with AMX")


@needs_long_vectors
@given(
    numbers=st.lists(
        st.floats(-(2.0**120), 2.0**120, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-100), max_size=4 * LANES
    )
)
def test_pieces_add_up_to_the_number(numbers: list[float]) -> None:
    keys = np.zeros((2 * LANES, 2 * LANES), np.float32)
    keys.flat[: len(numbers)] = numbers
    target = np.zeros((3, 2, LANES, LANES, 2), np.uint16)  # piece, tile, row, pair, which
    address, row = keys.ctypes.data, keys.strides[0]
    assert not pieces.split_keys(address, row, len(keys), 0, 32, 3, 2048, target.ctypes.data)
    found = target.astype(np.uint32) << 16
    values = found.view(np.float32).astype(np.float64).sum(axis=0).reshape(len(keys), LANES, 2)
    np.testing.assert_array_equal(np.concatenate([values[..., 0], values[..., 1]], axis=1), keys)


@pytest.mark.parametrize(("number", "is_small"), [(0.0, False), (1e-29, False), (1e-31, True), (-1e-45, True)])
@needs_long_vectors
def test_numbers_whose_pieces_lack_digits_are_noticed(number: float, is_small: bool) -> None:
    numbers = np.ones((32, 32), np.float32)
    numbers[17, 5] = number
    target, kept, squares = np.zeros(3 * 1024, np.float32), np.zeros(1024, np.float32), np.zeros(512, np.float32)
    address = numbers.ctypes.data
    own = 32, 3, 2048, target.ctypes.data
    assert pieces.split_keys(address, 128, 32, 0, *own) == is_small
    assert pieces.split_values(address, 128, 32, 0, *own, kept.ctypes.data, squares.ctypes.data) == is_small


@needs_long_vectors
@given(cuts=st.lists(st.integers(0, 70), max_size=6), n_last=st.integers(1, 40))
def test_values_of_several_runs_are_split_as_if_they_were_one(cuts: list[int], n_last: int) -> None:
    sizes = [*cuts, n_last]
    n, capacity = sum(sizes), 512
    values = np.random.default_rng(n).standard_normal((n, 32), np.float32)
    kept, squares = np.zeros((32, 32), np.float32), np.zeros(512, np.float32)
    together, one_by_one = np.zeros((2, 3 * capacity * 32), np.uint16)
    for target, runs in ((together, [n]), (one_by_one, sizes)):
        before, own = 0, (32, 3, capacity * 64, target.ctypes.data, kept.ctypes.data, squares.ctypes.data)
        for size in runs:
            pieces.split_values(values[before:].ctypes.data, 128, size, before, *own)
            before += size
        pieces.split_last_values(n, *own)
    np.testing.assert_array_equal(together, one_by_one)


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 33, 32, 32), (2, 300, 64, 64), (1, 517, 40, 72), (1, 200, 256, 16), (3, 97, 5, 33)]
)
@pytest.mark.parametrize("is_causal", [False, True])
def test_it_is_exact(shape: tuple[int, int, int, int], dtype: type, is_causal: bool) -> None:
    heads, n, width, value_width = shape
    rng = np.random.default_rng(n)
    q, k, v = (rng.standard_normal((heads, n, w)).astype(dtype) for w in (width, width, value_width))
    out = cqs.attention(q, k, v, kernel="numba", workers=1, is_causal=is_causal)
    assert_exact(out, q, k, v, is_causal=is_causal)
    out = cqs.attention(q, k, v, kernel="numba", workers=3, is_causal=is_causal)
    assert_exact(out, q, k, v, is_causal=is_causal)


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize("workers", [1, 13, 31])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"mask": SlidingWindow(70)},
        {"mask": Dense(np.random.default_rng(5).random((700, 700)) < 0.4)},
        {"softcap": 2.0, "mask": SlidingWindow(200)},
        {"bias": np.random.default_rng(6).standard_normal((2, 700, 700), np.float32)},
    ],
    ids=["all", "causal", "window", "dense", "softcap", "bias"],
)
def test_small_groups_are_joined_whatever_is_seen_of_them(options: dict[str, Any], workers: int) -> None:
    q, k, v = np.random.default_rng(7).standard_normal((3, 2, 700, 64), np.float32)
    out = cqs.attention(q, k, v, kernel="numba", workers=workers, **options)
    assert_exact(out, q, k, v, **options)


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, -3.0])
def test_it_is_exact_for_peaked_scores(scale: float) -> None:
    q, k, v = np.random.default_rng(1).standard_normal((3, 2, 700, 64), np.float32)
    out = cqs.attention(q, k, v, kernel="numba", workers=1, scale=scale)
    assert_exact(out, q, k, v, scale=scale)


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v: (q * np.float32(2.0**120), k * np.float32(2.0**-120), v),
        lambda q, k, v: (q * np.float32(2.0**-120), k * np.float32(2.0**120), v),
        lambda q, k, v: (q, k, v * np.float32(2.0**-110)),
        lambda q, k, v: (q, k, v * np.float32(2.0**100)),
        lambda q, k, v: (q, k, np.where(v > 1, np.float32(1e-36), v)),
    ],
)
def test_numbers_that_amx_takes_for_zero_are_multiplied_by_vectors(
    change: Callable[..., tuple[np.ndarray, ...]],
) -> None:
    q, k, v = change(*np.random.default_rng(2).standard_normal((3, 2, 300, 64), np.float32))
    out = cqs.attention(q, k, v, kernel="numba", workers=1)
    assert_exact(out, q, k, v)


@pytest.mark.usefixtures("_by")
def test_what_is_not_finite_stays_where_it_belongs() -> None:
    q, k, v = np.random.default_rng(3).standard_normal((3, 2, 300, 64), np.float32)
    v[0, 250, 3], k[1, 299, 0] = np.inf, np.nan
    found, expected = (
        cqs.attention(q, k, v, kernel=kernel, workers=1, is_causal=True) for kernel in ("numba", "numpy")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.isfinite(found[:, :250]).all()
    assert not np.isfinite(found[0, 250:, 3]).any()


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(np.float16, n) for n in (0x7E00, 0x7FFC, 0x7FFF, 0xFFFF, 0x7C01)]
    + [(ml_dtypes.bfloat16, n) for n in (0x7FC0, 0x7FFF, 0xFFFF, 0x7F81)]
    + [(np.float32, n) for n in (0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001)],
)
def test_nan_of_any_bits_is_nan(dtype: type, bits: int, which: int) -> None:
    arrays = [x.astype(dtype) for x in np.random.default_rng(8).standard_normal((3, 1, 200, 64), np.float32)]
    arrays[which].view(f"u{arrays[which].itemsize}")[0, 100, 3] = bits
    found, expected = (np.isnan(cqs.attention(*arrays, kernel=kernel, workers=1)) for kernel in ("numba", "numpy"))
    np.testing.assert_array_equal(found, expected)
    assert found.any()


@needs_amx
def test_threads_do_not_change_bits() -> None:
    q, k, v = np.random.default_rng(4).standard_normal((3, 4, 900, 64), np.float32)
    attend = KERNELS["numba"].attend
    one, two = (attend(q, [KeyChunk(k, v)], scale=0.125, threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one.out, two.out)
    np.testing.assert_array_equal(one.lse, two.lse)
