"""Jobs: what belongs to another call is refused, and what is damaged does no harm."""

import errno
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job_cases import Arrays, files, kept, saved

import cqs
from cqs import ArraySource
from cqs.engines import Accept, LocalEngine
from cqs.events import Event, TaskDone
from cqs.jobs import JobDirectory, Manifest, records
from cqs.kernels import KERNELS
from cqs.masks import Causal, Dense, Documents, SlidingWindow
from cqs.schedule import Plan
from cqs.scores import ALiBi
from cqs.sources.files import hold
from cqs.worker import Worker

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


# Another call is refused


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "mask": ({"is_causal": False}, r"with `mask` Causal\(offset=0\), got NoMask\(\)"),
    "window": ({"is_causal": False, "mask": SlidingWindow(5)}, "with `mask`"),
    "scale": ({"scale": 0.5}, "with `scale` 0.25, got 0.5"),
    "softcap": ({"softcap": 2.0}, "with `softcap` none, got 2.0"),
    "bias": ({"bias": ALiBi.standard(4)}, "with `bias` none"),
    "workers": ({"workers": 13}, "`workers` must be 7, as when the job was begun, got 13"),
    "strategy": ({"strategy": "tiles"}, "`strategy` must be 'cqs', as when"),
    "kernel": ({"kernel": "reference"}, "`kernel` must be '.*', as when"),
}


@pytest.mark.parametrize(("options", "message"), OTHERS.values(), ids=OTHERS)
def test_other_options_are_refused(qkv: Arrays, job: Path, options: dict[str, Any], message: str) -> None:
    cqs.work(*qkv, workers=7, is_causal=True, job=job, tasks=[0])
    for call in (cqs.attention, cqs.work, cqs.plan):
        with pytest.raises(cqs.errors.OptionError, match=message):
            call(*qkv, **{"is_causal": True} | options, job=job)
    assert kept(job) == [0]


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_other_numbers_are_refused(qkv: Arrays, job: Path, name: str) -> None:
    cqs.work(*qkv, workers=7, job=job, tasks=[0])
    others = [x.copy() for x in qkv]
    others["qkv".index(name)][-1, -1, -1] += 1e-6
    with pytest.raises(cqs.errors.OptionError, match=f"it was begun with another `{name}`"):
        cqs.attention(*others, job=job)
    with pytest.raises(cqs.errors.OptionError, match="it was begun with `q`"):
        cqs.attention(*[x.astype(np.float64) for x in qkv], job=job)


def test_the_numbers_of_masks_and_biases_count(qkv: Arrays, job: Path) -> None:
    mask, bias = np.ones((300, 300), bool), np.zeros((4, 1, 300), np.float32)
    cqs.work(*qkv, workers=7, mask=mask, bias=bias, job=job, tasks=[0])
    cqs.work(*qkv, mask=Dense(mask.copy()), bias=bias.copy(), job=job, tasks=[1])
    for changed in (mask, bias):
        changed[..., 0, 7] = 0.5
    mask[5, 5] = False
    with pytest.raises(cqs.errors.OptionError, match="with `mask`"):
        cqs.work(*qkv, mask=mask, bias=np.zeros_like(bias), job=job)
    with pytest.raises(cqs.errors.OptionError, match="with `bias`"):
        cqs.work(*qkv, mask=np.ones_like(mask), bias=bias, job=job)


def test_axes_that_stand_for_all_are_told_apart(qkv: Arrays, job: Path) -> None:
    seen, shift = np.arange(300) < 200, np.arange(300, dtype=np.float32)
    cqs.work(*qkv, workers=7, mask=seen[None, :], bias=shift[None, :], job=job, tasks=[0])
    with pytest.raises(cqs.errors.OptionError, match="with `mask`"):
        cqs.work(*qkv, mask=seen[:, None], bias=shift[None, :], job=job)
    with pytest.raises(cqs.errors.OptionError, match="with `bias`"):
        cqs.work(*qkv, mask=seen[None, :], bias=shift[:, None], job=job)


