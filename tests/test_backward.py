"""The backward pass: exact gradients, whatever the cut, the mask, the type and the library."""

import tracemalloc
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
from budgets import tracing
from engine_cases import ShuffledEngine
from hypothesis import given
from hypothesis import strategies as st
from problems import Problem, dout_for, odd_qkv, problems

import cqs
from cqs import ArraySource
from cqs.backward import (
    GradientAdder,
    GradientResult,
    GradientSource,
    GradientWorker,
    differentiate_heads,
)
from cqs.engines import ExecutorEngine, LocalEngine
from cqs.errors import BackendError, CQSError, DTypeError, OptionError, ShapeError, TileError
from cqs.masks import Causal, Dense, Documents, KeyLengths, Mask, Predicate, PrefixLM, Sinks, SlidingWindow
from cqs.schedule import Grain
from cqs.scores import ALiBi, Scores
from cqs.sources import ArrayInput
from cqs.testing import assert_exact_gradients
from cqs.trace import Recorder

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")
Arrays = list[np.ndarray]


@pytest.fixture
def qkv() -> Arrays:
    return odd_qkv()  # (4, 331, 16), (2, 331, 16), (2, 331, 24)


def gradients(qkv: Any, dout: Any = None, how: dict[str, Any] | None = None, **options: Any) -> Any:
    """Gradients by `how`, of attention with the options."""
    q, _, v = qkv
    out, lse = cqs.attention(*qkv, **options, return_lse=True)
    options.pop("sink_logits", None)
    return cqs.attention_backward(dout_for(q, v) if dout is None else dout, *qkv, out, lse, **options, **how or {})


# Exact


KERNELS = st.sampled_from(["auto", "blockwise"])


def check(problem: Problem, kernel: str) -> None:
    qkv = problem.q, problem.k, problem.v
    dout = dout_for(problem.q, problem.v)
    found = gradients(qkv, dout, {"workers": problem.workers, "kernel": kernel}, **problem.options)
    assert_exact_gradients(found, dout, *qkv, **problem.options)


@given(problem=problems(dtypes=("float32", "float64")), kernel=KERNELS)
def test_gradients_are_exact(problem: Problem, kernel: str) -> None:
    check(problem, kernel)


@given(problem=problems(dtypes=("float16", "bfloat16"), scales=(1.0,)), kernel=KERNELS)
def test_gradients_of_16_bits_are_exact(problem: Problem, kernel: str) -> None:
    check(problem, kernel)


RNG = np.random.default_rng(2)
MASKS: dict[str, Mask] = {
    "causal": Causal(),
    "offset": Causal(-50),
    "window": SlidingWindow(40, 7),
    "window and sinks": (SlidingWindow(40) | Sinks(3)) & Causal(),
    "prefix": PrefixLM(100),
    "documents": Documents([100, 3, 150]) & Causal(),
    "lengths": KeyLengths(200),
    "array": Dense(RNG.random((331, 331)) > 0.5),
    "an array for each head": Dense(RNG.random((4, 331, 331)) > 0.9),
    "function": Predicate(lambda b, h, q, k: (q + h) % 3 >= k % 3),
}


HOW: list[dict[str, Any]] = [{"workers": 1}, {"workers": 31}, {"workers": 7, "kernel": "blockwise"}]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_every_mask_is_kept(qkv: Arrays, mask: Mask, how: dict[str, Any]) -> None:
    found = gradients(qkv, None, how, mask=mask)
    assert_exact_gradients(found, dout_for(qkv[0], qkv[2]), *qkv, mask=mask)


SCORES: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 1.5},
    "ALiBi": {"bias": ALiBi.standard(4)},
    "bias": {"bias": RNG.standard_normal((4, 331, 331), dtype=np.float32)},
    "a bias for all heads": {"bias": RNG.standard_normal((331, 1), dtype=np.float32)},
    "both": {"softcap": 1.5, "bias": ALiBi((0.1,) * 4), "is_causal": True},
    "scores far above the cap": {"scale": 30.0, "softcap": 10.0},
    "a scale below 0": {"scale": -0.5},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("options", SCORES.values(), ids=SCORES)
def test_every_change_of_scores_is_differentiated(qkv: Arrays, options: dict[str, Any], how: dict[str, Any]) -> None:
    found = gradients(qkv, None, how, **options)
    assert_exact_gradients(found, dout_for(qkv[0], qkv[2]), *qkv, **options)


@pytest.mark.parametrize("scale", [2.0**-30, 2.0**25])
def test_scales_that_would_push_queries_out_of_range_do_not(qkv: Arrays, scale: float) -> None:
    qkv = [qkv[0] / np.float32(scale), *qkv[1:]]
    found = gradients(qkv, None, {"workers": 3}, scale=scale / 4)
    assert_exact_gradients(found, dout_for(qkv[0], qkv[2]), *qkv, scale=scale / 4)


