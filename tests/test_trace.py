"""What a run says about itself: counters that equal the plan's prediction, and traces that Perfetto opens."""

import errno
import json
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cqs
from cqs.backend import Threads
from cqs.errors import OptionError, SinkError
from cqs.events import BytesRead, BytesWritten, Event, ResultMerged, TaskDone, TaskRetried, TaskStarted, TileDone
from cqs.masks import Causal, Mask, SlidingWindow
from cqs.schedule import Setting
from cqs.schedule.grain import Grain
from cqs.sources import InputSource, NpySink, open_inputs
from cqs.trace import Counters, Recorder, TraceFile, write_chrome_trace

MASKS: dict[str, Mask | None] = {"full": None, "causal": Causal(), "window": SlidingWindow(200)}
H, G, T, D, E = 4, 2, 1500, 16, 24


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Queries, keys and values in files."""
    folder, rng = tmp_path_factory.mktemp("stored"), np.random.default_rng(0)
    arrays = {"q": (H, T, D), "k": (G, T, D), "v": (G, T, E)}
    for name, shape in arrays.items():
        np.save(folder / f"{name}.npy", rng.standard_normal(shape, dtype=np.float32))
    return tuple(folder / f"{name}.npy" for name in arrays)


def assert_counted(counters: Counters, plan: cqs.Plan) -> None:
    """What a run counted is what its plan predicted, to the byte."""
    moved = plan.traffic
    assert counters.n_tasks == len(plan)
    assert counters.read == moved.read
    assert counters.written == moved.written
    assert counters.spilled == moved.spilled
    assert counters.results == moved.results
    assert counters.n_retries == 0


# counters


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("is_stored", [False, True], ids=["arrays", "files"])
@pytest.mark.parametrize("strategy", ["cqs", "tiles", "ring", "tree"])
def test_a_run_moves_the_bytes_that_its_plan_predicts(
    stored: tuple[Path, ...], tmp_path: Path, strategy: str, is_stored: bool, mask: str
) -> None:
    inputs: Any = stored if is_stored else [np.load(path) for path in stored]
    options: dict[str, Any] = {"workers": 7, "strategy": strategy, "mask": MASKS[mask]}
    options["out"] = tmp_path / "out.npy" if is_stored else None
    recorder = Recorder()
    cqs.attention(*inputs, **options, on_event=recorder)
    assert_counted(recorder.counters, cqs.plan(*inputs, **options))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("is_stored", [False, True], ids=["arrays", "files"])
@pytest.mark.parametrize("strategy", ["cqs", "tiles"])
@pytest.mark.parametrize("memory", ["3 MiB", "6 MiB", "32 MiB"])
def test_a_run_within_a_budget_moves_the_bytes_that_its_plan_predicts(
    stored: tuple[Path, ...], tmp_path: Path, strategy: str, is_stored: bool, mask: str, memory: str
) -> None:
    inputs: Any = stored if is_stored else [np.load(path) for path in stored]
    out = tmp_path / "out.npy" if is_stored else np.empty((H, T, E), np.float32)
    options: dict[str, Any] = {"memory": memory, "strategy": strategy, "mask": MASKS[mask], "out": out}
    recorder = Recorder()
    cqs.attention(*inputs, **options, on_event=recorder)
    assert_counted(recorder.counters, cqs.plan(*inputs, **options))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kv_heads", [None, 1])
def test_what_is_spilled_to_a_scratch_file_is_predicted(
    stored: tuple[Path, ...], tmp_path: Path, kv_heads: int | None, mask: str
) -> None:
    source = open_inputs(*stored)
    problem = cqs.AttentionProblem.of(source.q, source.k, source.v, mask=MASKS[mask])
    setting = Setting(threads=2, in_flight=1, is_staged=True, output="sink", keeps_lse=False, is_spilled=True)
    made = cqs.Scheduler(13, "cqs", setting=setting).plan(problem)
    plan = replace(made, grain=Grain(kv_heads=kv_heads))
    recorder = Recorder()
    run(plan, source, NpySink.create(tmp_path / "out.npy", problem.out_shape, np.dtype(np.float32)), recorder)
    assert recorder.counters.spilled > 0
    assert_counted(recorder.counters, plan)
    source.close()


def run(plan: cqs.Plan, source: InputSource, sink: NpySink, emit: Callable[[Event], object]) -> None:
    """Run a plan as `cqs.attention` does."""
    attend = cqs.kernels.KERNELS["numpy"].attend
    tiler = cqs.Tiler(plan, sink, emit=emit)
    worker = cqs.Worker(plan.problem, source, attend, grain=plan.grain, emit=emit)
    cqs.engines.LocalEngine(2).run(plan, worker, tiler.add)
    tiler.result()
    tiler._sums._file.close()  # the scratch file


def test_batches_and_narrow_types_are_counted_in_their_bytes() -> None:
    q = np.random.default_rng(1).standard_normal((2, 3, 2, 200, 8)).astype(np.float16)
    for options in ({"workers": 7}, {"workers": 7, "memory": "8 MiB"}, {"strategy": "tiles", "workers": 5}):
        recorder = Recorder()
        cqs.attention(q, q, q, **options, on_event=recorder)
        assert_counted(recorder.counters, cqs.plan(q, q, q, **options))


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_executors_tell_as_much(stored: tuple[Path, ...], kind: str, processes: ProcessPoolExecutor) -> None:
    recorder = Recorder()
    with ThreadPoolExecutor(2) as threads:
        engine = threads if kind == "threads" else processes
        cqs.attention(*stored, workers=7, engine=engine, on_event=recorder)
        assert_counted(recorder.counters, cqs.plan(*stored, workers=7, engine=engine))


def test_retries_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    q = np.ones((1, 600, 8), np.float32)
    share, failures = Threads.share, iter([True])

    def fail_once(*args: Any, **kwargs: Any) -> None:
        if threading.current_thread() is not threading.main_thread() and next(failures, False):
            raise MemoryError("Unable to allocate")
        share(*args, **kwargs)

    monkeypatch.setattr(Threads, "share", fail_once)
    recorder = Recorder()
    cqs.attention(q, q, q, workers=3, engine=ThreadPoolExecutor(1), on_event=recorder)
    assert recorder.counters.n_retries == 1
    write_chrome_trace(recorder.events, tmp_path / "trace.json")
    (retry,) = [entry for entry in read(tmp_path / "trace.json") if entry.get("cat") == "TaskRetried"]
    assert retry["ph"] == "i"
    assert "Unable to allocate" in retry["args"]["reason"]


# recorders


def test_a_recorder_keeps_the_last_events_and_counts_all() -> None:
    recorder = Recorder(most=3)
    for n in range(10):
        recorder(BytesRead(task=n, start=0.0, what="keys", n_bytes=100))
    assert [event.task for event in recorder.events] == [7, 8, 9]
    assert recorder.n_dropped == 7
    assert recorder.counters == Counters(read=1000)
    assert Counters.of(recorder.events).read == 300
    with pytest.raises(OptionError, match="`most`"):
        Recorder(-1)


def test_a_recorder_takes_events_from_many_threads() -> None:
    recorder, event = Recorder(most=10), BytesWritten(task=0, start=0.0, stop=1.0, n_bytes=1, spilled_bytes=2)
    threads = [threading.Thread(target=lambda: [recorder(event) for _ in range(2000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (recorder.counters.written, recorder.counters.spilled) == (16_000, 32_000)


def test_ten_thousand_events_are_kept_in_3_mib() -> None:
    import tracemalloc

    recorder = Recorder()
    tracemalloc.start()
    try:
        for n in range(30_000):
            recorder(TileDone(task=1000 + n, start=n / 7, stop=n / 3, lane="cqs-compute_0", n_rows=n, n_columns=n))
        assert tracemalloc.get_traced_memory()[0] < 3 << 20
    finally:
        tracemalloc.stop()


def test_a_timeline_draws_what_was_recorded() -> None:
    plot = pytest.importorskip("cqs.plot")
    pytest.importorskip("matplotlib")
    q, recorder = np.ones((2, 700, 8), np.float32), Recorder()
    cqs.attention(q, q, q, workers=7, on_event=recorder)
    ax = plot.timeline(recorder.events)
    assert {text.get_text() for text in ax.get_legend().get_texts()} >= {"TileDone", "BytesRead", "ResultMerged"}


# traces


def read(path: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(path.read_text())
    return entries


def test_a_trace_has_spans_instants_and_names_of_threads(tmp_path: Path) -> None:
    events = [
        TaskStarted(task=3, start=10.0, stop=10.0, lane="main"),
        BytesRead(task=3, start=9.5, stop=9.75, lane="cqs-read", what="keys", n_bytes=4096),
        TileDone(task=3, start=10.0, stop=10.25, lane="main", n_rows=10, n_columns=20),
        TaskRetried(task=3, start=10.5, stop=10.5, lane="main", depth=1, reason='MemoryError("no")'),
        ResultMerged(task=3, start=11.0, stop=11.5, lane="main", n_bytes=5, spilled_bytes=7),
        TaskDone(task=3, start=10.0, stop=10.75, lane="main"),
    ]
    write_chrome_trace(events, tmp_path / "trace.json")
    process, *entries = read(tmp_path / "trace.json")
    assert (process["ph"], process["name"]) == ("M", "process_name")
    names = {entry["tid"]: entry["args"]["name"] for entry in entries if entry["ph"] == "M"}
    assert names == {1: "main", 2: "cqs-read"}
    spans = {entry["name"]: entry for entry in entries if entry["ph"] == "X"}
    assert set(spans) == {"read keys", "tile", "merge", "task 3"}
    assert (spans["read keys"]["ts"], spans["read keys"]["dur"], spans["read keys"]["tid"]) == (0.0, 250_000.0, 2)
    assert spans["read keys"]["args"] == {"task": 3, "what": "keys", "n_bytes": 4096}
    assert (spans["task 3"]["ts"], spans["task 3"]["dur"]) == (500_000.0, 750_000.0)
    instants = {entry["cat"]: entry for entry in entries if entry["ph"] == "i"}
    assert set(instants) == {"TaskStarted", "TaskRetried"}
    assert instants["TaskRetried"]["args"] == {"task": 3, "depth": 1, "reason": 'MemoryError("no")'}
    assert all(entry["s"] == "t" for entry in instants.values())
    assert len({entry["pid"] for entry in (process, *entries)}) == 1


def test_a_trace_without_events_is_one_all_the_same(tmp_path: Path) -> None:
    write_chrome_trace([], tmp_path / "trace.json")
    assert len(read(tmp_path / "trace.json")) == 1


def test_spans_of_a_thread_lie_within_each_other_or_apart(stored: tuple[Path, ...], tmp_path: Path) -> None:
    with TraceFile(tmp_path / "trace.json") as trace:
        cqs.attention(*stored, workers=13, is_causal=True, on_event=trace)
    spans = [entry for entry in read(tmp_path / "trace.json") if entry["ph"] == "X"]
    assert {entry["cat"] for entry in spans} >= {"TaskDone", "TileDone", "BytesRead", "ResultMerged", "BytesWritten"}
    for tid in {entry["tid"] for entry in spans}:
        around: list[float] = []
        for entry in sorted((e for e in spans if e["tid"] == tid), key=lambda e: (e["ts"], -e["dur"])):
            while around and around[-1] <= entry["ts"] + 0.01:  # times are rounded
                around.pop()
            assert not around or entry["ts"] + entry["dur"] <= around[-1] + 0.01
            around.append(entry["ts"] + entry["dur"])


def test_a_trace_is_written_as_events_come_and_ends_with_the_run(tmp_path: Path) -> None:
    path, event = tmp_path / "trace.json", TileDone(task=0, start=0.0, stop=1.0, n_rows=1, n_columns=1)

    def fail() -> None:
        with TraceFile(path, zero=0.0) as trace:
            for _ in range(1000):
                trace(event)
            assert path.stat().st_size > 50_000
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert len(read(path)) == 1002
    late = TraceFile(path)
    late.close()
    late(event)  # from a thread that was still busy
    assert len(read(path)) == 1


def test_traces_that_cannot_be_written_do_not_stop_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"nowhere.trace.json cannot be written: No such file"):
        TraceFile(tmp_path / "nowhere" / "trace.json")
    trace = TraceFile(tmp_path / "trace.json")
    trace._file.close()

    def full(text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trace, "_file", type("Full", (), {"closed": False, "write": staticmethod(full)})())
    q = np.ones((1, 100, 4), np.float32)
    assert cqs.attention(q, q, q, workers=3, on_event=trace).shape == (1, 100, 4)
    with pytest.raises(SinkError, match="No space left on device; the trace is not complete"):
        trace.close()
