"""What Numba compiles, function by function: vectors, products, reading, weights."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import int64, njit, void

from cqs.kernels import numba
from cqs.kernels.compiled import reading, scores, tiles
from cqs.kernels.compiled.products import multiply, multiply_halves
from cqs.kernels.compiled.vectors import LANES, LIFT, VECTOR_BYTES, load, log1p, store
from cqs.kernels.numba_scores import Change
from cqs.kernels.numba_tables import FLOAT32, KINDS, places
from cqs.schedule import PANEL

LIFTED = 2.0**LIFT  # what weights are multiplied by


def weigh(
    scores: np.ndarray, top: float = -np.inf, total: float = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weigh scores `(keys, n)` of n queries; return weights, maxima, totals, and by what sums before are multiplied."""
    n_keys, n = scores.shape
    tile = np.full((n_keys, PANEL), -np.inf, np.float32)
    tile[:, :n] = scores
    lanes = np.zeros((3, PANEL), np.float32)
    lanes[0], lanes[1] = top, total * LIFTED
    grew = tiles.weigh(tile.ctypes.data, n_keys, -(-n // LANES), np.float32(1), *(x.ctypes.data for x in lanes))
    vectors = lanes[2, : -(-n // LANES) * LANES].reshape(-1, LANES)
    assert [grew >> i & 1 for i in range(PANEL // LANES)] == [
        *np.any(vectors != LIFTED, axis=1),
        *[0] * (PANEL // LANES - len(vectors)),
    ]
    return tile[:, :n].astype(np.float64) / LIFTED, lanes[0, :n], *(lanes[1:, :n].astype(np.float64) / LIFTED)


def test_weights_are_exact_to_a_unit_in_the_last_place_down_to_the_smallest_number() -> None:
    scores = -np.concatenate([np.linspace(0, 160, 1_000_000), np.geomspace(1e-40, 160, 10_000)]).astype(np.float32)
    found, *_ = weigh(scores.reshape(-1, 10), 0.0)
    expected = np.exp2(scores.astype(np.float64))
    assert np.abs(found.reshape(-1) - expected).max() < 1e-7
    units = np.spacing((expected * LIFTED).astype(np.float32)).astype(np.float64) / LIFTED
    assert (np.abs(found.reshape(-1) - expected) / units).max() <= 1
    assert np.any((found > 0) & (found < np.finfo(np.float32).tiny))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.0, -np.inf, 0.0], [1, 0, 1]),
        ([-np.inf, -np.inf], [0, 0]),
        ([-3e38, -3e38], [1, 1]),
        ([3e38, -3e38], [1, 0]),
        ([np.nan, 0.0], [np.nan, 1]),
        ([0.0, -np.nan], [1, np.nan]),
        ([np.inf, 0.0], [np.nan, 0]),
    ],
)
def test_weights_of_special_scores(scores: list[float], expected: list[float]) -> None:
    found, _, totals, _ = weigh(np.array(scores)[:, None])
    np.testing.assert_array_equal(found[:, 0], expected)
    np.testing.assert_equal(totals[0], np.float32(np.sum(expected)))


@given(scores=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=70))
def test_the_largest_score_is_found(scores: list[float]) -> None:
    _, tops, _, _ = weigh(np.array(scores)[:, None])
    assert tops[0] == max(scores)


def test_sums_follow_a_maximum_that_grows_much() -> None:
    _, tops, totals, factors = weigh(np.array([[9.0, -3], [7, 7]]), 0.0, 2.0)
    np.testing.assert_array_equal(tops, [9, 0])  # 7 is not enough: its weight is 2^7, which is as exact
    np.testing.assert_allclose(totals, [2 / 2**9 + 1 + 1 / 4, 2 + 1 / 8 + 2**7], rtol=1e-6)
    np.testing.assert_array_equal(factors, [1 / 2**9, 1])


def test_a_soft_cap_bends_scores_to_two_units_in_the_last_place() -> None:
    x = np.concatenate([np.geomspace(1e-38, 100, 50_000), np.linspace(0.6, 0.7, 10_000), [0, np.inf, 3e38]])
    x = np.concatenate([x, -x]).astype(np.float32)
    x = np.resize(x, (-(-len(x) // (96 * PANEL)), 96, PANEL))
    room, tokens = np.empty(scores.CHANGE_ITEMS, np.float32), np.zeros(1, np.int64)
    change = Change(True, np.float32(1), np.float32(1), np.float32(0), 0, 0, 0, 0, 0)
    found = x.copy()
    for tile in found:
        scores.change_scores(change, tile.ctypes.data, 96, 0, tokens.ctypes.data, 1, 0, PANEL, room.ctypes.data)
    expected = np.tanh(x.astype(np.float64))
    assert (np.abs(found - expected) / np.spacing(np.abs(expected).astype(np.float32))).max() <= 2
    tile = np.full((96, PANEL), np.nan, np.float32)
    scores.change_scores(change, tile.ctypes.data, 96, 0, tokens.ctypes.data, 1, 0, PANEL, room.ctypes.data)
    assert np.isnan(tile).all()


def test_logarithms_are_right_to_two_units_in_the_last_place() -> None:
    x = np.concatenate([np.geomspace(1e-38, 1, 50_000), np.linspace(0, 1, 10_000)]).astype(np.float32)
    x = np.resize(x, (-(-len(x) // LANES), LANES))

    @njit(void(int64, int64))
    def replace_all(address, n):
        for place in range(address, address + n * VECTOR_BYTES, VECTOR_BYTES):
            store(log1p(load(place)), place)

    found, special = x.copy(), np.full((1, LANES), np.nan, np.float32)
    for array in (found, special):
        replace_all(array.ctypes.data, len(array))
    expected = np.log1p(x.astype(np.float64))
    assert (np.abs(found - expected) / np.spacing(expected.astype(np.float32))).max() <= 2
    assert np.isnan(special).all()


@pytest.mark.parametrize("n_vectors", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("n_rows", range(1, 20))
@pytest.mark.parametrize("depth", [1, 7])
def test_products_in_registers(n_rows: int, n_vectors: int, depth: int) -> None:
    rng = np.random.default_rng(n_rows)
    a, b, c = (rng.integers(-9, 9, shape).astype(np.float32) for shape in ((n_rows, depth), (depth, 99), (n_rows, 99)))
    own = np.s_[:, : n_vectors * LANES]
    for left, adds in ((a, False), (a, True), (np.asfortranarray(a), True)):
        found = c.copy()
        multiply(
            *(left.ctypes.data, *left.strides, b.ctypes.data, b.strides[0], found.ctypes.data, found.strides[0]),
            *(n_rows, n_vectors, depth, adds),
        )
        expected = c.copy()
        expected[own] = a @ b[own] + (c[own] if adds else 0)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("n_vectors", [1, 3, 4, 7])
@pytest.mark.parametrize("n_rows", range(1, 8))
def test_products_with_numbers_of_16_bits(n_rows: int, n_vectors: int, dtype: str) -> None:
    rng = np.random.default_rng(n_rows)
    a, b, c = (rng.integers(-9, 9, shape).astype(np.float32) for shape in ((n_rows, 7), (7, 120), (n_rows, 120)))
    own, halves, found = np.s_[:, : n_vectors * LANES], b.astype(getattr(ml_dtypes, dtype, dtype)), c.copy()
    multiply_halves(
        *(KINDS[dtype], a.ctypes.data, *a.strides, halves.ctypes.data, halves.strides[0]),
        *(found.ctypes.data, found.strides[0], n_rows, n_vectors, len(b)),
    )
    expected = c.copy()
    expected[own] += a @ b[own]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("strides", [1, 2, -1])
def test_numbers_of_any_type_and_place_are_read(dtype: str, strides: int) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = bits.view(getattr(ml_dtypes, dtype, dtype)) if dtype != "float32" else bits.astype(np.float32)
    rows = np.repeat(numbers, 2).reshape(1, 1 << 10, 128)[:, :, ::strides]
    target = np.full((1 << 10, rows.shape[-1] + 1), 7, np.float32)
    chunks = places([rows, rows], KINDS[dtype])[:, None]
    rows_and_room = len(target), target.ctypes.data
    found = reading.readable(chunks, 0, 0, 1, 0, 0, *rows_and_room, target.shape[1], True)  # which is wider
    assert found == (target.ctypes.data, target.strides[0], FLOAT32)
    np.testing.assert_array_equal(target[:, :-1], rows[0].astype(np.float32))
    np.testing.assert_array_equal(target[:, -1], 0)
    for takes_halves in (False, True):
        found = reading.readable(chunks, 0, 0, 1, 0, 0, *rows_and_room, rows.shape[-1], takes_halves)
        where_they_are = (rows.ctypes.data, rows.strides[1], KINDS[dtype])
        copied = (target.ctypes.data, rows.shape[-1] * 4, FLOAT32)
        assert found == (where_they_are if strides == 1 and (takes_halves or dtype == "float32") else copied)


@pytest.mark.parametrize(("n_rows", "lane", "n_lanes"), [(50, 0, 50), (3, 2, 17), (1, 0, 64), (40, 35, 9)])
@pytest.mark.parametrize("width", [1, 16, 33])
def test_queries_are_put_side_by_side(n_rows: int, lane: int, n_lanes: int, width: int) -> None:
    q = np.random.default_rng(width).standard_normal((100, n_rows + 2, width), dtype=np.float32)
    rows, panel = np.full((2, 64, 64), np.nan, np.float32)
    room, factor = (rows.ctypes.data, panel.ctypes.data), np.float32(3)
    reading.pack_queries(places([q], 0)[:, 0], 0, 10, 1, n_rows, lane, n_lanes, factor, *room)
    expected = q[10:, 1 : n_rows + 1].reshape(-1, width)[lane : lane + n_lanes] * factor
    np.testing.assert_array_equal(panel[:width, :n_lanes], expected.T)
    np.testing.assert_array_equal(panel[:width, n_lanes : reading.padded(n_lanes)], 0)


_HASH = """
import hashlib, sys
import numpy as np, cqs
from cqs.kernels.compiled.vectors import LANES
from cqs.testing import assert_exact
digest = hashlib.sha256()
for width, dtype in ((16, np.float32), (37, np.float32), (64, np.float16)):
    q, k, v = (np.random.default_rng(width).standard_normal((2, 333, width)).astype(dtype) for _ in range(3))
    out, lse = cqs.attention(q, k, v, is_causal=True, workers=3, return_lse=True, kernel="numba")
    assert_exact(out, q, k, v, is_causal=True, lse=lse)
    digest.update(out.tobytes() + lse.tobytes())
print(LANES, digest.hexdigest())
"""


def lanes_and_hash(name: str, features: str, folder: Path) -> list[str]:
    """Compile all for a processor, and return how long its vectors are, and the hash of some results."""
    env = {**os.environ, "NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(folder)}
    run = subprocess.run([sys.executable, "-c", _HASH], env=env, capture_output=True, text=True, check=True)
    return run.stdout.split()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of x86")
def test_bits_do_not_depend_on_how_long_vectors_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lanes, expected = lanes_and_hash("haswell", "+avx,+avx2,+fma", tmp_path)
    assert int(lanes) == 8
    monkeypatch.setattr(numba, "_pieces", lambda dtype: 0)  # without AMX, which computes otherwise
    exec(_HASH, {})
    lanes, digest = capsys.readouterr().out.split()
    if int(lanes) in (8, 16):
        assert digest == expected


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of x86")
def test_old_processors_compute_exactly(tmp_path: Path) -> None:
    assert int(lanes_and_hash("x86-64", "", tmp_path)[0]) == 4  # without fused products bits are others
