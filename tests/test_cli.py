"""The command line: what it prints where, and its exit codes."""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from command_line import Run, assert_refused

import cqs
from cqs.cli import main
from cqs.cli.options import rate, whole
from cqs.cli.wording import in_options

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


@pytest.mark.parametrize("line", ["run", "quorum", "quorum 7 --frobnicate", "quorum seven", "run -o"])
def test_usage_errors_are_one_line(cli: Run, line: str) -> None:
    assert_refused(cli(line), "--help")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rn q.npy", "`rn` is no command; did you mean run?\n"),
        ("frobnicate", "`frobnicate` is no command; there are demo, run, job, plan, verify, quorum, doctor\n"),
        ("--frobnicate", "`--frobnicate` is not for `cqs`; see `cqs --help`\n"),
        (
            "run a b c -o d --workerz=3",
            "`--workerz=3` is not for `cqs run`; did you mean --workers? see `cqs run --help`\n",
        ),
        ("quorum 7 8", "`8` is not for `cqs quorum`; see `cqs quorum --help`\n"),
        ("quorum seven", "`W` must be a whole number such as 4096 or 1e6, got 'seven'; see `cqs quorum --help`\n"),
    ],
)
def test_what_is_mistyped_is_told_by_name(cli: Run, line: str, said: str) -> None:
    assert cli(line) == (2, "", f"cqs: error: {said}")


@pytest.mark.parametrize(
    ("message", "command", "said"),
    [
        ("`sink_logits` must broadcast", "run", "`--sink-logits` must broadcast"),
        ("give `out=` a file, or use strategy='tiles'", "run", "give `-o` a file, or use --strategy tiles"),
        ("`out` must have the shape", "verify", "`OUT` must have the shape"),
        ("`W` must be at most", "quorum", "`W` must be at most"),
        ("`W` must be at most", "plan", "`--workers` must be at most"),
        ("`q` and `nvidia-smi`, or devices=", "run", "`q` and `nvidia-smi`, or --devices"),
    ],
)
def test_messages_name_options_and_not_arguments_of_python(message: str, command: str, said: str) -> None:
    assert in_options(message, command) == said


def test_as_a_module_in_a_process_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-m", "cqs", "quorum", "7", "--json"], capture_output=True, check=True)
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


# numbers


def test_whole_numbers() -> None:
    assert [whole(text) for text in ("0", "4096", "1e6", "2.5e3", "123456789123456789")] == [
        0,
        4096,
        1_000_000,
        2500,
        123456789123456789,
    ]


@pytest.mark.parametrize("text", ["0", "-1G", "fast", "1.2.3G", "", "inf"])
def test_rates(text: str) -> None:
    assert [rate("2e9"), rate("150G"), rate("2.5 TFLOP/s"), rate("10 flops")] == [2e9, 150e9, 2.5e12, 10.0]
    with pytest.raises(argparse.ArgumentTypeError, match="operations a second"):
        rate(text)


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


def test_a_long_base_is_shortened_but_in_json(cli: Run) -> None:
    code, out, _ = cli("quorum 10000")
    base = cqs.difference_cover(10_000).base
    assert code == 0
    assert max(map(len, out.splitlines())) < 200
    for line in (out, cli("quorum 10000 --prove")[1]):
        assert f"{base[5]} ... 107 more ... {base[-6]}" in line
    assert tuple(json.loads(cli("quorum 10000 --json")[1])["base"]) == base


@pytest.mark.parametrize("W", [1, 2, 7, 8, 12, 133])
def test_under_a_causal_mask_every_worker_has_half_of_its_tiles(cli: Run, W: int) -> None:
    quorums = cqs.CyclicQuorumSet(W)
    loads = {sum((g > h) + (g == h) / 2 for g, h in quorums.tiles(i)) for i in range(W)}
    causal = json.loads(cli(f"quorum {W} --json")[1])["causal_tiles"]
    assert loads == {causal["least"]} == {causal["most"]}


@pytest.mark.parametrize("W", ["0", "1e9"])
def test_quorum_refuses(cli: Run, W: str) -> None:
    assert_refused(cli(f"quorum {W}"), "`W` must")
