"""CuPy and what comes with it: found, or refused with the way to get it."""

from functools import cache
from typing import Any

from cqs.errors import BackendError

__all__ = ["cuda_devices", "import_cupy"]

_INSTALL = "pip install 'cqs-attention[cuda13]' (or [cuda12], as `nvidia-smi` says); `cqs doctor` shows what is found"
_OLDEST = (14,)


@cache
def import_cupy() -> Any:
    """Return CuPy.

    Raises
    ------
    BackendError
        If it is not installed, cannot be loaded, or is older than 14.
    """
    try:
        import cupy
    except ImportError as error:
        got = "no CuPy" if error.name == "cupy" else f"one that cannot be loaded ({error})"
        raise BackendError.of("backend", "have CuPy, if it is 'cupy'", got, _INSTALL) from error
    version = tuple(int(part) for part in cupy.__version__.split(".")[:1])
    if version < _OLDEST:
        raise BackendError.of("backend", "have CuPy 14 or later, if it is 'cupy'", cupy.__version__, _INSTALL)
    return cupy


def cuda_devices() -> int:
    """Return how many CUDA devices there are.

    Raises
    ------
    BackendError
        If there is no driver, or no device.
    """
    cupy = import_cupy()
    try:
        n_devices = int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        remedy = "install NVIDIA's driver, or leave `backend` out to compute on the CPU"
        raise BackendError.of("backend", "have a CUDA driver, if it is 'cupy'", str(error), remedy) from error
    if n_devices == 0:
        remedy = "is CUDA_VISIBLE_DEVICES set? Leave `backend` out to compute on the CPU"
        raise BackendError.of("backend", "have a CUDA device, if it is 'cupy'", "none", remedy)
    return n_devices
