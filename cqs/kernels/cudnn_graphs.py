"""cuDNN's attention on CuPy arrays: graphs built once for each layout, and run on CuPy's current stream.

Everything that speaks to cuDNN is here. Names and rules are those of `nvidia-cudnn-frontend`, whose Python class
`pygraph` describes a computation, and whose handle runs it.
"""

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from cqs.backend import import_cupy, load_libraries, missing_library
from cqs.errors import BackendError
from cqs.kernels.by_coverage import Shape
from cqs.problem import dtype_name
from cqs.types import Array

__all__ = ["DTYPES", "Layout", "Spec", "build_graph", "missing", "missing_libraries", "sdpa"]

DTYPES = {"float16": "HALF", "bfloat16": "BFLOAT16"}  # to the names in `cudnn.data_type`

_INSTALL = "pip install -U nvidia-cudnn-frontend nvidia-cudnn-cu13 (or -cu12, as CuPy)"
_OLDEST_FRONTEND, _OLDEST_CUDNN = (1, 28), 91900  # with these every graph was built
_OLDEST_DEVICE = 80  # compute capability 8.0
_ALIGNED = 16  # bytes
_MOST_GRAPHS = 512  # that a handle keeps
_Q, _K, _V, _OUT, _LSE = range(1, 6)  # tensors of a graph


class Layout(NamedTuple):
    """Axes `(B, H, T, D)` of an array and, in elements, its strides."""

    dims: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, array: Array) -> "Layout":
        """Read it off an array; an axis of length 1 has the stride that it would have in a contiguous array."""
        strides, contiguous = [], 1
        for n, stride in zip(array.shape[::-1], array.strides[::-1], strict=True):
            strides.append(contiguous if n == 1 else stride // array.itemsize)
            contiguous = strides[-1] * n
        return cls(tuple(array.shape), tuple(strides[::-1]))


class Spec(NamedTuple):
    """What a graph is built for: everything that is fixed in it."""

    dtype: str
    q: Layout
    k: Layout
    v: Layout
    out: Layout
    scale: float
    shape: Shape


def missing(device: int | None = None) -> str | None:
    """Return what is lacking to run cuDNN from Python on a device, with the remedy; None if there is all.

    Parameters
    ----------
    device : int, optional
        Its number; by default the current device.
    """
    lacking = missing_libraries()
    if lacking is not None:
        return lacking
    try:
        capability = int(import_cupy().cuda.Device(device).compute_capability)
    except RuntimeError as error:
        return f"there is no CUDA device ({error})"
    if capability < _OLDEST_DEVICE:
        return f"needs a device of compute capability 8.0 or higher, not {capability / 10}; use another kernel"
    return None


@cache
def missing_libraries() -> str | None:
    """Return which libraries are lacking, whatever the device, with the remedy; None if there are all."""
    lacking = missing_library()
    if lacking is not None:
        return "; ".join(lacking)
    try:
        cudnn = _load()
        found = tuple(int(part) for part in cudnn.__version__.split(".")[:2]), cudnn.backend_version()
    except (ImportError, OSError, RuntimeError, AssertionError) as error:  # the last if there are two of cuDNN
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == "cudnn"
        what = "is not installed" if is_absent else f"cannot be loaded ({error})"
        return f"nvidia-cudnn-frontend {what}; {_INSTALL}"
    if found[0] < _OLDEST_FRONTEND:
        oldest = ".".join(map(str, _OLDEST_FRONTEND))
        return f"nvidia-cudnn-frontend must be {oldest} or later, not {cudnn.__version__}; {_INSTALL}"
    if found[1] < _OLDEST_CUDNN:
        return f"cuDNN must be {_dotted(_OLDEST_CUDNN)} or later, not {_dotted(found[1])}; {_INSTALL}"
    return None


def sdpa(q: Array, k: Array, v: Array, out: Array, lse: Array, *, scale: float, shape: Shape) -> None:
    """Compute attention into arrays, on CuPy's current stream of the current device.

    Parameters
    ----------
    q, k, v : CuPy array, `(B, H, n, D)`, `(B, G, s, D)` and `(B, G, s, E)`
        float16 or bfloat16. They are read where they are if their last axis is contiguous and all else is aligned to
        16 bytes, and copied if not.
    out, lse : CuPy array of float32, `(B, H, n, E)` and `(B, H, n)`
        What is written to; rows of out are contiguous.
    scale : float
        Positive.
    shape : Shape
        Which pairs are visible. Every row sees at least one key, so that it does not matter what cuDNN writes for a
        row that sees none.
    """
    cupy = import_cupy()
    q, k, v = (_readable(cupy, array) for array in (q, k, v))
    is_writable = lse.flags.c_contiguous and lse.data.ptr % _ALIGNED == 0  # rows of a single head begin anywhere
    stats = lse if is_writable else cupy.empty(lse.shape, dtype=lse.dtype)
    spec = Spec(dtype_name(q), Layout.of(q), Layout.of(k), Layout.of(v), Layout.of(out), float(scale), shape)
    with _lent(cupy) as (cudnn, runner):
        cudnn.set_stream(handle=runner.handle, stream=cupy.cuda.get_current_stream().ptr)
        graph = runner.graph(cupy, cudnn, spec)
        # CuPy's pools hand memory out in the order of the stream, so this may be let go before the kernel has run
        workspace = cupy.empty(max(graph.get_workspace_size(), 1), dtype=cupy.uint8)
        pointers = {uid: array.data.ptr for uid, array in zip(range(1, 6), (q, k, v, out, stats), strict=True)}
        graph.execute(pointers, workspace.data.ptr, handle=runner.handle)
    if stats is not lse:
        lse[...] = stats


def build_graph(cudnn: Any, spec: Spec, **where: Any) -> Any:
    """Build the graph of one attention, with the fastest plan by cuDNN's heuristics. About half a second.

    Parameters
    ----------
    cudnn : module
        The frontend.
    spec : Spec
        What it is for. Shapes are fixed: cuDNN 9.28's engines for attention refuse dynamic ones.
    **where
        For `cudnn.pygraph`: `handle`, or the properties of a device that is not there.
    """
    of_type, f32 = getattr(cudnn.data_type, DTYPES[spec.dtype]), cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=of_type, intermediate_data_type=f32, compute_data_type=f32, **where)
    q, k, v = (
        graph.tensor(name=name, dim=list(at.dims), stride=list(at.strides), data_type=of_type, uid=uid)
        for name, at, uid in (("q", spec.q, _Q), ("k", spec.k, _K), ("v", spec.v, _V))
    )
    out, lse = graph.sdpa(
        q=q,
        k=k,
        v=v,
        attn_scale=spec.scale,
        generate_stats=True,
        implementation=cudnn.attention_implementation.COMPOSITE,  # the other one writes no float32
        **_mask_options(cudnn, spec),
    )
    *heads, n, _ = spec.out.dims
    for tensor, uid, at in ((out, _OUT, spec.out), (lse, _LSE, Layout((*heads, n, 1), (heads[1] * n, n, 1, 1)))):
        tensor.set_output(True)
        tensor.set_data_type(f32)
        tensor.set_uid(uid)
        tensor.set_dim(list(at.dims))
        tensor.set_stride(list(at.strides))
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A])
    engine = getattr(graph, "selected_engine", None)  # of a frontend that has kernels of its own, in Python
    if engine is not None:
        rule, got = (
            "be computed by cuDNN",
            f"{type(engine).__name__}, which nvidia-cudnn-frontend {cudnn.__version__} chose",
        )
        raise BackendError.of("kernel", rule, got, "take kernel='gemm', or another version of the frontend")
    graph.check_support()
    graph.build_plans()
    return graph


