"""The compiled kernel by itself: the loops that Numba compiles, what they are handed, and what is left to NumPy."""

import subprocess
import sys
import tracemalloc
from dataclasses import replace
from itertools import accumulate

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import arrays_of, strips

import cqs
from cqs.kernels import KERNELS, KeyChunk, Region, numba, numba_modules
from cqs.kernels.compiled.loops import room_size
from cqs.kernels.numba import attend
from cqs.masks import Causal, Dense, NoMask, Predicate, Sinks, SlidingWindow
from cqs.partial import Partial
from cqs.schedule import CallShape, call_shape, numba_block, scratch_bytes
from cqs.testing import assert_exact

BLOCK_BYTES = 64 << 10  # so that calls of a few hundred tokens have many blocks


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


@settings(max_examples=20)  # a table for each key takes long
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
    blocks = sorted(
        (*head, int(this.table.blocks[n, 0])) for this in call.cut.rounds(n_threads) for *head, n in this.items.tolist()
    )
    assert blocks == sorted((*head, rows.start) for head in call.cut.heads.tolist() for rows in call.cut.blocks)


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


@pytest.mark.parametrize("block_bytes", [1 << 12, 1 << 21])
def test_each_head_of_each_entry_that_needs_care_gets_it(block_bytes: int) -> None:
    rng = np.random.default_rng(5)
    q, (k, v) = rng.standard_normal((2, 6, 300, 8), np.float32), rng.standard_normal((2, 2, 3, 300, 8), np.float32)
    v[0, 2, 70, 3], v[1, 0, 299, 0], v[1, 2, 0, 7] = np.nan, np.inf, 3e38
    q[1, 3, 200] = 1e38
    region = Region.whole(300, 300, Causal())
    found, expected = (
        KERNELS[kernel].attend(q, [KeyChunk(k, v)], scale=1.0, region=region, threads=2, block_bytes=block_bytes)
        for kernel in ("numba", "numpy")
    )
    np.testing.assert_allclose(found.out, expected.out, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(found.lse, expected.lse, rtol=2e-5, atol=1e-5)
    assert 0 < np.isnan(found.out).sum() < found.out.size / 2


@given(
    call=st.builds(
        CallShape,
        *(st.integers(1, 3), st.integers(1, 3), st.integers(1, 8), st.integers(1, 2000), st.integers(1, 2000)),
        *(st.integers(1, 300), st.integers(1, 300), st.just(4), st.just(True), st.booleans(), st.booleans()),
    ),
    block_bytes=st.sampled_from([1 << 10, 1 << 16, 1 << 21, 1 << 26]),
)
def test_the_room_of_the_loops_is_projected(call: CallShape, block_bytes: int) -> None:
    block = numba_block(call, block_bytes)
    size = room_size(block.lanes, block.keys, call.width, call.value_width)
    assert 4 * size <= min(scratch_bytes("numba", call, block_bytes, has_scores) for has_scores in (False, True))


def test_where_numba_is_broken_the_budget_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    x, options = np.ones((4, 3000, 64), np.float32), {"memory": "8 MiB", "engine": cqs.engines.LocalEngine(1)}
    options["out"] = np.empty_like(x)
    projected = cqs.plan(x, x, x, **options).projected_bytes
    monkeypatch.setattr(numba, "compiled", lambda name: None)
    tracemalloc.start()
    try:
        cqs.attention(x, x, x, **options)
        assert tracemalloc.get_traced_memory()[1] <= projected
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_it_is_taken_for_arrays_of_numpy(dtype: str) -> None:
    x = np.zeros((1, 4, 8), getattr(ml_dtypes, dtype, dtype))
    assert cqs.plan(x, x, x).setting.kernel == "numba"
    assert "  kernel  " not in str(cqs.plan(x, x, x))


def test_what_the_loops_cannot_do_numpy_does() -> None:
    q, k, v = np.random.default_rng(3).standard_normal((3, 2, 40, 8))
    narrow = [x.astype(np.float32) for x in (q, k, v)]
    options = [{"score_mod": lambda s, b, h, i, j: 2 * s}, {"softcap": 1e-30}]
    calls = [((q, k, v), {}), *((narrow, option) for option in options)]
    for arrays, option in calls:
        one, other = (cqs.attention(*arrays, kernel=kernel, **option) for kernel in ("numba", "numpy"))
        assert np.array_equal(one, other)


def test_where_numba_is_broken_numpy_computes_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("Numba needs NumPy 1.0 or less")

    x = np.random.default_rng(4).standard_normal((2, 40, 8), dtype=np.float32)
    monkeypatch.setattr(numba_modules, "import_module", fail)
    numba_modules.compiled.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=r"cannot be used \(Numba needs NumPy 1.0 or less\).*pip install"):
            found = cqs.attention(x, x, x)
        assert np.array_equal(found, cqs.attention(x, x, x, kernel="numpy"))
    finally:
        numba_modules.compiled.cache_clear()


def test_a_first_call_while_the_interpreter_ends_computes() -> None:
    code = """
import atexit, warnings
warnings.simplefilter("error")
import concurrent.futures.thread, numpy as np, cqs
x = np.ones((1, 8, 8), np.float32)
atexit.register(lambda: print(cqs.attention(x, x, x, kernel="numba", workers=1).sum()))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (found.stdout, found.stderr) == ("64.0\n", "")


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
