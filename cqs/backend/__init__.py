"""The only place that knows array libraries by name, and what they run on."""

from cqs.backend.arrays import (
    dtype_of,
    is_cupy,
    is_numpy,
    is_of_jax,
    is_out_of_memory,
    is_tensor,
    is_writeable,
    may_overlap,
    namespace_of,
    on_host,
    overlaps_itself,
    quiet_floats,
    refuse_gradients,
)
from cqs.backend.blas import BlasLibrary, blas_libraries, single_threaded_blas
from cqs.backend.choosing import BACKENDS, chosen_devices, numbered
from cqs.backend.cuda import CudaDevice, arrays_device
from cqs.backend.cuda_libraries import cuda_devices, import_cupy, load_libraries, missing_library
from cqs.backend.device import Device, Download, Session, Slot, TimedSession, slot_bytes
from cqs.backend.dlpack import borrowed, cupy_as_tensor
from cqs.backend.host import HostDevice
from cqs.backend.threads import Stopped, Threads, Workspace, compute_threads, raise_if_stopped, stopped_by

__all__ = [
    "BACKENDS",
    "BlasLibrary",
    "CudaDevice",
    "Device",
    "Download",
    "HostDevice",
    "Session",
    "Slot",
    "Stopped",
    "Threads",
    "TimedSession",
    "Workspace",
    "arrays_device",
    "blas_libraries",
    "borrowed",
    "chosen_devices",
    "compute_threads",
    "cuda_devices",
    "cupy_as_tensor",
    "dtype_of",
    "import_cupy",
    "is_cupy",
    "is_numpy",
    "is_of_jax",
    "is_out_of_memory",
    "is_tensor",
    "is_writeable",
    "load_libraries",
    "may_overlap",
    "missing_library",
    "namespace_of",
    "numbered",
    "on_host",
    "overlaps_itself",
    "quiet_floats",
    "raise_if_stopped",
    "refuse_gradients",
    "single_threaded_blas",
    "slot_bytes",
    "stopped_by",
]
