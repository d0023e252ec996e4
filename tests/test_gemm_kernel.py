"""The gemm kernel on a fake CuPy: with its CUDA kernels emulated by NumPy, and themselves where g++ is installed.

Where there is a GPU and CuPy, the same cases run on it.
"""

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import array_api_compat.numpy as numpy_namespace
import cuda_emulation
import cuda_on_cpu
import fake_cupy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import DTYPES, Problem, problems

from cqs.kernels import Region, gemm
from cqs.kernels.contract import KeyChunk, Request
from cqs.kernels.per_head import attend_per_head
from cqs.masks import Causal, Dense, Documents, KeyLengths, Mask, NoMask, Predicate, PrefixLM, Sinks, SlidingWindow
from cqs.problem import AttentionProblem
from cqs.schedule import CallShape
from cqs.schedule.gemm_blocks import gemm_bytes
from cqs.scores import ALiBi, Scores
from cqs.testing import assert_exact

_HAS_CUPY = importlib.util.find_spec("cupy") is not None
_KINDS = [
    "numpy",
    pytest.param("cuda", marks=pytest.mark.skipif(not cuda_on_cpu.HAS_COMPILER, reason="g++ is not installed")),
    pytest.param("gpu", marks=[pytest.mark.gpu, pytest.mark.skipif(not _HAS_CUPY, reason="CuPy is not installed")]),
]
T, S, D, E = 75, 101, 17, 24


@dataclass(frozen=True)
class Device:
    """CuPy, and the machine if it is the fake one."""

    cupy: ModuleType
    machine: Any

    def put(self, *arrays: np.ndarray) -> tuple[Any, ...]:
        return tuple(map(self.cupy.asarray, arrays))


