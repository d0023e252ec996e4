"""`cqs run`: exact outputs in files, and none that is not complete."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import INPUTS, Run, assert_refused, files

import cqs
import cqs.cli.files
import cqs.oracle
import cqs.verify
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
    assert cqs.Plan.from_json(json.dumps(values["plan"])) == cqs.plan(*qkv, workers=7)


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
        ("run q.npy k.npy nope.npy -o out.npy", ["nope.npy", "No such file"]),
        ("run q.npy k.npy -o out.npy", ["2 files"]),
        ("run q.npy -o out.npy", ["`q.npy`", "another kind of file"]),
        ("run inputs.npz k.npy v.npy -o out.npy", ["inputs.npz", "be a .npy file"]),
        ("run cut.npy k.npy v.npy -o out.npy", ["cut.npy", "complete"]),
        ("run empty.npy k.npy v.npy -o out.npy", ["empty.npy"]),
        ("run text.npy k.npy v.npy -o out.npy", ["text.npy"]),
        ("run objects.npy k.npy v.npy -o out.npy", ["objects.npy", "object"]),
        ("run cut.npz -o out.npy", ["cut.npz"]),
        ("run rotten.npz -o out.npy", ["rotten.npz"]),
        ("run objects.npz -o out.npy", ["objects.npz", "bject"]),
        ("run names.npz -o out.npy", ["names.npz", "q, k and v", "got query, k, v"]),
        ("run . k.npy v.npy -o out.npy", ["Is a directory"]),
        ("run k.npy q.npy q.npy -o out.npy", ["multiple", "heads"]),
        ("run flat.npy k.npy v.npy -o out.npy", ["`q`", "heads axis"]),
        ("run whole.npy k.npy v.npy -o out.npy", ["`q`", "int64"]),
        ("run inputs.npz -o out.npy --workers 0", ["`workers`", "at least 1"]),
        ("run inputs.npz -o out.npy --kernel fast", ["`kernel`", "'fast'", "blockwise"]),
        ("run inputs.npz -o out.npy --strategy rings", ["`strategy`", "'rings'"]),
        ("run inputs.npz -o out.npy --threads 0", ["`threads`"]),
        ("run inputs.npz -o out.npy --scale nan", ["`scale`", "finite"]),
        ("run inputs.npz -o nowhere/out.npy", ["`-o`", "directory that exists"]),
        ("run inputs.npz -o inputs.npz", ["`-o`", ".npy"]),
        ("run q.npy k.npy v.npy -o ./q.npy --force", ["`-o`", "not be one of the inputs"]),
        ("run q.npy k.npy v.npy -o link.npy --force", ["`-o`", "not be one of the inputs"]),
        ("run q.npy k.npy v.npy -o out.npy --lse v.npy --force", ["`--lse`", "not be one of the inputs"]),
        ("run inputs.npz -o out.npy --lse ./out.npy", ["`--lse`", "another file"]),
        ("run inputs.npz -o folder.npy --force", ["`-o`", "regular file"]),
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
    def half_done(*args: Any, out: np.ndarray, **kwargs: Any) -> None:
        out[0] = 1
        raise error

    (tmp_path / "old.npy").write_text("precious")
    before = files(tmp_path)
    monkeypatch.setattr(cqs, "attention", half_done)
    assert cli("run inputs.npz -o out.npy --lse lse.npy") == (code, "", message)
    assert cli("run inputs.npz -o old.npy --lse lse.npy --force")[0] == code
    assert files(tmp_path) == before
    assert not cqs.cli.files.unfinished


def test_a_full_disk_is_found_out_at_the_start(
    cli: Run, qkv: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    before = files(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    assert_refused(cli("run inputs.npz -o out.npy"), "No space left on device", str(tmp_path))
    assert files(tmp_path) == before


_ENDLESS = """
import sys, time, cqs, cqs.cli
from concurrent.futures import ThreadPoolExecutor

def endless(*args, **kwargs):  # as attention: threads in the middle of long tasks
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(time.sleep, 120)
        print("started", flush=True)
        task.result()

cqs.attention = endless
sys.exit(cqs.cli.main("run inputs.npz -o out.npy --lse lse.npy".split()))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_at_once(qkv: Any, tmp_path: Path, number: signal.Signals) -> None:
    before = files(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", _ENDLESS], cwd=tmp_path, stdout=-1, stderr=-1)
    assert process.stdout is not None
    process.stdout.readline()
    assert any(name.endswith(".unfinished") for name in os.listdir(tmp_path))
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (128 + number, b"cqs: interrupted\n")
    assert files(tmp_path) == before