@pytest.mark.parametrize("strategy", ["auto", "tiles", "ring", "tree"])
@pytest.mark.parametrize("n_keys", [331, 77])
def test_every_strategy_gives_them(qkv: Arrays, strategy: str, n_keys: int) -> None:
    qkv = [qkv[0], *(x[:, :n_keys] for x in qkv[1:])]
    found = gradients(qkv, None, {"workers": 5, "strategy": strategy}, mask=Causal(3))
    assert_exact_gradients(found, dout_for(qkv[0], qkv[2]), *qkv, mask=Causal(3))


def test_sink_logits_are_in_the_log_sum_exp(qkv: Arrays) -> None:
    q, k, v = (x.astype(np.float64) for x in qkv)
    logits = np.array([0.0, 1.0, -2.0, 3.0])
    found = gradients([q, k, v], None, {"workers": 7}, sink_logits=logits)
    step = 1e-6 * RNG.standard_normal(q.shape)
    near = [cqs.attention(q + sign * step, k, v, sink_logits=logits) for sign in (1, -1)]
    assert np.isclose((dout_for(q, v) * (near[0] - near[1])).sum() / 2, (found.dq * step).sum(), rtol=1e-5)


def test_gradients_agree_with_torch(qkv: Arrays) -> None:
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(x[None], requires_grad=True) for x in qkv]
    out = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)
    out.backward(torch.tensor(dout_for(qkv[0], qkv[2])[None]))
    for own, tensor in zip(gradients(qkv, None, {"workers": 13}, is_causal=True), tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad[0], atol=2e-5)


# What is hidden


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("workers", [1, 7])
def test_what_nobody_sees_reaches_no_gradient(qkv: Arrays, poison: float, workers: int) -> None:
    _, k, v = qkv
    clean = gradients(qkv, None, {"workers": workers}, mask=KeyLengths(300))
    k[:, 300:], v[:, 310:] = poison, poison
    found = gradients(qkv, None, {"workers": workers}, mask=KeyLengths(300))
    for own, expected in zip(found, clean, strict=True):
        np.testing.assert_array_equal(own, expected)
    assert not found.dk[:, 300:].any()
    assert not found.dv[:, 300:].any()


@pytest.mark.parametrize("workers", [1, 7])
def test_nan_reaches_those_that_see_it_and_no_others(qkv: Arrays, workers: int) -> None:
    q, _, v = qkv
    clean = gradients(qkv, None, {"workers": workers}, is_causal=True)
    v[0, 200, 3] = np.nan
    found = gradients(qkv, None, {"workers": workers}, is_causal=True)
    assert np.isnan(found.dq[:2, 200:]).all()  # rows that see the key, of the heads that share it
    np.testing.assert_allclose(found.dq[:2, :200], clean.dq[:2, :200], atol=1e-5)
    np.testing.assert_array_equal(found.dq[2:], clean.dq[2:])
    assert np.isnan(found.dk[0, :331]).all()  # every key is seen by a row that is lost
    q[3, 5, 0] = np.nan
    v[0, 200, 3] = 0
    found = gradients(qkv, None, {"workers": workers}, is_causal=True)
    for own, expected in ((found.dk, clean.dk), (found.dv, clean.dv)):
        assert np.isnan(own[1, :6]).all()
        np.testing.assert_allclose(own[1, 6:], expected[1, 6:], atol=1e-5)


@pytest.mark.parametrize("workers", [1, 7])
@pytest.mark.parametrize("poisoned", ["q", "k", "v"])
def test_a_document_that_is_lost_takes_no_other_with_it(qkv: Arrays, workers: int, poisoned: str) -> None:
    mask = Documents([100, 231])
    clean = gradients(qkv, None, {"workers": workers}, mask=mask)
    qkv["qkv".index(poisoned)][..., 40, 3] = np.nan
    found = gradients(qkv, None, {"workers": workers}, mask=mask)
    for own, expected in zip(found, clean, strict=True):
        np.testing.assert_allclose(own[:, 100:], expected[:, 100:], atol=1e-5)
    assert not all(np.isfinite(x[:, :100]).all() for x in found)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_several_blocks_of_rows_and_columns_add_up(workers: int, dtype: str) -> None:
    q, k, v = (np.random.default_rng(i).standard_normal((h, 1100, 8)).astype(dtype) for i, h in enumerate((2, 1, 1)))
    found = gradients([q, k, v], None, {"workers": workers}, is_causal=True)
    assert_exact_gradients(found, dout_for(q, v), q, k, v, is_causal=True)


