"""Jobs: a run that was broken off goes on from what it has kept, and several runs share one."""

import errno
import json
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from budgets import tracing
from hypothesis import given
from hypothesis import strategies as st
from job_cases import Arrays, Breaking, BrokenOffError, broken_off, files, kept, saved
from problems import Problem, problems
from slow_device import SlowDevice

import cqs
from cqs.engines import ExecutorEngine, LocalEngine
from cqs.events import Event, ResultLoaded, ResultSaved, TaskDone
from cqs.jobs import JobDirectory, Manifest
from cqs.masks import Causal, Documents, SlidingWindow
from cqs.scores import ALiBi
from cqs.trace import Recorder

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


# The same output


@given(problem=problems(), data=st.data())
def test_a_call_that_was_broken_off_anywhere_gives_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, problem: Problem, data: st.DataObject
) -> None:
    qkv, job = (problem.q, problem.k, problem.v), tmp_path_factory.mktemp("jobs") / "run.job"
    options = problem.options | {"workers": problem.workers, "return_lse": True}
    expected = cqs.attention(*qkv, **options)
    n_tasks = len(cqs.plan(*qkv, **options))
    for after in data.draw(st.lists(st.integers(0, n_tasks - 1), max_size=3)):
        with suppress(BrokenOffError):
            cqs.attention(*qkv, **options, job=job, engine=Breaking(LocalEngine(1), after))
    found = cqs.attention(*qkv, **options, job=job)
    assert [x.tobytes() for x in found] == [x.tobytes() for x in expected]
    assert kept(job) == list(range(n_tasks))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("after", [0, 1, 6, 12])
def test_only_what_is_missing_is_computed(qkv: Arrays, job: Path, after: int, threads: int) -> None:
    broken_off(job, *qkv, after=after, workers=13)
    done = kept(job)
    assert after <= len(done) <= after + 4  # those that were computed and had to wait for their turn are kept, too
    recorder = Recorder()
    out = cqs.attention(*qkv, workers=13, job=job, engine=LocalEngine(threads), on_event=recorder)
    of = {kind: [e.task for e in recorder.events if isinstance(e, kind)] for kind in (TaskDone, ResultSaved)}
    assert sorted(of[TaskDone]) == sorted(of[ResultSaved]) == [i for i in range(13) if i not in done]
    assert [e.task for e in recorder.events if isinstance(e, ResultLoaded)] == done
    assert out.tobytes() == cqs.attention(*qkv, workers=13).tobytes()


def test_a_call_that_is_complete_is_not_computed_again(qkv: Arrays, job: Path) -> None:
    first, recorder = cqs.attention(*qkv, workers=7, job=job), Recorder()
    assert cqs.attention(*qkv, job=job, on_event=recorder).tobytes() == first.tobytes()
    counters = recorder.counters
    assert counters.n_tasks == counters.read == counters.saved == 0
    assert counters.loaded == JobDirectory(job).n_bytes() > 0


def test_results_that_are_kept_anywhere_are_merged_in_order(qkv: Arrays, job: Path) -> None:
    cqs.work(*qkv, workers=13, job=job, tasks=[1, 2, 5, 11, 12])
    order: list[int] = []

    def note(event: Event) -> None:
        if event.kind == "ResultMerged":
            order.append(event.task)

    cqs.attention(*qkv, job=job, on_event=note)
    assert order == list(range(13))


ENGINES = {
    "a pool of threads": lambda: ThreadPoolExecutor(3),
    "one in flight": lambda: ExecutorEngine(ThreadPoolExecutor(1), in_flight=1),
}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_an_executor_goes_on(qkv: Arrays, job: Path, engine: Any) -> None:
    expected, engine = cqs.attention(*qkv, workers=13), engine()
    broken_off(job, *qkv, after=5, workers=13)
    assert cqs.attention(*qkv, job=job, engine=engine).tobytes() == expected.tobytes()
    getattr(engine, "executor", engine).shutdown()


def test_processes_go_on(tmp_path: Path, qkv: Arrays, job: Path, processes: ProcessPoolExecutor) -> None:
    paths = files(tmp_path)
    broken_off(job, *paths, after=5, workers=13)
    found = cqs.attention(*paths, job=job, engine=processes)
    assert found.tobytes() == cqs.attention(*qkv, workers=13).tobytes()


