"""Questions about arrays and errors of several libraries: where elements lie, and whether memory is used up."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_cupy import Machine, cupy, fake_gpu  # noqa: F401
from numpy.lib.stride_tricks import as_strided

import cqs
from cqs.backend import is_out_of_memory, overlaps_itself
from cqs.errors import OptionError


def test_tensors_that_overlap_themselves_are_refused_as_outputs() -> None:
    torch = pytest.importorskip("torch")
    q = torch.ones(2, 300, 8)
    for out in (
        torch.empty(2408).as_strided((2, 300, 8), (8, 8, 1)),
        torch.empty(1, 300, 8).expand(2, 300, 8),
        torch.empty(2, 300, 1).expand(2, 300, 8),
    ):
        with pytest.raises(OptionError, match="`out` must have each element in a place of its own, got overlapping"):
            cqs.attention(q, q, q, out=out)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_views_whose_elements_lie_apart_do_not_overlap_themselves(library: str) -> None:
    xp: Any = pytest.importorskip(library)
    x = xp.zeros((4, 6, 8))
    for view in (x, x.swapaxes(0, 2), x[1:, ::2, ::3], x[:1, :, :0], x[0, 0, 0]):
        assert not overlaps_itself(view)


def test_elements_that_overlap_in_part_do_overlap() -> None:
    assert overlaps_itself(as_strided(np.zeros(4, np.float32), (3,), (2,)))


def test_torch_says_that_memory_is_used_up() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 55)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    with pytest.raises(RuntimeError) as raised:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(raised.value)


def test_cupy_says_that_memory_is_used_up(cupy: ModuleType, fake_gpu: Machine) -> None:  # noqa: F811
    runtime, cublas = cupy.cuda.runtime, cupy.cuda.cublas
    assert is_out_of_memory(runtime.CUDARuntimeError(runtime.errorMemoryAllocation))
    assert is_out_of_memory(cublas.CUBLASError(3))
    assert is_out_of_memory(cupy.cuda.memory.OutOfMemoryError(1 << 40, 0))
    assert not is_out_of_memory(runtime.CUDARuntimeError(runtime.errorInvalidValue))
    assert not is_out_of_memory(cublas.CUBLASError(7))


def test_cudnn_says_that_memory_is_used_up() -> None:
    for status in ("ALLOC_FAILED", "INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"):
        assert is_out_of_memory(RuntimeError(f"[cudnn_frontend] Error: cudnnCreate() failed: CUDNN_STATUS_{status}"))
    assert not is_out_of_memory(RuntimeError("CUDNN_STATUS_NOT_SUPPORTED"))


def test_errors_are_known_without_libraries_that_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError())
    assert not is_out_of_memory(KeyError("cudaErrorMemoryAllocation"))
    assert "torch" not in sys.modules
