"""Tasks computed on devices: the same results, whatever the delays, within the memory, with failures on the way."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import problems
from slow_device import SlowDevice, on_host

import cqs
from cqs.backend import Device, HostDevice
from cqs.errors import BackendError, BudgetError, CQSError, OptionError
from cqs.events import BytesUploaded, TaskRetried
from cqs.masks import Causal, Documents, SlidingWindow
from cqs.scores import ALiBi
from cqs.testing import assert_exact
from cqs.trace import Recorder

STRICT = [HostDevice(array_api_strict, array_api_strict.Device(name)) for name in ("device1", "device2")]
DEVICES = {
    "one": lambda: on_host(1),
    "three": lambda: on_host(3),
    "slow": lambda: [SlowDevice()],
    "two slow": lambda: [SlowDevice(1), SlowDevice(2, delay=5e-3)],
    "strict": lambda: STRICT[:1],
    "two strict": lambda: STRICT,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "13 tasks": {"workers": 13},
    "tiles": {"workers": 5, "strategy": "tiles"},
    "ring": {"workers": 4, "strategy": "tiles"},
    "little memory": {"memory": "2.4 MiB"},
    "little memory, 7 tasks": {"memory": "4 MiB", "workers": 7},
}


@pytest.fixture(scope="module")
def qkv() -> list[np.ndarray]:
    """Grouped queries, of an odd number of tokens."""
    rng = np.random.default_rng(3)
    shapes = (4, 701, 16), (2, 701, 16), (2, 701, 24)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("devices", DEVICES.values(), ids=DEVICES)
def test_results_are_exact(qkv: list[np.ndarray], devices: Any, options: dict[str, Any]) -> None:
    opened = devices()
    out, lse = cqs.attention(*qkv, is_causal=True, return_lse=True, devices=opened, **options)
    assert isinstance(out, np.ndarray)
    assert isinstance(lse, np.ndarray)
    assert_exact(out, *qkv, is_causal=True, lse=lse)
    assert all(not getattr(device, "faults", []) for device in opened)


@given(problem=problems(), n=st.integers(1, 3), strategy=st.sampled_from(["auto", "tiles"]))
def test_any_problem_is_exact(problem: Any, n: int, strategy: str) -> None:
    with np.errstate(all="ignore"):
        out, lse = cqs.attention(
            problem.q, problem.k, problem.v, **problem.options, strategy=strategy, return_lse=True,
            workers=problem.workers, devices=on_host(n),
        )  # fmt: skip
        assert_exact(out, problem.q, problem.k, problem.v, **problem.options, lse=lse)


@pytest.mark.parametrize(
    "options",
    [
        {"mask": SlidingWindow(40, 3)},
        {"mask": Documents([300, 1, 400]) & Causal()},
        {"mask": ~Causal(-10) & Causal(-5), "sink_logits": np.linspace(-2, 2, 4, dtype=np.float32)},
        {"bias": np.random.default_rng(0).standard_normal((4, 701, 701), dtype=np.float32), "softcap": 3.0},
        {"bias": ALiBi.standard(4), "is_causal": True},
        {"score_mod": lambda s, b, h, q, k: s * 2.0},
    ],
    ids=["window", "documents", "band and sinks", "bias and softcap", "ALiBi", "score_mod"],
)
@pytest.mark.parametrize("devices", [STRICT[:1], STRICT, on_host(2)], ids=["strict", "two strict", "two"])
def test_masks_and_scores_reach_the_devices(qkv: list[np.ndarray], devices: Any, options: dict[str, Any]) -> None:
    found = cqs.attention(*qkv, workers=7, devices=devices, return_lse=True, **options)
    wanted = cqs.attention(*(x.astype(np.float64) for x in qkv), return_lse=True, **options)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_delays_do_not_change_a_bit(qkv: list[np.ndarray]) -> None:
    options: dict[str, Any] = {"workers": 13, "is_causal": True}
    wanted = cqs.attention(*qkv, devices=on_host(2), **options).tobytes()
    for seed in range(5):
        devices = [SlowDevice(seed), SlowDevice(seed + 100, delay=1e-2), SlowDevice(seed + 200, delay=0)]
        assert cqs.attention(*qkv, devices=devices, **options).tobytes() == wanted
        assert not any(device.faults for device in devices)
        assert not any(device.n_open for device in devices)


@pytest.mark.parametrize("strategy", ["cqs", "tiles"])
@pytest.mark.parametrize("memory", ["2.5 MiB", "3 MiB", "8 MiB"])
def test_slots_hold_no_more_than_the_plan_says(qkv: list[np.ndarray], strategy: str, memory: str) -> None:
    device = SlowDevice()
    options: dict[str, Any] = {"memory": memory, "strategy": strategy, "devices": [device]}
    plan = cqs.plan(*qkv, **options)
    assert_exact(cqs.attention(*qkv, **options), *qkv)
    n_arrays = max(2 * len(task.key_groups) + len(task.strips) for task in plan.tasks())
    padding = 512 * max(n_arrays, 20)  # arrays in each of two slots begin at multiples of 256 bytes
    assert 0 < device.peak <= plan.footprint.inputs + padding
    assert plan.projected_bytes <= plan.setting.memory


def test_copies_come_before_they_are_needed(qkv: list[np.ndarray]) -> None:
    events: list[Any] = []
    cqs.attention(*qkv, workers=7, devices=on_host(1), on_event=events.append)
    kinds = [(event.kind, event.task) for event in events]
    for task in range(1, 7):
        assert kinds.index(("BytesUploaded", task)) < kinds.index(("TaskDone", task - 1))


@pytest.mark.parametrize("workers", [13, 31])
@pytest.mark.parametrize("share", [None, 0, 0.5, 1])
def test_keys_of_the_next_task_are_copied_while_this_one_is_computed(workers: int, share: float | None) -> None:
    x = np.random.default_rng(0).standard_normal((1, 130 * workers, 8), dtype=np.float32)  # a strip fills a call
    options: dict[str, Any] = {"workers": workers, "strategy": "cqs", "devices": on_host(1)}
    if share is not None:
        roomy = cqs.plan(x, x, x, **options)
        bare = replace(roomy, setting=replace(roomy.setting, memory=None))
        more = roomy.footprint.inputs - bare.footprint.inputs
        options["memory"] = int(bare.projected_bytes + share * more / 0.9) + 1
    plan, events = cqs.plan(x, x, x, **options), []
    m, group = len(plan.base or ()), 2 * 130 * 8 * 4
    planned = plan.slot_bytes.keys // group - m
    assert planned >= {None: m, 0: 2, 0.5: 1 + m / 2, 1: m}[share] - 1e-9
    cqs.attention(x, x, x, **options, on_event=events.append)
    kinds = [(event.kind, event.task) for event in events]
    for task in range(1, workers):
        last = max(i for i, kind in enumerate(kinds) if kind == ("TileDone", task - 1))
        assert kinds[:last].count(("BytesUploaded", task)) >= min(planned, m)


def test_sizes_that_are_not_round_leave_room_to_copy_ahead(qkv: list[np.ndarray]) -> None:
    device, events = SlowDevice(delay=0), []
    q, k, v = (x[:, : n + 1] for x, n in zip(qkv, (700, 330, 330), strict=True))  # slots are rounded up
    cqs.attention(q, k, v, workers=5, strategy="tiles", devices=[device], on_event=events.append)
    kinds = [(event.kind, event.task) for event in events if event.kind in ("BytesUploaded", "TileDone")]
    before = kinds[: kinds.index(("TileDone", 0))]
    assert before.count(("BytesUploaded", 1)) == kinds.count(("BytesUploaded", 1)) == 2


def test_counters_are_what_the_plan_says(qkv: list[np.ndarray]) -> None:
    for n in (1, 2):
        recorder, options = Recorder(), {"workers": 7, "devices": on_host(n)}
        cqs.attention(*qkv, **options, on_event=recorder)
        moved, plan = recorder.counters, cqs.plan(*qkv, **options)
        assert (moved.read, moved.results, moved.spilled, moved.written) == (
            plan.traffic.read,
            plan.traffic.results,
            0,
            plan.traffic.written,
        )
        uploaded = sum(event.n_bytes for event in recorder.events if isinstance(event, BytesUploaded))
        assert uploaded == plan.traffic.read


@pytest.mark.parametrize("n_devices", [1, 2])
@pytest.mark.parametrize("what", ["slot", "fill"])
@pytest.mark.parametrize("at", [0, 1, 5, 12])
def test_a_device_that_runs_out_of_memory_divides_the_task(
    qkv: list[np.ndarray], what: str, at: int, n_devices: int
) -> None:
    fails = {"fails": lambda kind, n: (kind, n) == (what, at)}
    devices = [SlowDevice(i, **(fails if i == 0 else {})) for i in range(n_devices)]
    recorder = Recorder()
    out = cqs.attention(*qkv, workers=7, devices=devices, on_event=recorder)
    assert_exact(out, *qkv)
    assert all(not device.faults for device in devices)
    if what == "fill" and at == 0:
        assert any(isinstance(event, TaskRetried) for event in recorder.events)


@pytest.mark.usefixtures("nothing_is_left_behind")
@pytest.mark.parametrize("n_devices", [1, 3])
def test_a_device_that_fails_ends_the_run(qkv: list[np.ndarray], n_devices: int) -> None:
    class BrokenError(RuntimeError):
        pass

    def breaks(kind: str, n: int) -> bool:
        if (kind, n) == ("download", 2):
            raise BrokenError
        return False

    devices = [SlowDevice(i, fails=breaks) for i in range(n_devices)]  # a slow one might compute nothing
    with pytest.raises(BrokenError):
        cqs.attention(*qkv, workers=7, strategy="tiles", devices=devices)
    assert not any(device.n_open for device in devices)


def test_files_come_and_go(qkv: list[np.ndarray], tmp_path: Path) -> None:
    for name, array in zip("qkv", qkv, strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    paths = [tmp_path / f"{name}.npy" for name in "qkv"]
    for devices in (on_host(1), [SlowDevice(1), SlowDevice(2)]):
        out = cqs.attention(*paths, memory="2.4 MiB", devices=devices, out=tmp_path / "out.npy", is_causal=True)
        assert_exact(np.asarray(out), *qkv, is_causal=True)


def test_a_budget_that_is_too_small_is_refused(qkv: list[np.ndarray]) -> None:
    with pytest.raises(BudgetError, match=r"`memory` must be at least .* got 64\.0 KiB; raise it$"):
        cqs.attention(*qkv, memory="64 KiB", devices=on_host(1))


def test_a_plan_says_where_it_is_computed(qkv: list[np.ndarray]) -> None:
    plan = cqs.plan(*qkv, devices=[SlowDevice(5), HostDevice()])
    assert "kernel    numba on slow 5 and numpy" in str(plan)
    assert cqs.Plan.from_json(plan.to_json()) == plan


X = np.ones((2, 8, 4), np.float32)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "cuda"}, BackendError, "`backend` must be one of numpy, cupy, got 'cuda'"),
        ({"backend": "cupy"}, BackendError, r"`backend` must have CuPy.*pip install 'cqs-attention\[cuda13\]'"),
        ({"devices": [0]}, OptionError, "`devices` must come with backend='cupy'"),
        ({"devices": []}, OptionError, "`devices` must be a list of numbers of devices"),
        ({"devices": 0}, OptionError, "`devices` must be a list of numbers of devices"),
        ({"devices": "01"}, OptionError, "`devices` must be a list of numbers of devices"),
        ({"devices": [0, 0], "backend": "cupy"}, OptionError, "`devices` must name each device once"),
        ({"devices": [0, np.int64(0)], "backend": "cupy"}, OptionError, "`devices` must name each device once"),
        ({"devices": STRICT[:1] * 2}, OptionError, "`devices` must name each device once"),
        (
            {"devices": [HostDevice]},
            OptionError,
            r"`devices` must be .* not classes .*as in devices=\[HostDevice\(\)\]",
        ),
        (
            {"devices": STRICT, "backend": "numpy"},
            BackendError,
            "`backend` must fit the devices, .* got 'numpy'; leave",
        ),
        (
            {"devices": [*STRICT, HostDevice()]},
            OptionError,
            "`devices` must be of one array library, .* got .*device1.* and numpy; leave out the others",
        ),
        ({"devices": [HostDevice()], "backend": "cupy"}, BackendError, "`backend` must fit the devices, .* numpy, got"),
        ({"devices": [-1], "backend": "cupy"}, OptionError, "`devices` must be a whole number of at least 0"),
        ({"devices": [1.5], "backend": "cupy"}, OptionError, "`devices` must be a whole number of at least 0"),
        ({"devices": [HostDevice()], "engine": cqs.engines.LocalEngine(2)}, OptionError, "`engine` must be left out"),
        ({"devices": [HostDevice()], "kernel": "nope"}, OptionError, "`kernel` must be auto or one of"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], error: type[CQSError], message: str) -> None:
    for function in (cqs.attention, cqs.plan):
        with pytest.raises(error, match=message):
            function(X, X, X, **options)


def test_arrays_of_other_libraries_stay_where_they_are() -> None:
    x = array_api_strict.asarray(X)
    with pytest.raises(OptionError, match="`devices` must be left out for arrays that are on a device"):
        cqs.attention(x, x, x, devices=[HostDevice()])
    with pytest.raises(BackendError, match="`backend` must fit the inputs, arrays of array_api_strict"):
        cqs.attention(x, x, x, backend="cupy")
    with pytest.raises(BackendError, match="`backend` must fit the inputs, arrays of array_api_strict"):
        cqs.attention(x, x, x, backend="numpy")


def test_devices_are_known_by_what_they_can_do() -> None:
    assert isinstance(HostDevice(), Device)
    assert isinstance(SlowDevice(), Device)
    assert not isinstance(0, Device)