def test_another_call_that_begins_the_job_at_the_same_moment_is_told_apart(
    qkv: Arrays, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = JobDirectory.create

    def late(self: JobDirectory, values: Manifest) -> Manifest:
        monkeypatch.undo()
        cqs.work(*qkv, workers=7, mask=Causal(-2), job=job, tasks=[0])
        return real(self, values)

    monkeypatch.setattr(JobDirectory, "create", late)
    with pytest.raises(cqs.errors.OptionError, match=r"it was begun with `mask` Causal\(offset=-2\)"):
        cqs.work(*qkv, workers=7, job=job)
    assert kept(job) == [0]


def test_many_numbers_of_a_mask_are_short_in_the_manifest(job: Path) -> None:
    x = np.zeros((1, 20_000, 4), np.float32)
    cqs.work(x, x, x, mask=Documents([10] * 2000), job=job, workers=2, tasks=[])
    assert (job / "job.json").stat().st_size < 3000
    with pytest.raises(cqs.errors.OptionError, match="with `mask`"):
        cqs.work(x, x, x, mask=Documents([10] * 1998 + [9, 11]), job=job)


def test_a_budget_that_is_too_small_for_the_tasks_is_refused(job: Path) -> None:
    x = np.zeros((4, 3000, 32), np.float32)
    cqs.work(x, x, x, workers=1, job=job, tasks=[])
    with pytest.raises(cqs.errors.BudgetError, match="`memory` must be at least"):
        cqs.attention(x, x, x, job=job, memory="3 MiB")


def test_files_that_have_not_changed_are_not_read_to_see_it(
    tmp_path: Path, qkv: Arrays, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = files(tmp_path)
    cqs.attention(*paths, workers=7, job=job)
    monkeypatch.setattr("cqs.sources.npy.NpyInput.read", lambda *args: pytest.fail("it was read"))
    cqs.attention(*paths, job=job)


def test_a_copy_of_a_file_will_do_and_a_changed_file_will_not(tmp_path: Path, qkv: Arrays, job: Path) -> None:
    paths = files(tmp_path)
    cqs.work(*paths, workers=7, job=job, tasks=[0])
    (elsewhere := tmp_path / "elsewhere").mkdir()
    cqs.work(*saved(elsewhere, qkv), job=job, tasks=[1])
    cqs.work(*qkv, job=job, tasks=[2])
    os.utime(paths[1])
    cqs.work(*paths, job=job, tasks=[3])
    np.save(paths[2], qkv[2] + 1)
    with pytest.raises(cqs.errors.OptionError, match="another `v`"):
        cqs.work(*paths, job=job)
    assert kept(job) == [0, 1, 2, 3]


def test_strides_do_not_matter(qkv: Arrays, job: Path) -> None:
    cqs.work(*qkv, workers=7, job=job, tasks=[0])
    cqs.work(*[np.asfortranarray(x) for x in qkv], job=job, tasks=[1])
    wide = [np.repeat(x, 2, axis=-1)[..., ::2] for x in qkv]
    assert cqs.attention(*wide, job=job).tobytes() == cqs.attention(*qkv, workers=7).tobytes()


# What goes wrong


def test_a_result_that_was_cut_off_is_computed_again(qkv: Arrays, job: Path) -> None:
    expected = cqs.attention(*qkv, workers=7, job=job)
    for name, size in (("000002", 0), ("000005", 1000)):
        with (job / "results" / f"{name}.npz").open("r+b") as file:
            file.truncate(size)
    assert kept(job) == [0, 1, 3, 4, 6]
    assert cqs.attention(*qkv, job=job).tobytes() == expected.tobytes()


@pytest.mark.parametrize("where", [0.3, 0.6, 0.95])
def test_results_that_are_damaged_are_removed_and_named(qkv: Arrays, job: Path, where: float) -> None:
    expected = cqs.attention(*qkv, workers=7, job=job)
    for name in ("000002.npz", "000004.npz"):
        path = job / "results" / name
        damaged = bytearray(path.read_bytes())
        damaged[int(len(damaged) * where)] ^= 1
        path.write_bytes(damaged)
    with pytest.raises(cqs.errors.SourceError, match=r"000002\.npz is damaged.*; removed 2 results: run again"):
        cqs.attention(*qkv, job=job)
    assert kept(job) == [0, 1, 3, 5, 6]
    assert cqs.attention(*qkv, job=job).tobytes() == expected.tobytes()


def test_results_of_other_tasks_and_other_jobs_are_none_of_this_one(job: Path) -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 2, 700, 8), dtype=np.float32)  # groups of one size
    expected = cqs.attention(x, x, x, workers=7, job=job)
    cqs.attention(y, y, y, workers=7, job=(other := job.with_name("other.job")))
    (job / "results" / "000004.npz").replace(job / "results" / "000003.npz")
    (other / "results" / "000005.npz").replace(job / "results" / "000005.npz")
    assert kept(job) == [0, 1, 2, 6]
    assert cqs.attention(x, x, x, job=job).tobytes() == expected.tobytes()


