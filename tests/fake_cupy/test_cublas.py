"""The fake cuBLAS multiplies as NumPy does, and refuses what cuBLAS refuses."""

from itertools import product
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest

import fake_cupy
from fake_cupy import RaceError

cupy, fake_gpu = fake_cupy.cupy, fake_cupy.fake_gpu
CUBLAS_TYPES = {"float32": (0, 68), "float64": (1, 70), "float16": (2, 68), "bfloat16": (14, 68)}


@pytest.mark.parametrize("dtype", CUBLAS_TYPES)
@pytest.mark.parametrize(("transa", "transb"), list(product((0, 1), repeat=2)))
def test_gemm_is_that_of_numpy(cupy: ModuleType, dtype: str, transa: int, transb: int) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    cuda_type, compute = CUBLAS_TYPES[dtype]
    m, n, k, n_batches, pad = 3, 4, 5, 2, 2
    rng = np.random.default_rng(1)
    shapes = [(m, k) if transa else (k, m), (k, n) if transb else (n, k), (n, m)]  # rows here are cuBLAS's columns
    stored = [rng.integers(-3, 4, (n_batches + 1, s[0] + 1, s[1] + pad)).astype(kind) for s in shapes]
    a, b, c = (cupy.asarray(x) for x in stored)
    scalars = np.array([2, 3], np.float64 if dtype == "float64" else np.float32)
    item = kind.itemsize

    def place(x: object) -> tuple[int, int, int, int]:
        first = x[1, 0, 1:]  # an offset, and columns that are longer than what is used
        return first.data.ptr, cuda_type, x.strides[1] // item, x.strides[0] // item

    cupy.cuda.cublas.gemmStridedBatchedEx(
        cupy.cuda.device.get_cublas_handle(), transa, transb, m, n, k,
        scalars[0:].ctypes.data, *place(a), *place(b), scalars[1:].ctypes.data, *place(c), n_batches, compute, -1,
    )  # fmt: skip
    used = [x[1:, : s[0], 1 : 1 + s[1]].astype(np.float64) for x, s in zip(stored, shapes, strict=True)]
    left, right = used[0] if transa else used[0].mT, used[1] if transb else used[1].mT
    expected = stored[2].copy()
    expected[1:, :n, 1 : 1 + m] = (2 * left @ right + 3 * used[2].mT).mT.astype(kind)
    np.testing.assert_array_equal(c.get().astype(np.float64), expected.astype(np.float64))


def test_gemm_refuses_what_cublas_refuses(cupy: ModuleType) -> None:
    handle, one = cupy.cuda.Device().cublas_handle, np.ones(1, np.float32)
    a, c = cupy.ones((4, 4), np.float32), cupy.empty((4, 4), np.float32)
    p, q, cublas = one.ctypes.data, a.data.ptr, cupy.cuda.cublas
    zero = np.zeros(1, np.float32)

    def gemm(lda: int = 4, kind: int = 0, beta: int = zero.ctypes.data, out: int = c.data.ptr, size: int = 4) -> None:
        tail = (beta, out, 0, 4, 16, 1, 68, -1)
        cublas.gemmStridedBatchedEx(handle, 0, 0, size, 4, 4, p, q, kind, lda, 16, q, 0, 4, 16, *tail)

    gemm()
    assert (c == 4).all()  # C held NaN, which beta = 0 does not read
    for wrong in ({"lda": 3}, {"kind": 2}):
        with pytest.raises(cublas.CUBLASError):
            gemm(**wrong)
    for wrong in ({"out": c.data.ptr + 512}, {"out": c.data.ptr + 480}, {"out": p}):
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="IllegalAddress"):
            gemm(**wrong)
    gemm()
    with cupy.cuda.Stream(non_blocking=True), pytest.raises(RaceError):
        gemm()


def test_gemm_rounds_to_tf32_where_it_is_asked_to(cupy: ModuleType) -> None:
    handle, cublas = cupy.cuda.Device().cublas_handle, cupy.cuda.cublas
    a, b, c = cupy.full((1, 1), 1 + 2.0**-12, np.float32), cupy.ones((1, 1), np.float32), cupy.empty((1, 1), np.float32)
    scalars = np.array([1, 0], np.float32)
    at = [x.data.ptr for x in (a, b, c)]
    for compute, mode, expected in [(68, 0, 1 + 2.0**-12), (77, 0, 1.0), (68, 3, 1.0), (69, 3, 1 + 2.0**-12)]:
        cublas.setMathMode(handle, mode)
        one, zero = scalars.ctypes.data, scalars[1:].ctypes.data
        cublas.gemmEx(handle, 0, 0, 1, 1, 1, one, at[0], 0, 1, at[1], 0, 1, zero, at[2], 0, 1, compute, -1)
        assert float(c[0, 0]) == expected
    assert cublas.getMathMode(handle) == 3