def test_tasks_with_some_of_the_heads_add_up_to_the_same() -> None:
    q, k, v = (np.random.default_rng(i).standard_normal((2, h, 100, 8)) for i, h in enumerate((4, 2, 2)))
    bias, dout = ALiBi.standard(4), dout_for(q, v)
    out, lse = cqs.attention(q, k, v, bias=bias, return_lse=True)
    plan = replace(cqs.plan(q, k, v, workers=7), grain=Grain(kv_heads=1))
    inputs = ArraySource(q, k, v)
    source = GradientSource(plan.problem, inputs, ArrayInput(out), ArrayInput(dout), ArrayInput(lse[..., None]))
    worker = GradientWorker(
        plan.problem, source, differentiate_heads, Scores.of(plan.problem, q, bias=bias), plan.grain
    )
    adder = GradientAdder(plan, q)
    assert len(plan) == 28
    for task in plan.tasks():
        adder.add(worker.run(task))
    for own, expected in zip(adder.result(), gradients([q, k, v], dout, bias=bias), strict=True):
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-12)


def test_blocks_do_not_grow_with_the_heads_that_share_keys() -> None:
    q, k = np.zeros((32, 1500, 16), np.float32), np.zeros((1, 1500, 16), np.float32)
    out, lse = cqs.attention(q, k, k, return_lse=True)
    with tracing():
        cqs.attention_backward(q, q, k, k, out, lse, workers=1, engine=LocalEngine(1))
        assert tracemalloc.get_traced_memory()[1] < 5 * q.nbytes + (10 << 20)


def test_a_row_that_sees_nothing_has_no_gradient(qkv: Arrays) -> None:
    found = gradients(qkv, None, {"workers": 7}, mask=Causal(-50))
    assert not found.dq[:, :50].any()
    assert all(np.isfinite(x).all() for x in found)


# The same bits


@pytest.mark.parametrize("workers", [1, 6, 31])
def test_any_engine_gives_the_same_bits(qkv: Arrays, workers: int) -> None:
    def bits(engine: Any) -> list[bytes]:
        return [x.tobytes() for x in gradients(qkv, None, {"workers": workers, "engine": engine}, is_causal=True)]

    expected = bits(LocalEngine(1))
    with ThreadPoolExecutor(3) as pool:
        assert all(bits(engine) == expected for engine in (None, LocalEngine(3), ShuffledEngine(5), pool))


def test_processes_give_the_same_bits(qkv: Arrays, processes: ProcessPoolExecutor) -> None:
    recorder = Recorder()
    how = {"workers": 7, "engine": ExecutorEngine(processes, 2), "on_event": recorder}
    found = gradients(qkv, None, how, is_causal=True)
    expected = gradients(qkv, None, {"workers": 7}, is_causal=True)
    assert [x.tobytes() for x in found] == [x.tobytes() for x in expected]
    assert recorder.counters.n_tasks == 7


