"""The gradient of a bias: exact, whatever axes it has, and summed up over those that it has not."""

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
from engine_cases import ShuffledEngine
from hypothesis import given
from hypothesis import strategies as st
from problems import Problem, dout_for, odd_qkv, problems

import cqs
from cqs.backward import GradientsWithBias, numba
from cqs.engines import ExecutorEngine, LocalEngine
from cqs.errors import OptionError
from cqs.masks import Causal, Dense, Documents, KeyLengths, Mask, Predicate, SlidingWindow
from cqs.schedule import call_shape
from cqs.scores import ALiBi
from cqs.testing import assert_exact_gradients

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")
KERNELS = ("auto", "blockwise")
Arrays = list[Any]


@pytest.fixture
def qkv() -> Arrays:
    return odd_qkv()  # (4, 331, 16), (2, 331, 16), (2, 331, 24)


def gradients(qkv: Arrays, bias: Any, how: dict[str, Any] | None = None, **options: Any) -> GradientsWithBias:
    q, _, v = qkv
    dout = how.pop("dout", None) if how else None
    out, lse = cqs.attention(*qkv, bias=bias, **options, return_lse=True)
    dout = dout_for(q, v) if dout is None else dout
    return cqs.attention_backward(dout, *qkv, out, lse, bias=bias, return_dbias=True, **options, **how or {})


def drawn(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(dtype)


def check(qkv: Arrays, bias: Any, how: dict[str, Any] | None = None, **options: Any) -> GradientsWithBias:
    found = gradients(qkv, bias, how, **options)
    assert found.dbias.shape == bias.shape
    assert found.dbias.dtype == bias.dtype
    assert_exact_gradients(found, dout_for(qkv[0], qkv[2]), *qkv, bias=bias, **options)
    return found


@given(problem=problems(dtypes=("float32", "float64")), axes=st.data(), kernel=st.sampled_from(KERNELS))
def test_it_is_exact_whatever_axes_it_has(problem: Problem, axes: st.DataObject, kernel: str) -> None:
    full = (*problem.q.shape[:-1], problem.k.shape[-2])
    own = axes.draw(st.tuples(*(st.sampled_from([1, n]) for n in full)))
    bias = drawn(own[axes.draw(st.integers(0, len(full) - 2)) :])
    how = {"workers": problem.workers, "kernel": kernel}
    check([problem.q, problem.k, problem.v], bias.astype(problem.q.dtype), how, **problem.options)


SHAPES = [(4, 331, 331), (1, 331, 331), (331, 331), (4, 1, 331), (4, 331, 1), (331, 1), (1, 331), (4, 1, 1), (1, 1)]
MASKS: dict[str, Mask] = {
    "causal": Causal(),
    "offset": Causal(-50),
    "window": SlidingWindow(40, 7),
    "documents": Documents([100, 3, 150]) & Causal(),
    "array": Dense(np.random.default_rng(2).random((331, 331)) > 0.5),
    "an array for each head": Dense(np.random.default_rng(3).random((4, 331, 331)) > 0.9),
    "function": Predicate(lambda b, h, q, k: (q + h) % 3 >= k % 3),
}


@pytest.mark.parametrize("how", [{"workers": 13}, {"workers": 7, "kernel": "blockwise"}], ids=str)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=str)
def test_what_is_hidden_adds_nothing(qkv: Arrays, shape: tuple[int, ...], mask: Mask, how: dict[str, Any]) -> None:
    found = check(qkv, drawn(shape), dict(how), mask=mask)
    if shape == SHAPES[0]:
        bound = mask.bind((), 4, 331, 331)
        seen = np.stack([bound.at((h,)).block(range(331), range(331)) for h in range(4)])
        assert 0 < seen.sum() < seen.size
        assert not found.dbias[~seen].any()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_may_be_bent_before_it_is_added(qkv: Arrays, shape: tuple[int, ...], kernel: str) -> None:
    check(qkv, drawn(shape), {"workers": 6, "kernel": kernel}, softcap=1.5, scale=0.7)


