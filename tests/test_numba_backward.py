"""Gradients by compiled loops: as exact as by array code, whatever is cut, and where loops cannot do it."""

import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from budgets import tracing
from hypothesis import given
from hypothesis import strategies as st

import cqs
from cqs.backend import Workspace
from cqs.backward import Gradients, numba
from cqs.engines import LocalEngine
from cqs.errors import OptionError
from cqs.kernels import numba_modules
from cqs.masks import Causal, Dense, Documents, KeyLengths, Mask, Predicate, SlidingWindow
from cqs.schedule import call_shape
from cqs.scores import ALiBi
from cqs.testing import assert_exact_gradients

pytestmark = [
    pytest.mark.usefixtures("nothing_is_left_behind"),
    pytest.mark.skipif(numba_modules.missing() is not None, reason="Numba is not installed"),
]
Arrays = list[np.ndarray]


def drawn(H: int, G: int, T: int, S: int, D: int, E: int, dtype: Any = np.float32) -> Arrays:
    """Queries, keys, values and the gradient of the output."""
    rng = np.random.default_rng([H, G, T, S, D, E])
    shapes = (H, T, D), (G, S, D), (G, S, E), (H, T, E)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def gradients(arrays: Arrays, how: dict[str, Any] | None = None, **options: Any) -> Gradients:
    q, k, v, dout = arrays
    wide = np.empty(dout.shape, np.float64 if q.dtype == np.float64 else np.float32)
    out, lse = cqs.attention(q, k, v, **options, out=wide, return_lse=True)
    return cqs.attention_backward(dout, q, k, v, out, lse, **options, **how or {})


