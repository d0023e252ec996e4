"""Ctrl-C in the middle of long tasks: prompt, and no output that looks finished."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import files

import cqs.cli

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

MOST_SECONDS = 4.0  # where nothing else runs, less than one
T = 60_000  # a minute's work

_CALL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # as the tests may have been told to ignore it
import os, sys, threading, time
import cqs
from cqs.engines import LocalEngine

options = eval(sys.argv[1])
started = threading.Event()

def tell(event):
    if event.kind == "TaskStarted" and not started.is_set():
        started.set()
        print("started", flush=True)

try:
    cqs.attention("q.npy", "q.npy", "q.npy", on_event=tell, engine=LocalEngine(2), **options)
except KeyboardInterrupt:
    print("interrupted", [t.name for t in threading.enumerate() if t is not threading.main_thread()], flush=True)
"""


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A directory with `q.npy`, large enough that computing takes long."""
    np.save(tmp_path / "q.npy", np.random.default_rng(0).standard_normal((4, T, 64), dtype=np.float32))
    return tmp_path


def interrupted(process: "subprocess.Popen[bytes]", number: signal.Signals) -> tuple[bytes, bytes, float]:
    """Send a signal, and return what the process wrote, and the seconds that it took to end."""
    started = time.perf_counter()
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    return out, err, time.perf_counter() - started


@pytest.mark.parametrize(
    "options",
    [
        {"memory": "64 MiB", "strategy": "tiles", "out": "out.npy"},  # one task in flight, keys read ahead
        {"workers": 3, "out": "out.npy"},
        {"workers": 31, "strategy": "cqs", "out": "out.npy"},
    ],
    ids=["streamed", "large tasks", "small tasks"],
)
def test_attention_comes_back_in_the_middle_of_a_task(long: Path, options: dict[str, object]) -> None:
    process = subprocess.Popen([sys.executable, "-c", _CALL, repr(options)], cwd=long, stdout=-1, stderr=-1)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    time.sleep(0.5)
    out, err, seconds = interrupted(process, signal.SIGINT)
    assert (process.returncode, out, err) == (0, b"interrupted []\n", b"")
    assert not (long / "out.npy").exists()
    assert seconds < MOST_SECONDS


def test_attention_comes_back_from_many_tasks_at_a_time(long: Path) -> None:
    program = _CALL.replace('"q.npy", "q.npy", "q.npy"', "*[__import__('numpy').load('q.npy')] * 3")
    process = subprocess.Popen([sys.executable, "-c", program, "{'workers': 13}"], cwd=long, stdout=-1, stderr=-1)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    time.sleep(0.5)  # until all threads have started
    out, err, seconds = interrupted(process, signal.SIGINT)
    assert (process.returncode, out, err) == (0, b"interrupted []\n", b"")
    assert seconds < MOST_SECONDS


_RUN = [sys.executable, "-m", "cqs", "run", "q.npy", "q.npy", "q.npy", "-o", "out.npy"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [[], ["--memory", "64MiB"], ["--workers", "1"]], ids=" ".join)
def test_a_run_ends_at_once_and_its_output_is_marked_unfinished(
    long: Path, number: signal.Signals, options: list[str]
) -> None:
    before = files(long)
    environ = os.environ | {"PYTHONPATH": str(Path(cqs.__file__).parents[1])}
    command = [*_RUN, "--lse", "lse.npy", "--trace", "trace.json", *options]
    process = subprocess.Popen(command, cwd=long, stdout=-1, stderr=-1, env=environ)
    trace, deadline = long / "trace.json", time.monotonic() + 60
    while not (trace.exists() and "TaskStarted" in trace.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    out, err, seconds = interrupted(process, number)
    left = "out.npy.unfinished and lse.npy.unfinished"
    end = "it cannot be resumed, and may be deleted"
    expected = f"cqs: interrupted; what there is of the output is kept as {left}: {end}\n".encode()
    assert (process.returncode, out, err) == (128 + number, b"", expected)
    assert seconds < MOST_SECONDS
    after = files(long)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"out.npy.unfinished", "lse.npy.unfinished", "trace.json"}
    entries = json.loads(trace.read_text().rstrip().rstrip("]").rstrip(",") + "]")  # viewers need no end either
    assert any(entry["name"] == "process_name" for entry in entries)


def test_an_interrupted_output_is_refused_and_can_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("q.npy", np.ones((1, 50, 4), np.float32))
    Path("out.npy.unfinished").write_bytes(b"what a run that was interrupted has left")
    assert cqs.cli.main(["verify", "q.npy", "q.npy", "q.npy", "out.npy.unfinished"]) == 2
    assert "out.npy.unfinished` must be a finished output" in capsys.readouterr().err
    assert cqs.cli.main(["run", "q.npy", "q.npy", "q.npy", "-o", "out.npy", "-q"]) == 0
    assert sorted(os.listdir()) == ["out.npy", "q.npy"]