# Libraries, types and files


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_libraries_have_gradients(qkv: Arrays, dtype: str) -> None:
    qkv = [x.astype(dtype) for x in qkv]
    dout = dout_for(qkv[0], qkv[2])
    for device in array_api_strict.__array_namespace_info__().devices()[: 3 if dtype == "float64" else None]:
        arrays = [array_api_strict.asarray(x, device=device) for x in qkv]
        found = gradients(arrays, array_api_strict.asarray(dout, device=device), {"workers": 7}, mask=Causal(-3))
        assert all(x.device == device for x in found)
        on_host = [np.from_dlpack(x.to_device(array_api_strict.Device("CPU_DEVICE"))) for x in found]
        assert_exact_gradients(on_host, dout, *qkv, mask=Causal(-3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_give_tensors(qkv: Arrays, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(x).to(getattr(torch, dtype)) for x in qkv]
    dout = torch.tensor(dout_for(qkv[0], qkv[2])).to(tensors[0].dtype)
    found = gradients(tensors, dout, {"workers": 7}, is_causal=True)
    assert all(x.dtype == tensors[0].dtype for x in found)
    assert_exact_gradients(found, dout, *tensors, is_causal=True)


def test_an_output_in_float32_may_be_given_for_16_bits(qkv: Arrays) -> None:
    qkv = [x.astype(ml_dtypes.bfloat16) for x in qkv]
    dout = dout_for(qkv[0], qkv[2]).astype(np.float32)
    wide = np.empty(dout.shape, np.float32)
    out, lse = cqs.attention(*qkv, out=wide, return_lse=True)
    found = cqs.attention_backward(dout, *qkv, out, lse)
    assert found.dq.dtype == qkv[0].dtype
    assert_exact_gradients(found, dout, *qkv)


def test_files_are_read_task_by_task(tmp_path: Path, qkv: Arrays) -> None:
    out, lse = cqs.attention(*qkv, return_lse=True)
    paths = {}
    for name, x in (("dout", dout_for(qkv[0], qkv[2])), *zip("qkv", qkv, strict=True), ("out", out)):
        paths[name] = tmp_path / f"{name}.npy"
        np.save(paths[name], x)
    found = cqs.attention_backward(**paths, lse=lse, workers=7)
    for own, expected in zip(found, gradients(qkv, None, {"workers": 7}), strict=True):
        np.testing.assert_array_equal(own, expected)


@pytest.mark.parametrize("shape", [(2, 0, 4), (0, 2, 5, 4)])
def test_there_may_be_nothing(shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float32)
    assert [g.shape for g in gradients([x, x, x])] == [shape] * 3


# Refused


REFUSED: dict[str, tuple[dict[str, Any], type[CQSError], str]] = {
    "out": ({"out": np.zeros((4, 331, 16), np.float32)}, ShapeError, "`out` must have shape"),
    "dout": ({"dout": np.zeros((4, 330, 24), np.float32)}, ShapeError, "`dout` must have shape"),
    "lse": ({"lse": np.zeros((4, 330), np.float32)}, ShapeError, "`lse` must have shape"),
    "no lse": ({"lse": None}, BackendError, "`lse` must be an array, got NoneType; take it from"),
    "type": ({"dout": np.zeros((4, 331, 24))}, DTypeError, "`dout` must be of type float32"),
    "library": ({"out": array_api_strict.zeros((4, 331, 24), dtype=array_api_strict.float32)}, BackendError, "out"),
    "missing": ({"dout": "none.npy"}, OSError, "none.npy cannot be read"),
    "option": ({"score_mod": abs}, OptionError, "`score_mod` must be an option of `attention_backward`"),
    "mask": ({"mask": 7}, OptionError, "`mask` must be a mask"),
    "workers": ({"workers": 0}, OptionError, "`workers` must be"),
}


@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_refused(qkv: Arrays, wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    out, lse = cqs.attention(*qkv, return_lse=True)
    given = {"dout": dout_for(qkv[0], qkv[2]), "q": qkv[0], "k": qkv[1], "v": qkv[2], "out": out, "lse": lse}
    with pytest.raises(error, match=message):
        cqs.attention_backward(**given | wrong)


def test_the_adder_takes_each_task_once(qkv: Arrays) -> None:
    plan, other = (cqs.plan(*qkv, workers=workers) for workers in (7, 13))
    adder = GradientAdder(plan, qkv[0])
    adder.add(_zeros(plan, 2, qkv))
    with pytest.raises(TileError, match="task 2 came twice"):
        adder.add(_zeros(plan, 2, qkv))
    with pytest.raises(TileError, match="task 3 is not of this plan"):
        adder.add(GradientResult(other.task(3), (), ()))
    with pytest.raises(TileError, match="6 of 7 tasks never came, the first of them task 0"):
        adder.result()


def _zeros(plan: cqs.Plan, i: int, qkv: Arrays) -> GradientResult:
    task = plan.task(i)
    queries = tuple(np.zeros_like(qkv[0][:, s.query.start : s.query.stop]) for s in task.strips)
    keys = tuple(tuple(np.zeros_like(x[:, g.start : g.stop]) for x in qkv[1:]) for g in task.key_groups)
    return GradientResult(task, queries, keys)  # type: ignore[arg-type]


# The rule itself


@given(where=st.integers(0, 2), factor=st.sampled_from([0.0, 0.999, 1.001, -1.0]))
def test_the_rule_finds_what_is_wrong(where: int, factor: float) -> None:
    qkv = [x[:, :60] for x in odd_qkv()]
    found = list(gradients(qkv))
    assert_exact_gradients(found, dout_for(qkv[0], qkv[2]), *qkv)
    found[where] = found[where] * np.float32(factor)
    with pytest.raises(AssertionError, match=("dq", "dk", "dv")[where]):
        assert_exact_gradients(found, dout_for(qkv[0], qkv[2]), *qkv)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"dout": np.zeros((4, 330, 24), np.float32)}, ShapeError, "`dout` must have the output's shape"),
        ({"gradients": (1, 2)}, OptionError, "`gradients` must be dq, dk and dv"),
        ({"softcap": -1.0}, OptionError, "`softcap` must be"),
        ({"bias": ALiBi((1.0,))}, ShapeError, "`bias` must have a slope"),
        ({"k": np.full((2, 331, 16), np.nan, np.float32)}, OptionError, "`k` must be finite where gradients"),
        ({"gradients": (np.zeros((4, 331, 16), int),) * 3}, DTypeError, "`dq` must have one of the types"),
    ],
)
def test_what_cannot_be_judged_is_refused(qkv: Arrays, wrong: Any, error: type[Exception], message: str) -> None:
    given = {"gradients": gradients(qkv), "dout": dout_for(qkv[0], qkv[2]), **dict(zip("qkv", qkv, strict=True))}
    with pytest.raises(error, match=message):
        assert_exact_gradients(**given | wrong)
