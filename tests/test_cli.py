"""The command line: what it prints where, and its exit codes."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from command_line import Run, assert_refused

import cqs
import cqs.cli.files
import cqs.oracle
import cqs.verify
from cqs.cli import main
from cqs.cli.options import whole

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