@pytest.mark.parametrize("memory", ["10 MiB", "1 GiB"])
@pytest.mark.parametrize("lead", [(2, 4), (1, 4), (2, 1), ()], ids=str)
def test_entries_and_heads_that_share_it_are_summed_up(lead: tuple[int, ...], memory: str) -> None:
    q, k, v = (np.random.default_rng(i).standard_normal((2, h, 200, 16)) for i, h in enumerate((4, 2, 2)))
    bias = drawn((*lead, 200, 200), np.float64)
    found = check([q, k, v], bias, {"memory": memory})
    by_task = check([q, k, v], bias, {"workers": 7, "engine": LocalEngine(3)})
    np.testing.assert_allclose(found.dbias, by_task.dbias, atol=1e-13)


def test_it_is_the_slope_of_the_output(qkv: Arrays) -> None:
    qkv = [x.astype(np.float64) for x in qkv]
    bias, step = drawn((4, 331, 331), np.float64), 1e-6 * np.random.default_rng(8).standard_normal((4, 331, 331))
    found = gradients(qkv, bias, {"workers": 7}, is_causal=True)
    near = [cqs.attention(*qkv, bias=bias + sign * step, is_causal=True) for sign in (1, -1)]
    rise = (dout_for(qkv[0], qkv[2]) * (near[0] - near[1])).sum() / 2
    assert np.isclose(rise, (found.dbias * step).sum(), rtol=1e-6)


def test_the_other_gradients_are_what_they_are_without_it(qkv: Arrays) -> None:
    bias = drawn((4, 331, 331))
    found = gradients(qkv, bias, {"workers": 7})
    out, lse = cqs.attention(*qkv, bias=bias, return_lse=True)
    without = cqs.attention_backward(dout_for(qkv[0], qkv[2]), *qkv, out, lse, bias=bias, workers=7)
    for own, other in zip(found[:3], without, strict=True):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_it_has_the_type_of_the_bias(qkv: Arrays, dtype: Any) -> None:
    bias = drawn((4, 1, 331), dtype)
    found = gradients(qkv, bias)
    wide = gradients(qkv, bias.astype(np.float32))
    assert found.dbias.dtype == dtype
    np.testing.assert_array_equal(found.dbias, wide.dbias.astype(dtype))


@pytest.mark.parametrize("strategy", ["cqs", "tiles", "ring", "tree"])
@pytest.mark.parametrize("shape", [SHAPES[0], (331, 331), (4, 1, 331), (1, 331)], ids=str)
def test_every_strategy_gives_it(qkv: Arrays, strategy: str, shape: tuple[int, ...]) -> None:
    check(qkv, drawn(shape), {"workers": 5, "strategy": strategy}, is_causal=True)


# What cannot be computed by compiled loops


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[-1] > 1], ids=str)  # along keys all sums are 0
@pytest.mark.parametrize("workers", [1, 7])
def test_one_head_that_overflows_costs_others_nothing(qkv: Arrays, shape: tuple[int, ...], workers: int) -> None:
    q, k, v = qkv
    dout = dout_for(q, v)
    dout[2, 200] *= np.float32(1e36)
    k[1, 7] *= np.float32(1e4)
    one, other = (
        gradients([q, k, v], drawn(shape), {"workers": workers, "kernel": kernel, "dout": dout}, is_causal=True)
        for kernel in KERNELS
    )
    scale = abs(other.dbias).max(axis=(-1, -2), keepdims=True)
    np.testing.assert_allclose(one.dbias / scale, other.dbias / scale, atol=2e-5)


@pytest.mark.parametrize("workers", [1, 7])
@pytest.mark.parametrize("shape", [(4, 331, 331), (4, 331, 1)], ids=str)
def test_nan_stays_with_the_rows_that_see_it(qkv: Arrays, shape: tuple[int, ...], workers: int) -> None:
    q, k, v = qkv
    clean = gradients(qkv, drawn(shape), {"workers": workers}, is_causal=True)
    v[0, 200, 3] = np.nan
    found = gradients([q, k, v], drawn(shape), {"workers": workers}, is_causal=True)
    np.testing.assert_allclose(found.dbias[:, :200], clean.dbias[:, :200], atol=1e-5)
    np.testing.assert_allclose(found.dbias[2:], clean.dbias[2:], atol=1e-5)
    assert np.isnan(found.dbias[:2, 200:]).any(axis=-1).all()


def test_what_nobody_sees_reaches_nothing(qkv: Arrays) -> None:
    q, k, v = qkv
    bias = drawn((4, 331, 331))
    clean = gradients(qkv, bias, {"workers": 7}, mask=KeyLengths(300))
    k[:, 300:], v[:, 310:], bias[..., 320:] = np.nan, np.inf, np.nan
    found = gradients([q, k, v], bias, {"workers": 7}, mask=KeyLengths(300))
    np.testing.assert_array_equal(found.dbias, clean.dbias)


