"""Devices after something went wrong: what memory runs out for is done another way, and nothing stays held."""

from typing import Any

import numpy as np
import pytest
from slow_device import SlowDevice

import cqs
from cqs.testing import assert_exact

STREAMED: dict[str, Any] = {"memory": "3 MiB", "strategy": "tiles"}


@pytest.fixture(scope="module")
def qkv() -> list[np.ndarray]:
    """Inputs whose keys are streamed in 3 MiB."""
    rng = np.random.default_rng(5)
    return [rng.standard_normal((2, 3000, 16), dtype=np.float32) for _ in range(3)]


@pytest.mark.parametrize("what", ["slot", "fill"])
@pytest.mark.parametrize("at", [range(1, 4), range(1, 5), range(2, 5), range(3, 6), range(4, 9)], ids=str)
def test_streamed_keys_that_get_no_slot_are_computed_without_one(qkv: list[np.ndarray], what: str, at: range) -> None:
    device = SlowDevice(delay=0, fails=lambda kind, n: kind == what and n in at)
    assert cqs.plan(*qkv, **STREAMED, devices=[device]).grain.keys is not None
    assert_exact(cqs.attention(*qkv, **STREAMED, devices=[device]), *qkv)
    assert not device.faults
