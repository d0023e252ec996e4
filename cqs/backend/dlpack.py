"""torch tensors on a CUDA device as CuPy arrays and back: the same memory under another name, by DLPack."""

from typing import Any

from array_api_compat import is_array_api_obj, is_torch_array

from cqs.backend.arrays import namespace_of
from cqs.backend.cuda_libraries import import_cupy
from cqs.types import Array

__all__ = ["cuda_tensor_as_cupy", "cuda_tensors_as_cupy", "cupy_as_tensor", "is_cuda_tensor"]


def is_cuda_tensor(x: object) -> bool:
    """Whether something is a torch tensor on a CUDA device."""
    return bool(is_torch_array(x)) and bool(x.is_cuda)  # type: ignore[attr-defined]


def cuda_tensor_as_cupy(tensor: Array) -> Array:
    """View a tensor as a CuPy array."""
    import torch

    cupy = import_cupy()
    if tensor.dtype != torch.bfloat16:
        return cupy.from_dlpack(tensor.detach())
    import ml_dtypes

    return cupy.from_dlpack(tensor.detach().view(torch.int16)).view(ml_dtypes.bfloat16)


def cuda_tensors_as_cupy(**given: Any) -> tuple[Any, ...]:
    """View tensors, of which the first is on a CUDA device, as CuPy arrays; what is no array is left as it is.

    Raises
    ------
    BackendError
        Naming the argument that is of another library or on another device than the first; or if there is no CuPy.
    """
    namespace_of(**{name: x for name, x in given.items() if is_array_api_obj(x)})
    return tuple(cuda_tensor_as_cupy(x) if is_cuda_tensor(x) else x for x in given.values())


def cupy_as_tensor(array: Array) -> Array:
    """View a CuPy array as a tensor."""
    import torch

    if array.dtype.name != "bfloat16":
        return torch.utils.dlpack.from_dlpack(array)
    return torch.utils.dlpack.from_dlpack(array.view("int16")).view(torch.bfloat16)