@pytest.mark.parametrize("cuts", [{"_MOST_WORK": 1 << 16}, {"_MOST_WORK": 1 << 20, "_MOST_SUMMED": 64}], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_wherever_work_is_cut(
    qkv: Arrays, shape: tuple[int, ...], cuts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cuts.items():
        monkeypatch.setattr(numba, name, value)
    monkeypatch.setattr(call_shape, "SHARED_FLOPS", 0)
    check(qkv, drawn(shape), {"workers": 1, "engine": LocalEngine(3)}, is_causal=True)


# The same bits, other libraries


@pytest.mark.parametrize("shape", [(4, 331, 331), (331, 331), (1, 331)], ids=str)
@pytest.mark.parametrize("workers", [1, 6])
def test_any_engine_gives_the_same_bits(qkv: Arrays, workers: int, shape: tuple[int, ...]) -> None:
    def bits(engine: Any) -> bytes:
        how = {"workers": workers, "engine": engine}
        return gradients(qkv, drawn(shape), how, is_causal=True).dbias.tobytes()

    expected = bits(LocalEngine(1))
    with ThreadPoolExecutor(3) as pool:
        assert all(bits(engine) == expected for engine in (None, LocalEngine(3), ShuffledEngine(5), pool))


def test_processes_give_the_same_bits(qkv: Arrays, processes: ProcessPoolExecutor) -> None:
    bias = drawn((4, 331, 331))
    found = gradients(qkv, bias, {"workers": 7, "engine": ExecutorEngine(processes, 2)})
    np.testing.assert_array_equal(found.dbias, gradients(qkv, bias, {"workers": 7}).dbias)


@pytest.mark.parametrize("shape", [(4, 331, 331), (331, 331), (4, 1, 331)], ids=str)
def test_other_libraries_have_it(qkv: Arrays, shape: tuple[int, ...]) -> None:
    strict = array_api_strict.asarray
    dout, bias = dout_for(qkv[0], qkv[2]), drawn(shape)
    found = gradients([strict(x) for x in qkv], strict(bias), {"workers": 7, "dout": strict(dout)}, mask=Causal(-3))
    assert_exact_gradients([np.from_dlpack(x) for x in found], dout, *qkv, bias=bias, mask=Causal(-3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_give_tensors(qkv: Arrays, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(x).to(getattr(torch, dtype)) for x in (*qkv, drawn((4, 331, 331)))]
    dout = torch.tensor(dout_for(qkv[0], qkv[2])).to(tensors[0].dtype)
    found = gradients(tensors[:3], tensors[3], {"workers": 7, "dout": dout}, is_causal=True)
    assert found.dbias.dtype == tensors[3].dtype
    assert_exact_gradients(found, dout, *tensors[:3], bias=tensors[3], is_causal=True)


# Refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bias": None}, "`return_dbias` must be given with a `bias` that is an array, got bias=None"),
        ({"bias": ALiBi.standard(4)}, "`return_dbias` must be given with a `bias` that is an array"),
        ({"return_dbias": 1}, "`return_dbias` must be True or False, got 1"),
    ],
)
def test_what_is_wrong_is_refused(qkv: Arrays, wrong: dict[str, Any], message: str) -> None:
    out, lse = cqs.attention(*qkv, return_lse=True)
    options = {"bias": drawn((4, 331, 331)), "return_dbias": True} | wrong
    with pytest.raises(OptionError, match=message):
        cqs.attention_backward(dout_for(qkv[0], qkv[2]), *qkv, out, lse, **options)


@given(factor=st.sampled_from([0.0, 0.999, 1.001, -1.0]), kernel=st.sampled_from(KERNELS))
def test_the_rule_finds_what_is_wrong(factor: float, kernel: str) -> None:
    qkv = [x[:, :60] for x in odd_qkv()]
    bias = drawn((4, 60, 60))
    found = list(check(qkv, bias, {"kernel": kernel}))
    found[3] = found[3] * np.float32(factor)
    with pytest.raises(AssertionError, match="dbias"):
        assert_exact_gradients(found, dout_for(qkv[0], qkv[2]), *qkv, bias=bias)
