"""Tensors of torch as CuPy or NumPy arrays and back, and JAX's arrays as NumPy's: the same memory, another name."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj, is_jax_array, is_torch_array

from cqs.backend.arrays import namespace_of
from cqs.backend.cuda_libraries import import_cupy
from cqs.errors import BackendError, CQSError
from cqs.types import Array

__all__ = ["borrowed", "cupy_as_tensor"]


def borrowed(
    *, by_cupy: bool, by_numpy: bool, out: Any, **given: Any
) -> tuple[tuple[Any, ...], Callable[[Array], Array]]:
    """View tensors of torch, or arrays of JAX, as arrays of the library that is to compute them, of the same memory.

    Parameters
    ----------
    by_cupy, by_numpy : bool
        Whether that is CuPy, for tensors on a CUDA device, or NumPy, for tensors in main memory. JAX's arrays in main
        memory always become NumPy's, for nothing can be written to them.
    out, **given : object
        Arguments by name, the first array of which decides; what is of no such library is left as it is.

    Returns
    -------
    tuple
        The arguments in their order, `out` last.
    function
        Gives a result back in the library of the arguments; for the view of `out`, that is `out`.

    Raises
    ------
    BackendError
        Naming the argument that is of another library or on another device than the first, or of JAX and not in main
        memory, or traced; or if there is no CuPy.
    """
    first, given = next(iter(given.values())), {**given, "out": out}
    if is_jax_array(first):
        return _borrowed_from_jax(given)
    if by_cupy and _is_cuda_tensor(first):
        view, back = _cuda_tensor_as_cupy, cupy_as_tensor
    elif by_numpy and _is_cpu_tensor(first):
        view, back = _cpu_tensor_as_numpy, _numpy_as_tensor
    else:
        return tuple(given.values()), lambda array: array
    namespace_of(**{name: x for name, x in given.items() if is_array_api_obj(x)})
    views = tuple(_viewed(name, x, view) if is_torch_array(x) else x for name, x in given.items())

    def hand_out(array: Array) -> Array:
        found = back(array) if _is_plain(array) else array  # from here on torch's stream waits for what CuPy's writes
        return out if array is views[-1] else found

    return views, hand_out


def _borrowed_from_jax(given: dict[str, Any]) -> tuple[tuple[Any, ...], Callable[[Array], Array]]:
    import jax

    views = []
    for name, x in given.items():
        if not is_jax_array(x):
            views.append(x)
        elif isinstance(x, jax.core.Tracer):
            remedy = "call `cqs.jax.attention`, which JAX can trace and differentiate"
            raise BackendError.of(name, "hold numbers", "a value that JAX traces", remedy)
        elif any(device.platform != "cpu" for device in x.devices()):
            rule, remedy = "be in main memory, if it is an array of JAX", f"give `jax.device_get({name})`"
            raise BackendError.of(name, rule, ", ".join(map(str, x.devices())), remedy)
        else:
            views.append(_viewed(name, x, np.asarray))
    namespace_of(**{name: x for name, x in zip(given, views, strict=True) if is_array_api_obj(x)})
    given_out, devices = views[-1], list(next(iter(given.values())).devices())
    place = devices[0] if len(devices) == 1 else None
    return tuple(views), lambda x: jax.device_put(x, place) if x is not given_out and _is_plain(x) else x


def _viewed(name: str, tensor: Array, view: Callable[[Array], Array]) -> Array:
    try:
        return view(tensor)
    except CQSError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # a type, or a layout, that only torch has
        reason = str(error).partition("\n")[0]
        raise BackendError.of(name, "be an array whose numbers can be read", reason, "convert it first") from None


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
