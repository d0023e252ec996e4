"""Questions about arrays whose answers differ from library to library."""

import sys
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import (
    array_namespace,
    device,
    is_cupy_array,
    is_cupy_namespace,
    is_jax_array,
    is_numpy_array,
    is_numpy_namespace,
    is_torch_array,
    is_writeable_array,
)

from cqs.errors import BackendError
from cqs.types import Array, DType, Namespace

__all__ = [
    "dtype_of",
    "is_cupy",
    "is_numpy",
    "is_of_jax",
    "is_out_of_memory",
    "is_tensor",
    "is_writeable",
    "may_overlap",
    "namespace_of",
    "on_host",
    "overlaps_itself",
    "quiet_floats",
    "refuse_gradients",
]

_NUMPY = array_namespace(np.empty(0))
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",  # torch, on Linux and macOS
    "DefaultCPUAllocator: not enough memory",  # on Windows
    "CUDA error: out of memory",  # torch, of what does not come from its allocator
    "CUDA out of memory",  # torch before 2.5, whose error had another place
    "cudaErrorMemoryAllocation",  # CUDA's runtime: pinned memory, events, streams
    "CUDA_ERROR_OUT_OF_MEMORY",  # its driver: modules
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)


def namespace_of(**arrays: Array) -> Namespace:
    """Return the array-API namespace that all the arrays belong to.

    Raises
    ------
    BackendError
        Naming the argument that is no array, or of another library or on another device than the first.
    """
    if all(type(array) is np.ndarray for array in arrays.values()):  # most are, and to ask takes long
        return _NUMPY
    (first, reference), *_ = arrays.items()
    for name, array in arrays.items():
        try:
            if isinstance(array, np.ma.MaskedArray):
                raise TypeError("its mask would be lost")
            xp = array_namespace(array)
        except TypeError:
            rule = "be an array of a library with an array-API namespace (NumPy, CuPy, torch, ...)"
            raise BackendError.of(name, rule, type(array).__name__, "convert it, as in `np.asarray(x)`") from None
        if name == first:
            namespace = xp
        elif xp is not namespace:
            rule = f"be of the same library as `{first}`, {_library(reference)}"
            raise BackendError.of(name, rule, _library(array), "convert one of them; nothing is moved silently")
        elif device(array) != device(reference):
            rule = f"be on the device of `{first}`, {device(reference)}"
            raise BackendError.of(name, rule, device(array), "move one of them; nothing is moved silently")
    return namespace


def is_numpy(xp: Namespace) -> bool:
    """Whether a namespace is NumPy's."""
    return bool(is_numpy_namespace(xp))


def is_cupy(xp: Namespace) -> bool:
    """Whether a namespace is CuPy's."""
    return bool(is_cupy_namespace(xp))


def dtype_of(xp: Namespace, name: str) -> DType:
    """Return a namespace's data type by name, as in `dtype_of(xp, "float32")`.

    bfloat16 under NumPy and CuPy is the type that `ml_dtypes` adds.
    """
    if name == "bfloat16" and (is_numpy(xp) or is_cupy(xp)):
        try:
            import ml_dtypes
        except ImportError:
            remedy = "pip install 'cqs-attention[bfloat16]'"
            raise BackendError.of("dtype", "be available in NumPy", "bfloat16 without ml_dtypes", remedy) from None
        return np.dtype(ml_dtypes.bfloat16)
    return getattr(xp, name)


def on_host(array: Array) -> npt.NDArray[np.generic]:
    """Return an array of any library, on any device, in the memory of the machine, as NumPy's; copied if need be."""
    if is_numpy_array(array):
        return array
    if is_jax_array(array):
        return np.asarray(array)  # DLPack has no bfloat16 for NumPy
    return array.get() if is_cupy_array(array) else np.from_dlpack(array)


def quiet_floats() -> AbstractContextManager[None]:
    """Silence NumPy's floating-point warnings in this thread: overflow and NaN are answered by the result itself."""
    return np.errstate(all="ignore")


def is_tensor(array: Array) -> bool:
    """Whether something is a tensor of PyTorch."""
    return bool(is_torch_array(array))


def is_of_jax(array: Any) -> bool:
    """Whether something is an array of JAX, or stands for one."""
    return bool(is_jax_array(array))


def is_writeable(array: Array) -> bool:
    """Whether an array can be written to: not if it is read-only, or of a library whose arrays never change."""
    return bool(is_writeable_array(array))


def refuse_gradients(**arrays: Array) -> None:
    """Refuse arrays that record gradients, since none would be recorded through attention.

    Raises
    ------
    BackendError
        Naming the argument.
    """
    for name, array in arrays.items():
        if getattr(array, "requires_grad", False):
            rule = "not require gradients, which only `cqs.autograd.attention` passes on"
            raise BackendError.of(name, rule, "requires_grad=True", f"give `{name}.detach()`, or call that")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or of a device, is used up.

    NumPy and CuPy's pools raise a `MemoryError`, torch's allocator for devices an error of its own. All else is a
    `RuntimeError` with the status in its text: torch and cuDNN's frontend tell no more than that, and CuPy no less.
    """
    of_torch = getattr(sys.modules.get("torch"), "OutOfMemoryError", ())
    if isinstance(error, (MemoryError, of_torch)):
        return True
    return isinstance(error, RuntimeError) and any(status in str(error) for status in _OUT_OF_MEMORY)


def overlaps_itself(array: Array) -> bool:
    """Whether two elements of an array may share memory, as its strides tell; False for a library that has none."""
    where = _where(array)
    if where is None or where.size == 0:
        return False
    reach = where.itemsize - 1
    for stride, n in sorted((abs(stride), n) for stride, n in zip(where.strides, where.shape, strict=True) if n > 1):
        if stride <= reach:
            return True
        reach += stride * (n - 1)
    return False


def may_overlap(a: Array, b: Array) -> bool:
    """Whether two arrays may share memory; True when in doubt. Libraries that say nothing of places: identity."""
    places = _where(a), _where(b)
    if places[0] is None or places[1] is None:
        return a is b
    try:
        return bool(np.shares_memory(*places, max_work=10_000))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _where(array: Array) -> npt.NDArray[Any] | None:
    """Return an array of NumPy at the addresses of an array, on a device too; only they are looked at, never read.

    None if its library does not tell them.
    """
    if is_numpy_array(array):
        return array
    try:
        if is_torch_array(array):
            size = array.element_size()
            return _at(array.data_ptr(), tuple(array.shape), tuple(n * size for n in array.stride()), size)
        if is_cupy_array(array):
            return _at(array.data.ptr, array.shape, array.strides, array.itemsize)
        return np.from_dlpack(array)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        return None


def _at(address: int, shape: tuple[int, ...], strides: tuple[int, ...], size: int) -> npt.NDArray[Any]:
    """Return an array of NumPy, of elements of some bytes, at an address."""
    described = {"data": (address, False), "shape": shape, "strides": strides, "typestr": f"|V{size}", "version": 3}
    return np.asarray(SimpleNamespace(__array_interface__=described))


def _library(array: Array) -> str:
    return str(array_namespace(array).__name__).removeprefix("array_api_compat.").partition(".")[0]
