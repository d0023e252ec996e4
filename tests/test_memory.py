"""What a call holds beyond the caller's arrays: the output, and for each thread one task's partials and 16 MiB."""

import gc
import tracemalloc

import numpy as np
import pytest

import cqs
from cqs.engines import LocalEngine

MIB = 1 << 20


@pytest.mark.parametrize(("n_threads", "workers", "N"), [(8, 57, 30_000), (4, 7, 12_000)])
def test_small_calls_in_many_threads_are_projected(n_threads: int, workers: int, N: int) -> None:
    q, engine = np.zeros((1, N, 4), np.float32), LocalEngine(n_threads)
    projected = cqs.plan(q, q, q, workers=workers, engine=engine).projected_bytes
    tracemalloc.start()
    try:
        cqs.attention(q, q, q, workers=workers, engine=engine)
        assert tracemalloc.get_traced_memory()[1] <= projected
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kernel", ["numba", "numpy"])
@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        ((3000, 1, 1, 8), None),
        ((2000, 1, 8, 8), None),
        ((2, 70_000, 2), cqs.masks.SlidingWindow(3, 3)),
        ((1, 40_000, 4), cqs.masks.Documents([2] * 20_000)),
    ],
    ids=["entries", "heads", "window", "documents"],
)
def test_many_heads_and_many_rows_are_projected(shape: tuple[int, ...], mask, kernel: str) -> None:
    x = np.zeros(shape, np.float32)
    options = {"memory": "6 MiB", "out": np.empty_like(x), "mask": mask, "kernel": kernel, "engine": LocalEngine(1)}
    cqs.attention(x[..., :1, :], x[..., :1, :], x[..., :1, :], kernel=kernel)  # whatever is imported and compiled
    projected = cqs.plan(x, x, x, **options).projected_bytes
    tracemalloc.start()
    try:
        cqs.attention(x, x, x, **options)
        assert tracemalloc.get_traced_memory()[1] <= projected <= 6 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kernel", ["numba", "numpy", "blockwise"])
def test_masks_that_are_known_pair_by_pair_are_projected(kernel: str) -> None:
    q = np.zeros((2, 1000, 32), np.float32)
    for function in (lambda b, h, i, j: (i + j) % 3 != 0, lambda b, h, i, j: i + j >= 0):
        options = {"mask": cqs.masks.Predicate(function), "softcap": 2.0, "kernel": kernel, "memory": "3 MiB"}
        options |= {"out": np.empty_like(q), "engine": LocalEngine(2)}
        cqs.attention(q[:, :9], q[:, :9], q[:, :9], **options | {"out": None})  # whatever is imported and compiled
        projected = cqs.plan(q, q, q, **options).projected_bytes
        gc.collect()
        tracemalloc.start()
        try:
            cqs.attention(q, q, q, **options)
            assert tracemalloc.get_traced_memory()[1] <= projected
        finally:
            tracemalloc.stop()


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    ("H", "N", "D", "dtype", "workers", "threads"),
    [
        (8, 8192, 64, "float32", 7, 2),
        (8, 8192, 64, "float32", 1, 2),
        (8, 4096, 128, "float32", 31, 2),
        (2, 8192, 64, "float32", 57, 4),
        (1, 16384, 64, "float64", 13, 2),
        (1, 2048, 1024, "float32", 3, 2),
        (1, 1024, 4096, "float64", 3, 2),
    ],
)
@pytest.mark.parametrize("is_causal", [False, True])
def test_peak_is_output_partials_and_scratch(
    H: int, N: int, D: int, dtype: str, workers: int, threads: int, is_causal: bool
) -> None:
    q = np.zeros((H, N, D), dtype)
    plan = cqs.plan(q, q, q, workers=workers, is_causal=is_causal)
    partial = max(plan.partial_bytes(task) for task in plan.tasks())
    output = q.nbytes + H * N * q.itemsize  # and its log-sum-exp
    tracemalloc.start()
    try:
        cqs.attention(q, q, q, workers=workers, is_causal=is_causal, engine=LocalEngine(threads))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= output + threads * (partial + 16 * MIB), f"{peak / MIB:.1f} MiB"


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_sixteen_bit_output_takes_a_float32_accumulator(dtype: str) -> None:
    q = np.zeros((4, 4096, 64), dtype)
    tracemalloc.start()
    try:
        cqs.attention(q, q, q, workers=31, engine=LocalEngine(1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    accumulator = 4 * q.size if dtype == "float16" else 0
    assert peak <= q.nbytes + accumulator + 16 * MIB + 2 * MIB + 8 * 4 * 4096


def test_nothing_is_held_after_a_call() -> None:
    q = np.zeros((4, 2048, 64), np.float32)
    cqs.attention(q, q, q, workers=7)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        cqs.attention(q, q, q, workers=7, engine=LocalEngine(2))
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 100_000
