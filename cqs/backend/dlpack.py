"""torch tensors on a CUDA device as CuPy arrays and back: the same memory under another name, by DLPack."""

from array_api_compat import is_torch_array

from cqs.backend.cuda_libraries import import_cupy
from cqs.types import Array

__all__ = ["cuda_tensor_as_cupy", "cupy_as_tensor", "is_cuda_tensor"]


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


def cupy_as_tensor(array: Array) -> Array:
    """View a CuPy array as a tensor."""
    import torch

    if array.dtype.name != "bfloat16":
        return torch.utils.dlpack.from_dlpack(array)
    return torch.utils.dlpack.from_dlpack(array.view("int16")).view(torch.bfloat16)
