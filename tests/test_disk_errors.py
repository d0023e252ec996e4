"""Disks that are full or fail: the caller is told which file and why, and nothing that looks whole is left."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import cqs
from cqs.errors import CQSError, SinkError, SourceError
from cqs.sources import ArrayInput, NpyInput

X = np.random.default_rng(0).standard_normal((2, 400, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def _no_thread_is_left(nothing_is_left_behind: None) -> None:
    """A thread that reads ahead ends with the call that fails."""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.npy" for name in "qkv"]
    for path in paths:
        np.save(path, X)
    zarr.create_array(str(tmp_path / "warm.zarr"), data=X)[...]  # Zarr's own threads start here
    return paths


def left(folder: Path) -> set[str]:
    return set(os.listdir(folder)) - {"q.npy", "k.npy", "v.npy", "warm.zarr"}


def fails(after: int, code: int) -> Callable[..., Any]:
    """A system call that works for a while, and then fails."""
    count, real = [0], os.pwrite

    def call(*args: Any) -> int:
        count[0] += 1
        if count[0] > after:
            raise OSError(code, os.strerror(code))
        return real(*args)

    return call


@pytest.mark.parametrize("after", [0, 1, 9])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "the disk is full .*; free some space"),
        (errno.EDQUOT, "the disk is full .*; free some space"),
        (errno.EIO, "Input/output error; choose another `out`"),
    ],
)
def test_writes_that_fail(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, after: int, code: int, reason: str
) -> None:
    before = [path.read_bytes() for path in files]
    monkeypatch.setattr(os, "pwrite", fails(after, code))
    with pytest.raises(SinkError, match=rf"out.npy cannot be written: {reason}"):
        cqs.attention(*files, workers=7, memory="8 MiB", strategy="tiles", out=files[0].with_name("out.npy"))
    assert left(files[0].parent) == set()
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize("call", ["fsync", "posix_fallocate"])
def test_a_disk_that_is_found_full_at_the_start_or_the_end(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (files[0].with_name("out.npy")).write_bytes(b"what was there")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(SinkError, match=r"out.npy cannot be written: the disk is full"):
        cqs.attention(*files, workers=7, out=files[0].with_name("out.npy"))
    assert left(files[0].parent) == {"out.npy"}
    assert files[0].with_name("out.npy").read_bytes() == b"what was there"


LIMITED = """
import resource, signal, sys, numpy as np, cqs
from cqs.errors import SinkError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
x = np.random.default_rng(0).standard_normal((2, 20000, 16)).astype(np.float32)
if sys.argv[1].endswith(".zarr"):
    import zarr
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    cqs.attention(x, x, x, workers=13, is_causal=True, memory="16 MiB", strategy=sys.argv[2], out=sys.argv[1])
except SinkError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["out.npy", "out.zarr"])
@pytest.mark.parametrize("strategy", ["cqs", "tiles"])
def test_a_file_system_that_takes_no_such_file(tmp_path: Path, name: str, strategy: str) -> None:
    """A limit on the size of files is a small disk that needs no privileges."""
    command = [sys.executable, "-c", LIMITED, tmp_path / name, strategy]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    said = f"{name} cannot be written: the disk is full (File too large); free some space"
    # where sums wait in a file beside it, that may be the first to grow too large
    or_sums = f"sums cannot be written to a scratch file in {tmp_path}: File too large; free some space"
    assert said in done.stdout or (strategy == "cqs" and or_sums in done.stdout), done.stdout
    assert os.listdir(tmp_path) == []


def test_a_zarr_store_that_fails(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from zarr.storage import LocalStore

    real = LocalStore.set

    async def full(self: Any, key: str, value: Any) -> None:
        if "c/" in key:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await real(self, key, value)

    given = zarr.create_array(str(files[0].with_name("given.zarr")), shape=X.shape, dtype="f4")
    monkeypatch.setattr(LocalStore, "set", full)
    with pytest.raises(SinkError, match=r"new.zarr cannot be written: the disk is full .*; free some space"):
        cqs.attention(*files, workers=7, out=files[0].with_name("new.zarr"))
    with pytest.raises(SinkError, match=r"given.zarr cannot be written: the disk is full .*; free some space"):
        cqs.attention(*files, workers=7, out=given)
    monkeypatch.undo()
    assert left(files[0].parent) == {"given.zarr"}
    with pytest.raises(SourceError, match="must be complete"):
        cqs.attention(files[0].with_name("given.zarr"), X, X)


def test_reads_that_fail(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(SourceError, match=r"k.npy cannot be read: Input/output error; check the disk"):
        cqs.attention(*files, workers=7, out=files[0].with_name("out.npy"))
    assert left(files[0].parent) == set()


class FailingInput(ArrayInput):
    """An input that fails at its n-th slice."""

    __slots__ = ("error", "n", "threads")

    def __init__(self, array: np.ndarray, n: int, error: Exception) -> None:
        super().__init__(array)
        for name, value in (("n", [n]), ("error", error), ("threads", set()), ("is_staged", True)):
            object.__setattr__(self, name, value)

    def read(self, lead: Any, start: int, stop: int) -> Any:
        self.threads.add(threading.current_thread().name)
        self.n[0] -= 1
        if self.n[0] < 0:
            raise self.error
        return super().read(lead, start, stop).copy()


@pytest.mark.parametrize("strategy", ["cqs", "tiles"])
@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("error", [SourceError("it is broken"), ZeroDivisionError("a mistake")])
def test_what_fails_in_the_thread_that_reads_ahead_reaches_the_caller(
    tmp_path: Path, strategy: str, n: int, error: Exception
) -> None:
    broken = FailingInput(X, n, error)
    with pytest.raises(type(error), match=str(error)):
        cqs.attention(
            X, X, broken, workers=7, strategy=strategy, memory="4 MiB", is_causal=True, out=tmp_path / "out.npy"
        )
    assert broken.threads == {"cqs-read"}
    assert os.listdir(tmp_path) == []


def test_files_are_closed_however_a_call_ends(files: list[Path]) -> None:
    def n_open() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{fd}").endswith(".npy") for fd in os.listdir("/proc/self/fd"))

    for wrong in (
        {"workers": 0},
        {"memory": 1000},
        {"out": files[0]},
        {"v": X[..., :7, :]},
        {"v": files[0].parent / "no"},
    ):
        with pytest.raises(CQSError):
            cqs.attention(**({"q": files[0], "k": files[1], "v": files[2]} | wrong))
        assert n_open() == 0
    cqs.attention(*files)
    assert n_open() == 0
    NpyInput(files[0]).close()
