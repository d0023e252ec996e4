"""`.npy` files as inputs: every format that NumPy writes, and everything that is wrong with a file said by name."""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cqs
from cqs.errors import CQSError, DTypeError, OptionError, SourceError
from cqs.sources import NpyInput
from cqs.testing import assert_exact
from cqs.verify import verify_rows

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 50, 4)).astype(np.float32)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.npy" for name in "qkv"]
    for path in paths:
        np.save(path, X)
    return paths


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_version_of_the_format_is_read(tmp_path: Path, version: tuple[int, int], dtype: str) -> None:
    x, path = X.astype(dtype), tmp_path / "x.npy"
    with path.open("wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that version 3 needs a new NumPy
        np.lib.format.write_array(file, x, version=version)
    source = NpyInput(path)
    np.testing.assert_array_equal(source.read(None, 7, 19), x[:, :, 7:19])
    np.testing.assert_array_equal(source.read((1, slice(1, 3)), 0, 50), x[1, 1:3])
    np.testing.assert_array_equal(source.read((slice(0, 2), 2), 49, 50), x[:, 2, 49:])
    assert source.read(None, 5, 5).shape == (2, 3, 0, 4)
    assert (source.shape, source.dtype) == (x.shape, x.dtype)
    source.close()


def test_paths_are_strings_paths_and_links(files: list[Path], tmp_path: Path) -> None:
    link = tmp_path / "link.npy"
    link.symlink_to(files[0])
    expected = cqs.attention(X, X, X, is_causal=True)
    found = cqs.attention(str(files[0]), files[1], link, is_causal=True)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(0, 2, 5, 4), (2, 3, 0, 4)])
def test_files_without_elements(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros(shape, np.float32))
    assert cqs.attention(path, path, path).shape == shape
    assert cqs.attention(path, path, path, out=tmp_path / "out.npy").shape == shape


@pytest.mark.parametrize(
    ("x", "word"),
    [
        (X.astype(">f4"), ">f4"),
        (X.astype("int32"), "int32"),
        (X.astype("complex64"), "complex64"),
        (np.zeros(X.shape, [("a", "<f4"), ("b", "<i2")]), "'a'"),
        (np.zeros(X.shape, "V3"), "V3"),
    ],
)
def test_types_that_attention_is_not_defined_for(files: list[Path], x: np.ndarray, word: str) -> None:
    np.save(files[1], x)
    with pytest.raises(DTypeError, match=r"`k` must have one of the types.*convert it") as caught:
        cqs.attention(*files)
    assert word in str(caught.value)


def test_bfloat16_is_what_numpy_writes_as_two_bytes_without_a_type(files: list[Path], tmp_path: Path) -> None:
    arrays = [np.random.default_rng(i).standard_normal((2, 90, 8)).astype(ml_dtypes.bfloat16) for i in range(3)]
    for path, x in zip(files, arrays, strict=True):
        np.save(path, x)
        assert np.load(path).dtype == np.dtype("V2")
    out = cqs.attention(*files, workers=7)
    assert out.dtype == arrays[0].dtype
    assert_exact(out, *arrays)
    assert out.tobytes() == cqs.attention(*arrays, workers=7).tobytes()
    written = cqs.attention(*files, workers=7, out=tmp_path / "out.npy")  # neither kind of file has the type
    assert written.dtype == np.float32
    assert verify_rows(tmp_path / "out.npy", *files).passed


def refused(files: list[Path], *words: str) -> None:
    """Both calls refuse the second file, and leave all three as they are."""
    before = [path.read_bytes() if path.is_file() else None for path in files]
    for call in (cqs.attention, cqs.plan):
        with pytest.raises(SourceError) as caught:
            call(*files)
        for word in (files[1].name, ";", *words):
            assert word in str(caught.value), caught.value
    assert before == [path.read_bytes() if path.is_file() else None for path in files]


def test_fortran_order_is_refused_with_the_way_out(files: list[Path]) -> None:
    np.save(files[1], np.asfortranarray(X))
    refused(files, "Fortran", "ascontiguousarray")


def test_python_objects_are_refused(files: list[Path]) -> None:
    np.save(files[1], np.full((2, 50, 4), None))
    refused(files, "objects", "numbers")


@pytest.mark.parametrize("kept", [0, 3, 6, 9, 40, 100, 127])
def test_files_that_are_cut_off_in_their_header(files: list[Path], kept: int) -> None:
    files[1].write_bytes(files[0].read_bytes()[:kept])
    refused(files, "no complete .npy file", "np.save")


@pytest.mark.parametrize("lost", [1, 100, X.nbytes])
def test_files_that_are_truncated(files: list[Path], lost: int) -> None:
    files[1].write_bytes(files[0].read_bytes()[:-lost])
    refused(files, "truncated", "of 4.8 KiB", "write it again")


def test_files_that_are_too_long(files: list[Path]) -> None:
    files[1].write_bytes(files[0].read_bytes() + b"more")
    refused(files, "too long", "4 B follow", "write it again")


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, -50, 4), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 50, 'x'), }",
        b"{'descr': '<f4', 'shape': (2, 50, 4), }",
        b"{'descr': 'nonsense', 'fortran_order': False, 'shape': (2, 50, 4), }",
        b"(" * 150,
        b"{'descr'",
    ],
)
def test_headers_that_make_no_sense(files: list[Path], header: bytes) -> None:
    padded = header.ljust(199) + b"\n"
    files[1].write_bytes(b"\x93NUMPY\x02\x00" + len(padded).to_bytes(4, "little") + padded + bytes(2 * 50 * 4 * 4))
    refused(files, "no complete .npy file")


