"""What `cqs doctor` says of GPUs: which there are, and what each library enables."""

import sys
from dataclasses import dataclass
from importlib.util import find_spec

from cqs.backend import CudaDevice, cuda_devices, import_cupy, missing_library
from cqs.errors import BackendError
from cqs.kernels import cudnn_missing
from cqs.units import format_bytes

__all__ = ["GpuFacts", "gpu_facts", "gpu_rows"]


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What was found.

    Parameters
    ----------
    driver : str or None
        The newest CUDA version that the driver runs.
    devices : tuple of str
        GPUs, with their memory.
    problem : str or None
        Why `backend="cupy"` does not work, and what would help.
    libraries : str or None
        Which library of the CUDA toolkit is missing, without which no kernel works; None if there are all.
    cudnn : str or None
        Why the kernel "cudnn" does not work; None if it does.
    """

    driver: str | None = None
    devices: tuple[str, ...] = ()
    problem: str | None = None
    libraries: str | None = None
    cudnn: str | None = None


def gpu_facts() -> GpuFacts | None:
    """Look for GPUs; None if CuPy is not installed. Takes a second where it is."""
    if "cupy" not in sys.modules and find_spec("cupy") is None:
        return None
    try:
        n_devices, cupy = cuda_devices(), import_cupy()
    except BackendError as error:
        return GpuFacts(problem=str(error))
    version = cupy.cuda.runtime.driverGetVersion()
    devices = tuple(map(_describe, map(CudaDevice, range(n_devices))))
    missing = missing_library()
    libraries = missing and "; ".join(missing)
    return GpuFacts(f"CUDA {version // 1000}.{version % 1000 // 10}", devices, None, libraries, cudnn_missing())


def gpu_rows(facts: GpuFacts) -> list[tuple[str, str]]:
    """Return the rows of the table."""
    if facts.problem is not None:
        return [("GPU", facts.problem)]
    rows = [("GPU", device) for device in facts.devices]
    rows.append(("driver", str(facts.driver)))
    if facts.libraries is not None:
        return [*rows, ("CUDA libraries", f"backend='cupy' does not work: {facts.libraries}")]
    rows.append(("CUDA libraries", "found, for backend='cupy' with the kernel gemm, of any type and mask"))
    enabled = "found, for the kernel cudnn, of float16 and bfloat16"
    return [*rows, ("cuDNN", enabled if facts.cudnn is None else f"no kernel cudnn: {facts.cudnn}")]


def _describe(device: CudaDevice) -> str:
    cupy = import_cupy()
    free, total = cupy.cuda.Device(device.index).mem_info
    return f"{device.name}, {format_bytes(free)} of {format_bytes(total)} free"