def test_a_run_whose_job_was_begun_anew_by_another_writes_nothing_to_it(job: Path) -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 2, 700, 8), dtype=np.float32)

    def begin_anew(event: Event) -> None:
        if isinstance(event, TaskDone) and event.task == 2:
            shutil.rmtree(job)
            cqs.work(y, y, y, workers=7, job=job, tasks=[0])

    with pytest.raises(cqs.errors.SinkError, match="it has been removed, or is that of another job now"):
        cqs.work(x, x, x, workers=7, job=job, engine=LocalEngine(1), on_event=begin_anew)
    assert kept(job) == [0]
    assert cqs.attention(y, y, y, job=job).tobytes() == cqs.attention(y, y, y, workers=7).tobytes()


def test_anyone_can_read_a_result(qkv: Arrays, job: Path) -> None:
    cqs.work(*qkv, workers=7, job=job, tasks=[3])
    plan, found = cqs.plan(*qkv, job=job), []
    worker = Worker(plan.problem, ArraySource(*qkv), KERNELS[plan.setting.kernel].attend, grain=plan.grain)
    with np.load(job / "results" / "000003.npz") as arrays:
        assert sorted(arrays) == ["lse", "out", "rest"]
        found = [arrays[name] for name in ("out", "lse", "rest")]
    partials = worker.run(plan.task(3)).partials
    np.testing.assert_array_equal(found[0], np.concatenate([p.out for p in partials], axis=-2))
    np.testing.assert_array_equal(found[1], np.concatenate([p.lse for p in partials], axis=-1))
    np.testing.assert_array_equal(found[2], np.concatenate([p.rest for p in partials], axis=-1))


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("", "Expecting value"),
        ("[]", "not in the format cqs.job/2"),
        ('{"format": "cqs.job/1"}', "not in the format cqs.job/2"),
        ("7", "TypeError"),
        ('{"format": "cqs.job/9"}', "not in the format"),
        ('{"format": "cqs.job/2"}', "KeyError"),
        (None, "Is a directory"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(qkv: Arrays, job: Path, manifest: str | None, message: str) -> None:
    cqs.work(*qkv, job=job, workers=7, tasks=[])
    (job / "job.json").unlink()
    if manifest is None:
        (job / "job.json").mkdir()
    else:
        (job / "job.json").write_text(manifest)
    with pytest.raises(cqs.errors.OptionError, match=rf"`job` must have a job\.json that can be read, .*{message}"):
        cqs.attention(*qkv, job=job)


def test_a_disk_without_room_is_found_out_at_the_start(qkv: Arrays, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = cqs.plan(*qkv, workers=7).traffic.results
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": needed // 2}))
    with pytest.raises(cqs.errors.SinkError, match=r"needs .* for results, .* are free; free some"):
        cqs.attention(*qkv, job=job, workers=7)
    assert kept(job) == []
    monkeypatch.undo()
    cqs.work(*qkv, job=job, tasks=range(4))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": needed // 2}))
    cqs.attention(*qkv, job=job)  # which has only three to write


def test_a_disk_that_fills_up_leaves_what_was_kept(qkv: Arrays, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = records._write

    def fail(archive: Any, name: str, *args: Any, **options: Any) -> None:
        if len(kept(job)) == 2 and name == "lse":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(archive, name, *args, **options)

    monkeypatch.setattr(records, "_write", fail)
    with pytest.raises(cqs.errors.SinkError, match=r"000002\.npz cannot be written: No space left .* is safe"):
        cqs.attention(*qkv, workers=7, job=job, engine=LocalEngine(1))
    assert sorted(path.name for path in (job / "results").iterdir()) == ["000000.npz", "000001.npz"]
    monkeypatch.undo()
    assert cqs.attention(*qkv, job=job).tobytes() == cqs.attention(*qkv, workers=7).tobytes()


def test_what_a_killed_run_has_left_of_a_result_is_taken_over(qkv: Arrays, job: Path) -> None:
    cqs.work(*qkv, workers=7, job=job, tasks=[0])
    (job / "results" / "000003.npz.unfinished").write_bytes(b"of a run that was killed" * 100_000)
    cqs.work(*qkv, job=job)
    assert sorted(path.name for path in (job / "results").iterdir()) == [f"{i:06}.npz" for i in range(7)]


def test_a_result_that_another_run_is_writing_is_left_to_it(qkv: Arrays, job: Path) -> None:
    cqs.work(*qkv, workers=7, job=job, tasks=[0])
    held = hold(job / "results" / "000003.npz")
    try:
        assert cqs.work(*qkv, job=job) == 1
    finally:
        os.close(held)
    assert cqs.work(*qkv, job=job) == 0


def test_masks_of_ones_own_are_refused(qkv: Arrays, job: Path) -> None:
    @dataclass(frozen=True)
    class Causal(cqs.masks.Causal):
        """Its name is that of another."""

    with pytest.raises(cqs.errors.OptionError, match=r"`mask` must be made of numbers .* take masks of `cqs\.masks`"):
        cqs.attention(*qkv, mask=Causal(), job=job)


def test_slopes_of_alibi_count(qkv: Arrays, job: Path) -> None:
    cqs.work(*qkv, workers=7, bias=ALiBi.standard(4), job=job, tasks=[0])
    with pytest.raises(cqs.errors.OptionError, match=r"with `bias` ALiBi\(slopes=\[0\.25,"):
        cqs.work(*qkv, bias=ALiBi((1, 1, 1, 1)), job=job)


def test_a_kernel_for_gpus_wants_one(qkv: Arrays, job: Path) -> None:
    cqs.work(*qkv, workers=7, job=job, tasks=[])
    text = (job / "job.json").read_text()
    (job / "job.json").write_text(re.sub(r'"kernel": "\w+"', '"kernel": "gemm"', text))
    with pytest.raises(cqs.errors.OptionError, match="`backend` must be 'cupy', as when the job was begun"):
        cqs.attention(*qkv, job=job)


@pytest.mark.parametrize("chunks", [(1, 300, 16), (4, 7, 16), (2, 100, 5)])
def test_zarr_arrays_are_known_by_their_numbers_and_their_files(
    tmp_path: Path, qkv: Arrays, job: Path, chunks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr = pytest.importorskip("zarr")
    expected = cqs.attention(*qkv, workers=7, job=job)  # of arrays in memory
    array = zarr.create_array(tmp_path / "q.zarr", data=qkv[0], chunks=chunks)
    given = tmp_path / "q.zarr", *qkv[1:]
    assert cqs.attention(*given, job=job).tobytes() == expected.tobytes()
    cqs.work(*given, workers=7, job=(other := job.with_name("other.job")))
    monkeypatch.setattr("cqs.sources.zarrs.ZarrInput.read", lambda *args: pytest.fail("it was read"))
    cqs.attention(*given, job=other)
    monkeypatch.undo()
    array[3, 200, 2] = 7
    with pytest.raises(cqs.errors.OptionError, match="another `q`"):
        cqs.attention(*given, job=other)


def places(tmp_path: Path) -> dict[str, tuple[Any, str]]:
    (tmp_path / "file").touch()
    (tmp_path / "full" / "results").mkdir(parents=True)
    (tmp_path / "full" / "thesis.tex").touch()
    return {
        "nowhere": (tmp_path / "none" / "run.job", "be in a directory that exists"),
        "a file": (tmp_path / "file", "be new, or the directory of a job"),
        "somebody's": (tmp_path / "full", "be new, or the directory of a job"),
        "no path": (7, "be a path, got 7"),
        "nothing": ("", "be a path, got ''"),
    }


@pytest.mark.parametrize("what", ["nowhere", "a file", "somebody's", "no path", "nothing"])
def test_what_is_no_place_for_a_job_is_refused(qkv: Arrays, tmp_path: Path, what: str) -> None:
    place, message = places(tmp_path)[what]
    for call in (cqs.attention, cqs.work, cqs.plan):
        with pytest.raises(cqs.errors.OptionError, match=message):
            call(*qkv, job=place)


def test_an_empty_directory_will_do(qkv: Arrays, job: Path) -> None:
    job.mkdir()
    cqs.attention(*qkv, job=job)
    assert kept(job)


def test_the_output_has_another_name(tmp_path: Path, qkv: Arrays) -> None:
    (tmp_path / "run.npy").mkdir()
    for out in (tmp_path / "run.npy", tmp_path / "run.npy" / "out.npy"):
        with pytest.raises(cqs.errors.OptionError, match=r"`(job|out)` must"):
            cqs.attention(*qkv, job=tmp_path / "run.npy", out=out)


def double(score: Any, b: int, h: int, q_idx: Any, k_idx: Any) -> Any:
    return score * 2


@pytest.mark.parametrize(
    "options",
    [{"score_mod": double}, {"mask": cqs.masks.Predicate(lambda b, h, q, k: k <= q)}],
    ids=["score_mod", "Predicate"],
)
def test_functions_are_refused(qkv: Arrays, job: Path, options: dict[str, Any]) -> None:
    with pytest.raises(cqs.errors.OptionError, match="nobody can tell that it is the same the next time"):
        cqs.attention(*qkv, **options, job=job)
    assert not job.exists()


def test_arrays_of_other_libraries_are_refused(qkv: Arrays, job: Path) -> None:
    xp = pytest.importorskip("array_api_strict")
    with pytest.raises(cqs.errors.BackendError, match="unless inputs are NumPy arrays or files"):
        cqs.attention(*[xp.asarray(x) for x in qkv], job=job)


def test_an_engine_that_runs_only_all_tasks_is_refused(qkv: Arrays, job: Path) -> None:
    class OldEngine:
        def run(self, plan: Plan, worker: Worker, accept: Accept) -> None:
            """Run everything."""

    with pytest.raises(cqs.errors.OptionError, match="`engine` must run some tasks"):
        cqs.attention(*qkv, job=job, engine=OldEngine())


@pytest.mark.parametrize("tasks", [7, "0", [0, 7], [-1], [0.5], slice("a"), slice(0, 1, 0), [True]])
def test_what_is_no_choice_of_tasks_is_refused(qkv: Arrays, job: Path, tasks: Any) -> None:
    with pytest.raises(cqs.errors.OptionError, match="`tasks` must be"):
        cqs.work(*qkv, workers=7, job=job, tasks=tasks)
    assert not job.exists()


def test_work_needs_a_job(qkv: Arrays) -> None:
    with pytest.raises(cqs.errors.OptionError, match="`job` must be a path, got None"):
        cqs.work(*qkv, job=None)
    with pytest.raises(cqs.errors.OptionError, match="`score_mod` must be an option of `work`"):
        cqs.work(*qkv, job="x", score_mod=double)
