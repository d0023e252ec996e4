"""Matrix products of CuPy arrays by cuBLAS, of stacks of matrices with any strides that it can take."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.cuda import stacks, step_of
from cqs.types import Array, DType

__all__ = ["Products", "is_ready"]

# of cublas_api.h and library_types.h
_N, _T = 0, 1  # CUBLAS_OP_N, CUBLAS_OP_T
_DEFAULT_ALGORITHM = -1  # CUBLAS_GEMM_DEFAULT
_DEFAULT_MATH = 0  # CUBLAS_DEFAULT_MATH
_TYPES = {"float32": 0, "float64": 1}  # CUDA_R_32F, CUDA_R_64F
_COMPUTE = {"float32": 68, "float64": 70}  # CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F
_COMPUTE_TF32 = 77  # CUBLAS_COMPUTE_32F_FAST_TF32

_LARGEST_PITCH = 2**31 - 1


def is_ready(array: Array) -> bool:
    """Whether cuBLAS takes matrices `(..., rows, width)` as they are: rows of adjacent elements, all going forwards."""
    size, (*lead, row, column), (*n_lead, n_rows, width) = array.itemsize, array.strides, array.shape
    pitch = row if n_rows > 1 else width * size
    is_forward = all(stride >= 0 and stride % size == 0 for stride, n in zip(lead, n_lead, strict=True) if n > 1)
    is_dense = width == 1 or column == size
    return is_forward and is_dense and pitch % size == 0 and width <= pitch // size <= _LARGEST_PITCH


@dataclass(frozen=True, slots=True)
class Products:
    """Products of matrices of one type on the current stream and device.

    Parameters
    ----------
    cupy : module
        CuPy.
    dtype : dtype
        float32, or float64.
    uses_tf32 : bool
        Whether factors in float32 are rounded to 10 bits of mantissa.
    """

    cupy: Any
    dtype: DType
    uses_tf32: bool = False

    @contextmanager
    def in_own_precision(self) -> Iterator[None]:
        """Multiply in the precision that is asked for, whatever this thread's handle was set to before."""
        cublas, handle = self.cupy.cuda.cublas, self.cupy.cuda.device.get_cublas_handle()
        before = cublas.getMathMode(handle)
        if before == _DEFAULT_MATH:
            yield
            return
        cublas.setMathMode(handle, _DEFAULT_MATH)
        try:
            yield
        finally:
            cublas.setMathMode(handle, before)

    def add(
        self, x: Array, y: Array, z: Array, *, factor: float = 1, keeps: bool = False, transposes: bool = False
    ) -> None:
        """Write `factor * x @ y` to z, or add it to what is there.

        Parameters
        ----------
        x : array, `(*L, R, M, K)`
            Left factors.
        y : array, `(*L, K, N)`, or `(*L, N, K)` if `transposes`
            Right factors, which all R share.
        z : array, `(*L, R, M, N)`
            Where the products go.
        factor : float
            What they are multiplied by.
        keeps : bool
            Whether z is added to; else it may hold anything, NaN too.
        transposes : bool
            Whether y is given by its columns.
        """
        one, kept = (np.array([number], self.dtype) for number in (factor, 1.0 if keeps else 0.0))
        for left, right, product in stacks(*_folded(self.cupy, x, y, z)):
            self._add(left, right, product, one, kept, transposes)

    def _add(
        self, x: Array, y: Array, z: Array, factor: npt.NDArray[Any], kept: npt.NDArray[Any], transposes: bool
    ) -> None:
        """Multiply stacks `(n, M, K)` and `(n, K, N)`. cuBLAS counts by columns: it sees the transpose of each."""
        (n, M, K), N, name = x.shape, z.shape[-1], self.dtype.name
        kind = _TYPES[name]
        self.cupy.cuda.cublas.gemmStridedBatchedEx(
            *(self.cupy.cuda.device.get_cublas_handle(), _T if transposes else _N, _N, N, M, K, factor.ctypes.data),
            *(y.data.ptr, kind, _pitch(y), step_of(y, 0)),
            *(x.data.ptr, kind, _pitch(x), step_of(x, 0), kept.ctypes.data),
            *(z.data.ptr, kind, _pitch(z), step_of(z, 0), n),
            *(_COMPUTE_TF32 if self.uses_tf32 and name == "float32" else _COMPUTE[name], _DEFAULT_ALGORITHM),
        )


def _folded(cupy: Any, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    """Make the R matrices that share a right factor one, where they stand on each other; else repeat y, as a view."""
    *lead, R, M, _ = x.shape
    if R == 1 or all(_follow(array) for array in (x, z)):
        x, z = (array.reshape(*lead, R * M, array.shape[-1]) for array in (x, z))
        return x[None], y[None], z[None]
    return x, cupy.broadcast_to(y[..., None, :, :], (*lead, R, *y.shape[-2:])), z


def _follow(matrices: Array) -> bool:
    """Whether each of matrices `(..., R, M, K)` begins where the rows of the one before end."""
    step = matrices.strides[-3]
    return bool(step == matrices.shape[-2] * matrices.strides[-2] and step >= matrices.shape[-1] * matrices.itemsize)


def _pitch(matrices: Array) -> int:
    """Return how many elements apart rows are; of a single row, what cuBLAS accepts."""
    return step_of(matrices, -2) if matrices.shape[-2] > 1 else int(matrices.shape[-1])
