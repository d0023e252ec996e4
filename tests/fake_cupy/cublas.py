# ruff: noqa: N802 (the names are those of cuBLAS)
"""`cupy.cuda.cublas`: matrix products by address, column by column, as cuBLAS has them."""

import ctypes
from typing import Any

import numpy as np

from fake_cupy.devices import Device
from fake_cupy.launches import view_at
from fake_cupy.machine import now

CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_OP_C = range(3)
CUBLAS_POINTER_MODE_HOST, CUBLAS_POINTER_MODE_DEVICE = range(2)
CUBLAS_GEMM_DEFAULT, CUBLAS_GEMM_DEFAULT_TENSOR_OP = -1, 99
CUBLAS_DEFAULT_MATH, CUBLAS_TENSOR_OP_MATH = 0, 1
CUBLAS_COMPUTE_16F, CUBLAS_COMPUTE_16F_PEDANTIC = 64, 65
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC = 68, 69
CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_64F_PEDANTIC = 70, 71
CUBLAS_COMPUTE_32F_FAST_16F, CUBLAS_COMPUTE_32F_FAST_16BF, CUBLAS_COMPUTE_32F_FAST_TF32 = 74, 75, 77

_TF32_MATH = 3  # CUBLAS_TF32_TENSOR_OP_MATH, which CuPy does not name
_R_32F, _R_64F, _R_16F, _R_16BF = 0, 1, 2, 14
_FLOAT_TYPES = {
    (_R_32F, _R_32F, _R_32F),
    (_R_16F, _R_16F, _R_16F),
    (_R_16F, _R_16F, _R_32F),
    (_R_16BF, _R_16BF, _R_16BF),
    (_R_16BF, _R_16BF, _R_32F),
}
_STATUS = {
    7: "CUBLAS_STATUS_INVALID_VALUE",
    15: "CUBLAS_STATUS_NOT_SUPPORTED",
    1: "CUBLAS_STATUS_NOT_INITIALIZED",
    3: "CUBLAS_STATUS_ALLOC_FAILED",
}


class CUBLASError(RuntimeError):
    def __init__(self, status: int, detail: str = "") -> None:
        self.status = status
        super().__init__(_STATUS[status] + (f" ({detail})" if detail else ""))


def _modes(handle: int) -> dict[str, int]:
    if handle != Device().cublas_handle:
        raise CUBLASError(1, f"handle {handle:#x} is not that of device {now().device}")
    return now().cublas_modes.setdefault(handle, {"math": 0, "pointer": 0})


def create() -> int:
    return Device().cublas_handle


def destroy(handle: int) -> None:
    _modes(handle)


def getVersion(handle: int) -> int:
    _modes(handle)
    return 130000


def setMathMode(handle: int, mode: int) -> None:
    _modes(handle)["math"] = mode


def getMathMode(handle: int) -> int:
    return _modes(handle)["math"]


def setPointerMode(handle: int, mode: int) -> None:
    _modes(handle)["pointer"] = mode


def getPointerMode(handle: int) -> int:
    return _modes(handle)["pointer"]


def setStream(handle: int, stream: int) -> None:
    """Do nothing that lasts: every function of CuPy's cuBLAS sets the current stream before it works."""
    _modes(handle)


def gemmStridedBatchedEx(
    handle: int, transa: int, transb: int, m: int, n: int, k: int,
    alpha: int, A: int, Atype: int, lda: int, strideA: int,
    B: int, Btype: int, ldb: int, strideB: int,
    beta: int, C: int, Ctype: int, ldc: int, strideC: int,
    batchCount: int, computeType: int, algo: int,
) -> None:  # fmt: skip
    """C = alpha op(A) op(B) + beta C for `batchCount` matrices, all column by column."""
    modes, kind = _modes(handle), _compute_type((Atype, Btype, Ctype), computeType)
    columns = (m, k) if transa else (k, m)  # of A as it is stored: how many columns, and how long they are
    _check_sizes(m, n, k, batchCount, (lda, columns[1]), (ldb, n if transb else k), (ldc, m))
    if 0 in (m, n, batchCount):
        return
    lane, name = now().current_lane(), f"gemm {m}x{n}x{k}x{batchCount}"
    uses: list[Any] = []
    # Columns of a stored matrix are rows for NumPy, so these are (batch, columns, rows).
    a = _matrices(A, Atype, batchCount, columns, lda, strideA, uses, False)
    b = _matrices(B, Btype, batchCount, (k, n) if transb else (n, k), ldb, strideB, uses, False)
    c = _matrices(C, Ctype, batchCount, (n, m), ldc, strideC, uses, True)
    by, keeps = (_scalar(p, kind, modes["pointer"], uses) for p in (alpha, beta))

    def work() -> None:
        rounded = [_rounded(x.astype(kind), Ctype, computeType, modes["math"]) for x in (a, b)]
        left = rounded[0].mT if not transa else rounded[0]  # op(A), (batch, m, k)
        right = rounded[1].mT if not transb else rounded[1]  # op(B), (batch, k, n)
        with np.errstate(all="ignore"):
            product = by() * np.matmul(left, right)
            old = keeps() * c.mT.astype(kind) if keeps() != 0 else 0  # cuBLAS does not read C if beta is 0
            c.mT[...] = (product + old).astype(c.dtype)

    now().submit(lane, name, uses, work)


