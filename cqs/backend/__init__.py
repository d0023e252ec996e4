"""The only place that knows array libraries by name, and what they run on."""

from cqs.backend.arrays import (
    dtype_of,
    is_numpy,
    is_writeable,
    may_overlap,
    namespace_of,
    overlaps_itself,
    quiet_floats,
    refuse_gradients,
)
from cqs.backend.blas import BlasLibrary, blas_libraries, single_threaded_blas
from cqs.backend.threads import Threads, Workspace, compute_threads

__all__ = [
    "BlasLibrary",
    "Threads",
    "Workspace",
    "blas_libraries",
    "compute_threads",
    "dtype_of",
    "is_numpy",
    "is_writeable",
    "may_overlap",
    "namespace_of",
    "overlaps_itself",
    "quiet_floats",
    "refuse_gradients",
    "single_threaded_blas",
]
