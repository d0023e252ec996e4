"""Ctrl-C in a library call: it comes back soon, even from the middle of a long task, and leaves nothing behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # as the tests may have been told to ignore it
import numpy as np
import cqs
from cqs.engines import LocalEngine

workers, threads, path, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
x, lse = np.zeros((1, 300_000, 64), np.float32), np.zeros((1, 300_000), np.float32)  # minutes of work
how = {"workers": workers, "engine": LocalEngine(threads)}
print("begun", flush=True)
try:
    if what == "map":
        cqs.attention_map(x, x, lse, **how)
    elif what == "gradients":
        cqs.attention_backward(x, x, x, x, x, lse, kernel="blockwise", **how)
    else:
        cqs.attention(x, x, x, kernel=what, out=path, **how)
except KeyboardInterrupt:
    left = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
    print("interrupted", left, flush=True)
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("workers", [1, 7])
@pytest.mark.parametrize("what", ["auto", "blockwise", "gradients", "map"])
def test_a_long_task_is_left_soon_and_no_output_is_there(what: str, workers: int, threads: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(workers), str(threads), str(tmp_path / "out.npy"), what]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(1)  # well into the first blocks
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)  # whole tasks take minutes
    assert out == "interrupted []\n", err
    assert not (tmp_path / "out.npy").exists()
