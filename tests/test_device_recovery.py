"""Devices after something went wrong: what memory runs out for is done another way, and nothing stays held."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from slow_device import SlowDevice, SlowSlot

import cqs
import cqs.computing
from cqs.kernels import KERNELS
from cqs.partial import merge_into
from cqs.reading import Direct
from cqs.schedule import Group, Read, SlotBytes
from cqs.sources import ArraySource
from cqs.staging import Uploads
from cqs.testing import assert_exact

STREAMED: dict[str, Any] = {"memory": "2.5 MiB", "strategy": "tiles"}


@pytest.fixture(scope="module")
def qkv() -> list[np.ndarray]:
    """Inputs whose keys are streamed in 2.5 MiB."""
    rng = np.random.default_rng(5)
    return [rng.standard_normal((2, 3000, 16), dtype=np.float32) for _ in range(3)]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("what", ["slot", "fill"])
@pytest.mark.parametrize("at", [range(1, 4), range(1, 5), range(2, 5), range(3, 6), range(4, 9)], ids=str)
def test_streamed_keys_that_get_no_slot_are_computed_without_one(qkv: list[np.ndarray], what: str, at: range) -> None:
    device = SlowDevice(delay=0, fails=lambda kind, n: kind == what and n in at)
    assert cqs.plan(*qkv, **STREAMED, devices=[device]).grain.keys is not None
    assert_exact(cqs.attention(*qkv, **STREAMED, devices=[device]), *qkv)
    assert not device.faults


@pytest.mark.parametrize("at", [0, 3])
def test_streamed_keys_are_released_when_what_was_found_cannot_be_merged(
    qkv: list[np.ndarray], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = cqs.plan(*qkv, **STREAMED, devices=[SlowDevice()])
    feed, counted = _Counting(ArraySource(*qkv)), itertools.count()

    def merge_once_in_vain(*args: Any) -> None:
        if next(counted) == at:
            raise MemoryError("merging")
        merge_into(*args)

    monkeypatch.setattr(cqs.computing, "merge_into", merge_once_in_vain)
    worker = cqs.Worker(plan.problem, ArraySource(*qkv), KERNELS["numpy"].attend, grain=plan.grain)
    worker.run(plan.task(0), feed=feed)
    assert next(counted) > at + 1
    assert feed.n_taken > at
    assert not feed.held


class _Counting(Direct):
    """Knows what was taken, and not released."""

    def __init__(self, source: ArraySource) -> None:
        super().__init__(source)
        self.n_taken = 0
        self.held: list[Any] = []

    def take(self, read: Read, task: int) -> Any:
        self.n_taken += 1
        self.held.append(super().take(read, task))
        return self.held[-1]

    def release(self, groups: Iterable[Any]) -> None:
        gone = {id(group) for group in groups}
        self.held = [group for group in self.held if id(group) not in gone]


@pytest.mark.parametrize("what", ["keys", "queries"])
def test_a_slot_whose_copy_fails_is_used_again_after_its_task_is_skipped(qkv: list[np.ndarray], what: Any) -> None:
    device, waits = SlowDevice(delay=0), itertools.count()
    reads = [Read(what, Group(i, 100 * i, 100 * (i + 1)), None) for i in range(3)]
    n_bytes = 100 * 2 * 16 * 4 * (2 if what == "keys" else 1)
    with device.opened() as session:
        feed = Uploads(
            session, Direct(ArraySource(*qkv)), ((i, read, n_bytes) for i, read in enumerate(reads)),
            SlotBytes(keys=n_bytes, queries=n_bytes),
        )  # fmt: skip
        wait = SlowSlot.wait

        def fail_once(slot: SlowSlot) -> None:
            wait(slot)
            if next(waits) == 0:
                raise MemoryError("copying")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SlowSlot, "wait", fail_once)
            with pytest.raises(MemoryError, match="copying"):
                feed.take(reads[0], 0)
            feed.skip(0)
            for i in (1, 2):
                feed.release([feed.take(reads[i], i)])
        assert device.peak <= 1.1 * n_bytes