def check(arrays: Arrays, how: dict[str, Any] | None = None, **options: Any) -> Gradients:
    found = gradients(arrays, how, **options)
    assert_exact_gradients(found, arrays[3], *arrays[:3], **options)
    return found


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing be left to array code."""

    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("array code was called")

    monkeypatch.setattr(numba, "differentiate", fail)
    monkeypatch.setattr(numba, "differentiate_heads", fail)


SIZES = st.integers(1, 200)
WIDTHS = st.integers(1, 70)


@given(G=st.integers(1, 3), shared=st.integers(1, 4), T=SIZES, S=SIZES, D=WIDTHS, E=WIDTHS, workers=st.integers(1, 9))
def test_any_sizes(G: int, shared: int, T: int, S: int, D: int, E: int, workers: int) -> None:
    check(drawn(G * shared, G, T, S, D, E), {"workers": workers}, is_causal=True)


MASKS: list[Mask] = [
    SlidingWindow(40, 7),
    Causal(-50),
    KeyLengths(100),
    Documents([100, 3, 97]) & Causal(),
    Dense(np.random.default_rng(0).random((200, 200)) > 0.5),
    Dense(np.random.default_rng(1).random((4, 200, 200)) > 0.9),
    Predicate(lambda b, h, q, k: (q + h) % 3 >= k % 3),
]
SCORES: list[dict[str, Any]] = [
    {},
    {"softcap": 2.0},
    {"bias": ALiBi((0.3,) * 4), "softcap": 3.0},
    {"bias": np.random.default_rng(2).standard_normal((200, 200))},
    {"bias": ALiBi.standard(4), "scale": -0.3},
]


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("mask", MASKS)
def test_masks_and_changes_of_scores_together(mask: Mask, scores: dict[str, Any]) -> None:
    check(drawn(4, 2, 200, 200, 16, 24), {"workers": 3}, mask=mask, **scores)


CUTS: list[dict[str, int]] = [
    {"BACKWARD_LANES": 16, "MOST_NUMBA_KEYS": 33},
    {"BACKWARD_LANES": 64, "_MOST_SUMMED": 100},
    {"_MOST_WORK": 1 << 16},  # keys of a block in several steps
    {"_MOST_WORK": 1 << 20, "_MOST_SUMMED": 64},
]


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("mask", [Causal(), MASKS[4]], ids=["causal", "array"])
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("least", [0, call_shape.SHARED_FLOPS])
def test_wherever_work_is_cut(cuts: dict[str, int], mask: Mask, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cuts.items():
        monkeypatch.setattr(numba, name, value)
    monkeypatch.setattr(call_shape, "SHARED_FLOPS", least)
    arrays = drawn(4, 1, 200, 200, 24, 8)
    bits = [
        [x.tobytes() for x in check(arrays, {"workers": 1, "engine": LocalEngine(n)}, mask=mask)] for n in (1, 3, 8)
    ]
    assert bits[0] == bits[1] == bits[2]


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_arrays_are_read_as_they_lie(dtype: Any) -> None:
    q, k, v, dout = drawn(4, 2, 150, 150, 16, 20, dtype)
    expected = gradients([q, k, v, dout])
    out, lse = cqs.attention(q, k, v, return_lse=True, out=np.empty(dout.shape, np.float32))
    lse.flags.writeable = out.flags.writeable = False
    for own, other in zip(cqs.attention_backward(dout, q, k, v, out, lse), expected, strict=True):
        np.testing.assert_array_equal(own, other)
    strided = [np.asfortranarray(q), np.repeat(k, 2, axis=-1)[..., ::2], v[:, ::-1].copy()[:, ::-1], dout]
    for x in strided:
        x.flags.writeable = False
    for own, other in zip(gradients(strided), expected, strict=True):
        np.testing.assert_array_equal(own, other)
    assert_exact_gradients(expected, dout, q, k, v)


@pytest.mark.usefixtures("loops")
def test_heads_of_several_entries() -> None:
    rng = np.random.default_rng(5)
    q, dout, k, v = (rng.standard_normal((2, 3, h, 90, 16)).astype(np.float32) for h in (4, 4, 2, 2))
    found = check([q, k, v, dout], {"workers": 3}, mask=SlidingWindow(30))
    for b in np.ndindex(2, 3):
        own = gradients([q[b], k[b], v[b], dout[b]], {"workers": 3}, mask=SlidingWindow(30))
        for whole, part in zip(found, own, strict=True):
            np.testing.assert_allclose(whole[b], part, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-30, 1e28, 1e31])
@pytest.mark.parametrize("which", [2, 3], ids=["v", "dout"])
def test_large_and_small_values(which: int, factor: float) -> None:
    arrays = drawn(2, 1, 100, 100, 16, 16)
    arrays[which] *= np.float32(factor)
    check(arrays, {"workers": 3})


def test_weights_too_small_for_float32_on_their_own() -> None:
    q, k, v, dout = drawn(1, 1, 100, 100, 8, 8)
    k[0, 50:] -= 60 * q[0].mean(0) / np.square(q[0].mean(0)).sum()
    dout *= np.float32(1e20)
    found = check([q, k, v, dout], scale=1.0)
    assert abs(found.dv[0, 50:]).max() > 0


@pytest.mark.parametrize("workers", [1, 3])
def test_one_head_that_overflows_costs_others_nothing(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = numba.differentiate

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(options["blocks"])
        return original(*args, **options)

    arrays = drawn(4, 4, 100, 100, 16, 16)
    expected = gradients(arrays, {"workers": workers})
    arrays[3][2] *= np.float32(1e31)
    monkeypatch.setattr(numba, "differentiate", counted)
    found = check(arrays, {"workers": workers})
    assert len(calls) >= workers
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own[[0, 1, 3]], other[[0, 1, 3]])


def test_a_log_sum_exp_that_is_no_such_thing_gives_what_array_code_does() -> None:
    q, k, v, dout = drawn(2, 1, 80, 80, 8, 8)
    out, lse = cqs.attention(q, k, v, return_lse=True)
    for wrong in (lse - 70, np.full_like(lse, -np.inf), np.full_like(lse, np.nan)):
        one, other = (
            cqs.attention_backward(dout, q, k, v, out, wrong, workers=1, kernel=kernel)
            for kernel in ("numba", "blockwise")
        )
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"scale": 1e20}, {"softcap": 1e-30}])
def test_what_the_loops_cannot_do_array_code_does(options: dict[str, Any]) -> None:
    arrays = drawn(2, 1, 80, 80, 8, 8)
    one, other = (gradients(arrays, {"kernel": kernel}, **options) for kernel in ("numba", "blockwise"))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_float64_is_left_to_array_code() -> None:
    check([x.astype(np.float64) for x in drawn(2, 1, 80, 80, 8, 8)], {"kernel": "numba"})


@pytest.mark.parametrize("scale", [1e-30, 2.0**-25, 2.0**25])
def test_scales_far_from_1(scale: float) -> None:
    q, k, v, dout = drawn(2, 1, 80, 80, 8, 8)
    check([(q / np.sqrt(scale)).astype(np.float32), (k / np.sqrt(scale)).astype(np.float32), v, dout], scale=scale / 4)


def test_nothing_is_written_beside_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    fences: list[tuple[np.ndarray, int]] = []

    def buffer(self: Workspace, name: str, shape: tuple[int, ...], dtype: Any, most: int = 0) -> np.ndarray:
        n = int(np.prod(shape))
        fenced = np.full(n + 64, np.nan, dtype)
        fences.append((fenced, n))
        return fenced[32 : 32 + n].reshape(shape)

    monkeypatch.setattr(Workspace, "buffer", buffer)
    for sizes in ((4, 2, 333, 500, 17, 33), (1, 1, 65, 49, 1, 1), (8, 1, 70, 97, 64, 16)):
        check(drawn(*sizes), {"workers": 2}, mask=Causal(3), softcap=2.0, bias=ALiBi((0.1,) * sizes[0]))
    for fenced, n in fences:
        assert np.isnan(fenced[:32]).all()
        assert np.isnan(fenced[32 + n :]).all()


def test_small_numbers_are_as_they_were_before(loops: None) -> None:
    arrays = drawn(1, 1, 50, 50, 8, 8)
    gradients(arrays)
    least = np.finfo(np.float32).smallest_subnormal
    assert np.float32(2) * least / np.float32(2) == least


def scaled(arrays: Arrays, *factors: float) -> Arrays:
    """The arrays q, k, v and dout, each times a factor."""
    return [x * np.float32(factor) for x, factor in zip(arrays, factors, strict=True)]


@pytest.mark.parametrize(
    ("factors", "options"),
    [
        ((1e-25, 1e25, 1, 1e6), {"scale": 0.25}),  # of queries alone
        ((1e20, 1e-20, 1e-3, 1e12), {"scale": 0.25}),  # of keys alone
        ((1, 1, 1e-31, 1e31), {}),  # of values alone
        ((1e-6, 1e-6, 1, 1e24), {"scale": 1e12}),  # when they are multiplied by a large scale
    ],
)
def test_sums_that_overflow_before_they_are_scaled(factors: tuple[float, ...], options: dict[str, Any]) -> None:
    for workers in (1, 3):
        check(scaled(drawn(2, 2, 60, 60, 8, 8), *factors), {"workers": workers}, **options)


def test_sums_of_very_many_keys_are_folded_again_and_again(loops: None) -> None:
    check(drawn(1, 1, 40, 7000, 8, 8), {"workers": 1})


def test_sums_of_very_many_queries_are_folded_again_and_again(loops: None) -> None:
    check(drawn(2, 1, 5000, 40, 8, 8), {"workers": 1, "strategy": "tiles"})


def test_only_the_rows_that_overflow_are_computed_again() -> None:
    q, k, v, dout = drawn(8, 8, 4500, 100, 8, 8)
    dout[3, 4400] *= np.float32(1e31)
    found = gradients([q, k, v, dout], {"workers": 1, "strategy": "tiles"})
    expected = gradients([q, k, v, dout], {"workers": 1, "strategy": "tiles", "kernel": "blockwise"})
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-5 * abs(other[:3]).max())


def test_the_slope_of_a_soft_cap_has_digits_where_scores_are_far_above_it(loops: None) -> None:
    check(scaled(drawn(2, 2, 100, 100, 8, 8), 30, 30, 1, 1), {"workers": 3}, softcap=2.0)


@pytest.mark.parametrize("n_heads", [1, 8])
def test_threads_look_often_whether_they_are_to_stop(n_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(numba, "raise_if_stopped", lambda: looks.append(1))
    monkeypatch.setattr(numba, "_MOST_WORK", 1 << 25)
    check(drawn(n_heads, 1, 300, 300, 16, 16), {"workers": 1, "strategy": "tiles"})
    assert len(looks) >= n_heads * 300 * 300 * (5 * 16 + 50) / (1 << 25)


def test_threads_share_the_sums_of_shares() -> None:
    arrays = drawn(1, 1, 1024, 60_000, 64, 64)
    out, lse = arrays[3], np.full((1, 1024), 20, np.float32)
    with tracing():
        cqs.attention_backward(arrays[3], *arrays[:3], out, lse, workers=1, strategy="tiles", engine=LocalEngine(4))
        # gradients, sums of three more shares, of four threads those of one head, and some MiB
        assert tracemalloc.get_traced_memory()[1] < (1 + 3 + 4) * 2 * arrays[1].nbytes + (64 << 20)


# Which is taken


def test_numba_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = drawn(1, 1, 50, 50, 8, 8)
    by_name = {name: gradients(arrays, {"kernel": name}) for name in ("numba", "blockwise")}
    assert not np.array_equal(by_name["numba"].dq, by_name["blockwise"].dq)
    np.testing.assert_array_equal(gradients(arrays).dq, by_name["numba"].dq)
    monkeypatch.setattr("cqs.backward.call.missing", lambda: "numba is not installed: pip install it")
    np.testing.assert_array_equal(gradients(arrays).dq, by_name["blockwise"].dq)
    with pytest.raises(OptionError, match=r"`kernel` must be able to do what is asked, got 'numba': numba is not inst"):
        gradients(arrays, {"kernel": "numba"})


def test_where_numba_is_broken_array_code_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = drawn(1, 1, 50, 50, 8, 8)
    expected = gradients(arrays, {"kernel": "blockwise"})
    monkeypatch.setattr(numba, "compiled", lambda name: None)
    for own, other in zip(gradients(arrays), expected, strict=True):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("name", ["numpy", "fast", None, []])
def test_unknown_kernels_are_refused(name: Any) -> None:
    with pytest.raises(OptionError, match="`kernel` must be auto or one of numba, blockwise"):
        gradients(drawn(1, 1, 50, 50, 8, 8), {"kernel": name})


def test_numba_takes_arrays_of_numpy() -> None:
    strict = pytest.importorskip("array_api_strict")
    arrays = drawn(1, 1, 50, 50, 8, 8)
    out, lse = cqs.attention(*arrays[:3], return_lse=True)
    with pytest.raises(OptionError, match="'numba': it takes arrays of NumPy, and tensors in main memory"):
        cqs.attention_backward(*map(strict.asarray, (arrays[3], *arrays[:3], out, lse)), kernel="numba")
