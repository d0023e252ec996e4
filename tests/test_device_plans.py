"""Plans for devices: work for each of them, copies hidden behind computing, and results that a device rounds."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from slow_device import on_host

import cqs
from cqs import Partial, Tiler
from cqs.backend import HostDevice
from cqs.errors import DTypeError
from cqs.events import DeviceBusy
from cqs.schedule import Rates, Scheduler, Setting
from cqs.testing import assert_exact
from cqs.trace import Recorder
from cqs.worker import TaskResult

GIB = 1 << 30


def planned(n_devices: int, N: int, H: int = 8, memory: int = 64 * GIB, **options: Any) -> cqs.Plan:
    """A plan for described GPUs, of float16 inputs in the memory of the machine."""
    problem = cqs.plan(*[(H, N, 64)] * 3, dtype="float16", **options).problem
    names = tuple(f"cuda:{n}" for n in range(n_devices))
    setting = Setting(kernel="cudnn", threads=1, in_flight=1, is_staged=True, devices=names, keeps_lse=False)
    return Scheduler(None, "auto", memory, setting).plan(problem)


@pytest.mark.parametrize("H", [1, 8])
@pytest.mark.parametrize("N", [100_000, 1 << 20, 1 << 22])
@pytest.mark.parametrize("n_devices", [2, 3, 8])
def test_no_device_is_without_work(n_devices: int, N: int, H: int) -> None:
    plan, one = planned(n_devices, N, H), planned(1, N, H)
    assert len(plan) >= n_devices
    assert plan.seconds() < one.seconds()
    if N >= 1 << 20:
        assert plan.seconds() < 1.1 * one.seconds() / n_devices


@pytest.mark.parametrize(("n_devices", "H"), [(2, 1), (8, 1), (3, 8), (8, 8)])
def test_devices_share_a_long_causal_mask_about_evenly(n_devices: int, H: int) -> None:
    plan = planned(n_devices, 1 << 22, H, is_causal=True)
    busy = [0] * n_devices
    for load in plan.loads():  # whoever is done takes the next
        busy[busy.index(min(busy))] += load
    assert max(busy) < 1.15 * sum(busy) / n_devices


@pytest.mark.parametrize("memory", [2 * GIB, 64 * GIB])
@pytest.mark.parametrize(("N", "most"), [(1 << 18, 1.15), (1 << 20, 1.05), (1 << 22, 1.02)])
def test_copies_of_long_sequences_are_hidden(N: int, most: float, memory: int) -> None:
    plan = planned(1, N, memory=memory, is_causal=True)
    computing = plan.problem.flops(plan.problem.n_pairs) / Rates.typical(plan.setting).flops
    assert computing < plan.seconds() < most * computing


def test_one_task_hides_nothing_and_many_all_but_the_first_and_the_last() -> None:
    rates, plan = Rates(flops=1e12, bytes=1e9), planned(1, 1 << 16)
    moved, flops = plan.traffic, plan.problem.flops(plan.problem.n_pairs)
    copying = moved.read / rates.bytes, (moved.results + moved.written) / rates.bytes
    for kv_heads, n_tasks in ((None, 1), (4, 2), (1, 8)):
        own = replace(
            plan, strategy="tiles", workers=1, base=None, grain=replace(plan.grain, kv_heads=kv_heads, keys=None)
        )
        into, computing, back = (x / n_tasks for x in (copying[0], flops / rates.flops, copying[1]))
        expected = into + back + computing + (n_tasks - 1) * max(computing, into + back)
        assert len(own) == n_tasks
        assert own.seconds(rates) == pytest.approx(expected, rel=1e-2)


@pytest.fixture(scope="module")
def halves() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.standard_normal((4, 701, 16)).astype(np.float16) for _ in range(3)]


@pytest.mark.parametrize("n_devices", [1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"workers": 5, "strategy": "tiles"}, {"workers": 7}], ids=["one", "tiles", "7"]
)
def test_complete_rows_are_rounded_on_the_device(
    halves: list[np.ndarray], options: dict[str, Any], n_devices: int
) -> None:
    devices, recorder = on_host(n_devices), Recorder()
    options = {**options, "devices": devices, "is_causal": True}
    plan, wide = cqs.plan(*halves, **options), np.empty((4, 701, 16), np.float32)
    assert plan.result_dtype == ("float16" if plan.completes_each else "float32")
    out, lse = cqs.attention(*halves, **options, return_lse=True, on_event=recorder)
    assert lse.dtype == np.float32
    assert_exact(out, *halves, is_causal=True, lse=lse)
    assert out.tobytes() == cqs.attention(*halves, **options, out=wide).astype(np.float16).tobytes()
    if not plan.keeps_sums_on_device:
        returned = sum(e.n_bytes for e in recorder.events if isinstance(e, DeviceBusy) and e.what == "copy out")
        assert returned == plan.traffic.results == sum(map(plan.partial_bytes, plan.tasks()))


def test_rows_that_are_changed_in_the_machine_come_as_they_are(halves: list[np.ndarray]) -> None:
    options: dict[str, Any] = {"devices": [HostDevice()], "sink_logits": np.linspace(-1, 1, 4, dtype=np.float16)}
    plan = cqs.plan(*halves, **options)
    assert (plan.completes_each, plan.result_dtype) == (True, "float32")
    rounded = Partial(np.zeros((4, 701, 16), np.float16), np.zeros((4, 701), np.float32))
    with pytest.raises(DTypeError, match="`out` must have the accumulator's type, float32"):
        Tiler(plan, np.empty_like(halves[0]), options["sink_logits"]).add(TaskResult(plan.task(0), (rounded,)))
    assert_exact(cqs.attention(*halves, **options), *halves, sink_logits=options["sink_logits"])
    assert cqs.plan(*halves, out=np.empty((4, 701, 16), np.float32), devices=[HostDevice()]).result_dtype == "float32"
