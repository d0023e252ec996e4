"""The command line: what it prints where, its exit codes, and that it leaves no output that is not complete."""

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import Problem, problems

import cqs
import cqs.cli.files
import cqs.oracle
import cqs.verify
from cqs.backend import BlasLibrary
from cqs.cli import main
from cqs.cli.doctor import Facts, advice
from cqs.cli.options import whole
from cqs.testing import assert_exact, reference_attention
from cqs.verify import verify_rows

Run = Callable[..., tuple[int, str, str]]
INPUTS = ["q.npy", "k.npy", "v.npy"]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in an empty directory; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> tuple[int, str, str]:
        code = main(line.split())
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def qkv(tmp_path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grouped-query arrays, saved as .npy files and as one .npz."""
    rng = np.random.default_rng(5)
    q = rng.standard_normal((4, 300, 16), dtype=np.float32)
    k, v = rng.standard_normal((2, 300, 16), dtype=np.float32), rng.standard_normal((2, 300, 24), dtype=np.float32)
    for name, array in zip("qkv", (q, k, v), strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "inputs.npz", q=q, k=k, v=v)
    return q, k, v


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("cqs: error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


# the program as a whole


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["--help"], *([name, "--help"] for name in ("demo", "run", "plan", "verify"))):
        with pytest.raises(SystemExit) as ending:
            main(arguments)
        assert ending.value.code == 0
    assert capsys.readouterr().out.startswith(f"cqs {cqs.__version__}\n")


def test_without_a_command_it_shows_help(cli: Run) -> None:
    code, out, err = cli("")
    assert (code, err) == (0, "")
    for command in ("demo", "run", "plan", "verify", "quorum", "doctor", "examples:"):
        assert command in out


@pytest.mark.parametrize("line", ["frobnicate", "run", "quorum", "quorum 7 --frobnicate", "quorum seven", "run -o"])
def test_usage_errors_are_one_line(cli: Run, line: str) -> None:
    assert_refused(cli(line), "--help")


def test_as_a_module_in_a_process_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-m", "cqs.cli", "quorum", "7", "--json"], capture_output=True, check=True)
    assert json.loads(done.stdout)["base"] == [0, 1, 3]
    assert done.stderr == b""


def test_heavy_packages_are_not_imported_until_needed() -> None:
    program = (
        "import sys, cqs.cli; assert 'rich' not in sys.modules;"
        "assert cqs.cli.main(['doctor', '--json']) == 0;"
        "assert not {'torch', 'cupy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)


def test_colours_only_in_a_terminal(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = cli("quorum 7")[1]
    assert "\x1b[" not in plain
    assert all(line == line.rstrip() for line in plain.splitlines())
    monkeypatch.setenv("FORCE_COLOR", "1")  # how rich is told that it writes to a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[30;48;5;" in cli("quorum 7")[1]


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_reader_that_goes_away_ends_it_silently() -> None:
    program = "import sys, cqs.cli; sys.stdin.read(); sys.exit(cqs.cli.main(['quorum', '31']))"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, stderr=-1)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate()
    assert (process.returncode, err) == (141, b"")


def test_interrupt_outside_of_computing(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cqs.cli.quorum.CyclicQuorumSet", interrupted)
    assert cli("quorum 7") == (130, "", "cqs: interrupted\n")


# demo


def test_demo(cli: Run) -> None:
    code, out, _ = cli("demo --workers 13 --causal --threads 2")
    assert code == 0
    assert "13 tasks, each with 4 of 13 groups" in out
    assert "Causal" in out
    assert "all 524,288 numbers" in out
    assert "FLOP/s" in out
    assert out.splitlines()[-1].startswith("Passed")


def test_demo_json(cli: Run) -> None:
    code, out, err = cli("demo --json")
    values = json.loads(out)
    assert (code, err) == (0, "")
    assert values["plan"]["workers"] == 31
    assert values["plan"]["loads"]["least_pairs"] * 31 <= 4096**2 <= values["plan"]["loads"]["most_pairs"] * 31
    assert values["check"]["passed"] is True
    assert values["check"]["n_rows"] == 4 * 4096
    assert 0 < values["check"]["error"] <= values["check"]["bound"]


def test_demo_notices_a_wrong_number(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = cqs.attention

    def slightly_wrong(*args: Any, **kwargs: Any) -> Any:
        out = attention(*args, **kwargs)
        out[2, 1234, 5] += 1e-5
        return out

    monkeypatch.setattr(cqs, "attention", slightly_wrong)
    code, out, _ = cli("demo --workers 3")
    assert code == 1
    assert "(2, 1234, 5)" in out
    assert out.splitlines()[-1].startswith("FAILED")


# run


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


# plan


def test_plan_from_shapes(cli: Run) -> None:
    code, out, err = cli("plan --tokens 4096 --heads 8 --dim 64 --workers 31")
    assert (code, err) == (0, "")
    assert "31 tasks, each with 6 of 31 groups (base 0 1 3 10 14 26)" in out
    assert "of all 24.0 MiB" in out


def test_plan_json_is_the_plan_and_its_loads(cli: Run) -> None:
    shape = "--tokens 1e3 --heads 8 --kv-heads 2 --dim 64 --value-dim 32 --batch 2 3 --dtype bfloat16"
    code, out, _ = cli(f"plan {shape} --workers 13 --causal --json")
    plan = cqs.Plan.from_json(out)
    expected = [(2, 3, 8, 1000, 64), (2, 3, 2, 1000, 64), (2, 3, 2, 1000, 32)]
    assert code == 0
    assert plan == cqs.plan(*expected, workers=13, is_causal=True, dtype="bfloat16")
    tasks = list(plan.tasks())
    assert json.loads(out)["loads"] == {
        "n_tasks": 13,
        "n_counted": 13,
        "least_pairs": min(plan.loads()),
        "most_pairs": max(plan.loads()),
        "held_bytes": max(map(plan.held_bytes, tasks)),
        "whole_bytes": 2 * sum(int(np.prod(shape)) for shape in expected),
        "partial_bytes": max(map(plan.partial_bytes, tasks)),
    }


def test_plan_from_files_and_for_cross_attention(cli: Run, qkv: Any) -> None:
    assert cqs.Plan.from_json(cli("plan q.npy k.npy v.npy --json")[1]) == cqs.plan(*qkv)
    assert cqs.Plan.from_json(cli("plan inputs.npz --json --strategy tiles")[1]).strategy == "tiles"
    plan = cqs.Plan.from_json(cli("plan --tokens 10 --key-tokens 1000 --heads 1 --dim 4 --workers 5 --json")[1])
    assert (plan.strategy, plan.problem.n_keys) == ("tiles", 1000)


def test_plan_of_very_many_tasks_counts_some(cli: Run) -> None:
    code, out, _ = cli("plan --tokens 1e9 --heads 1 --dim 64 --workers 100000000 --strategy tiles")
    assert code == 0
    assert "counted in 16 tasks of 100,000,000" in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("plan", ["missing: --tokens, --heads, --dim"]),
        ("plan --tokens 100 --dim 4", ["missing: --heads"]),
        ("plan inputs.npz --tokens 100", ["`--tokens`", "left out"]),
        ("plan --tokens 1.5 --heads 1 --dim 4", ["--tokens", "whole number"]),
        ("plan --tokens many --heads 1 --dim 4", ["--tokens", "'many'"]),
        ("plan --tokens 100 --heads 1 --dim 4 --dtype int8", ["int8"]),
        ("plan --tokens 100 --heads 3 --kv-heads 2 --dim 4", ["multiple of the 2 heads"]),
        ("plan --tokens 100 --heads 0 --dim 4", ["at least one head"]),
        ("plan --tokens 100 --heads 2 --kv-heads 0 --dim 4", ["`--kv-heads` must be at least 1", "--heads"]),
        ("plan --tokens 100 --heads 2 --dim 4 --value-dim 0", ["`--value-dim` must be at least 1", "--dim"]),
        ("plan --tokens 100 --heads 2 --dim 4 --dtype=", ["`q` must have one of the types", "float32"]),
    ],
)
def test_plan_refuses(cli: Run, line: str, words: list[str]) -> None:
    assert_refused(cli(line), *words)


def test_whole_numbers() -> None:
    assert [whole(text) for text in ("0", "4096", "1e6", "2.5e3", "123456789123456789")] == [
        0,
        4096,
        1_000_000,
        2500,
        123456789123456789,
    ]


# verify


def test_verify_accepts_what_run_wrote(cli: Run, qkv: Any) -> None:
    assert cli("run inputs.npz -o out.npy --causal --scale 0.5")[0] == 0
    code, out, err = cli("verify q.npy k.npy v.npy out.npy --causal --scale 0.5")
    assert (code, err) == (0, "")
    assert "256 of 1,200 rows" in out
    assert out.splitlines()[-1].startswith("Passed")
    code, out, _ = cli("verify inputs.npz out.npy")  # another mask and scale
    assert code == 1
    assert out.splitlines()[-1].startswith("FAILED")


@pytest.mark.parametrize(("rows", "row"), [("64", 0), ("2", 299), ("300", 150)])
def test_verify_detects_a_corrupted_row(cli: Run, qkv: Any, tmp_path: Path, rows: str, row: int) -> None:
    out = cqs.attention(*qkv)
    out[3, row, 7] += 1e-5
    np.save(tmp_path / "out.npy", out)
    code, text, _ = cli(f"verify inputs.npz out.npy --rows {rows} --json")
    found = json.loads(text)
    assert code == 1
    assert found["passed"] is False
    assert found["worst"] == [3, row, 7]
    assert found["error"] == pytest.approx(1e-5, rel=0.1)
    assert found["ulps"] == pytest.approx(found["error"] / found["ulp"])
    assert found["n_rows_in_all"] == 1200


def test_verify_detects_nan(cli: Run, qkv: Any, tmp_path: Path) -> None:
    out = cqs.attention(*qkv)
    out[0, -1] = np.nan
    np.save(tmp_path / "out.npy", out)
    code, text, _ = cli("verify inputs.npz out.npy")
    assert code == 1
    assert "FAILED: 24 numbers are NaN" in text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("verify inputs.npz", ["1 files"]),
        ("verify q.npy k.npy v.npy", ["3 files"]),
        ("verify inputs.npz nope.npy", ["nope.npy", "No such file"]),
        ("verify inputs.npz inputs.npz", ["be a .npy file"]),
        ("verify inputs.npz k.npy", ["`out`", "(4, 300, 24)"]),
        ("verify inputs.npz double.npy", ["`out`", "float64"]),
        ("verify inputs.npz out.npy --rows 0", ["`n_rows`", "at least 1"]),
    ],
)
def test_verify_refuses(cli: Run, qkv: Any, line: str, words: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "double.npy", np.zeros((4, 300, 24)))
    np.save(tmp_path / "out.npy", np.zeros((4, 300, 24), np.float32))
    assert_refused(cli(line), *words)


@settings(derandomize=True)
@given(problems(scales=(1.0,), value_magnitudes=(1e-3, 1.0)), st.sampled_from([64, None]), st.integers(0, 1000))
def test_verify_rows_has_no_false_alarms(problem: Problem, n_rows: int | None, seed: int) -> None:
    out = cqs.attention(problem.q, problem.k, problem.v, **problem.options, workers=problem.workers)
    assume(out.size >= 64)  # on a handful of numbers luck decides what the plain formula's error is
    found = verify_rows(out, problem.q, problem.k, problem.v, **problem.options, n_rows=n_rows, seed=seed)
    assert found.passed, found


@pytest.mark.parametrize("is_causal", [False, True])
def test_verify_rows_finds_the_error_that_float64_finds(monkeypatch: pytest.MonkeyPatch, is_causal: bool) -> None:
    monkeypatch.setattr(cqs.oracle, "_AREA", 1000)  # many blocks of keys
    monkeypatch.setattr(cqs.verify, "_MOST_ROWS", 30)
    rng = np.random.default_rng(1)
    q, k = (rng.standard_normal((2, n, 50, 8), dtype=np.float32) for n in (6, 3))
    out = cqs.attention(q, k, k, is_causal=is_causal)
    exact, _ = reference_attention(q, k, k, scale=8**-0.5, mask=cqs.masks.Causal() if is_causal else None)
    found = verify_rows(out, q, k, k, is_causal=is_causal, n_rows=None)
    assert found.n_rows == 2 * 6 * 50
    assert found.error == pytest.approx(abs(out - exact).max(), rel=1e-6)
    assert abs(out - exact)[found.worst] == pytest.approx(found.error, rel=1e-6)


def test_verify_rows_expects_infinities_and_nan_where_float64_has_them() -> None:
    q = np.random.default_rng(2).standard_normal((1, 20, 4))
    v = q.copy()
    v[0, 3, 1], v[0, 4, 2] = np.inf, np.nan
    out = cqs.attention(q, q, v)
    assert not np.isfinite(out[..., 1:3]).any()
    assert verify_rows(out, q, q, v).passed
    out[0, 7, 2] = 1
    assert verify_rows(out, q, q, v).n_broken == 1


def test_verify_rows_memory_does_not_grow_with_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cqs.oracle, "_AREA", 1 << 16)  # blocks of 512 KiB in float64
    k = np.random.default_rng(3).standard_normal((1, 100_000, 4), dtype=np.float32)
    q = k[:, :100]
    out = cqs.attention(q, k, k)
    tracemalloc.start()
    try:
        assert verify_rows(out, q, k, k).passed  # 64 rows: the scores would be 49 MiB
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


# quorum


def test_quorum(cli: Run) -> None:
    code, out, err = cli("quorum 7")
    assert (code, err) == (0, "")
    assert "perfect         yes" in out
    assert "worker 6  holds groups  0 2 6\n" in out
    rows = [line.split()[1:] for line in out.splitlines()[-7:]]
    assert np.array_equal(np.array(rows, int), cqs.CyclicQuorumSet(7).ownership())


@pytest.mark.parametrize("W", [1, 2, 8, 31])
def test_quorum_json(cli: Run, W: int) -> None:
    values = json.loads(cli(f"quorum {W} --json")[1])
    quorums = cqs.CyclicQuorumSet(W)
    assert tuple(values["base"]) == quorums.base
    assert values["size"] == values["lower_bound"] == quorums.cover.size
    assert values["is_perfect"] == quorums.cover.is_perfect
    assert [tuple(quorum) for quorum in values["quorums"]] == [quorums.quorum(i) for i in range(W)]
    assert values["owners"] == quorums.ownership().tolist()
    assert sum(values["causal_tiles"].values()) == W


def test_quorum_of_many_workers_is_abridged(cli: Run) -> None:
    code, out, _ = cli("quorum 133")
    assert code == 0
    assert "... and 128 more" in out
    assert "up to W = 31" in out
    assert len(out.splitlines()) < 20
    assert json.loads(cli("quorum 133 --json")[1])["owners"] is None


@pytest.mark.parametrize("W", ["0", "1e9"])
def test_quorum_refuses(cli: Run, W: str) -> None:
    assert_refused(cli(f"quorum {W}"), "`W` must")


# doctor


def facts(architecture: str = "Haswell", simd: tuple[str, ...] = ("X86_V4",), coretype: str | None = None) -> Facts:
    blas = (BlasLibrary("openblas", "0.3.30", architecture, 8),)
    return Facts("0.1.0", "2.4.0", "3.13.1", "Linux x86_64", blas, simd, coretype, 8, 13, {"torch": None})


@pytest.mark.parametrize("architecture", ["Haswell", "Zen", "haswell"])
@pytest.mark.parametrize("simd", [("SSE42", "AVX2", "AVX512_SKX"), ("X86_V2", "X86_V3", "X86_V4")])
def test_doctor_sees_avx2_kernels_on_a_cpu_with_avx512(architecture: str, simd: tuple[str, ...]) -> None:
    (remedy,) = advice(facts(architecture, simd))
    assert "OPENBLAS_CORETYPE=SkylakeX" in remedy
    assert architecture in remedy


def test_doctor_sees_who_asked_for_the_slow_kernels() -> None:
    (remedy,) = advice(facts(coretype="Haswell"))
    assert "because OPENBLAS_CORETYPE=Haswell is set" in remedy
    (remedy,) = advice(facts(coretype="SkylakeX"))
    assert "although OPENBLAS_CORETYPE=SkylakeX is set" in remedy


def test_doctor_is_content() -> None:
    assert advice(facts("SkylakeX")) == []
    assert advice(facts("Haswell", ("X86_V2", "X86_V3"))) == []
    assert advice(facts("Zen", ("SSE42", "AVX2", "AVX512F"))) == []  # an early CPU that lacks what SkylakeX needs


def test_doctor(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cqs.cli.doctor._facts", lambda: facts("SkylakeX"))
    code, out, err = cli("doctor")
    assert (code, err) == (0, "")
    assert "openblas 0.3.30, kernels for SkylakeX, 8 threads" in out
    assert "not installed (pip install 'cqs-attention[torch]')" in out
    assert out.splitlines()[-1] == "Nothing to improve."


def test_doctor_json(cli: Run) -> None:
    code, out, _ = cli("doctor --json")
    values = json.loads(out)
    assert code == 0
    assert values["cqs"] == cqs.__version__
    assert values["numpy"] == np.__version__
    assert set(values["packages"]) == {"ml_dtypes", "torch", "cupy", "matplotlib", "array_api_strict"}
    assert values["packages"]["ml_dtypes"] is not None
    assert isinstance(values["advice"], list)
