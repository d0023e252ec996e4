"""`cqs run`: exact outputs in files, and none that is not complete."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import INPUTS, Run, assert_refused, files

import cqs
from cqs.masks import Causal, Sinks, SlidingWindow
from cqs.scores import ALiBi
from cqs.testing import assert_exact


@pytest.mark.parametrize("inputs", ["q.npy k.npy v.npy", "inputs.npz"])
@pytest.mark.parametrize("options", ["", "--causal --workers 7 --scale 0.3", "--kernel blockwise --strategy tiles"])
def test_run(cli: Run, qkv: Any, inputs: str, options: str, tmp_path: Path) -> None:
    code, out, _ = cli(f"run {inputs} -o out.npy --lse lse.npy --threads 2 {options}")
    assert code == 0
    assert "out.npy" in out
    choice = {"is_causal": "--causal" in options, "scale": 0.3 if "--scale" in options else None}
    assert_exact(np.load(tmp_path / "out.npy"), *qkv, **choice, lse=np.load(tmp_path / "lse.npy"))
    assert sorted(files(tmp_path)) == sorted([*INPUTS, "inputs.npz", "out.npy", "lse.npy"])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_run_keeps_the_type(cli: Run, tmp_path: Path, dtype: type) -> None:
    x = np.random.default_rng(0).standard_normal((2, 1, 50, 4)).astype(dtype)
    for name in INPUTS:
        np.save(tmp_path / name, np.asfortranarray(x))
    assert cli("run q.npy k.npy v.npy -o out.npy --quiet") == (0, "", "")
    out = np.load(tmp_path / "out.npy")
    assert out.dtype == dtype
    assert_exact(out, x, x, x)


def test_run_json(cli: Run, qkv: Any) -> None:
    code, out, err = cli("run inputs.npz -o out.npy --json --workers 7")
    values = json.loads(out)
    assert (code, err) == (0, "")
    assert values["out"] == "out.npy"
    assert values["lse"] is None
    assert values["shape"] == [4, 300, 24]
    assert values["seconds"] > 0
    assert cqs.Plan.from_json(json.dumps(values["plan"])) == cqs.plan(*qkv, workers=7, out="out.npy")


def test_run_without_tokens(cli: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", q=np.ones((2, 0, 4)), k=np.ones((2, 3, 4)), v=np.ones((2, 3, 4)))
    assert cli("run none.npz -o out.npy -q")[0] == 0
    assert np.load(tmp_path / "out.npy").shape == (2, 0, 4)
    assert cli("verify none.npz out.npy")[0] == 0


def test_run_replaces_only_with_force(cli: Run, qkv: Any, tmp_path: Path) -> None:
    (tmp_path / "out.npy").write_text("precious")
    assert_refused(cli("run inputs.npz -o out.npy"), "`-o` must not exist yet", "--force")
    assert_refused(cli("run inputs.npz -o new.npy --lse out.npy"), "`--lse` must not exist yet")
    assert (tmp_path / "out.npy").read_text() == "precious"
    assert cli("run inputs.npz -o out.npy --force")[0] == 0
    assert_exact(np.load(tmp_path / "out.npy"), *qkv)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run q.npy k.npy nope.npy -o out.npy", ["`V` must be a file that exists, got nope.npy"]),
        ("run q.npy k.npy -o out.npy", ["2 files"]),
        ("run q.npy -o out.npy", ["`q.npy`", "another kind of file"]),
        ("run inputs.npz k.npy v.npy -o out.npy", ["inputs.npz", "be a .npy file"]),
        ("run cut.npy k.npy v.npy -o out.npy", ["cut.npy", "truncated"]),
        ("run empty.npy k.npy v.npy -o out.npy", ["empty.npy"]),
        ("run text.npy k.npy v.npy -o out.npy", ["text.npy"]),
        ("run objects.npy k.npy v.npy -o out.npy", ["objects.npy", "object"]),
        ("run cut.npz -o out.npy", ["cut.npz"]),
        ("run rotten.npz -o out.npy", ["rotten.npz"]),
        ("run objects.npz -o out.npy", ["objects.npz", "bject"]),
        ("run names.npz -o out.npy", ["names.npz", "q, k and v", "got query, k, v"]),
        ("run . k.npy v.npy -o out.npy", ["directory", "Zarr"]),
        ("run k.npy q.npy q.npy -o out.npy", ["multiple", "heads"]),
        ("run flat.npy k.npy v.npy -o out.npy", ["`q`", "heads axis"]),
        ("run whole.npy k.npy v.npy -o out.npy", ["`q`", "int64"]),
        ("run inputs.npz -o out.npy --workers 0", ["`--workers`", "at least 1"]),
        ("run inputs.npz -o out.npy --kernel fast", ["`--kernel`", "'fast'", "blockwise"]),
        ("run inputs.npz -o out.npy --strategy rings", ["`--strategy`", "'rings'"]),
        ("run inputs.npz -o out.npy --threads 0", ["`--threads`"]),
        ("run inputs.npz -o out.npy --scale nan", ["`--scale`", "finite"]),
        ("run inputs.npz -o nowhere/out.npy", ["`-o`", "directory that exists"]),
        ("run inputs.npz -o inputs.npz", ["`-o`", ".npy"]),
        ("run q.npy k.npy v.npy -o ./q.npy --force", ["`-o`", "not be one of the inputs"]),
        ("run q.npy k.npy v.npy -o link.npy --force", ["`-o`", "not be one of the inputs"]),
        ("run q.npy k.npy v.npy -o out.npy --lse v.npy --force", ["`--lse`", "not be one of the inputs"]),
        ("run inputs.npz -o out.npy --lse ./out.npy", ["`--lse`", "another file"]),
        ("run inputs.npz -o folder.npy --force", ["`-o`", "regular file", "is a directory"]),
        ("run nope.npz -o inputs.npz --force", ["`INPUTS.npz` must be a file that exists"]),
        ("run inputs.npz -o out.npy --mask nope.npy", ["`--mask` must be a file that exists, got nope.npy"]),
        ("run inputs.npz -o out.npy --workers x", ["`--workers` must be a whole number", "'x'"]),
        ("run inputs.npz -o out.npy --workers -1", ["`--workers` must be a whole number", "'-1'"]),
        ("run inputs.npz -o out.npy --workers 1e9", ["`--workers` must be at most"]),
        ("run inputs.npz -o out.npy --scale abc", ["`--scale` must be a number", "'abc'"]),
        ("run inputs.npz -o out.npy --kernel cudnn", ["use --kernel auto"]),
    ],
)
def test_run_refuses_bad_input_and_leaves_nothing(
    cli: Run, qkv: Any, line: str, words: list[str], tmp_path: Path
) -> None:
    whole_file = (tmp_path / "q.npy").read_bytes()
    archive = bytearray((tmp_path / "inputs.npz").read_bytes())
    (tmp_path / "cut.npy").write_bytes(whole_file[:2000])
    (tmp_path / "cut.npz").write_bytes(archive[:2000])
    archive[5000] ^= 1
    (tmp_path / "rotten.npz").write_bytes(archive)
    (tmp_path / "empty.npy").touch()
    (tmp_path / "text.npy").write_text("0.1 0.2 0.3\n" * 100)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", q=np.array([{}]), k=qkv[1], v=qkv[2])
    np.savez(tmp_path / "names.npz", query=qkv[0], k=qkv[1], v=qkv[2])
    np.save(tmp_path / "flat.npy", qkv[0][0])
    np.save(tmp_path / "whole.npy", qkv[0].astype(np.int64))
    (tmp_path / "link.npy").symlink_to("k.npy")
    before = set(os.listdir(tmp_path))
    (tmp_path / "folder.npy").mkdir()
    assert_refused(cli(line), *words)
    assert set(os.listdir(tmp_path)) - {"folder.npy"} == before
    assert (tmp_path / "q.npy").read_bytes() == whole_file


def test_run_refuses_a_directory_that_it_may_not_write_to(
    cli: Run, qkv: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert_refused(cli("run inputs.npz -o out.npy"), "`-o`", "may be written to")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError("Unable to allocate 8 GiB"), 2, "cqs: error: not enough memory: Unable to allocate 8 GiB\n"),
        (OSError(28, "No space left on device", "/disk"), 2, "cqs: error: No space left on device: /disk\n"),
        (KeyboardInterrupt(), 130, "cqs: interrupted\n"),
    ],
)
def test_a_run_that_fails_in_the_middle_leaves_nothing(
    cli: Run,
    qkv: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    add, seen = cqs.Tiler.add, []

    def fails_in_the_middle(tiler: cqs.Tiler, result: cqs.TaskResult) -> None:
        add(tiler, result)
        if tiler.n_added == 3:
            seen.extend(os.listdir(tmp_path))
            raise error

    (tmp_path / "old.npy").write_text("precious")
    before = files(tmp_path)
    monkeypatch.setattr(cqs.Tiler, "add", fails_in_the_middle)
    assert cli("run q.npy k.npy v.npy -o out.npy --lse lse.npy --workers 7") == (code, "", message)
    assert {"out.npy.unfinished", "lse.npy.unfinished"} <= set(seen)
    assert cli("run inputs.npz -o old.npy --lse lse.npy --force --workers 7")[0] == code
    assert files(tmp_path) == before


def test_a_full_disk_is_found_out_at_the_start(
    cli: Run, qkv: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    before = files(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    assert_refused(cli("run inputs.npz -o out.npy"), "No space left on device", str(tmp_path))
    assert files(tmp_path) == before


# what a run is given


def test_run_reads_files_within_a_budget(cli: Run, qkv: Any, tmp_path: Path) -> None:
    code, text, _ = cli("run q.npy k.npy v.npy -o out.npy --memory 2MiB --strategy tiles --json")
    values = json.loads(text)
    plan = cqs.Plan.from_json(json.dumps(values["plan"]))
    assert code == 0
    assert_exact(np.load(tmp_path / "out.npy"), *qkv)
    assert plan == cqs.plan("q.npy", "k.npy", "v.npy", memory="2MiB", strategy="tiles", out="out.npy")
    assert (plan.setting.is_staged, plan.setting.output) == (True, "sink")
    assert plan.projected_bytes <= 2 << 20
    moved = {name: values["counters"][name] for name in ("read", "spilled", "written")}
    assert moved == {name: getattr(plan.traffic, name) for name in moved}
    assert_refused(cli("run q.npy k.npy v.npy -o new.npy --memory 10kB"), "`--memory` must be at least", "9.8 KiB")


@pytest.mark.parametrize("strategy", ["cqs", "tiles", "ring", "tree"])
def test_run_by_every_strategy(cli: Run, qkv: Any, tmp_path: Path, strategy: str) -> None:
    assert cli(f"run q.npy k.npy v.npy -o out.npy -q --workers 5 --strategy {strategy}") == (0, "", "")
    assert_exact(np.load(tmp_path / "out.npy"), *qkv)


def test_run_with_masks_and_scores(cli: Run, qkv: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    mask, bias, logits = rng.random((300, 300)) < 0.8, rng.standard_normal((4, 1, 300)), rng.standard_normal(4)
    np.save(tmp_path / "lengths.npy", [100, 0, 150])
    for name, array in {"mask": mask, "bias": bias.astype("f4"), "logits": logits.astype("f4")}.items():
        np.save(tmp_path / f"{name}.npy", array)
    cases: dict[str, dict[str, Any]] = {
        "--window 20": {"mask": SlidingWindow(20, 20)},
        "--window 20 --causal": {"mask": SlidingWindow(20)},
        "--window 20 --causal --sinks 3": {"mask": (SlidingWindow(20) | Sinks(3)) & Causal()},
        "--documents lengths.npy --causal": {"mask": Causal() & cqs.masks.Documents([100, 0, 150])},
        "--mask mask.npy --causal": {"mask": Causal() & cqs.masks.Dense(mask)},
        "--softcap 2 --alibi": {"softcap": 2.0, "bias": ALiBi.standard(4)},
        "--bias bias.npy --sink-logits logits.npy": {
            "bias": bias.astype("f4"),
            "sink_logits": logits.astype("f4"),
        },
    }
    for line, options in cases.items():
        assert cli(f"run q.npy k.npy v.npy -o out.npy --lse lse.npy -q --force {line}") == (0, "", "")
        assert_exact(np.load(tmp_path / "out.npy"), *qkv, **options, lse=np.load(tmp_path / "lse.npy"))
        assert cli(f"verify q.npy k.npy v.npy out.npy {line}")[0] == 0
    assert cli("verify q.npy k.npy v.npy out.npy")[0] == 1
    assert_refused(cli("run q.npy k.npy v.npy -o x.npy --alibi --bias bias.npy"), "`--bias`", "--alibi")
    assert_refused(cli("run q.npy k.npy v.npy -o x.npy --mask nope.npy"), "nope.npy")
    assert_refused(cli("run q.npy k.npy v.npy -o x.npy --documents bias.npy"), "`--documents`", "one axis", "float32")
    np.save(tmp_path / "lengths.npy", [200, 200])
    assert_refused(cli("run q.npy k.npy v.npy -o x.npy --documents lengths.npy"), "400", "300")
    assert_refused(cli("run q.npy k.npy v.npy -o x.npy --softcap -1"), "`--softcap`")


def test_run_between_zarr_arrays(cli: Run, qkv: Any, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    for name, array in zip("qkv", qkv, strict=True):
        zarr.save_array(tmp_path / f"{name}.zarr", array)
    assert cli("run q.zarr k.zarr v.zarr -o out.zarr --memory 16MiB --causal -q") == (0, "", "")
    assert_exact(zarr.open_array(tmp_path / "out.zarr")[...], *qkv, is_causal=True)
    assert cli("verify q.zarr k.zarr v.zarr out.zarr --causal")[0] == 0
    assert_refused(cli("run q.zarr k.zarr v.zarr -o out.zarr"), "`-o` must not exist yet", "--force")
    assert cli("run q.zarr k.npy v.zarr -o out.zarr -q --force") == (0, "", "")
    assert cli("verify q.zarr k.zarr v.zarr out.zarr")[0] == 0


def test_run_writes_a_trace(cli: Run, qkv: Any, tmp_path: Path) -> None:
    code, out, _ = cli("run q.npy k.npy v.npy -o out.npy --workers 7 --trace trace.json")
    entries = json.loads((tmp_path / "trace.json").read_text())
    assert code == 0
    assert "trace.json" in out
    assert sum(entry.get("cat") == "TaskDone" for entry in entries) == 7
    line = "run q.npy k.npy v.npy -o new.npy --trace"
    assert_refused(cli(f"{line} trace.json"), "`--trace` must not exist yet")
    assert_refused(cli(f"{line} trace.txt"), "`--trace` must be a .json file")
    assert_refused(cli(f"{line} nowhere/trace.json"), "`--trace`", "directory")


def test_run_finds_what_is_at_home(cli: Run, qkv: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    assert cli("run ~/q.npy ~/k.npy ~/v.npy --out=~/out.npy -q --workers 1e1") == (0, "", "")
    assert_exact(np.load(tmp_path / "out.npy"), *qkv)
    assert cli("verify ~/inputs.npz ~/out.npy --workers 10")[0] == 0
