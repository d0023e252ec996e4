"""When devices were busy: told by their own clocks, drawn, and counted; nothing of it where nobody listens."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import array_api_strict
import cuda_emulation  # noqa: F401  # what the library's CUDA kernels do, for the fake
import numpy as np
import pytest
from fake_cupy import Machine
from problems import odd_qkv
from slow_device import SlowDevice, SlowSession

import cqs
from cqs.backend import HostDevice
from cqs.events import DeviceBusy, Event
from cqs.testing import assert_exact
from cqs.trace import Recorder, TraceFile, hidden_share

KINDS = {"copy in", "compute", "copy out"}
DEVICES = {
    "host": lambda: [HostDevice()],
    "strict": lambda: [HostDevice(array_api_strict, array_api_strict.Device("device1"))],
    "slow": lambda: [SlowDevice(1), SlowDevice(2)],
}


@pytest.fixture(scope="module")
def qkv() -> list[np.ndarray]:
    return odd_qkv()


def spans(events: Iterable[Event]) -> dict[str, list[DeviceBusy]]:
    """What a device did, by lane, in order."""
    found: dict[str, list[DeviceBusy]] = defaultdict(list)
    for event in events:
        if isinstance(event, DeviceBusy):
            found[event.lane].append(event)
    return {lane: sorted(own, key=lambda event: event.start) for lane, own in found.items()}


def assert_told(recorder: Recorder, plan: cqs.Plan, names: list[str]) -> None:
    """Every copy was told once, in lanes of each device, one after the other."""
    found = spans(recorder.events)
    lanes = {f"{name} {kind}" for name in names for kind in KINDS}
    assert set(found) == lanes if len(names) == 1 else set(found) <= lanes  # one may have drawn every task
    moved: dict[str, int] = defaultdict(int)
    for event in itertools.chain(*found.values()):
        assert event.start <= event.stop
        assert event.kind == event.what
        assert (event.task >= 0) == (event.what == "compute") == (event.n_bytes == 0)
        moved[event.what] += event.n_bytes
    assert moved["copy in"] == plan.traffic.read
    assert moved["copy out"] == plan.traffic.results
    computed = {event.task for own in found.values() for event in own if event.what == "compute"}
    assert computed == set(range(len(plan)))


@pytest.mark.parametrize("devices", [[0], [0, 1]], ids=["one", "two"])
def test_a_gpu_says_when_it_copied_and_computed(machine: Machine, qkv: list[np.ndarray], devices: list[int]) -> None:
    options: dict[str, Any] = {"workers": 4, "strategy": "tiles", "backend": "cupy", "devices": devices}
    recorder, begun = Recorder(), machine.seconds
    assert_exact(cqs.attention(*qkv, on_event=recorder, **options), *qkv)
    assert_told(recorder, cqs.plan(*qkv, **options), [f"cuda:{n}" for n in devices])
    for own in spans(recorder.events).values():
        assert all(a.stop <= b.start + 1e-12 for a, b in itertools.pairwise(own)), "a lane does one thing at a time"
        assert own[-1].stop - own[0].start <= machine.seconds - begun


def test_copies_of_a_gpu_are_hidden_behind_what_it_computes(machine: Machine, qkv: list[np.ndarray]) -> None:
    recorder = Recorder()
    cqs.attention(*qkv, workers=8, strategy="tiles", backend="cupy", on_event=recorder)
    (copies,) = (own for lane, own in spans(recorder.events).items() if lane.endswith("copy in"))
    (computes,) = (own for lane, own in spans(recorder.events).items() if lane.endswith("compute"))
    assert copies[0].stop <= computes[0].start, "nothing is computed before it is there"
    assert 0.5 < hidden_share(recorder.events) < 1


@pytest.mark.parametrize("devices", DEVICES.values(), ids=DEVICES)
def test_other_devices_say_it_too(qkv: list[np.ndarray], devices: Any) -> None:
    opened, recorder = devices(), Recorder()
    options: dict[str, Any] = {"workers": 4, "strategy": "tiles", "devices": opened}
    assert_exact(cqs.attention(*qkv, on_event=recorder, **options), *qkv)
    assert_told(recorder, cqs.plan(*qkv, **options), [device.name for device in opened])
    assert hidden_share(recorder.events) is not None


def test_devices_of_one_name_are_told_apart(qkv: list[np.ndarray]) -> None:
    options: dict[str, Any] = {"workers": 13, "devices": [HostDevice(), HostDevice(), SlowDevice(1)]}
    recorder, names = Recorder(), {"numpy 0", "numpy 1", "slow 1"}
    assert_exact(cqs.attention(*qkv, on_event=recorder, **options), *qkv)
    assert set(cqs.plan(*qkv, **options).setting.devices) == names
    busy = [event for event in recorder.events if isinstance(event, DeviceBusy)]
    assert {event.device for event in busy} <= names
    assert all(event.lane == f"{event.device} {event.what}" for event in busy)
    assert {event.lane for event in recorder.events if event.kind == "TileDone"} <= {f"cqs-{name}" for name in names}


def test_a_device_that_does_one_thing_after_the_other_hides_nothing(qkv: list[np.ndarray]) -> None:
    recorder = Recorder()
    cqs.attention(*qkv, workers=5, devices=[HostDevice()], on_event=recorder)
    assert hidden_share(recorder.events) == pytest.approx(0, abs=1e-6)


def test_nothing_is_timed_where_nobody_listens(
    machine: Machine, qkv: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    import cupy

    made: list[bool] = []
    event = cupy.cuda.Event

    def counted(block: bool = False, disable_timing: bool = False) -> Any:
        made.append(disable_timing)
        return event(block, disable_timing)

    monkeypatch.setattr(cupy.cuda, "Event", counted)
    cqs.attention(*qkv, workers=5, backend="cupy")
    assert made
    assert all(made)


def test_what_was_timed_is_told_though_the_run_fails(machine: Machine, qkv: list[np.ndarray]) -> None:
    recorder, n = Recorder(), iter(range(99))

    def fails(scores: Any, b: int, h: int, q: Any, k: Any) -> Any:
        return scores if next(n) < 10 else 1 / 0

    with pytest.raises(ZeroDivisionError):
        cqs.attention(*qkv, workers=7, backend="cupy", score_mod=fails, on_event=recorder)
    assert {event.what for event in recorder.events if isinstance(event, DeviceBusy)} >= {"copy in", "compute"}


def test_traces_and_pictures_have_lanes_of_the_device(machine: Machine, qkv: list[np.ndarray], tmp_path: Path) -> None:
    plot = pytest.importorskip("cqs.plot")
    pytest.importorskip("matplotlib")
    recorder = Recorder()
    with TraceFile(tmp_path / "trace.json") as trace:

        def both(event: Event) -> None:
            recorder(event)
            trace(event)

        cqs.attention(*qkv, workers=4, strategy="tiles", backend="cupy", on_event=both)
    entries = json.loads((tmp_path / "trace.json").read_text())
    lanes = {entry["args"]["name"] for entry in entries if entry["name"] == "thread_name"}
    assert lanes >= {"cuda:0 copy in", "cuda:0 compute", "cuda:0 copy out"}
    (one, *_) = (entry for entry in entries if entry.get("cat") == "copy in")
    assert (one["ph"], one["name"], one["args"]["device"]) == ("X", "copy in", "cuda:0")
    assert any(entry["name"] == "compute 3" for entry in entries)
    busy = [event for event in recorder.events if isinstance(event, DeviceBusy)]
    ax = plot.timeline(busy)
    assert {text.get_text() for text in ax.get_legend().get_texts()} == KINDS
    assert {text.get_text() for text in ax.get_yticklabels()} == {f"cuda:0 {kind}" for kind in KINDS}


def test_a_device_that_cannot_say_is_not_asked(qkv: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SlowSession, "listen")
    monkeypatch.delattr(SlowSession, "timed")
    recorder = Recorder()
    assert_exact(cqs.attention(*qkv, workers=5, devices=[SlowDevice()], on_event=recorder), *qkv)
    assert recorder.counters.n_tasks == 5
    assert not any(isinstance(event, DeviceBusy) for event in recorder.events)


def busy(device: str, what: str, start: float, stop: float) -> DeviceBusy:
    return DeviceBusy(task=-1, start=start, stop=stop, device=device, what=what)


def test_the_share_that_is_hidden_is_counted_for_each_device() -> None:
    assert hidden_share([]) is None
    assert hidden_share([busy("a", "compute", 0, 1)]) is None
    assert hidden_share([busy("a", "copy in", 0, 1), busy("b", "compute", 0, 1)]) == 0
    both_ways = [busy("a", "copy in", 0, 4), busy("a", "copy out", 2, 6), busy("a", "compute", 5, 9)]
    assert hidden_share(both_ways) == pytest.approx(1 / 6)
    assert hidden_share([*both_ways, busy("b", "copy in", 0, 6), busy("b", "compute", 0, 7)]) == pytest.approx(7 / 12)
