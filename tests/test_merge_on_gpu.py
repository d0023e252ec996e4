"""Merging on a GPU: one launch for each result, nothing allocated, and the numbers of a CPU."""

from types import ModuleType

import numpy as np
import pytest
from fake_cupy import Machine, cupy, fake_gpu  # noqa: F401
from test_gemm_kernel import Device, device  # noqa: F401

import cqs
from cqs.backend import namespace_of
from cqs.partial import Partial, merge_into
from cqs.schedule import BLOCK_BYTES

# (batch and heads, rows, width): threads, warps, and blocks of them that are not all busy, or come round again
SHAPES = [
    *[((2,), 1, 1), ((3,), 5, 33), ((2, 3), 40, 64), ((1, 1), 100, 80), ((2,), 9000, 2)],
    *[((2, 0), 3, 4), ((2,), 0, 8)],
]


def sides(lead: tuple[int, ...], n_rows: int, width: int, dtype: str = "float32") -> list[Partial]:
    """Draw two results of the same rows, some of which saw nothing."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(2):
        lse = 10 * rng.standard_normal((*lead, n_rows)).astype(dtype)
        lse[rng.random(lse.shape) < 0.2] = -np.inf
        out = rng.standard_normal((*lead, n_rows, width)).astype(dtype)
        out[lse == -np.inf] = 0
        drawn.append(Partial(out, lse))
    return drawn


def put(device: Device, partial: Partial) -> Partial:  # noqa: F811
    return Partial(*device.put(partial.out, partial.lse))


def check_merging(total: Partial, part: Partial, there: Partial, part_there: Partial) -> None:
    """Merge on the GPU, and compare with what NumPy makes of the same numbers."""
    merge_into(namespace_of(out=there.out), [there], [part_there])
    with np.errstate(all="ignore"):
        merge_into(np, [total], [part])
    rtol = 1e-6 if total.out.dtype == np.float32 else 1e-14
    np.testing.assert_allclose(there.out.get(), total.out, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(there.lse.get(), total.lse, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_result_is_merged_as_on_a_cpu(
    device: Device,  # noqa: F811
    shape: tuple[tuple[int, ...], int, int],
    dtype: str,
) -> None:
    total, part = sides(*shape, dtype)
    check_merging(total, part, put(device, total), put(device, part))


def test_log_sum_exps_may_be_anything(device: Device) -> None:  # noqa: F811
    numbers = np.array([-np.inf, -1e30, -1.0, 0.0, 1e-3, 88.0, 1e30, np.inf, np.nan], np.float32)
    rng = np.random.default_rng(0)
    total, part = (
        Partial(rng.standard_normal((1, numbers.size**2, 7), dtype=np.float32), lse.reshape(1, -1))
        for lse in np.meshgrid(numbers, numbers)
    )
    check_merging(total, part, put(device, total), put(device, part))


def test_results_may_have_any_strides(device: Device) -> None:  # noqa: F811
    total, part = sides((2, 3), 40, 12)
    out, lse = device.put(np.zeros((3, 2, 12, 60), np.float32), np.zeros((60, 3, 2), np.float32))
    there = Partial(out.transpose(1, 0, 3, 2)[:, ::-1, 50:10:-1], lse.transpose(2, 1, 0)[..., 3:43])
    there.out[...], there.lse[...] = device.put(total.out, total.lse)
    alike = Partial(part.out[:, :1], part.lse[:, :1])  # the same for all heads
    part, part_there = (
        Partial(xp.broadcast_to(x.out, total.out.shape), xp.broadcast_to(x.lse, total.lse.shape))
        for xp, x in ((np, alike), (device.cupy, put(device, alike)))
    )
    check_merging(total, part, there, part_there)


def test_a_large_result_is_merged_in_one_launch(cupy: ModuleType, fake_gpu: Machine) -> None:  # noqa: F811
    total, part = (Partial(cupy.asarray(p.out), cupy.asarray(p.lse)) for p in sides((2,), 1 << 16, 64))
    lane = fake_gpu.current_lane()
    fake_gpu.reset_peaks()
    before, held = lane.tick, fake_gpu.peak_bytes()
    merge_into(namespace_of(out=total.out), [total], [part])
    assert (lane.tick - before, fake_gpu.peak_bytes()) == (1, held)


def test_arrays_on_a_gpu_are_computed_in_large_blocks(cupy: ModuleType) -> None:  # noqa: F811
    x = np.zeros((2, 50, 8), np.float32)
    there = cupy.asarray(x)
    assert cqs.plan(there, there, there).grain.block_bytes >= 32 << 20
    assert cqs.plan(there, there, there, kernel="blockwise").grain.block_bytes == BLOCK_BYTES
    assert cqs.plan(x, x, x).grain.block_bytes == BLOCK_BYTES