def _mask_options(cudnn: Any, spec: Spec) -> dict[str, Any]:
    """Say a shape in cuDNN's words.

    Aligned top-left, row r sees column c if r - left_bound < c <= r + right_bound; aligned bottom-right, r counts from
    s - n on, and n may not exceed s. Of a square both are the same, and the first is older.
    """
    if spec.shape is Shape.FULL:
        return {}
    n, s = spec.q.dims[2], spec.k.dims[2]
    top_left, bottom_right = cudnn.diagonal_alignment.TOP_LEFT, cudnn.diagonal_alignment.BOTTOM_RIGHT
    if spec.shape is Shape.LATER:
        return {"diagonal_alignment": top_left, "diagonal_band_left_bound": 1}
    options = {"diagonal_alignment": top_left if n == s else bottom_right, "diagonal_band_right_bound": 0}
    return options | ({"diagonal_band_left_bound": s - n + 1} if spec.shape is Shape.BAND else {})


@dataclass(slots=True)
class _Runner:
    """A handle and its graphs, for one thread at a time."""

    handle: Any
    graphs: dict[Spec, Any] = field(default_factory=dict)

    def graph(self, cupy: Any, cudnn: Any, spec: Spec) -> Any:
        """Return the graph for a spec, built at its first use."""
        if spec not in self.graphs:
            if len(self.graphs) >= _MOST_GRAPHS:
                cupy.cuda.Device().synchronize()  # none of them may be running while its code is unloaded
                self.graphs.clear()
            self.graphs[spec] = build_graph(cudnn, spec, handle=self.handle)
        return self.graphs[spec]


_idle: dict[int, list[_Runner]] = {}  # by device; more of them than threads that ran at a time are never made
_lock = threading.Lock()


@contextmanager
def _lent(cupy: Any) -> Iterator[tuple[Any, _Runner]]:
    """Lend a runner of the current device to this thread: a handle is not to be used by two at a time.

    They outlive the threads, since starting one and building its graphs takes long.
    """
    cudnn, device = _load(), cupy.cuda.Device().id
    with _lock:
        idle = _idle.setdefault(device, [])
        runner = idle.pop() if idle else None
    if runner is None:
        runner = _Runner(cudnn.create_handle())
    try:
        yield cudnn, runner
    finally:
        cudnn.set_stream(handle=runner.handle, stream=0)  # the stream may end, and another begin at its address
        with _lock:
            idle.append(runner)


def _load() -> Any:
    """Import the frontend, after libraries that it would not find by itself: NVRTC, and the CUDA runtime."""
    load_libraries()
    import_cupy().cuda.get_local_runtime_version()  # which loads it
    return importlib.import_module("cudnn")


def _readable(cupy: Any, array: Array) -> Array:
    """Return the array, or a copy if cuDNN cannot read it where it is."""
    outer = [stride for stride, n in zip(array.strides[:-1], array.shape[:-1], strict=True) if n > 1]
    is_aligned = all(stride > 0 and stride % _ALIGNED == 0 for stride in outer) and array.data.ptr % _ALIGNED == 0
    if is_aligned and array.strides[-1] == array.itemsize:
        return array
    return array.view(cupy.uint16).copy().view(array.dtype)  # CuPy has few functions for bfloat16


def _dotted(version: int) -> str:
    """Return 9.15.0 for 91500."""
    return f"{version // 10_000}.{version // 100 % 100}.{version % 100}"