@pytest.fixture(params=_KINDS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    if request.param == "gpu":
        cupy = pytest.importorskip("cupy")
        if not cupy.is_available():
            pytest.skip("there is no GPU")
        yield Device(cupy, None)
        return
    with monkeypatch.context() as patch:
        yield _fake(patch, request.param)


def _fake(patch: pytest.MonkeyPatch, kind: str = "numpy", **options: Any) -> Device:
    machine = fake_cupy.install(patch, **options)
    if kind == "cuda":
        machine.kernels.update(cuda_emulation.ON_CPU)
    return Device(sys.modules["cupy"], machine)


@dataclass
class Inputs:
    """Arrays of one call."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    scale: float = 0.25

    @classmethod
    def of(cls, dtype: str = "float32", batch: tuple[int, ...] = (), heads: tuple[int, int] = (4, 2)) -> "Inputs":
        rng, (H, G) = np.random.default_rng(3), heads
        shapes = (*batch, H, T, D), (*batch, G, S, D), (*batch, G, S, E)
        return cls(*(rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes))

    def attend(self, device: Device, mask: Mask | None = None, sizes: tuple[int, ...] = (), **options: Any) -> Any:
        """Call the kernel with chunks of these sizes; return its result as NumPy arrays."""
        q, k, v = device.put(self.q, self.k, self.v)
        ends = np.cumsum(sizes or (k.shape[-2],)).tolist()
        starts = [0, *ends[:-1]]
        chunks = [KeyChunk(k[..., i:j, :], v[..., i:j, :]) for i, j in zip(starts, ends, strict=True)]
        options.setdefault("region", Region.whole(self.q.shape[-2], self.k.shape[-2], mask))
        part = attend_per_head(gemm.attend, q, chunks, scale=self.scale, **options)
        return part.out.get(), part.lse.get()

    def check(self, found: Any, mask: Mask | None = None, **changes: Any) -> None:
        out, lse = found
        assert_exact(out, self.q, self.k, self.v, scale=self.scale, mask=mask, lse=lse, **changes)


_MASKS = {
    "all": NoMask(),
    "causal": Causal(),
    "bottom right": Causal(S - T),
    "rows that see nothing": Causal(-30),
    "no row sees anything": Causal(-T),
    "window": SlidingWindow(11, 3),
    "prefix": PrefixLM(20),
    "sinks": Sinks(4),
    "sinks and window": Sinks(4) | SlidingWindow(9),
    "documents": Documents([30, 1, 40], [50, 9, 33]) & Causal(5),
    "all but": ~SlidingWindow(5, 5),
    "dense": Dense(np.random.default_rng(0).random((T, S)) < 0.3),
    "a mask for each head": Dense(np.random.default_rng(0).random((4, T, S)) < 0.5),
    "function": Predicate(lambda b, h, q_idx, k_idx: (q_idx + k_idx) % 3 != h % 3),
}


@pytest.mark.parametrize("block_bytes", [1 << 24, 20_000, 1_000])
@pytest.mark.parametrize("name", _MASKS)
def test_every_mask_is_exact_in_blocks_of_any_size(device: Device, name: str, block_bytes: int) -> None:
    inputs = Inputs.of()
    mask = _MASKS[name].bind((), 4, T, S)
    inputs.check(inputs.attend(device, mask, block_bytes=block_bytes), mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [NoMask(), Causal(9)], ids=["all", "causal"])
def test_every_type_is_exact_in_one_chunk_and_in_several(device: Device, dtype: str, mask: Mask) -> None:
    inputs = Inputs.of(dtype)
    inputs.check(inputs.attend(device, mask), mask)
    inputs.check(inputs.attend(device, mask, (40, 0, 1, 60), block_bytes=30_000), mask)


@pytest.mark.parametrize("heads", [(1, 1), (6, 6), (6, 2), (6, 1)])
@pytest.mark.parametrize("batch", [(), (3,), (2, 1, 3), (1,)])
def test_any_batch_and_heads(device: Device, batch: tuple[int, ...], heads: tuple[int, int]) -> None:
    inputs = Inputs.of(batch=batch, heads=heads)
    inputs.check(inputs.attend(device, Causal(3), block_bytes=1 << 22), Causal(3))  # all heads at once
    inputs.check(inputs.attend(device, Causal(3), block_bytes=9_000), Causal(3))  # a head at a time


def test_lengths_of_batch_entries(device: Device) -> None:
    inputs = Inputs.of(batch=(2,))
    mask = KeyLengths((70, 0), (T, 60)).bind((2,), 4, T, S)
    inputs.check(inputs.attend(device, mask), mask)


def test_a_single_query_and_a_single_key(device: Device) -> None:
    inputs = Inputs.of(heads=(6, 2))
    for rows, columns in ((1, S), (T, 1), (1, 1)):
        few = Inputs(inputs.q[..., :rows, :], inputs.k[..., :columns, :], inputs.v[..., :columns, :])
        few.check(few.attend(device))


def test_no_keys_and_no_queries(device: Device) -> None:
    inputs = Inputs.of()
    none = Inputs(inputs.q, inputs.k[..., :0, :], inputs.v[..., :0, :])
    out, lse = none.attend(device)
    assert not out.any()
    assert np.all(lse == -np.inf)
    assert Inputs(inputs.q[..., :0, :], inputs.k, inputs.v).attend(device)[0].shape == (4, 0, E)


_LAYOUTS = {
    "tokens before heads": lambda x: np.ascontiguousarray(x.swapaxes(-2, -3)).swapaxes(-2, -3),
    "batch innermost of the leading axes": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 0, -2)), -2, 0),
    "every other token": lambda x: np.repeat(x, 2, axis=-2)[..., ::2, :],
    "wider rows": lambda x: np.concatenate([x, x], axis=-1)[..., : x.shape[-1]],
    "last axis not contiguous": lambda x: np.asfortranarray(x),
    "every other element": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "tokens backwards": lambda x: np.ascontiguousarray(x[..., ::-1, :])[..., ::-1, :],
    "heads backwards": lambda x: np.ascontiguousarray(x[..., ::-1, :, :])[..., ::-1, :, :],
}


def _same_strides(cupy: ModuleType, x: np.ndarray) -> Any:
    """Put an array on the device as it stands: `cupy.asarray` would make it contiguous."""
    low = sum(min(stride, 0) * (n - 1) for stride, n in zip(x.strides, x.shape, strict=True)) // x.itemsize
    high = sum(max(stride, 0) * (n - 1) for stride, n in zip(x.strides, x.shape, strict=True)) // x.itemsize
    flat = cupy.full(high - low + 1, np.nan, x.dtype)
    where = -low + sum(
        np.arange(n).reshape(-1, *[1] * (x.ndim - axis - 1)) * (x.strides[axis] // x.itemsize)
        for axis, n in enumerate(x.shape)
    )
    flat[cupy.asarray(where)] = cupy.asarray(np.ascontiguousarray(x))
    pointer = flat.data + (-low) * x.itemsize
    return cupy.ndarray(x.shape, x.dtype, pointer, x.strides)


@pytest.mark.parametrize("name", _LAYOUTS)
def test_any_strides(device: Device, name: str) -> None:
    inputs = Inputs.of(batch=(2,))
    q, k, v = (_same_strides(device.cupy, _LAYOUTS[name](x)) for x in (inputs.q, inputs.k, inputs.v))
    part = gemm.attend(
        q, [KeyChunk(k, v)], scale=inputs.scale, region=Region.whole(T, S, Causal(4)), block_bytes=90_000
    )
    inputs.check((part.out.get(), part.lse.get()), Causal(4))


def test_heads_that_are_one_array_repeated(device: Device) -> None:
    inputs = Inputs.of(heads=(4, 4))
    q, k, v = device.put(inputs.q, inputs.k[:1], inputs.v[:1])
    k, v = (device.cupy.broadcast_to(x, (4, *x.shape[1:])) for x in (k, v))
    part = gemm.attend(q, [KeyChunk(k, v)], scale=inputs.scale)
    same = Inputs(inputs.q, inputs.k[:1], inputs.v[:1])
    same.check((part.out.get(), part.lse.get()))


def test_bundles_leave_out_what_is_foreign(device: Device) -> None:
    runs = (range(10, 30), range(70, 101), range(200, 224)), (range(0, 40), range(60, 61), range(90, 150))
    foreign = frozenset({(0, 1), (1, 0), (2, 2)})
    for mask in (NoMask(), Causal(-10), SlidingWindow(60), _MASKS["function"].bind((), 1, 300, 300).at((0,))):
        region = Region(*runs, mask, foreign)
        inputs = Inputs.of()
        seen = Dense(region.visible(range(T), [range(S)]))
        for block_bytes in (1 << 22, 20_000):
            inputs.check(inputs.attend(device, region=region, block_bytes=block_bytes, sizes=(40, 61)), seen)


def _half(scores: Any, b: int, h: int, q_idx: Any, k_idx: Any) -> Any:
    return scores * 0.5 + (q_idx - k_idx) * (h + 1) / 64


@pytest.mark.parametrize("mask", [NoMask(), Causal(7)], ids=["all", "causal"])
@pytest.mark.parametrize("kind", ["softcap", "bias", "alibi", "score_mod", "all"])
def test_scores_are_changed_before_the_mask(device: Device, kind: str, mask: Mask) -> None:
    inputs = Inputs.of()
    bias = np.random.default_rng(1).standard_normal((4, T, S)).astype("float32")
    changes = {"softcap": {"softcap": 2.0}, "bias": {"bias": bias}, "score_mod": {"score_mod": _half}}
    changes["alibi"] = {"bias": ALiBi.standard(4)}
    changes["all"] = changes["softcap"] | changes["bias"] | changes["score_mod"]
    options = {"softcap": None, "bias": None, "score_mod": None} | changes[kind]
    problem = AttentionProblem.of(inputs.q, inputs.k, inputs.v, scale=inputs.scale)
    if kind in ("bias", "all"):
        options["bias"] = device.cupy.asarray(bias)
    scores = Scores.of(problem, device.cupy.asarray(inputs.q), **options)
    region = Region((range(T),), (range(S),), mask, scores=scores)
    inputs.check(inputs.attend(device, region=region, block_bytes=40_000), mask, **changes[kind])


@pytest.mark.parametrize("mask", [Causal(), Dense(np.tile(np.arange(S) % 40 != 3, (T, 1)))], ids=["bounds", "bits"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_hidden_keys_and_values_are_never_noticed(device: Device, poison: float, mask: Mask) -> None:
    inputs = Inputs.of()
    poisoned = replace(inputs, k=inputs.k.copy(), v=inputs.v.copy())
    hidden = ~mask.block(range(T), range(S)).any(axis=0)
    poisoned.k[..., hidden, :] = poisoned.v[..., hidden, :] = poison
    assert hidden.any()
    for block_bytes in (1 << 22, 20_000):
        inputs.check(poisoned.attend(device, mask, block_bytes=block_bytes), mask)


_SOME_MASKS = pytest.mark.parametrize(
    "mask", [NoMask(), Causal(), Dense(np.random.default_rng(2).random((T, S)) < 0.5)], ids=["all", "bounds", "bits"]
)


@_SOME_MASKS
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_keys_that_are_not_finite_reach_the_rows_that_see_them(device: Device, poison: float, mask: Mask) -> None:
    inputs = Inputs.of()
    inputs.k[0, 40, 3] = inputs.k[1, 8, :] = poison
    for block_bytes in (1 << 22, 20_000):
        inputs.check(inputs.attend(device, mask, block_bytes=block_bytes), mask)


@_SOME_MASKS
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_reach_the_rows_that_see_them(device: Device, poison: float, mask: Mask) -> None:
    inputs = Inputs.of()
    poisoned = replace(inputs, v=inputs.v.copy())
    poisoned.v[0, 40, 3] = poisoned.v[1, 8, :] = poison
    sees = mask.block(range(T), range(S))
    touched = np.zeros((4, T, E), dtype=bool)
    touched[:2, sees[:, 40], 3] = touched[2:, sees[:, 8]] = True
    for block_bytes in (1 << 22, 20_000):
        out, lse = poisoned.attend(device, mask, block_bytes=block_bytes)
        np.testing.assert_array_equal(out[touched], poison)  # all weights are more than 0
        clean, _ = inputs.attend(device, mask, block_bytes=block_bytes)
        inputs.check((np.where(touched, clean, out), lse), mask)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_the_largest_values_do_not_overflow_where_they_are_summed(device: Device, dtype: str) -> None:
    inputs = Inputs.of(dtype)
    largest = float(np.finfo(inputs.v.dtype).max) if dtype != "bfloat16" else 3e38
    inputs.v[...] = (np.sign(inputs.v) * (largest / 4)).astype(inputs.v.dtype)
    inputs.q[...] = 0  # all keys alike: the sum of weights is the number of keys
    inputs.check(inputs.attend(device, block_bytes=20_000))
    inputs.check(inputs.attend(device, Causal(3)), Causal(3))


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-30, 40.0])
def test_any_scale(device: Device, scale: float) -> None:
    inputs = Inputs.of()
    inputs.scale = scale
    inputs.check(inputs.attend(device, Causal(2)), Causal(2))


@given(problem=problems(), seed=st.integers(0, 99), block_bytes=st.sampled_from([1 << 12, 1 << 16, 1 << 22]))
def test_any_problem(problem: Problem, seed: int, block_bytes: int) -> None:
    mask = Causal(seed - 50) if problem.is_causal else NoMask()
    inputs = Inputs(problem.q, problem.k, problem.v, problem.scale)
    cut = seed * problem.k.shape[-2] // 100
    with pytest.MonkeyPatch.context() as patch:
        found = inputs.attend(_fake(patch), mask, (cut, problem.k.shape[-2] - cut), block_bytes=block_bytes)
    inputs.check(found, mask)


# --------------------------------------------------------------------------------------- how it uses the device


def test_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _fake(monkeypatch)
    inputs = Inputs.of()
    q, k, v = device.put(inputs.q, inputs.k, inputs.v)
    device.cupy.cuda.Device().synchronize()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the host waits for the device")

    with monkeypatch.context() as patch:
        for name in ("get", "item", "__bool__", "__float__", "__int__"):
            patch.setattr(device.cupy.ndarray, name, refuse)
        for owner in (device.cupy.cuda.Stream, device.cupy.cuda.Event, device.cupy.cuda.Device):
            patch.setattr(owner, "synchronize", refuse)
        with device.cupy.cuda.Stream(non_blocking=True) as stream:
            masks = (_MASKS["causal"], _MASKS["dense"], _MASKS["sinks and window"])
            parts = [gemm.attend(q, [KeyChunk(k, v)], scale=0.25, region=Region.whole(T, S, m)) for m in masks]
    stream.synchronize()
    for part, mask in zip(parts, masks, strict=True):
        inputs.check((part.out.get(), part.lse.get()), mask)
    device.machine.check()


def test_arrays_stay_on_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device, inputs = _fake(monkeypatch), Inputs.of()
    with device.cupy.cuda.Device(1):
        arrays = device.put(inputs.q, inputs.k, inputs.v)
    part = gemm.attend(arrays[0], [KeyChunk(*arrays[1:])], scale=0.25, region=Region.whole(T, S, Causal()))
    assert part.out.device.id == part.lse.device.id == 1
    assert device.cupy.cuda.Device().id == 0
    inputs.check((part.out.get(), part.lse.get()), Causal())


def test_float32_is_float32_whatever_the_handle_is_set_to(monkeypatch: pytest.MonkeyPatch) -> None:
    device, inputs = _fake(monkeypatch), Inputs.of()
    cublas, handle = device.cupy.cuda.cublas, device.cupy.cuda.device.get_cublas_handle()
    monkeypatch.setenv("CUPY_TF32", "1")
    cublas.setMathMode(handle, 3)  # CUBLAS_TF32_TENSOR_OP_MATH
    exact = inputs.attend(device)
    inputs.check(exact)
    assert cublas.getMathMode(handle) == 3
    q, k, v = device.put(inputs.q, inputs.k, inputs.v)
    rounded = gemm.attend_in_blocks(q, [KeyChunk(k, v)], scale=0.25, uses_tf32=True).out.get()
    assert 1e-5 < abs(rounded - exact[0]).max() < 1e-2


def test_finite_values_and_full_blocks_cost_no_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    device, inputs = _fake(monkeypatch), Inputs.of()
    inputs.attend(device)
    assert device.machine.n_launched == {"scan_values": 1, "softmax_block": 1, "finish_rows": 1}


@pytest.mark.parametrize("block_bytes", [1 << 20, 50_000, 3_000])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("kind", ["all", "causal", "dense", "softcap"])
def test_a_call_allocates_no_more_than_is_said(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str, block_bytes: int
) -> None:
    device, inputs = _fake(monkeypatch), Inputs.of(dtype, batch=(2,))
    mask = _MASKS.get(kind, NoMask())
    region = Region((range(T),), (range(S),), mask, scores=Scores(softcap=3.0) if kind == "softcap" else None)
    q, k, v = device.put(inputs.q, inputs.k, inputs.v)
    chunks = [KeyChunk(k[..., :50, :], v[..., :50, :]), KeyChunk(k[..., 50:, :], v[..., 50:, :])]
    before = device.cupy.get_default_memory_pool().used_bytes()
    device.machine.reset_peaks()
    part = gemm.attend(q, chunks, scale=0.25, region=region, block_bytes=block_bytes)
    held = device.machine.peak_bytes() - before - part.out.nbytes - part.lse.nbytes
    call = CallShape(2, 2, 2, T, S, D, E, part.out.itemsize, True, region.is_masked)
    assert held <= gemm_bytes(call, block_bytes, region.scores is not None)


@pytest.mark.parametrize("layout", ["tokens before heads", "wider rows", "every other token"])
def test_rows_of_adjacent_elements_are_not_copied(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    device, inputs = _fake(monkeypatch), Inputs.of(batch=(2,))
    q, k, v = (_same_strides(device.cupy, _LAYOUTS[layout](x)) for x in (inputs.q, inputs.k, inputs.v))
    with monkeypatch.context() as patch:
        patch.setattr(device.cupy.ndarray, "__setitem__", None)
        gemm.attend(q, [KeyChunk(k, v)], scale=0.25, region=Region.whole(T, S, Causal()))


def test_a_kernel_takes_arrays_of_cupy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs.of()
    problem = AttentionProblem.of(inputs.q, inputs.k, inputs.v)
    assert gemm.refusal(Request(numpy_namespace, problem, False)) == "takes CuPy arrays"
    _fake(monkeypatch)
    assert gemm.refusal(Request(importlib.import_module("array_api_compat.cupy"), problem, True)) is None
