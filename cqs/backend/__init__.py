"""The only place that knows array libraries by name, and what they run on."""

from cqs.backend.arrays import (
    dtype_of,
    is_cupy,
    is_numpy,
    is_out_of_memory,
    is_writeable,
    may_overlap,
    namespace_of,
    overlaps_itself,
    quiet_floats,
    refuse_gradients,
)
from cqs.backend.blas import BlasLibrary, blas_libraries, single_threaded_blas
from cqs.backend.cuda_libraries import cuda_devices, import_cupy
from cqs.backend.threads import Stopped, Threads, Workspace, compute_threads, raise_if_stopped, stopped_by

__all__ = [
    "BlasLibrary",
    "Stopped",
    "Threads",
    "Workspace",
    "blas_libraries",
    "compute_threads",
    "cuda_devices",
    "dtype_of",
    "import_cupy",
    "is_cupy",
    "is_numpy",
    "is_out_of_memory",
    "is_writeable",
    "may_overlap",
    "namespace_of",
    "overlaps_itself",
    "quiet_floats",
    "raise_if_stopped",
    "refuse_gradients",
    "single_threaded_blas",
    "stopped_by",
]
