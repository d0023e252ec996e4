"""A `cudnn` module over the fake CuPy: it records graphs, and computes attention from addresses when they run.

It has only what `cqs.kernels.cudnn_graphs` uses, under the names of `nvidia-cudnn-frontend` 1.23 and 1.32, and refuses
what `validate_sdpa_support_surface` of the frontend refuses. Like the true kernels it rounds the weights to the type of
the values. What cuDNN leaves open is NaN here: the result of a row that sees nothing.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fake_cupy import view_at
from fake_cupy.machine import now

from cqs.kernels import cudnn_graphs

DataType = Enum("data_type", "FLOAT HALF BFLOAT16 INT32")
Alignment = Enum("diagonal_alignment", "TOP_LEFT BOTTOM_RIGHT")
HeurMode = Enum("heur_mode", "A B FALLBACK")
Implementation = Enum("attention_implementation", "AUTO COMPOSITE UNIFIED")
NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.BFLOAT16: ml_dtypes.bfloat16}
STEPS = ("validate", "build_operation_graph", "create_execution_plans", "check_support", "build_plans")


class cudnnGraphNotSupportedError(RuntimeError):  # noqa: N801
    pass


class Handle:
    """Of one device; for one thread at a time."""

    def __init__(self) -> None:
        self.device, self.stream, self._lock = now().device, 0, threading.Lock()

    @contextmanager
    def used(self) -> Iterator[None]:
        assert self._lock.acquire(blocking=False), "two threads use a handle"
        try:
            yield
        finally:
            self._lock.release()


class Tensor:
    """What a graph knows of an array."""

    def __init__(self, **fields: Any) -> None:
        self.name, self.dim, self.stride, self.data_type, self.uid, self.is_output = "", None, None, None, -1, False
        vars(self).update(fields)

    def set_output(self, value: bool) -> "Tensor":
        self.is_output = value
        return self

    def set_dim(self, value: list[int]) -> "Tensor":
        assert type(value) is list
        self.dim = value
        return self

    def set_stride(self, value: list[int]) -> "Tensor":
        assert type(value) is list
        self.stride = value
        return self

    def set_data_type(self, value: DataType) -> "Tensor":
        self.data_type = value
        return self

    def set_uid(self, value: int) -> "Tensor":
        self.uid = value
        return self

    def at(self, address: int, uses: list[Any]) -> np.ndarray:
        """View its memory; every pointer is aligned to 16 bytes."""
        assert address % 16 == 0, f"{self.name} at {address:#x}"
        dtype = np.dtype(NUMPY[self.data_type])
        strides = tuple(n * dtype.itemsize for n in self.stride)
        return view_at(address, tuple(self.dim), dtype, strides, writes=self.is_output, uses=uses)


class pygraph:  # noqa: N801
    """One attention."""

    def __init__(
        self,
        *,
        io_data_type: DataType,
        intermediate_data_type: DataType,
        compute_data_type: DataType,
        handle: Handle | None = None,
    ) -> None:
        assert {intermediate_data_type, compute_data_type} == {DataType.FLOAT}
        self.handle, self.io, self.done = handle, io_data_type, []
        self.tensors: dict[str, Tensor] = {}
        self.options: dict[str, Any] = {}
        sys.modules["cudnn"].graphs.append(self)

    def tensor(self, *, name: str, dim: list[int], stride: list[int], data_type: DataType, uid: int) -> Tensor:
        assert type(dim) is type(stride) is list
        assert len(dim) == len(stride) == 4
        assert all(type(n) is int for n in (*dim, *stride)), (dim, stride)
        self.tensors[name] = Tensor(name=name, dim=dim, stride=stride, data_type=data_type, uid=uid)
        return self.tensors[name]

    def sdpa(
        self,
        *,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_scale: float,
        generate_stats: bool,
        implementation: Implementation,
        diagonal_alignment: Alignment = Alignment.TOP_LEFT,
        diagonal_band_left_bound: int | None = None,
        diagonal_band_right_bound: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert type(attn_scale) is float
        assert attn_scale > 0
        assert generate_stats is True
        assert all(type(n) in (int, type(None)) for n in (diagonal_band_left_bound, diagonal_band_right_bound))
        self.scale, self.implementation = attn_scale, implementation
        self.alignment, self.left, self.right = diagonal_alignment, diagonal_band_left_bound, diagonal_band_right_bound
        self.tensors |= {"out": Tensor(name="out"), "stats": Tensor(name="stats")}
        return self.tensors["out"], self.tensors["stats"]

    def validate(self) -> None:
        q, k, v, out = (self.tensors[name] for name in ("q", "k", "v", "out"))
        (B, H, n, D), (_, G, s, E) = q.dim, v.dim
        is_bottom = self.alignment is Alignment.BOTTOM_RIGHT
        rules = {
            "heads": H % G == 0 and k.dim == [B, G, s, D] and out.dim == [B, H, n, E] and v.dim[0] == B,
            "multiple of 8": D % 8 == E % 8 == 0,
            "bottom right": not (is_bottom and n > s),
            "window": self.left is None or (self.left > 0 and n <= s),
            "right": self.right is None or self.right >= 0,
            "decode": not (n == 1 and (self.left, self.right) != (None, None)),  # older versions
            "float32 output": out.data_type is self.io or self.implementation is Implementation.COMPOSITE,
            "rows": all(t.stride[-1] == 1 and min(t.stride) > 0 for t in (q, k, v, out)),
            "empty": min(B, H, n, s) > 0,
        }
        broken = [name for name, is_kept in rules.items() if not is_kept]
        if broken:
            raise cudnnGraphNotSupportedError(f"{', '.join(broken)}: {q.dim}, {v.dim}")
        self.done.append("validate")

    def build_operation_graph(self) -> None:
        self.done.append("build_operation_graph")

    def create_execution_plans(self, modes: list[HeurMode]) -> None:
        self.done.append("create_execution_plans")

    def check_support(self) -> None:
        self.done.append("check_support")

    def build_plans(self) -> None:
        self.done.append("build_plans")

    def get_workspace_size(self) -> int:
        return 256

    def execute(self, pointers: dict[int, int], workspace: int, handle: Handle) -> None:
        assert tuple(self.done) == STEPS
        assert handle.device == now().device
        self.stream = handle.stream
        with handle.used():
            uses: list[Any] = []
            q, k, v, out, stats = (t.at(pointers[t.uid], uses) for t in self.tensors.values())
            view_at(workspace, (256,), np.uint8, writes=True, uses=uses)
            now().submit(now().lane(now().device, handle.stream), "sdpa", uses, lambda: self._run(q, k, v, out, stats))

    def _run(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray, stats: np.ndarray) -> None:
        shared = q.shape[1] // k.shape[1]
        k32, v32 = (np.repeat(x.astype(np.float32), shared, axis=1) for x in (k, v))
        with np.errstate(all="ignore"):
            scores = np.float32(self.scale) * (q.astype(np.float32) @ k32.mT)
            scores[..., ~self.visible(*scores.shape[-2:])] = -np.inf
            top = scores.max(axis=-1, keepdims=True)
            weights = np.exp(scores - top)
            total = weights.sum(axis=-1, keepdims=True)
            out[...] = (weights.astype(q.dtype).astype(np.float32) @ v32) / total
            stats[...] = top + np.log(total)

    def visible(self, n: int, s: int) -> np.ndarray:
        """The mask, as `attn_score_modifiers.h` has it."""
        row, column = np.arange(n)[:, None], np.arange(s)
        row = row + (s - n if self.alignment is Alignment.BOTTOM_RIGHT else 0)
        seen = np.ones((n, s), dtype=bool)
        if self.right is not None:
            seen &= row + self.right >= column
        if self.left is not None:
            seen &= column + self.left > row
        return seen


def _set_stream(handle: Handle, stream: int) -> None:
    assert handle.device == now().device
    handle.stream = stream


def install(monkeypatch: pytest.MonkeyPatch, version: str = "1.32.0", backend: int = 92800) -> ModuleType:
    """Make `import cudnn` give the fake; its `graphs` are all that were made. The fake CuPy must be there."""
    module = ModuleType("cudnn")
    vars(module).update(
        __version__=version,
        backend_version=lambda: backend,
        data_type=DataType,
        diagonal_alignment=Alignment,
        heur_mode=HeurMode,
        attention_implementation=Implementation,
        cudnnGraphNotSupportedError=cudnnGraphNotSupportedError,
        pygraph=pygraph,
        create_handle=Handle,
        set_stream=_set_stream,
        graphs=[],
    )
    monkeypatch.setitem(sys.modules, "cudnn", module)
    monkeypatch.setattr(cudnn_graphs, "_idle", {})
    cudnn_graphs.missing_libraries.cache_clear()
    return module
