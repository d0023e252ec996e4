"""`cqs run --job`, `--tasks`, and `cqs job`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Run
from job_cases import kept

import cqs

pytestmark = pytest.mark.usefixtures("qkv")
RUN = "run q.npy k.npy v.npy"


def test_shares_are_put_together(cli: Run, tmp_path: Path) -> None:
    for i in range(3):
        code, out, err = cli(f"{RUN} --workers 13 --causal --job run.job --tasks {i}::4")
        assert (code, err) == (0, "")
    assert "computed 3 tasks; 10 of 13 results in run.job" in " ".join(out.split())
    assert "3 tasks missing: 3, 7, 11" in " ".join(out.split())
    assert not (tmp_path / "out.npy").exists()
    code, out, err = cli(f"{RUN} --causal --job run.job -o out.npy --lse lse.npy")
    assert (code, err) == (0, "")
    assert "computed 3 tasks; 13 of 13 results in run.job" in " ".join(out.split())
    q, k, v = (np.load(f"{name}.npy") for name in "qkv")
    expected, lse = cqs.attention(q, k, v, workers=13, is_causal=True, return_lse=True)
    assert np.load("out.npy").tobytes() == expected.tobytes()
    assert np.load("lse.npy").tobytes() == lse.tobytes()


def test_a_job_says_how_far_it_has_come(cli: Run) -> None:
    cli(f"{RUN} --workers 7 --window 20 --job run.job --tasks 1,2,6 -q")
    code, out, _ = cli("job run.job")
    said = " ".join(out.split())
    assert code == 0
    assert "3 of 7 results in run.job" in said
    assert "4 tasks missing: 0, 3-5" in said
    assert "SlidingWindow" in said
    assert "7 tasks: cqs, 7 workers" in said
    assert "q.npy" in said
    code, out, _ = cli("job run.job --json")
    found = json.loads(out)
    assert (found["n_tasks"], found["n_done"], found["missing"]) == (7, 3, "0, 3-5")
    assert found["manifest"]["cut"]["workers"] == 7
    cli(f"{RUN} --window 20 --job run.job -o out.npy -q")
    assert "7 of 7 results in run.job" in cli("job run.job")[1]


def test_json_says_what_was_computed(cli: Run) -> None:
    code, out, _ = cli(f"{RUN} --workers 7 --job run.job --tasks :2 --json")
    found = json.loads(out)
    assert code == 0
    assert (found["counters"]["n_tasks"], found["job"]["n_done"], found["out"]) == (2, 2, None)
    assert 0 < found["counters"]["saved"] == found["job"]["n_bytes"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (RUN, "the following arguments are required: -o/--out; see `cqs run --help`"),
        (f"{RUN} --tasks 0", "`--tasks` must be given with --job, got no --job; it keeps the results of these tasks"),
        (f"{RUN} --job j --tasks 0 -o out.npy", "`-o` must be left out with --tasks, got out.npy; give it to the run"),
        (f"{RUN} --job j --tasks 0 --lse lse.npy", "`--lse` must be left out with --tasks"),
        (f"{RUN} --job j --tasks x", "`--tasks` must be numbers such as 4,7 or a slice such as 3::64, got 'x'"),
        (f"{RUN} --job j --tasks 1:2:3:4", "`--tasks` must be numbers"),
        (f"{RUN} --job j --tasks ::0", "`--tasks` must be numbers"),
        (f"{RUN} --workers 7 --job j --tasks 7", "`--tasks` must be among 0..6, got 7"),
        (f"{RUN} --job q.npy -o out.npy", "`--job` must be new, or the directory of a job, got"),
        (f"{RUN} --job out.npy -o out.npy", "`-o` must not be in --job"),
        ("job run.job", "`DIR` must be the directory of a job, got run.job; give what --job was given"),
        ("job .", "`DIR` must be the directory of a job, got ."),
        ("job q.npy", "`DIR` must be the directory of a job, got q.npy"),
    ],
)
def test_what_is_wrong_is_told_in_options(cli: Run, line: str, said: str) -> None:
    code, out, err = cli(line)
    assert (code, out) == (2, "")
    assert said in err


def test_another_call_is_told_apart(cli: Run) -> None:
    cli(f"{RUN} --workers 7 --causal --job run.job --tasks 0 -q")
    code, _, err = cli(f"{RUN} --job run.job -o out.npy")
    assert code == 2
    assert "`--job` must be of this call: it was begun with `--mask` Causal(offset=0), got NoMask()" in err
    code, _, err = cli(f"{RUN} --causal --workers 13 --job run.job -o out.npy")
    assert "`--workers` must be 7, as when the job was begun, got 13; leave it out, or begin another job" in err


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupted_job_says_how_to_go_on(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 20_000, 64), np.float32))
    line = "x.npy x.npy x.npy --workers 91 --threads 1 --job run.job -o out.npy"
    command = [sys.executable, "-m", "cqs", "run", *line.split()]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    job = tmp_path / "run.job"
    while not kept(job):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert b"what run.job keeps of it is safe: run the same command again to resume" in err
    assert 0 < len(kept(job)) < 91
