"""Which device computes how much: a slow one less, one that failed nothing more, and nobody what was called off."""

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slow_device import SlowDevice

import cqs
from cqs.engines.devices import _Drawn
from cqs.engines.turns import Turns
from cqs.events import TaskStarted
from cqs.trace import Recorder
from cqs.worker import TaskResult

WORKERS = 31


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("inputs")
    arrays = [rng.standard_normal((2, 50 * WORKERS, 16), dtype=np.float32) for _ in range(3)]
    paths: list[Path] = []
    for name, array in zip("qkv", arrays, strict=True):
        paths.append(folder / f"{name}.npy")
        np.save(paths[-1], array)
    return {"arrays": list(arrays), "files": list(paths)}


def lingering(seed: int, seconds: float) -> SlowDevice:
    """Return a device that takes its time for each copy."""

    def linger(what: str, n: int) -> bool:
        if what == "fill":
            time.sleep(seconds)
        return False

    return SlowDevice(seed, delay=0, fails=linger)


@pytest.mark.parametrize("where", ["arrays", "files"])
def test_a_slow_device_computes_fewer_tasks(inputs: dict[str, list[Any]], where: str) -> None:
    devices, recorder = [lingering(1, 0.05), SlowDevice(2, delay=0)], Recorder()
    cqs.attention(*inputs[where], workers=WORKERS, devices=devices, on_event=recorder)
    lanes = [event.lane for event in recorder.events if isinstance(event, TaskStarted)]
    n_slow, n_fast = (sum(device.name in lane for lane in lanes) for device in devices)
    assert n_slow + n_fast == WORKERS
    assert 0 < n_slow < n_fast


@pytest.mark.parametrize(("n_tasks", "n_devices", "most"), [(2, 2, 1), (4, 2, 2), (3, 3, 1), (8, 3, 3), (24, 3, 8)])
def test_no_device_draws_ahead_what_another_would_begin(n_tasks: int, n_devices: int, most: int) -> None:
    plan = cqs.plan(*[(1, 1000, 8)] * 3, workers=n_tasks, strategy="tiles")
    drawn = _Drawn(plan, range(len(plan)), n_devices)
    shares = [drawn.share() for _ in range(n_devices)]
    tasks = [share.tasks() for share in shares]
    reads = [share.reads_so_far() for share in shares]
    begun: list[list[int]] = [[] for _ in shares]
    while len(plan) > sum(map(len, begun)):  # all devices are equally fast, and copy as far ahead as they may
        for own, own_tasks, own_reads in zip(begun, tasks, reads, strict=True):
            own += [task.index for task in itertools.islice(own_tasks, 1)]
            for _ in itertools.takewhile(lambda read: read is not None, own_reads):
                pass
    assert sorted(itertools.chain(*begun)) == list(range(n_tasks))
    assert max(map(len, begun)) == most


@pytest.mark.usefixtures("nothing_is_left_behind")
@pytest.mark.parametrize("where", ["arrays", "files"])
def test_a_device_that_fails_stops_the_others_at_their_next_task(inputs: dict[str, list[Any]], where: str) -> None:
    failed: list[float] = []

    def breaks(what: str, n: int) -> bool:
        if what == "slot":
            time.sleep(0.1)
            failed.append(time.perf_counter())
            raise RuntimeError("the device is lost")
        return False

    recorder = Recorder()
    with pytest.raises(RuntimeError, match="the device is lost"):
        cqs.attention(
            *inputs[where], workers=WORKERS, on_event=recorder,
            devices=[SlowDevice(1, fails=breaks), lingering(2, 0.02)],
        )  # fmt: skip
    begun = [event.start for event in recorder.events if isinstance(event, TaskStarted)]
    assert sum(start > failed[0] for start in begun) <= 3


def test_results_are_dropped_once_nothing_is_passed_on_any_more() -> None:
    passed: list[TaskResult] = []
    plan = cqs.plan((1, 70, 8), (1, 70, 8), (1, 70, 8), workers=7)
    results = [TaskResult(plan.task(i), ()) for i in range(4)]
    turns = Turns(passed.append, range(7), most_ahead=10)
    turns.add(results[0])
    turns.add(results[2])
    turns.close()
    turns.add(results[1])
    turns.add(results[3])
    assert passed == results[:1]
    assert not turns._waiting


def test_a_thread_that_is_too_far_ahead_goes_on_when_the_turns_are_closed() -> None:
    turns = Turns(lambda result: None, range(7), most_ahead=1)
    plan = cqs.plan((1, 70, 8), (1, 70, 8), (1, 70, 8), workers=7)
    waiting = threading.Thread(target=turns.add, args=(TaskResult(plan.task(5), ()),))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    turns.close()
    waiting.join(10)
    assert not waiting.is_alive()