def test_an_unknown_version_is_refused(files: list[Path]) -> None:
    whole = files[0].read_bytes()
    files[1].write_bytes(whole[:6] + b"\x09\x00" + whole[8:])
    refused(files, "version 9.0")


@given(place=st.integers(0, 127), value=st.integers(0, 255))
def test_a_header_with_one_byte_changed_is_read_or_refused(tmp_path_factory: Any, place: int, value: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "headers"
    folder.mkdir(exist_ok=True)
    path = folder / "x.npy"
    np.save(path, X)
    whole = bytearray(path.read_bytes())
    whole[place] = value
    path.write_bytes(whole)
    with contextlib.suppress(SourceError):
        NpyInput(path).close()


def test_missing_files_and_directories(files: list[Path]) -> None:
    files[1].unlink()
    refused(files, "No such file", "check the path")
    files[1].mkdir()
    refused(files, "directory without zarr.json")


def test_files_that_may_not_be_read(files: list[Path]) -> None:
    """As somebody who is not the superuser, who may read everything."""
    code = (
        "import os, sys; import numpy, cqs\n"
        "from cqs.sources import NpyInput\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: NpyInput(sys.argv[1])\n"
        "except cqs.errors.SourceError as error: print(error)"
    )
    files[1].chmod(0)
    done = subprocess.run([sys.executable, "-c", code, files[1]], capture_output=True, text=True, check=True)
    assert "cannot be read: Permission denied; check the path" in done.stdout


def test_other_kinds_of_files_are_refused_with_the_way_out(files: list[Path], tmp_path: Path) -> None:
    for name, words in {"x.npz": "np.load", "x.h5": "h5py.File", "x.hdf5": "datasets"}.items():
        with pytest.raises(OptionError, match=words):
            cqs.attention(files[0], tmp_path / name, files[2])
    (tmp_path / "x.txt").write_text("1 2 3")
    with pytest.raises(SourceError, match=r"x.txt is no complete .npy file.*np.save"):
        cqs.attention(files[0], tmp_path / "x.txt", files[2])


def test_shapes_on_disk_that_do_not_fit_are_named_by_argument(files: list[Path]) -> None:
    np.save(files[2], X[..., :30, :])
    with pytest.raises(CQSError, match=r"`v` must have the heads and tokens of `k`"):
        cqs.attention(*files)


def test_many_threads_read_one_file(files: list[Path]) -> None:
    source, wrong = NpyInput(files[0]), []

    def read(i: int) -> None:
        start = i % 40
        if not np.array_equal(source.read((i % 2, slice(None)), start, start + 9), X[i % 2, :, start : start + 9]):
            wrong.append(i)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(2000)))
    assert wrong == []
    source.close()


def test_a_source_goes_to_another_process_as_a_path(files: list[Path]) -> None:
    source = NpyInput(files[0])
    sent = pickle.dumps(source)
    assert len(sent) < 500 + len(str(files[0]))
    again = pickle.loads(sent)
    assert pickle.loads(sent) is again, "a process opens it once"
    np.testing.assert_array_equal(again.read(None, 3, 8), X[..., 3:8, :])
    with files[0].open("r+b") as file:
        file.write(b"\x93")
    os.utime(files[0], ns=(1, 1))
    stale = pickle.dumps(source)
    from cqs.sources import npy

    npy._reopened.cache_clear()
    with pytest.raises(SourceError, match="changed while it was read: it was written to; run again"):
        pickle.loads(stale)
    source.close()
    again.close()


def test_processes_read_files(processes: ProcessPoolExecutor, files: list[Path], tmp_path: Path) -> None:
    expected = cqs.attention(X, X, X, workers=7, is_causal=True)
    found = cqs.attention(*files, workers=7, is_causal=True, engine=processes, out=tmp_path / "out.npy")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("change", ["written to", "cut off", "grown"])
def test_a_file_that_changes_during_the_run(files: list[Path], tmp_path: Path, change: str) -> None:
    """The second task finds it out; nothing is left, and no thread waits for ever."""
    changed = threading.Event()

    def on_event(event: Any) -> None:
        if type(event).__name__ == "TaskDone" and not changed.is_set():
            changed.set()
            size = files[1].stat().st_size
            if change == "written to":
                with files[1].open("r+b") as file:
                    file.seek(200)
                    file.write(b"1234")
                os.utime(files[1], ns=(5, 5))
            else:
                os.truncate(files[1], size // 2 if change == "cut off" else size + 1)

    with pytest.raises(SourceError, match=r"k.npy changed while it was read: .*; run again when it is complete"):
        cqs.attention(*files, workers=21, strategy="cqs", out=tmp_path / "out.npy", on_event=on_event)
    assert changed.is_set()
    assert sorted(os.listdir(tmp_path)) == ["k.npy", "q.npy", "v.npy"]
