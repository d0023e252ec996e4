"""Merging on a GPU: few launches, within what plans project, and the numbers of a CPU."""

from types import ModuleType

import numpy as np
import pytest
from fake_cupy import Machine, cupy, fake_gpu  # noqa: F401

import cqs
from cqs.backend import namespace_of
from cqs.partial import Partial, merge_into
from cqs.schedule import BLOCK_BYTES, merge_block


def halves(n_rows: int, width: int) -> list[Partial]:
    rng = np.random.default_rng(0)
    shape = 2, n_rows, width
    return [
        Partial(rng.standard_normal(shape, dtype=np.float32), rng.standard_normal(shape[:-1], dtype=np.float32))
        for _ in range(2)
    ]


def test_a_large_result_is_merged_in_few_steps(cupy: ModuleType, fake_gpu: Machine) -> None:  # noqa: F811
    total, part = halves(1 << 16, 64)  # 32 blocks for a CPU
    there = [Partial(cupy.asarray(p.out), cupy.asarray(p.lse)) for p in (total, part)]
    lane = fake_gpu.current_lane()
    before, n_bytes = lane.tick, total.out.nbytes
    fake_gpu.reset_peaks()
    held = fake_gpu.peak_bytes()
    merge_into(namespace_of(out=there[0].out), *([p] for p in there))
    assert lane.tick - before < 16 * 4 + 30
    assert fake_gpu.peak_bytes() - held <= n_bytes // 8 + 12 * total.lse.nbytes
    merge_into(np, [total], [part])
    np.testing.assert_allclose(there[0].out.get(), total.out, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(there[0].lse.get(), total.lse, rtol=1e-6)


@pytest.mark.parametrize(("n", "on_cpu", "on_gpu"), [(100, 1 << 18, 1 << 18), (1 << 24, 1 << 18, 1 << 20)])
def test_blocks_that_are_merged_follow_the_result_on_a_gpu(n: int, on_cpu: int, on_gpu: int) -> None:
    assert (merge_block(n, on_gpu=False), merge_block(n, on_gpu=True)) == (on_cpu, on_gpu)
    assert merge_block(1 << 40, on_gpu=True) == 1 << 25


def test_arrays_on_a_gpu_are_computed_in_large_blocks(cupy: ModuleType) -> None:  # noqa: F811
    x = np.zeros((2, 50, 8), np.float32)
    there = cupy.asarray(x)
    assert cqs.plan(there, there, there).grain.block_bytes >= 32 << 20
    assert cqs.plan(there, there, there, kernel="blockwise").grain.block_bytes == BLOCK_BYTES
    assert cqs.plan(x, x, x).grain.block_bytes == BLOCK_BYTES
