"""The compiled kernel by itself: the loops that Numba compiles, what they are handed, and what is left to NumPy."""

import os
import platform
import subprocess
import sys
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_calls import arrays_of, strips

import cqs
from cqs.kernels import KERNELS, KeyChunk, Region, numba
from cqs.kernels.compiled import reading, tiles
from cqs.kernels.compiled.products import multiply
from cqs.kernels.compiled.vectors import LANES
from cqs.kernels.numba import attend
from cqs.kernels.numba_tables import KINDS, places
from cqs.masks import Causal, Dense, NoMask, Predicate, Sinks, SlidingWindow
from cqs.partial import Partial
from cqs.schedule import PANEL, call_shape
from cqs.scores import ALiBi
from cqs.testing import assert_exact

BLOCK_BYTES = 64 << 10  # so that calls of a few hundred tokens have many blocks


def weigh(
    scores: np.ndarray, top: float = -np.inf, total: float = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weigh scores `(keys, n)` of n queries; return weights, maxima, totals, and by what sums before are multiplied."""
    n_keys, n = scores.shape
    tile = np.full((n_keys, PANEL), -np.inf, np.float32)
    tile[:, :n] = scores
    lanes = np.zeros((3, PANEL), np.float32)
    lanes[0], lanes[1] = top, total
    grew = tiles.weigh(tile.ctypes.data, n_keys, -(-n // LANES), np.float32(1), *(x.ctypes.data for x in lanes))
    assert grew == bool(np.any(lanes[2, :n] != 1))
    return tile[:, :n], *lanes[:, :n]


def test_weights_are_exact_to_a_unit_in_the_last_place_down_to_the_smallest_number() -> None:
    scores = -np.concatenate([np.linspace(0, 160, 1_000_000), np.geomspace(1e-40, 160, 10_000)]).astype(np.float32)
    found, *_ = weigh(scores.reshape(-1, 10), 0.0)
    expected = np.exp2(scores.astype(np.float64))
    assert np.abs(found.reshape(-1) - expected).max() < 1e-7
    units = np.spacing(expected.astype(np.float32)).astype(np.float64)
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


def test_sums_follow_a_maximum_that_grows() -> None:
    _, tops, totals, factors = weigh(np.array([[1.0, -3], [-1, -4]]), 0.0, 2.0)
    np.testing.assert_array_equal(tops, [1, 0])
    np.testing.assert_allclose(totals, [2 / 2 + 1 + 1 / 4, 2 + 1 / 8 + 1 / 16], rtol=1e-6)
    np.testing.assert_array_equal(factors, [1 / 2, 1])


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


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("strides", [1, 2, -1])
def test_numbers_of_any_type_and_place_are_read(dtype: str, strides: int) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = bits.view(getattr(ml_dtypes, dtype, dtype)) if dtype != "float32" else bits.astype(np.float32)
    rows = np.repeat(numbers, 2).reshape(1, 1 << 10, 128)[:, :, ::strides]
    target = np.full((1 << 10, rows.shape[-1] + 1), 7, np.float32)
    chunks = places(rows, KINDS[dtype])[None, :, None, :].repeat(2, axis=2)
    address, row_bytes = reading.readable(chunks, 0, 0, 1, 0, 0, len(target), target.ctypes.data, target.shape[1])
    assert (address, row_bytes) == (target.ctypes.data, target.strides[0])
    np.testing.assert_array_equal(target[:, :-1], rows[0].astype(np.float32))
    np.testing.assert_array_equal(target[:, -1], 0)


@pytest.mark.parametrize(("n_rows", "lane", "n_lanes"), [(50, 0, 50), (3, 2, 17), (1, 0, 64), (40, 35, 9)])
@pytest.mark.parametrize("width", [1, 16, 33])
def test_queries_are_put_side_by_side(n_rows: int, lane: int, n_lanes: int, width: int) -> None:
    q = np.random.default_rng(width).standard_normal((100, n_rows + 2, width), dtype=np.float32)
    rows, panel = np.full((2, 64, 64), np.nan, np.float32)
    room, factor = (rows.ctypes.data, panel.ctypes.data), np.float32(3)
    reading.pack_queries(places(q, 0), 0, 10, 1, n_rows, lane, n_lanes, factor, *room)
    expected = q[10:, 1 : n_rows + 1].reshape(-1, width)[lane : lane + n_lanes] * factor
    np.testing.assert_array_equal(panel[:width, :n_lanes], expected.T)
    np.testing.assert_array_equal(panel[:width, n_lanes : reading.padded(n_lanes)], 0)


def assert_near(found: Partial, expected: Partial) -> None:
    np.testing.assert_allclose(found.out, expected.out, atol=4e-6)
    np.testing.assert_allclose(found.lse, expected.lse, rtol=1e-6, atol=2e-6)


@given(
    region=strips(),
    heads=st.sampled_from([(1, 1), (3, 3), (6, 2)]),
    block_bytes=st.sampled_from([1 << 14, 1 << 21]),
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_strips_that_share_a_call_are_as_the_formula_says(
    dtype: str, region: Region, heads: tuple[int, int], block_bytes: int
) -> None:
    q, chunks = arrays_of(region, *heads, dtype)
    found = attend(q, chunks, scale=0.5, region=region, block_bytes=block_bytes)
    exact = [x.astype(np.float64) for x in (q, *(x for chunk in chunks for x in chunk))]
    wide = [KeyChunk(*exact[i : i + 2]) for i in range(1, len(exact), 2)]
    assert_near(found, KERNELS["reference"].attend(exact[0], wide, scale=0.5, region=region))


@given(
    region=strips(),
    mask=st.sampled_from([None, "dense", "sinks", "even"]),
    most_work=st.sampled_from([1, 5000, 1 << 33]),
    block_bytes=st.sampled_from([1 << 10, 1 << 14, 1 << 21]),
    threads=st.sampled_from([1, 2]),
)
def test_a_block_may_see_more_than_one_table_says(
    region: Region, mask: str | None, most_work: int, block_bytes: int, threads: int
) -> None:
    if mask is not None:
        n = region.queries[-1].stop
        masks = {
            "dense": Dense(np.random.default_rng(n).random((n, n)) < 0.5),
            "sinks": SlidingWindow(5, 3) | Sinks(2),
            "even": Predicate(lambda b, h, q, k: (q + k) % 2 == 0),
        }
        region = replace(region, mask=masks[mask]).at((0,))
    q, chunks = arrays_of(region, 4, 2, "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba, "_MOST_WORK", most_work)
        patch.setattr(call_shape, "SHARED_FLOPS", 0)  # so that threads share the call
        found = attend(q, chunks, scale=0.5, region=region, block_bytes=block_bytes, threads=threads)
    wide = [KeyChunk(*(x.astype(np.float64) for x in chunk)) for chunk in chunks]
    assert_near(found, KERNELS["reference"].attend(q.astype(np.float64), wide, scale=0.5, region=region))


@pytest.mark.parametrize("n_keys", [3071, 3072, 3073, 10_000, 100_000])
@pytest.mark.parametrize("is_rising", [False, True])
def test_many_keys_are_summed_up_exactly(n_keys: int, is_rising: bool) -> None:
    rng = np.random.default_rng(n_keys)
    q, (k, v) = rng.standard_normal((1, 5, 8), dtype=np.float32), rng.standard_normal((2, 1, n_keys, 8), np.float32)
    if is_rising:  # maxima grow to the end, after sums were put aside
        k[0] = q[0, 0] * np.linspace(0, 8, n_keys, dtype=np.float32)[:, None]
    v += 1
    out, lse = cqs.attention(q, k, v, workers=1, strategy="tiles", kernel="numba", return_lse=True)
    assert_exact(out, q, k, v, lse=lse)


@given(region=strips(), hidden=st.sampled_from([np.nan, np.inf, 3e38]))
def test_what_is_foreign_to_a_strip_does_not_reach_it(region: Region, hidden: float) -> None:
    q, chunks = arrays_of(region, 2, 1, "float32")
    expected = attend(q, chunks, scale=0.5, region=region, block_bytes=BLOCK_BYTES)
    rows = list(accumulate(map(len, region.queries), initial=0))
    for i in range(len(region.queries)):
        spoilt = [
            KeyChunk(chunk.k, np.full_like(chunk.v, hidden)) if (i, j) in region.foreign else chunk
            for j, chunk in enumerate(chunks)
        ]
        own = slice(rows[i], rows[i + 1])
        found = attend(q, spoilt, scale=0.5, region=region, block_bytes=BLOCK_BYTES)
        assert_near(*(Partial(x.out[:, own], x.lse[:, own]) for x in (found, expected)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("mask", [NoMask(), Causal()], ids=repr)
def test_a_call_is_bitwise_the_same_on_any_number_of_threads(dtype: str, mask) -> None:
    runs = tuple(range(i * 150, i * 150 + 150) for i in range(3))
    region = Region(runs, runs, mask, frozenset([(1, 1), (2, 0)]))
    q, chunks = arrays_of(region, 6, 6, "float32")
    wide = [KeyChunk(*(np.tile(array, 24).astype(dtype) for array in chunk)) for chunk in chunks]
    q = np.tile(q, 24).astype(dtype)
    one, *others = (attend(q, wide, scale=0.05, region=region, threads=n) for n in (1, 2, 5))
    for found in others:
        assert np.array_equal(found.out, one.out)
        assert np.array_equal(found.lse, one.lse)


def transposed(x: np.ndarray) -> np.ndarray:
    """The same numbers, tokens before heads."""
    return np.ascontiguousarray(x.swapaxes(-3, -2)).swapaxes(-3, -2)


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "tokens first": transposed,
    "reversed": lambda x: x[..., ::-1, ::-1, ::-1].copy()[..., ::-1, ::-1, ::-1],
    "every second": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "heads from one": lambda x: np.broadcast_to(x[..., :1, :, :], x.shape),
    "a token for all": lambda x: np.broadcast_to(x[..., :1, :], x.shape),
    "unaligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_arrays_may_have_any_layout(layout: str, which: int) -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 4, 150, 16), dtype=np.float32)
    arrays = [q, *rng.standard_normal((2, 2, 2, 170, 16), dtype=np.float32)]
    arrays[which] = LAYOUTS[layout](arrays[which])
    arrays[which].flags.writeable = False
    out, lse = cqs.attention(*arrays, workers=3, kernel="numba", return_lse=True)
    assert_exact(out, *arrays, lse=lse)


def test_a_run_of_keys_may_have_more_than_a_float_can_count() -> None:
    S = (1 << 24) + 3
    k, v = np.full((1, S, 1), -50, np.float32), np.zeros((1, S, 1), np.float32)
    k[0, 1 << 24 :], v[0, 1 << 24 :, 0] = 0, [1, 2, 4]
    q, options = np.ones((1, 2, 1), np.float32), {"mask": Causal(1 << 24), "workers": 1, "strategy": "tiles"}
    assert cqs.attention(q, k, v, scale=1.0, kernel="numba", **options).tolist() == [[[1], [1.5]]]


def test_scores_that_only_their_scale_keeps_in_range() -> None:
    q, k = np.full((1, 1, 64), 2e19, np.float32), np.full((1, 3, 64), -1e18, np.float32)
    v = np.array([[[1], [2], [6]]], np.float32)
    out, lse = cqs.attention(q, k, v, kernel="numba", return_lse=True)
    assert out.tolist() == [[[3]]]
    np.testing.assert_allclose(lse, -1.6e38, rtol=1e-6)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("mask", [NoMask(), Causal(), SlidingWindow(1024, 0)], ids=repr)
@pytest.mark.parametrize("shape", [(8, 4096), (3000, 1), (1, 900)], ids=str)
def test_every_block_of_every_head_is_computed_once(n_threads: int, mask, shape: tuple[int, int]) -> None:
    (H, T), S = shape, 2048
    q = np.broadcast_to(np.float32(1), (H, T, 64))
    k = np.broadcast_to(np.float32(1), (H, S, 64))
    call = numba._Call.of(q, [KeyChunk(k, k)], 1.0, Region.whole(T, S, mask), 2 << 20)
    parts = call.parts(n_threads)
    blocks = sorted((*head, rows.start) for part in parts for head in part.heads.tolist() for rows in part.blocks)
    assert blocks == sorted((*head, rows.start) for head in call.heads.tolist() for rows in call.blocks)


@pytest.mark.parametrize("scale", [1e-12, -3.0, 1e9, 0.0, 1e-50, 1e300])
def test_scales_may_be_extreme(scale: float) -> None:
    q, k, v = np.random.default_rng(1).standard_normal((3, 2, 90, 8), dtype=np.float32)
    assert_exact(cqs.attention(q, k, v, scale=scale, kernel="numba"), q, k, v, scale=scale)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 3.4e38])
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_special_numbers_go_where_they_go_in_the_numpy_kernel(special: float, which: str) -> None:
    arrays = dict(zip("qkv", np.random.default_rng(2).standard_normal((3, 1, 300, 8), dtype=np.float32), strict=True))
    arrays[which][0, 200] = special
    found, expected = (
        cqs.attention(*arrays.values(), is_causal=True, return_lse=True, workers=1, kernel=kernel)
        for kernel in ("numba", "numpy")
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)
        assert np.isfinite(one[:, :200]).all()


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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of x86")
def test_bits_do_not_depend_on_how_long_vectors_are(tmp_path: Path) -> None:
    found = {}
    processors = {"haswell": "+avx,+avx2,+fma", "x86-64": ""}
    for name, features in processors.items():
        env = {**os.environ, "NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
        run = subprocess.run([sys.executable, "-c", _HASH], env=env, capture_output=True, text=True, check=True)
        lanes, digest = run.stdout.split()
        found[int(lanes)] = digest
    assert set(found) == {8, 4}  # without fused products bits are others, and as exact
    run = subprocess.run([sys.executable, "-c", _HASH], capture_output=True, text=True, check=True)
    lanes, digest = run.stdout.split()
    if int(lanes) in (8, 16):
        assert digest == found[8]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_it_is_taken_for_arrays_of_numpy(dtype: str) -> None:
    x = np.zeros((1, 4, 8), getattr(ml_dtypes, dtype, dtype))
    assert cqs.plan(x, x, x).setting.kernel == "numba"
    assert "  kernel  " not in str(cqs.plan(x, x, x))


def test_what_the_loops_cannot_do_numpy_does() -> None:
    q, k, v = np.random.default_rng(3).standard_normal((3, 2, 40, 8))
    narrow = [x.astype(np.float32) for x in (q, k, v)]
    calls = [((q, k, v), {}), (narrow, {"softcap": 2.0}), (narrow, {"bias": ALiBi.standard(2)})]
    for arrays, options in calls:
        one, other = (cqs.attention(*arrays, kernel=kernel, **options) for kernel in ("numba", "numpy"))
        assert np.array_equal(one, other)


def test_where_numba_is_broken_numpy_computes_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("Numba needs NumPy 1.0 or less")

    x = np.random.default_rng(4).standard_normal((2, 40, 8), dtype=np.float32)
    monkeypatch.setattr(numba, "import_module", fail)
    numba._compiled.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=r"cannot be used \(Numba needs NumPy 1.0 or less\).*pip install"):
            found = cqs.attention(x, x, x)
        assert np.array_equal(found, cqs.attention(x, x, x, kernel="numpy"))
    finally:
        numba._compiled.cache_clear()


@pytest.mark.parametrize(
    ("absent", "reason"),
    [
        ("sys.modules['numba'] = None", "numba is not installed: pip install 'cqs-attention[numba]'"),
        ("import os; os.environ['NUMBA_DISABLE_JIT'] = '1'", "Numba's compiler is off (NUMBA_DISABLE_JIT)"),
    ],
)
def test_without_numba_the_numpy_kernel_is_taken_and_the_plan_says_why(absent: str, reason: str) -> None:
    code = f"""
import sys
{absent}
import numpy as np, cqs, cqs.errors
x = np.ones((2, 5, 4), np.float32)
print(cqs.plan(x, x, x))
assert np.allclose(cqs.attention(x, x, x), 1)
try:
    cqs.attention(x, x, x, kernel="numba")
except cqs.errors.OptionError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"kernel    numpy; not numba: {reason}" in found
    assert found.count(reason) == 2
