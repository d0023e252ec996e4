"""CuPy and what comes with it: found, or refused with the way to get it."""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

from cqs.errors import BackendError

__all__ = ["cuda_devices", "import_cupy", "load_libraries", "missing_library"]

_INSTALL = "pip install 'cqs-attention[cuda13]' (or [cuda12], as `nvidia-smi` says); `cqs doctor` shows what is found"
_OLDEST = (14,)
_INSUFFICIENT_DRIVER, _NO_DEVICE = 35, 100  # of CUDA's errors
_OR_CPU = "Leave `backend` out to compute on the CPU"


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
        If there is no driver, or an old one, or no device.
    """
    cupy = import_cupy()
    try:
        n_devices = int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if error.status == _NO_DEVICE:  # CUDA does not count to 0
            raise _no_device() from error
        raise _no_driver(cupy, error) from error
    if n_devices == 0:
        raise _no_device()
    return n_devices


@cache
def load_libraries() -> None:
    """Load what CuPy loads only when it is used: NVRTC, which compiles kernels, and cuBLAS.

    Raises
    ------
    BackendError
        If one of them is missing: a driver brings none of them.
    """
    missing = missing_library()
    if missing is not None:
        rule = "have the libraries of the CUDA toolkit, if it is 'cupy'"
        raise BackendError.of("backend", rule, *missing)


def missing_library() -> tuple[str, str] | None:
    """Return which of these libraries cannot be loaded, and the remedy; None if there are all."""
    cupy = import_cupy()
    libraries: dict[str, Callable[[], object]] = {
        "NVRTC": lambda: cupy.cuda.nvrtc.getVersion(),
        "cuBLAS": lambda: cupy.cuda.cublas,
    }
    for name, load in libraries.items():
        try:
            load()
        except (ImportError, OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            return f"no {name} that can be loaded ({reason})", f"pip install 'cupy-cuda{_major(cupy)}x[ctk]'"
    return None


def _no_device() -> BackendError:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    got = "none" if visible is None else f"none, with CUDA_VISIBLE_DEVICES={visible!r}"
    remedy = "does `nvidia-smi` list one, and was the container started with GPUs?" if visible is None else "unset it."
    return BackendError.of("backend", "have a CUDA device, if it is 'cupy'", got, f"{remedy} {_OR_CPU}")


def _no_driver(cupy: Any, error: Any) -> BackendError:
    """Say what is wrong with the driver: CUDA has one error for none and for one that is too old."""
    rule, of_driver = "have a CUDA driver, if it is 'cupy'", cupy.cuda.runtime.driverGetVersion()
    if error.status != _INSUFFICIENT_DRIVER:
        return BackendError.of("backend", rule, str(error), f"does `nvidia-smi` work? {_OR_CPU}")
    if of_driver == 0:
        return BackendError.of("backend", rule, "none", f"install NVIDIA's driver. {_OR_CPU}")
    rule = f"have a driver for CUDA {_major(cupy)}, as CuPy, if it is 'cupy'"
    got = f"one for CUDA {of_driver // 1000}.{of_driver % 1000 // 10}"
    return BackendError.of("backend", rule, got, f"update it, or take the CuPy that fits: {_INSTALL}")


def _major(cupy: Any) -> int:
    """Return the version of CUDA that CuPy is made for."""
    return int(cupy.cuda.driver.get_build_version()) // 1000