def gemmEx(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, Atype: int, lda: int,
    B: int, Btype: int, ldb: int, beta: int, C: int, Ctype: int, ldc: int, computeType: int, algo: int,
) -> None:  # fmt: skip
    gemmStridedBatchedEx(
        handle, transa, transb, m, n, k, alpha, A, Atype, lda, 0,
        B, Btype, ldb, 0, beta, C, Ctype, ldc, 0, 1, computeType, algo,
    )  # fmt: skip


def sgemmStridedBatched(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, lda: int, strideA: int,
    B: int, ldb: int, strideB: int, beta: int, C: int, ldc: int, strideC: int, batchCount: int,
) -> None:  # fmt: skip
    gemmStridedBatchedEx(
        handle, transa, transb, m, n, k, alpha, A, _R_32F, lda, strideA, B, _R_32F, ldb, strideB,
        beta, C, _R_32F, ldc, strideC, batchCount, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip


def dgemmStridedBatched(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, lda: int, strideA: int,
    B: int, ldb: int, strideB: int, beta: int, C: int, ldc: int, strideC: int, batchCount: int,
) -> None:  # fmt: skip
    gemmStridedBatchedEx(
        handle, transa, transb, m, n, k, alpha, A, _R_64F, lda, strideA, B, _R_64F, ldb, strideB,
        beta, C, _R_64F, ldc, strideC, batchCount, CUBLAS_COMPUTE_64F, CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip


def _dtype(cuda_type: int) -> np.dtype[Any]:
    if cuda_type == _R_16BF:
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype({_R_32F: np.float32, _R_64F: np.float64, _R_16F: np.float16}[cuda_type])


def _compute_type(types: tuple[int, int, int], compute: int) -> np.dtype[Any]:
    """Return what is computed in, which is the type of alpha and beta, too; refuse what cuBLAS does not have."""
    if compute in (CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_64F_PEDANTIC) and set(types) == {_R_64F}:
        return np.dtype(np.float64)
    if compute in (CUBLAS_COMPUTE_16F, CUBLAS_COMPUTE_16F_PEDANTIC) and set(types) == {_R_16F}:
        return np.dtype(np.float16)
    is_plain = compute in (CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC) and types in _FLOAT_TYPES
    is_fast = compute in (
        CUBLAS_COMPUTE_32F_FAST_16F,
        CUBLAS_COMPUTE_32F_FAST_16BF,
        CUBLAS_COMPUTE_32F_FAST_TF32,
    ) and set(types) == {_R_32F}
    if is_plain or is_fast:
        return np.dtype(np.float32)
    raise CUBLASError(15, f"types {types} with compute type {compute}")


def _check_sizes(m: int, n: int, k: int, n_batches: int, *leading: tuple[int, int]) -> None:
    if min(m, n, k, n_batches) < 0:
        raise CUBLASError(7, "a size is negative")
    if max(m, n, k, n_batches, *(step for step, _ in leading)) >= 1 << 31:
        raise OverflowError("value too large to convert to int")
    for step, length in leading:
        if step < max(1, length):
            raise CUBLASError(7, f"a leading dimension of {step} for columns of {length}")


def _matrices(
    address: int,
    cuda_type: int,
    n_batches: int,
    shape: tuple[int, int],
    step: int,
    stride: int,
    uses: list[Any],
    writes: bool,
) -> np.ndarray:
    dtype = _dtype(cuda_type)
    strides = tuple(dtype.itemsize * by for by in (stride, step, 1))
    if address % dtype.itemsize:
        raise CUBLASError(7, f"{address:#x} is not aligned for {dtype}")
    return view_at(address, (n_batches, *shape), dtype, strides, writes=writes, uses=uses)


def _scalar(address: int, dtype: np.dtype[Any], mode: int, uses: list[Any]) -> Any:
    """Return a function that gives alpha or beta: read now from the host, or when it runs from the device."""
    if mode == CUBLAS_POINTER_MODE_DEVICE:
        view = view_at(address, (), dtype, (), writes=False, uses=uses)
        return lambda: view[()]
    block = now().find(address, dtype.itemsize)
    if block is not None and block.device is not None:
        raise CUBLASError(7, "alpha or beta lies on the device, and the pointer mode is that for the host")
    value = np.frombuffer(ctypes.string_at(address, dtype.itemsize), dtype)[0]
    return lambda: value


def _rounded(x: np.ndarray, cuda_type: int, compute: int, math: int) -> np.ndarray:
    """Round float32 inputs as tensor cores do, if asked to by the compute type or the math mode."""
    if cuda_type != _R_32F or x.dtype != np.float32:
        return x
    if compute == CUBLAS_COMPUTE_32F_FAST_16F:
        return x.astype(np.float16).astype(np.float32)
    if compute == CUBLAS_COMPUTE_32F_FAST_16BF:
        return x.astype(_dtype(_R_16BF)).astype(np.float32)
    if compute == CUBLAS_COMPUTE_32F_FAST_TF32 or (compute == CUBLAS_COMPUTE_32F and math == _TF32_MATH):
        bits = x.view(np.uint32)
        return ((bits + 0x0FFF + ((bits >> 13) & 1)) & 0xFFFFE000).view(np.float32)
    return x
