"""Jobs: what belongs to another call is refused, and what is damaged does no harm."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job_cases import Arrays, files, kept, saved

import cqs
from cqs.engines import Accept, LocalEngine
from cqs.masks import Dense, Documents, SlidingWindow
from cqs.schedule import Plan
from cqs.scores import ALiBi
from cqs.worker import Worker

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


# Another call is refused


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "mask": ({"is_causal": False}, r"with `mask` .*Causal.*, got .*NoMask"),
    "window": ({"is_causal": False, "mask": SlidingWindow(5)}, "with `mask`"),
    "scale": ({"scale": 0.5}, "with `scale` 0.25, got 0.5"),
    "softcap": ({"softcap": 2.0}, "with `softcap` null, got 2.0"),
    "bias": ({"bias": ALiBi.standard(4)}, "with `bias` null"),
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
    (job / "results" / ".000003.npz.0123").write_bytes(b"of a run that was killed")
    assert kept(job) == [0, 1, 3, 4, 6]
    assert cqs.attention(*qkv, job=job).tobytes() == expected.tobytes()


@pytest.mark.parametrize("where", [0.3, 0.6, 0.95])
def test_a_result_that_is_damaged_is_named(qkv: Arrays, job: Path, where: float) -> None:
    cqs.attention(*qkv, workers=7, job=job)
    path = job / "results" / "000004.npz"
    damaged = bytearray(path.read_bytes())
    damaged[int(len(damaged) * where)] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(cqs.errors.SourceError, match=r"000004\.npz is damaged .*remove it and run again"):
        cqs.attention(*qkv, job=job)
    path.unlink()
    cqs.attention(*qkv, job=job)


def test_results_of_another_plan_are_refused(qkv: Arrays, job: Path) -> None:
    cqs.attention(*qkv, workers=7, job=job)
    (job / "results" / "000004.npz").replace(job / "results" / "000003.npz")
    cqs.attention(*qkv, workers=13, job=(other := job.with_name("other.job")))
    (other / "results" / "000004.npz").replace(job / "results" / "000004.npz")
    with pytest.raises((cqs.errors.TileError, cqs.errors.SourceError)):
        cqs.attention(*qkv, job=job)


def test_anyone_can_read_a_result(qkv: Arrays, job: Path) -> None:
    cqs.work(*qkv, workers=7, job=job, tasks=[3])
    with np.load(job / "results" / "000003.npz") as arrays:
        assert arrays["out0"].dtype == np.float32
        assert arrays["out0"].shape[:-1] == arrays["lse0"].shape[:-1]
        assert len(arrays) == 2 * len(cqs.plan(*qkv, job=job).task(3).strips)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("", "Expecting value"),
        ("[]", "job.json"),
        ('{"format": "cqs.job/9"}', "the format 'cqs.job/9'"),
        ("{}", "format"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(qkv: Arrays, job: Path, manifest: str, message: str) -> None:
    cqs.work(*qkv, job=job, workers=7, tasks=[])
    (job / "job.json").write_text(manifest)
    with pytest.raises(cqs.errors.OptionError, match=message):
        cqs.attention(*qkv, job=job)


def test_a_disk_without_room_is_found_out_at_the_start(qkv: Arrays, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(cqs.errors.SinkError, match=r"needs .* for results, 1000 B are free; free some"):
        cqs.attention(*qkv, job=job, workers=7)
    assert kept(job) == []


def test_a_disk_that_fills_up_leaves_what_was_kept(qkv: Arrays, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = cqs.attention(*qkv, workers=7)
    with monkeypatch.context() as patch:

        def fail(*args: Any) -> None:
            if kept(job) == [0, 1]:
                raise OSError(28, "No space left on device")

        patch.setattr("cqs.jobs.records._write", fail)
        with pytest.raises(cqs.errors.SinkError, match=r"000002\.npz cannot be written: No space left .* is safe"):
            cqs.attention(*qkv, workers=7, job=job, engine=LocalEngine(1))
    assert [path.name for path in (job / "results").iterdir()] == ["000000.npz", "000001.npz"] or kept(job) == [0, 1]
    (job / "results" / "000000.npz").unlink()  # which the patch left without its arrays
    (job / "results" / "000001.npz").unlink()
    assert cqs.attention(*qkv, job=job).tobytes() == expected.tobytes()


def places(tmp_path: Path) -> dict[str, tuple[Any, str]]:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    return {
        "nowhere": (tmp_path / "none" / "run.job", "be in a directory that exists"),
        "a file": (tmp_path / "file", "be new, or the directory of a job"),
        "somebody's": (tmp_path / "full", "be new, or the directory of a job"),
        "no path": (7, "be a path, got 7"),
    }


@pytest.mark.parametrize("what", ["nowhere", "a file", "somebody's", "no path"])
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
    with pytest.raises(cqs.errors.OptionError, match="`job` must not be `out`"):
        cqs.attention(*qkv, job=tmp_path / "out.npy", out=tmp_path / "out.npy")


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
