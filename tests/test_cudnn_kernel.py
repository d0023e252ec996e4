"""The cuDNN kernel: on a fake CuPy and a fake cuDNN, and with `-m gpu` on true ones."""

import itertools
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import cuda_emulation  # noqa: F401
import fake_cudnn
import ml_dtypes
import numpy as np
import pytest
from fake_cupy import Machine, cupy, fake_gpu  # noqa: F401

from cqs.backend import CudaDevice
from cqs.errors import BackendError
from cqs.kernels import KeyChunk, Region, attend_per_head, cudnn_graphs
from cqs.kernels.contract import Request
from cqs.kernels.cudnn import attend, refusal
from cqs.masks import (
    Causal,
    Dense,
    Documents,
    KeyLengths,
    Mask,
    NoMask,
    Predicate,
    PrefixLM,
    Sinks,
    SlidingWindow,
)
from cqs.problem import AttentionProblem
from cqs.testing import assert_exact

DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class Case:
    """A call: sizes, mask, and how many tokens each chunk of keys has."""

    mask: Mask = field(default_factory=NoMask)
    batch: tuple[int, ...] = ()
    heads: tuple[int, int] = (2, 2)
    queries: int = 40
    keys: int = 40
    widths: tuple[int, int] = (16, 16)
    chunks: tuple[int, ...] | None = None
    dtype: str = "float16"

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(7)
        (H, G), (D, E) = self.heads, self.widths
        shapes = ((H, self.queries, D), (G, self.keys, D), (G, self.keys, E))
        return tuple(rng.standard_normal((*self.batch, *shape)).astype(DTYPES[self.dtype]) for shape in shapes)


CASES = {
    "all": Case(),
    "bfloat16": Case(dtype="bfloat16"),
    "grouped queries": Case(heads=(6, 2), mask=Causal()),
    "widths": Case(widths=(24, 8), mask=Causal()),
    "batch": Case(batch=(2, 3), mask=Causal()),
    "no batch, odd": Case(queries=37, keys=53, mask=Causal(16)),
    "causal": Case(mask=Causal()),
    "causal, more keys": Case(queries=20, keys=50, mask=Causal(30)),
    "causal, rows see nothing": Case(mask=Causal(-7)),
    "causal, rows see all": Case(queries=50, keys=20, mask=Causal()),
    "causal, nobody sees": Case(queries=5, mask=Causal(-50)),
    "causal, off the grid": Case(mask=Causal(11), chunks=(13, 4, 23)),
    "window": Case(queries=70, keys=70, mask=SlidingWindow(9)),
    "window, both sides": Case(mask=SlidingWindow(4, 6), chunks=(20, 20)),
    "window of one": Case(mask=SlidingWindow(0)),
    "window, chunks": Case(queries=60, keys=60, mask=SlidingWindow(25), chunks=(30, 30)),
    "prefix": Case(mask=PrefixLM(12)),
    "sinks and window": Case(mask=Sinks(3) | SlidingWindow(8)),
    "documents": Case(mask=Documents((9, 14, 17))),
    "documents, causal": Case(mask=Documents((9, 14, 10)) & Causal()),
    "one head, documents, causal": Case(heads=(1, 1), mask=Documents((9, 14, 17)) & Causal()),
    "one head, rows see nothing": Case(heads=(1, 1), mask=Causal(-7)),
    "not": Case(mask=~Causal(3)),
    "lengths": Case(batch=(3,), mask=KeyLengths((5, 0, 40))),
    "lengths of both": Case(batch=(2,), mask=KeyLengths((5, 40), (30, 7)) & Causal()),
    "offsets": Case(batch=(2,), mask=Causal((3, -4))),
    "dense": Case(mask=Dense(np.random.default_rng(1).random((40, 40)) < 0.3)),
    "heads": Case(mask=Dense(np.random.default_rng(1).random((2, 40, 40)) < 0.3), heads=(2, 1)),
    "predicate": Case(mask=Predicate(lambda b, h, q, k: (q + k) % 3 == h)),
    "one query": Case(queries=1, keys=50, mask=Causal(49)),
    "one of each": Case(queries=1, keys=1),
    "chunks": Case(keys=60, chunks=(7, 0, 13, 40)),
}