@pytest.mark.parametrize("n_devices", [1, 3])
@pytest.mark.parametrize("options", [{"workers": 13}, {"workers": 5, "strategy": "tiles"}], ids=["cqs", "tiles"])
def test_devices_go_on(qkv: Arrays, job: Path, n_devices: int, options: dict[str, Any]) -> None:
    qkv = [x.astype(np.float16) for x in qkv]
    devices = [SlowDevice(i) for i in range(n_devices)]
    expected = cqs.attention(*qkv, **options, devices=devices, job=job.with_name("whole.job"))
    cqs.work(*qkv, **options, devices=devices, job=job, tasks=slice(1, None, 2))
    recorder = Recorder()
    found = cqs.attention(*qkv, devices=devices, job=job, on_event=recorder)
    assert found.tobytes() == expected.tobytes()
    assert {e.task for e in recorder.events if isinstance(e, ResultLoaded)} == set(range(1, options["workers"], 2))
    assert not [fault for device in devices for fault in device.faults]


OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {"is_causal": True},
    "window": {"mask": SlidingWindow(40, 7)},
    "documents": {"mask": Documents([100, 3, 150]) & Causal()},
    "array": {"mask": np.random.default_rng(1).random((4, 300, 300)) > 0.5},
    "softcap": {"softcap": 3.0},
    "ALiBi": {"bias": ALiBi.standard(4)},
    "bias": {"bias": np.random.default_rng(1).standard_normal((4, 300, 300), dtype=np.float32)},
    "sink logits": {"sink_logits": np.zeros(4, np.float32)},
    "budget": {"memory": "4 MiB"},
    "tiles": {"workers": 5, "strategy": "tiles"},
    "one task": {"workers": 1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_goes_on(qkv: Arrays, job: Path, options: dict[str, Any]) -> None:
    if not {"memory", "workers"} & set(options):
        options = options | {"workers": 7}
    expected = cqs.attention(*qkv, **options)
    missing = cqs.work(
        *qkv, **{n: x for n, x in options.items() if n != "sink_logits"}, job=job, tasks=slice(0, None, 2)
    )
    assert missing == len(cqs.plan(*qkv, **options)) // 2
    assert cqs.attention(*qkv, **options, job=job).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_every_type_goes_on(qkv: Arrays, job: Path, dtype: Any) -> None:
    qkv = [x.astype(dtype) for x in qkv]
    broken_off(job, *qkv, after=3, workers=7)
    assert cqs.attention(*qkv, job=job).tobytes() == cqs.attention(*qkv, workers=7).tobytes()


def test_torch_tensors_go_on(qkv: Arrays, job: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = [torch.from_numpy(x) for x in qkv]
    broken_off(job, *tensors, after=3, workers=7)
    found = cqs.attention(*tensors, job=job)
    assert found.numpy().tobytes() == cqs.attention(*qkv, workers=7).tobytes()


@pytest.mark.parametrize("shape", [(2, 0, 4), (0, 2, 5, 4)])
def test_there_may_be_nothing_to_do(job: Path, shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float32)
    for _ in range(2):
        assert cqs.attention(x, x, x, job=job).shape == shape


def test_a_killed_process_loses_only_what_it_was_computing(tmp_path: Path, qkv: Arrays, job: Path) -> None:
    paths = files(tmp_path)
    code = """
import os, signal, sys, cqs
def kill(event):
    if event.kind == "ResultSaved" and event.task == 4:
        os.kill(os.getpid(), signal.SIGKILL)
cqs.attention(*sys.argv[1:4], workers=13, out=sys.argv[4], job=sys.argv[5], on_event=kill)
"""
    command = [sys.executable, "-c", code, *paths, tmp_path / "out.npy", job]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert set(kept(job)) >= {0, 1, 2, 4}
    assert not (tmp_path / "out.npy").exists()
    out = cqs.attention(*paths, job=job, out=tmp_path / "out.npy")
    assert out.tobytes() == cqs.attention(*qkv, workers=13).tobytes()


# Shared out


def test_shares_of_several_machines_are_put_together(qkv: Arrays, job: Path) -> None:
    missing = [cqs.work(*qkv, workers=13, is_causal=True, job=job, tasks=slice(i, None, 4)) for i in range(4)]
    assert missing == [9, 6, 3, 0]
    recorder = Recorder()
    out = cqs.attention(*qkv, is_causal=True, job=job, on_event=recorder)
    assert recorder.counters.n_tasks == 0
    assert out.tobytes() == cqs.attention(*qkv, workers=13, is_causal=True).tobytes()


def test_processes_that_begin_at_once_share_a_job(tmp_path: Path, qkv: Arrays, job: Path) -> None:
    paths = [str(path) for path in files(tmp_path)]
    code = "import cqs, sys; cqs.work(*{}, workers=31, job={!r}, tasks=slice(int(sys.argv[1]), None, 2))"
    runs = [
        subprocess.Popen([sys.executable, "-c", code.format(paths, str(job)), str(i % 2)]) for i in range(4)
    ]  # two of them compute the same
    assert [run.wait() for run in runs] == [0] * 4
    assert kept(job) == list(range(31))
    assert {path.name for path in (job / "results").iterdir()} == {f"{i:06}.npz" for i in range(31)}
    assert cqs.attention(*paths, job=job).tobytes() == cqs.attention(*qkv, workers=31).tobytes()


def manifest(workers: int) -> Manifest:
    inputs = {name: {"sha256": "", "file": None} for name in "qkv"}
    return Manifest({}, inputs, workers, "numpy", cqs.plan(*[(2, 700, 8)] * 3, workers=workers).cut)


@pytest.mark.parametrize("has_links", [True, False])
def test_the_first_of_two_runs_says_what_the_job_is_of(
    job: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.EPERM, "a file system without links")

    if not has_links:
        monkeypatch.setattr("os.link", refuse)
    directory, first = JobDirectory(job), manifest(7)
    assert directory.create(first) == first
    assert directory.create(manifest(13)) == directory.manifest() == first
    assert [path.name for path in job.iterdir() if path.is_file()] == ["job.json"]


def test_a_run_that_planned_otherwise_at_the_same_moment_takes_the_plan_of_the_first(
    qkv: Arrays, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        real = JobDirectory.create

        def late(self: JobDirectory, values: Manifest) -> Manifest:
            patch.undo()
            cqs.work(*qkv, workers=13, job=job, tasks=[3])
            return real(self, values)

        patch.setattr(JobDirectory, "create", late)
        recorder = Recorder()
        out = cqs.attention(*qkv, job=job, on_event=recorder)
    assert recorder.counters.n_tasks == 12
    assert out.tobytes() == cqs.attention(*qkv, workers=13).tobytes()


def test_other_machines_may_have_other_threads_and_memory(job: Path) -> None:
    x = np.random.default_rng(0).standard_normal((4, 3000, 32), dtype=np.float32)
    cqs.work(x, x, x, workers=13, job=job, memory="5 MiB", engine=LocalEngine(1), tasks=[0])
    begun = cqs.plan(x, x, x, job=job)
    assert begun.cut != cqs.plan(x, x, x, workers=13).cut  # as the budget has made it
    cqs.work(x, x, x, job=job, memory="5 MiB", engine=LocalEngine(16), tasks=[1])
    cqs.work(x, x, x, job=job, memory="64 MiB", engine=LocalEngine(3), tasks=[2])
    cqs.work(x, x, x, job=job, engine=LocalEngine(2), tasks=[3])
    assert cqs.plan(x, x, x, memory="100 MiB", job=job).cut == begun.cut
    wide = np.empty_like(x)
    cqs.attention(x, x, x, job=job, memory="5 MiB", out=wide)
    whole = job.with_name("whole.job")
    assert wide.tobytes() == cqs.attention(x, x, x, workers=13, job=whole, memory="5 MiB", out=wide.copy()).tobytes()


@pytest.mark.parametrize("how", [{}, {"memory": "64 MiB"}], ids=["no budget", "a budget"])
def test_a_job_has_many_tasks_by_default(job: Path, how: dict[str, Any]) -> None:
    assert len(cqs.plan(*[(2, 20_000, 16)] * 3, job=job, out=job.with_name("out.npy"), **how)) >= 31
    assert len(cqs.plan(*[(2, 20_000, 16)] * 3, job=job, workers=3, **how)) == 3


def test_planning_writes_nothing(qkv: Arrays, job: Path) -> None:
    cqs.plan(*qkv, workers=7, job=job)
    cqs.plan(*[x.shape for x in qkv], workers=7, job=job)
    assert not job.exists()


# Memory and progress


@pytest.mark.parametrize("is_staged", [False, True], ids=["arrays", "files"])
@pytest.mark.parametrize("threads", [1, 3])
def test_keeping_and_resuming_stays_within_what_is_projected(
    tmp_path: Path, job: Path, threads: int, is_staged: bool
) -> None:
    x = np.zeros((4, 6000, 64), np.float32)
    inputs: Any = saved(tmp_path, [x, x, x]) if is_staged else [x, x, x]
    options: dict[str, Any] = {"memory": "14 MiB", "engine": LocalEngine(threads), "out": tmp_path / "out.npy"}
    plan = cqs.plan(*inputs, **options, job=job)
    for half in (slice(0, None, 2), None):
        with tracing():
            if half is None:
                cqs.attention(*inputs, **options, job=job)
            else:
                cqs.work(*inputs, memory="14 MiB", engine=LocalEngine(threads), job=job, tasks=half)
            assert tracemalloc.get_traced_memory()[1] <= plan.projected_bytes <= 14 << 20


def test_progress_counts_what_is_kept_as_done(qkv: Arrays, job: Path) -> None:
    broken_off(job, *qkv, after=5, workers=13)
    told: list[tuple[int, int]] = []
    cqs.attention(*qkv, job=job, progress=lambda *done: told.append(done))
    assert told == [(n, 13) for n in range(1, 14)]
    told.clear()
    (job / "results" / "000003.npz").unlink()
    (job / "results" / "000007.npz").unlink()
    cqs.work(*qkv, job=job, progress=lambda *done: told.append(done))
    assert told == [(1, 2), (2, 2)]


def test_the_manifest_says_what_the_job_is_of(qkv: Arrays, job: Path) -> None:
    cqs.work(*qkv, workers=7, is_causal=True, job=job, tasks=[])
    values = json.loads((job / "job.json").read_text())
    assert values["format"] == "cqs.job/2"
    assert values["identity"]["mask"] == {"kind": "Causal", "offset": 0}
    assert (values["cut"]["workers"], values["n_tasks"]) == (7, 7)
    assert set(values["inputs"]) == {"q", "k", "v"}


def test_results_that_wait_for_their_turn_are_kept(qkv: Arrays, job: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, TaskDone) and event.task == 0:
            while len(kept(job)) < 3:  # of the second thread
                time.sleep(0.01)
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        cqs.attention(*qkv, workers=13, job=job, engine=LocalEngine(4), on_event=stop)
    assert 0 not in kept(job)
    assert len(kept(job)) >= 3


def test_a_job_counts_a_result_more(job: Path) -> None:
    shapes: Any = [(2, 3000, 16)] * 3
    plan, with_job = cqs.plan(*shapes, workers=7), cqs.plan(*shapes, workers=7, job=job)
    assert with_job.footprint.results - plan.footprint.results == max(plan.partial_bytes(t) for t in plan.tasks())


def test_results_of_devices_come_back_unrounded(job: Path) -> None:
    x, device = np.zeros((2, 600, 8), np.float16), SlowDevice()
    plan = cqs.plan(x, x, x, workers=3, strategy="tiles", devices=[device])
    with_job = cqs.plan(x, x, x, workers=3, strategy="tiles", devices=[device], job=job)
    assert (plan.result_dtype, with_job.result_dtype) == ("float16", "float32")
    assert cqs.plan(x, x, x, workers=3, devices=[device]).keeps_sums_on_device
    assert not cqs.plan(x, x, x, workers=3, devices=[device], job=job).keeps_sums_on_device


def test_a_result_that_lacks_something_is_computed_anew(qkv: Arrays, job: Path) -> None:
    expected = cqs.attention(*qkv, workers=7, job=job)
    path = job / "results" / "000002.npz"
    with zipfile.ZipFile(path) as archive:
        owner, kept_arrays = archive.comment, {name: archive.read(name) for name in ("out.npy", "lse.npy")}
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = owner
        for name, content in kept_arrays.items():
            archive.writestr(name, content)
    assert kept(job) == [0, 1, 3, 4, 5, 6]
    assert cqs.attention(*qkv, job=job).tobytes() == expected.tobytes()
