"""The only place that knows array libraries by name, and what they run on."""

from cqs.backend.arrays import dtype_of, is_numpy, is_writeable, may_overlap, namespace_of, refuse_gradients
from cqs.backend.blas import BlasLibrary, blas_libraries, single_threaded_blas
from cqs.backend.threads import available_cpus, share

__all__ = [
    "BlasLibrary",
    "available_cpus",
    "blas_libraries",
    "dtype_of",
    "is_numpy",
    "is_writeable",
    "may_overlap",
    "namespace_of",
    "refuse_gradients",
    "share",
    "single_threaded_blas",
]