@pytest.fixture
def cudnn(fake_gpu: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:  # noqa: F811
    with monkeypatch.context() as patch:
        yield fake_cudnn.install(patch)


def computed(cupy: Any, case: Case, q: Any, k: Any, v: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: F811
    """Run the kernel on arrays of CuPy; return output and lse."""
    ends = np.cumsum([0, *(case.chunks or (case.keys,))]).tolist()
    cuts = [slice(a, b) for a, b in itertools.pairwise(ends)]
    chunks = [KeyChunk(k[..., cut, :], v[..., cut, :]) for cut in cuts]
    mask = case.mask.bind(case.batch, case.heads[0], case.queries, case.keys)
    keys = tuple(range(cut.start, cut.stop) for cut in cuts)
    region = Region((range(case.queries),), keys, mask)
    found = attend_per_head(attend, q, chunks, scale=case.widths[0] ** -0.5, region=region, **options)
    assert found.out.dtype == found.lse.dtype == np.float32
    return cupy.asnumpy(found.out), cupy.asnumpy(found.lse)


def check(cupy: Any, case: Case) -> None:  # noqa: F811
    q, k, v = case.arrays()
    out, lse = computed(cupy, case, *(cupy.asarray(x) for x in (q, k, v)))
    mask = case.mask.bind(case.batch, case.heads[0], case.queries, case.keys)
    assert_exact(out.astype(q.dtype), q, k, v, scale=case.widths[0] ** -0.5, mask=mask, lse=lse)


@pytest.mark.parametrize("name", CASES)
def test_the_result_is_exact(cupy: ModuleType, cudnn: ModuleType, name: str) -> None:  # noqa: F811
    check(cupy, CASES[name])
    sees_something = name not in ("causal, nobody sees", "dense", "heads", "predicate")
    assert bool(cudnn.graphs) == sees_something


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_is_exact_on_a_gpu(name: str, dtype: str) -> None:
    from dataclasses import replace

    check(true_cupy(), replace(CASES[name], dtype=dtype))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "mask", [NoMask(), Causal(), Causal(1000), SlidingWindow(700), SlidingWindow(300, 200)], ids=str
)
@pytest.mark.parametrize("widths", [(64, 64), (128, 128), (128, 64), (256, 256), (8, 8), (72, 40)], ids=str)
def test_large_calls_are_exact_on_a_gpu(mask: Mask, widths: tuple[int, int]) -> None:
    check(
        true_cupy(),
        Case(mask, heads=(4, 2), queries=2500, keys=3333, widths=widths, chunks=(2000, 1333), dtype="bfloat16"),
    )


def true_cupy() -> Any:
    """CuPy, where it and cuDNN work."""
    cupy = pytest.importorskip("cupy")  # noqa: F811
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")
    import array_api_compat.cupy as xp

    q = np.zeros((1, 1, 64), dtype=np.float16)
    if (reason := refusal(Request(xp, AttentionProblem.of(q, q, q), False))) is not None:
        pytest.skip(reason)
    return cupy


def test_strided_views_are_read_where_they_are(cupy: ModuleType, cudnn: ModuleType) -> None:  # noqa: F811
    case = Case(batch=(2,), heads=(4, 4), mask=Causal())
    rng = np.random.default_rng(3)
    fused = rng.standard_normal((2, 40, 3, 4, 16)).astype(np.float16)  # as a projection leaves them: B T 3 H D
    q, k, v = (np.swapaxes(fused[:, :, i], 1, 2) for i in range(3))
    on_device = cupy.asarray(fused)
    out, lse = computed(cupy, case, *(cupy.swapaxes(on_device[:, :, i], 1, 2) for i in range(3)))
    assert_exact(out.astype(q.dtype), q, k, v, is_causal=True, lse=lse)
    [graph] = cudnn.graphs
    assert graph.tensors["q"].stride == [40 * 192, 16, 192, 1]


@pytest.mark.parametrize("spoil", ["last axis", "unaligned", "broadcast", "backwards", "odd rows"])
def test_what_cannot_be_read_is_copied(cupy: ModuleType, cudnn: ModuleType, spoil: str) -> None:  # noqa: F811
    case = Case(mask=Causal())
    q, k, v = case.arrays()
    if spoil == "last axis":
        wide = np.repeat(k, 2, axis=-1)
        k_on_device = cupy.asarray(wide)[..., ::2]
    elif spoil == "unaligned":
        k_on_device = cupy.asarray(np.concatenate([np.zeros(3, k.dtype), k.ravel()]))[3:].reshape(k.shape)
    elif spoil == "broadcast":
        k = np.broadcast_to(k[:1], k.shape)
        k_on_device = cupy.broadcast_to(cupy.asarray(np.ascontiguousarray(k[:1])), k.shape)
    elif spoil == "backwards":
        k_on_device = cupy.asarray(np.ascontiguousarray(k[:, ::-1]))[:, ::-1]
    else:
        k_on_device = cupy.asarray(np.concatenate([k, k[..., :4]], axis=-1))[..., :16]
    out, lse = computed(cupy, case, cupy.asarray(q), k_on_device, cupy.asarray(v))
    assert_exact(out.astype(q.dtype), q, np.ascontiguousarray(k), v, is_causal=True, lse=lse)
    assert cudnn.graphs


def test_graphs_are_built_once(cupy: ModuleType, cudnn: ModuleType) -> None:  # noqa: F811
    for _ in range(3):
        check(cupy, CASES["causal"])
    assert len(cudnn.graphs) == 1
    threads = [threading.Thread(target=check, args=(cupy, CASES["causal"])) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    assert len(cudnn.graphs) == 1, "a thread takes over the graphs of one that is done"


def test_each_device_has_handles_of_its_own(cupy: ModuleType, cudnn: ModuleType) -> None:  # noqa: F811
    case = CASES["causal, off the grid"]
    for device in (0, 1):
        q, k, v = case.arrays()
        with cupy.cuda.Device(device):
            arrays = [cupy.asarray(x) for x in (q, k, v)]
        out, lse = computed(cupy, case, *arrays)  # outside: the arrays say where
        assert_exact(out.astype(q.dtype), q, k, v, mask=case.mask, scale=0.25, lse=lse)
    assert {graph.handle.device for graph in cudnn.graphs} == {0, 1}


def test_work_is_queued_on_the_current_stream(cupy: ModuleType, cudnn: ModuleType) -> None:  # noqa: F811
    with cupy.cuda.Stream(non_blocking=True) as stream:
        check(cupy, CASES["causal, off the grid"])
    assert {graph.stream for graph in cudnn.graphs} == {stream.ptr}
    assert {graph.handle.stream for graph in cudnn.graphs} == {0}  # when it is lent to nobody


def test_a_bundle_leaves_foreign_pairs_out(cupy: ModuleType, cudnn: ModuleType) -> None:  # noqa: F811
    rng = np.random.default_rng(9)
    q, k, v = (rng.standard_normal((2, 60, 16)).astype(np.float16) for _ in range(3))
    queries, keys = (range(40, 60), range(0, 20), range(20, 30)), (range(10, 30), range(0, 10), range(40, 60))
    rows, columns = (np.concatenate([list(run) for run in runs]) for runs in (queries, keys))
    foreign = frozenset({(0, 0), (1, 1), (2, 2)})
    region = Region(queries, keys, Causal(), foreign)
    chunks = [KeyChunk(*(cupy.asarray(x[:, run.start : run.stop]) for x in (k, v))) for run in keys]
    found = attend(cupy.asarray(q[:, rows]), chunks, scale=0.25, region=region)
    visible = region.visible(range(50), [range(50)])
    assert_exact(
        cupy.asnumpy(found.out).astype(q.dtype),
        q[:, rows],
        k[:, columns],
        v[:, columns],
        scale=0.25,
        mask=Dense(visible),
        lse=cupy.asnumpy(found.lse),
    )


def test_memory_is_as_its_formula_says(cupy: ModuleType, cudnn: ModuleType, fake_gpu: Machine) -> None:  # noqa: F811
    H, T, D, n = 4, 256, 64, 4
    case = Case(heads=(H, H), queries=T, keys=n * 128, widths=(D, D), chunks=(128,) * n)
    q, k, v = (cupy.asarray(x) for x in case.arrays())
    for block_bytes, n_copied in ((2 << 20, n), (1, 0)):
        fake_gpu.reset_peaks()
        before = fake_gpu.peak_bytes()
        computed(cupy, case, q, k, v, block_bytes=block_bytes)
        result, chunk = 4 * H * T * (D + 1), 2 * 2 * H * 128 * D
        part = 0 if n_copied else 4 * H * T * (D + 11) + 2 * 4 * H * T * D
        # slices of k and v are not contiguous over the heads, but aligned: they are not copied
        assert fake_gpu.peak_bytes() - before <= result + n_copied * chunk + part + (1 << 14)
        assert len(cudnn.graphs[-1].tensors) == 5


def test_padding_is_not_read(cupy: ModuleType, cudnn: ModuleType) -> None:  # noqa: F811
    case = Case(batch=(2,), mask=KeyLengths((17, 30)) & Causal(8))
    q, k, v = case.arrays()
    clean = computed(cupy, case, *(cupy.asarray(x) for x in (q, k, v)))
    for entry, n in enumerate((17, 30)):
        k[entry, :, n:] = v[entry, :, n:] = np.nan
    for a, b in zip(clean, computed(cupy, case, *(cupy.asarray(x) for x in (q, k, v))), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("sizes", [{"queries": 0}, {"keys": 0}, {"batch": (0,)}], ids=str)
def test_nothing_to_do(cupy: ModuleType, cudnn: ModuleType, sizes: dict[str, Any]) -> None:  # noqa: F811
    case = Case(**sizes)
    out, lse = computed(cupy, case, *(cupy.asarray(x) for x in case.arrays()))
    assert out.shape[:-1] == lse.shape == (*case.batch, 2, case.queries)
    assert not out.any()
    assert (lse == -np.inf).all()
    assert not cudnn.graphs


def test_small_chunks_are_joined(cupy: ModuleType, cudnn: ModuleType) -> None:  # noqa: F811
    case = Case(queries=32, keys=96, chunks=(32, 32, 32))
    check(cupy, case)
    assert [graph.tensors["k"].dim[2] for graph in cudnn.graphs] == [96]


REFUSED = {
    "float32": ("float16 and bfloat16", {"dtype": "float32"}),
    "width 12": ("multiples of 8", {"width": 12}),
    "width 264": ("multiples of 8", {"width": 264}),
    "scores": ("scores are changed", {"has_scores": True}),
    "scale": ("scales", {"scale": -1.0}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_with_a_reason(cupy: ModuleType, cudnn: ModuleType, name: str) -> None:  # noqa: F811
    words, change = REFUSED[name]
    assert refusal(request(**change)).find(words) >= 0
    assert refusal(request()) is None


def test_other_libraries_are_refused() -> None:
    assert refusal(request()._replace(xp=np)) == "takes arrays of CuPy"


@pytest.mark.parametrize(
    ("versions", "words"), [(("1.9.0", 92800), "frontend must be 1.28"), (("1.32.0", 91002), "not 9.10.2")]
)
def test_an_old_library_is_refused(
    fake_gpu: Machine,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    versions: tuple[str, int],
    words: str,
) -> None:
    fake_cudnn.install(monkeypatch, *versions)
    reason = refusal(request())
    assert reason is not None
    assert words in reason
    assert "pip install" in reason


def test_a_missing_library_is_refused(fake_gpu: Machine, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setitem(sys.modules, "cudnn", None)
    assert "pip install" in (refusal(request()) or "")


@pytest.mark.usefixtures("fake_gpu", "cudnn")
def test_the_runtime_is_loaded_before_the_frontend_looks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy  # noqa: F811

    def fails() -> int:
        raise RuntimeError("Failure finding libcudart.so.13")

    monkeypatch.setattr(cupy.cuda, "get_local_runtime_version", fails)
    cudnn_graphs.missing_libraries.cache_clear()
    assert "cannot be loaded (Failure finding libcudart.so.13); pip install" in (refusal(request()) or "")
    cudnn_graphs.missing_libraries.cache_clear()


def test_each_device_is_asked_what_it_can_do(
    fake_gpu: Machine,  # noqa: F811
    cudnn: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import cupy  # noqa: F811

    monkeypatch.setattr(cupy.cuda.Device, "compute_capability", property(lambda self: "75" if self.id == 0 else "90"))
    old, new = CudaDevice(0), CudaDevice(1)
    for devices, is_taken in (((), False), ((new,), True), ((old,), False), ((new, old), False), ((new,), True)):
        reason = refusal(request()._replace(devices=devices))
        assert (reason is None) is is_taken
        assert is_taken or "capability 8.0 or higher, not 7.5" in str(reason)
    with cupy.cuda.Device(1):
        assert refusal(request()) is None


def request(dtype: str = "float16", width: int = 64, scale: float = 0.125, has_scores: bool = False) -> Request:
    import array_api_compat

    array = np.zeros((1, 1, width), dtype=dtype)
    xp = getattr(array_api_compat, "cupy", None) or _compat_cupy()
    return Request(xp, AttentionProblem.of(array, array, array, scale=scale), has_scores)


def _compat_cupy() -> Any:
    try:
        import array_api_compat.cupy as xp
    except ImportError:
        return np
    return xp


def test_a_frontend_that_takes_a_kernel_of_its_own_is_refused(
    fake_gpu: Machine,  # noqa: F811
    cupy: Any,  # noqa: F811
    cudnn: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fake_cudnn.pygraph, "selected_engine", object(), raising=False)
    q, k, v = (cupy.asarray(x) for x in Case().arrays())
    with pytest.raises(BackendError, match=r"got object, which nvidia-cudnn-frontend 1\.32\.0 chose"):
        attend(q, [KeyChunk(k, v)], scale=0.25)


def test_two_libraries_of_cudnn_are_named(
    fake_gpu: Machine,  # noqa: F811
    cudnn: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load() -> None:
        raise AssertionError("Found 2 libcudnn.so.x in nvidia-cudnn-cuXX.")

    monkeypatch.setattr(cudnn_graphs, "_load", load)
    cudnn_graphs.missing_libraries.cache_clear()
    assert "cannot be loaded (Found 2 libcudnn" in (refusal(request()) or "")
    cudnn_graphs.missing_libraries.cache_clear()
