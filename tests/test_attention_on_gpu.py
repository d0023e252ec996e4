"""`backend="cupy"` from end to end on a true GPU: staging, streams and budgets, which stand-ins only imitate.

The same cases run on the fake CuPy, so that they are known to be right where there is no GPU.
"""

import importlib.util
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import cuda_emulation  # noqa: F401  # what the library's CUDA kernels do, for the fake
import fake_cupy
import numpy as np
import pytest
from problems import DTYPES

import cqs
from cqs.kernels import cudnn_missing
from cqs.masks import Causal, Documents, Mask, SlidingWindow
from cqs.testing import assert_exact
from cqs.trace import Recorder

_HAS_CUPY = importlib.util.find_spec("cupy") is not None
_ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not _HAS_CUPY, reason="CuPy is not installed")]


@pytest.fixture(params=["fake", pytest.param("gpu", marks=_ON_GPU)])
def cupy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """CuPy, true or fake."""
    if request.param == "fake":
        machine = fake_cupy.install(monkeypatch, n_devices=2, memory=1 << 28)
        yield importlib.import_module("cupy")
        machine.check()
        return
    found = pytest.importorskip("cupy")
    if not found.is_available():
        pytest.skip("there is no GPU")
    yield found


def inputs(dtype: str, T: int = 1100, heads: tuple[int, int] = (4, 2)) -> list[np.ndarray]:
    rng, (H, G), T = np.random.default_rng(T), heads, T // 3 if dtype == "float64" else T  # whose check takes long
    shapes = (H, T, 64), (G, T, 64), (G, T, 64)
    return [rng.standard_normal(shape, dtype=np.float32).astype(DTYPES[dtype]) for shape in shapes]


def kernels(dtype: str) -> list[str]:
    """The kernels that are there for a type."""
    has_cudnn = dtype in ("float16", "bfloat16") and cudnn_missing() is None
    return ["gemm", "blockwise", *(["cudnn"] if has_cudnn else [])]


def mask_of(name: str, T: int) -> Mask | None:
    return {
        "all": None,
        "causal": Causal(),
        "window": SlidingWindow(200),
        "documents": Documents([T // 4, 1, T - T // 4 - 1]) & Causal(),
    }[name]


@pytest.mark.parametrize(
    "options", [{"workers": 7}, {"memory": "6 MiB"}, {"memory": "6 MiB", "strategy": "tiles"}], ids=str
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", ["all", "causal", "window", "documents"])
@pytest.mark.thinned(3)
def test_arrays_in_memory_are_streamed_through(
    cupy: ModuleType, name: str, dtype: str, options: dict[str, Any]
) -> None:
    q, k, v = inputs(dtype)
    mask, recorder = mask_of(name, q.shape[-2]), Recorder()
    for kernel in kernels(dtype):
        out, lse = cqs.attention(
            q, k, v, mask=mask, backend="cupy", kernel=kernel, return_lse=True, on_event=recorder, **options
        )
        assert isinstance(out, np.ndarray)
        assert_exact(out, q, k, v, mask=mask, lse=lse)
    assert recorder.counters.n_tasks > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_arrays_on_the_device_stay_there(cupy: ModuleType, dtype: str) -> None:
    given = inputs(dtype)
    q, k, v = map(cupy.asarray, given)
    for kernel in kernels(dtype):
        out, lse = cqs.attention(q, k, v, is_causal=True, workers=3, kernel=kernel, return_lse=True)
        into = cupy.empty(out.shape, out.dtype)
        assert cqs.attention(q, k, v, is_causal=True, workers=3, kernel=kernel, out=into) is into
        assert isinstance(out, cupy.ndarray)
        assert isinstance(lse, cupy.ndarray)
        assert cupy.asnumpy(into).tobytes() == cupy.asnumpy(out).tobytes()
        assert_exact(cupy.asnumpy(out), *given, is_causal=True, lse=cupy.asnumpy(lse))


def test_what_is_held_on_the_device_is_within_the_plan(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    used, reserved = [], []

    class Pool(cupy.cuda.MemoryPool):  # type: ignore[misc, name-defined]
        def malloc(self, size: int) -> Any:
            found = super().malloc(size)
            used.append(self.used_bytes())
            reserved.append(self.total_bytes())
            return found

    q, k, v = inputs("float32", 3000)
    options: dict[str, Any] = {"memory": "8 MiB", "backend": "cupy", "kernel": "gemm"}
    plan = cqs.plan(q, k, v, **options)
    monkeypatch.setattr(cupy.cuda, "MemoryPool", Pool)
    assert_exact(cqs.attention(q, k, v, **options), q, k, v)
    assert 0 < max(used) <= plan.projected_bytes <= plan.setting.memory
    assert max(reserved) <= plan.setting.memory


@pytest.mark.gpu
@pytest.mark.skipif(not _HAS_CUPY, reason="CuPy is not installed")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_tensors_on_a_stream_of_their_own_are_in_order(dtype: str) -> None:
    cupy, torch = pytest.importorskip("cupy"), pytest.importorskip("torch")
    if not (cupy.is_available() and torch.cuda.is_available()):
        pytest.skip("there is no GPU that both see")
    arrays = inputs("float32", 4000)
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(10):
            tensors = [torch.from_numpy(x).cuda().to(getattr(torch, dtype)) for x in arrays]
            into = torch.full_like(tensors[0], torch.nan)
            assert cqs.attention(*tensors, is_causal=True, out=into, backend="cupy") is into
            new = cqs.attention(*tensors, is_causal=True, backend="cupy")
            assert not into.isnan().any()  # at once, on torch's stream
            assert torch.equal(into, new)
    given = [x.astype(DTYPES[dtype]) for x in arrays]
    assert_exact(into.cpu().float().numpy().astype(DTYPES[dtype]), *given, is_causal=True)
