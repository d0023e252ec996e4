"""torch tensors as CuPy or NumPy arrays and back: the same memory under another name."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj, is_torch_array

from cqs.backend.arrays import namespace_of
from cqs.backend.cuda_libraries import import_cupy
from cqs.errors import BackendError, CQSError
from cqs.types import Array

__all__ = ["borrowed", "cupy_as_tensor"]


def borrowed(
    *, by_cupy: bool, by_numpy: bool, out: Any, **given: Any
) -> tuple[tuple[Any, ...], Callable[[Array], Array]]:
    """View torch tensors as arrays of the library that is to compute them, of the same memory.

    Parameters
    ----------
    by_cupy, by_numpy : bool
        Whether that is CuPy, if they are on a CUDA device, or NumPy, if they are in main memory.
    out, **given : object
        Arguments by name, the first array of which decides; what is no tensor is left as it is.

    Returns
    -------
    tuple
        The arguments in their order, `out` last.
    function
        Gives a result back as a tensor; for the view of `out`, that is `out`.

    Raises
    ------
    BackendError
        Naming the argument that is of another library or on another device than the first; or if there is no CuPy.
    """
    first, given = next(iter(given.values())), {**given, "out": out}
    if by_cupy and _is_cuda_tensor(first):
        view, back = _cuda_tensor_as_cupy, cupy_as_tensor
    elif by_numpy and _is_cpu_tensor(first):
        view, back = _cpu_tensor_as_numpy, _numpy_as_tensor
    else:
        return tuple(given.values()), lambda array: array
    namespace_of(**{name: x for name, x in given.items() if is_array_api_obj(x)})
    views = tuple(_viewed(name, x, view) if is_torch_array(x) else x for name, x in given.items())
    return views, lambda array: out if array is views[-1] else back(array) if _is_plain(array) else array


def _viewed(name: str, tensor: Array, view: Callable[[Array], Array]) -> Array:
    try:
        return view(tensor)
    except CQSError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # a type, or a layout, that only torch has
        reason = str(error).partition("\n")[0]
        raise BackendError.of(name, "be a tensor whose numbers can be read", reason, "convert it first") from None


def _is_plain(array: object) -> bool:
    """Whether a result is in memory, and not on disk: memory maps that are only read would make tensors that crash."""
    return bool(is_array_api_obj(array)) and not isinstance(array, np.memmap)


def _is_cuda_tensor(x: object) -> bool:
    return bool(is_torch_array(x)) and bool(x.is_cuda)  # type: ignore[attr-defined]


def _is_cpu_tensor(x: object) -> bool:
    """Whether something is a torch tensor in main memory, of a type that NumPy has; bfloat16 is of ml_dtypes."""
    if not is_torch_array(x) or x.device.type != "cpu":
        return False
    return str(x.dtype) != "torch.bfloat16" or find_spec("ml_dtypes") is not None


def _cuda_tensor_as_cupy(tensor: Array) -> Array:
    import torch

    cupy = import_cupy()
    if tensor.dtype != torch.bfloat16:
        return cupy.from_dlpack(tensor.detach())
    import ml_dtypes

    return cupy.from_dlpack(tensor.detach().view(torch.int16)).view(ml_dtypes.bfloat16)


def cupy_as_tensor(array: Array) -> Array:
    """View a CuPy array as a torch tensor of the same memory."""
    import torch

    if array.dtype.name != "bfloat16":
        return torch.utils.dlpack.from_dlpack(array)
    return torch.utils.dlpack.from_dlpack(array.view("int16")).view(torch.bfloat16)


def _cpu_tensor_as_numpy(tensor: Array) -> Array:
    import torch

    if tensor.dtype != torch.bfloat16:
        return tensor.detach().numpy()
    import ml_dtypes

    return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def _numpy_as_tensor(array: Array) -> Array:
    import torch

    if array.dtype.name != "bfloat16":
        return torch.from_numpy(array)
    return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
