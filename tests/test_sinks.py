"""Outputs on disk: each row once, whole or not there, one run at a time, and never an input."""

import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import cqs
from cqs.errors import BackendError, DTypeError, OptionError, ShapeError, SinkError, SourceError
from cqs.sources import NpySink, ZarrFileSink, ZarrSink
from cqs.sources.zarr_sink import output_chunks

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 50, 4)).astype(np.float32)
EXPECTED = cqs.attention(X, X, X, workers=7)
KINDS = {".npy": NpySink, ".zarr": ZarrFileSink}


def content(path: Path) -> np.ndarray:
    return np.load(path) if path.suffix == ".npy" else zarr.open_array(str(path), mode="r")[...]


def stop(done: int, n: int) -> None:
    raise RuntimeError("stop")


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("strategy", ["cqs", "tiles"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_the_output_is_what_an_array_would_be(tmp_path: Path, suffix: str, strategy: str, dtype: str) -> None:
    x = X.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    path = tmp_path / f"out{suffix}"
    found = cqs.attention(x, x, x, workers=7, strategy=strategy, out=path, is_causal=True)
    wide = np.empty(X.shape, np.float32) if dtype == "bfloat16" else None  # no kind of file has that type
    expected = cqs.attention(x, x, x, workers=7, strategy=strategy, is_causal=True, out=wide)
    np.testing.assert_array_equal(content(path), expected)
    np.testing.assert_array_equal(found[...], expected)
    assert content(path).dtype == expected.dtype
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("chunks", [(1, 1, 7, 4), (2, 2, 13, 3), (2, 3, 50, 4), (1, 1, 1, 4)])
@pytest.mark.parametrize("shards", [False, True])
def test_zarr_arrays_that_are_given(tmp_path: Path, chunks: tuple[int, ...], shards: bool) -> None:
    sharded = {"shards": tuple(2 * n for n in chunks)} if shards else {}
    out = zarr.create_array(str(tmp_path / "x.zarr"), shape=X.shape, dtype="f4", chunks=chunks, **sharded)
    out.attrs["mine"] = [1, 2]
    assert cqs.attention(X, X, X, workers=7, out=out) is out
    np.testing.assert_array_equal(out[...], EXPECTED)
    assert dict(out.attrs) == {"mine": [1, 2], "cqs": {"complete": True}}


@given(data=st.data())
def test_slices_in_any_order_add_up_to_the_array(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Rows that share a chunk come one after the other, and none is lost."""
    shape = (2, data.draw(st.integers(1, 60)), 3)
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    edges = sorted({0, shape[1], *data.draw(st.lists(st.integers(0, shape[1]), max_size=8))})
    blocks = [(head, rows) for rows in pairwise(edges) for head in (0, 1)]
    order = data.draw(st.permutations(blocks))
    x = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    array = zarr.create_array(zarr.storage.MemoryStore(), shape=shape, dtype="f4", chunks=chunks, fill_value=np.nan)
    sinks = [
        ZarrSink.of(array).begin(),
        NpySink.create(tmp_path_factory.getbasetemp() / "x.npy", shape, np.dtype("f4")),
    ]
    for sink in sinks:
        for head, (start, end) in order:
            sink.write((slice(head, head + 1),), start, end, x[head : head + 1, start:end])
        np.testing.assert_array_equal(sink.finish()[...], x)


def test_arrays_that_are_made_have_chunks_of_a_mebibyte_and_are_not_compressed(tmp_path: Path) -> None:
    assert output_chunks((2, 8, 100_000, 64), 4) == (1, 1, 4096, 64)
    assert output_chunks((8, 100, 64), 4) == (1, 100, 64)
    assert output_chunks((8, 100, 1 << 20), 8) == (1, 1, 1 << 20)
    made = ZarrFileSink.create(tmp_path / "x.zarr", (2, 5000, 64), np.dtype("f4"))
    assert (made.array.chunks, made.array.compressors) == ((1, 4096, 64), ())
    assert np.isnan(made.array[...]).all()
    made.abandon()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", KINDS)
def test_what_was_there_is_replaced_at_the_end_and_not_before(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    cqs.attention(X, X, X, out=path, workers=7)
    before = content(path)
    with pytest.raises(RuntimeError, match="stop"):
        cqs.attention(X + 1, X, X + 1, out=path, workers=7, progress=stop)
    np.testing.assert_array_equal(content(path), before)
    seen = []
    cqs.attention(X, X, X + 1, out=path, workers=7, progress=lambda done, n: seen.append(content(path)))
    assert all((x == before).all() for x in seen)
    np.testing.assert_allclose(content(path), before + 1, atol=1e-5)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", KINDS)
def test_a_link_is_followed(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / f"link{suffix}").symlink_to(tmp_path / "there" / f"out{suffix}")
    cqs.attention(X, X, X, out=tmp_path / f"link{suffix}", workers=7)
    assert (tmp_path / f"link{suffix}").is_symlink()
    np.testing.assert_array_equal(content(tmp_path / "there" / f"out{suffix}"), EXPECTED)


@pytest.mark.parametrize("suffix", KINDS)
def test_two_runs_do_not_write_one_output_at_once(tmp_path: Path, suffix: str) -> None:
    """The second is refused, and the first is not disturbed."""
    path, told = tmp_path / f"out{suffix}", []

    def again(done: int, n: int) -> None:
        if done == 3:
            with pytest.raises(SinkError, match="another run is writing it; wait for it, or") as e:
                cqs.attention(X, X, X + 1, out=path, workers=7)
            told.append(str(e.value))

    cqs.attention(X, X, X, out=path, workers=7, progress=again)
    assert len(told) == 1
    assert path.name in told[0]
    np.testing.assert_array_equal(content(path), EXPECTED)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", KINDS)
def test_to_abandon_again_does_not_remove_what_another_run_has_begun(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    first = KINDS[suffix].create(path, X.shape, X.dtype)
    first.abandon()
    second = KINDS[suffix].create(path, X.shape, X.dtype)
    first.abandon()
    second.write(None, 0, 50, X)
    second.finish()
    second.abandon()
    np.testing.assert_array_equal(content(path), X)


KILLED = """
import os, signal, sys, numpy as np, cqs
x = np.ones((2, 300, 8), np.float32)
def die(done, n):
    if done == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
cqs.attention(x, x, x, workers=13, memory="8 MiB", out=sys.argv[1], progress=die)
"""


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("tasks", [1, 7, 13])
def test_a_run_that_is_killed_leaves_nothing_under_the_name(tmp_path: Path, suffix: str, tasks: int) -> None:
    path = tmp_path / f"out{suffix}"
    done = subprocess.run([sys.executable, "-c", KILLED, path, str(tasks)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert os.listdir(tmp_path) == [f"{path.name}.unfinished"]
    if suffix == ".zarr":  # even if somebody gives it the name
        with pytest.raises(SourceError, match="must be complete"):
            cqs.attention(X, X, tmp_path / f"{path.name}.unfinished")
    cqs.attention(X, X, X, out=path, workers=7)  # takes over what is left
    np.testing.assert_array_equal(content(path), EXPECTED)
    assert os.listdir(tmp_path) == [path.name]


def test_a_zarr_array_of_a_run_that_failed_is_not_taken_for_complete(tmp_path: Path) -> None:
    out = zarr.create_array(str(tmp_path / "x.zarr"), shape=X.shape, dtype="f4", chunks=(1, 1, 7, 4))
    with pytest.raises(RuntimeError, match="stop"):
        cqs.attention(X, X, X, workers=7, out=out, progress=stop)
    assert out.attrs["cqs"] == {"complete": False}
    with pytest.raises(SourceError, match=r"x.zarr` must be complete"):
        cqs.attention(X, X, tmp_path / "x.zarr")
    cqs.attention(X, X, X, workers=7, out=out)
    cqs.attention(X, X, tmp_path / "x.zarr")


def refused(out: Any, *words: str, error: type[Exception] = OptionError, inputs: Any = (X, X, X)) -> None:
    for call in (cqs.attention, cqs.plan):
        with pytest.raises(error) as caught:
            call(*inputs, out=out)
        for word in ("`out` must", ", got ", ";", *words):
            assert word in str(caught.value), caught.value


def test_places_that_an_output_cannot_have(tmp_path: Path) -> None:
    (tmp_path / "dir.npy").mkdir()
    (tmp_path / "dir.zarr").mkdir()
    (tmp_path / "dir.zarr" / "mine.txt").write_text("keep me")
    zarr.open_group(str(tmp_path / "group.zarr"), mode="w").create_array("x", data=X)
    refused(tmp_path / "out.bin", "end in .npy or .zarr", "write")
    refused(tmp_path / "no" / "out.npy", "directory that exists", "make")
    refused(tmp_path / "no" / "out.zarr", "directory that exists", "make")
    refused(tmp_path / "dir.npy", "regular file")
    refused(tmp_path / "dir.zarr", "be new, or a Zarr array")
    refused(tmp_path / "group.zarr", "be new, or a Zarr array")
    assert (tmp_path / "dir.zarr" / "mine.txt").read_text() == "keep me"


def test_arrays_that_do_not_fit(tmp_path: Path) -> None:
    wrong = zarr.create_array(str(tmp_path / "x.zarr"), shape=(2, 3, 50, 5), dtype="f4")
    refused(wrong, "the result's shape (2, 3, 50, 4)", "(2, 3, 50, 5)", error=ShapeError)
    wide = zarr.create_array(str(tmp_path / "y.zarr"), shape=X.shape, dtype="f8")
    refused(wide, "of type float32", "float64", error=DTypeError)


def test_files_take_numpy_arrays(tmp_path: Path) -> None:
    import array_api_strict

    x = array_api_strict.asarray(X)
    refused(tmp_path / "out.npy", "the inputs' library", "array_api_strict", error=BackendError, inputs=(x, x, x))


def test_an_output_that_is_an_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "link.npy").symlink_to(tmp_path / "x.npy")
    os.link(tmp_path / "x.npy", tmp_path / "hard.npy")
    group = zarr.open_group(str(tmp_path / "all"), mode="w")
    for name in ("q", "out"):
        group.create_array(name, data=X)
    zarr.create_array(str(tmp_path / "x.zarr"), data=X)
    before = (tmp_path / "x.npy").read_bytes()
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r+")
    files, q = (X, tmp_path / "x.npy", X), group["q"]
    for out in (tmp_path / "x.npy", tmp_path / "link.npy", tmp_path / "hard.npy", mapped):
        refused(out, "not be an input: `k`", inputs=files)
    refused(tmp_path / "x.npy", "not be an input: `q`", inputs=(mapped[:], X, X))
    refused(tmp_path / "x.zarr", "not be an input: `v`", inputs=(X, X, tmp_path / "x.zarr"))
    refused(zarr.open_array(str(tmp_path / "all" / "q")), "not be an input: `q`", inputs=(q, X, X))
    refused(q, "not be an input: `k`", inputs=(X, tmp_path / "all" / "q", X))
    assert (tmp_path / "x.npy").read_bytes() == before
    cqs.attention(q, q, X, out=group["out"])


@pytest.mark.parametrize("name", ["out.npy", "out.zarr"])
def test_a_directory_that_may_not_be_written_to(tmp_path: Path, name: str) -> None:
    """As somebody who is not the superuser, who may write everywhere."""
    code = (
        "import os, sys; import zarr, numpy, cqs; x = numpy.zeros((1, 5, 4), 'f4'); cqs.attention(x, x, x)\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: cqs.attention(x, x, x, out=sys.argv[1])\n"
        "except cqs.errors.OptionError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, f"/proc/{name}"], capture_output=True, text=True, check=True)
    assert "`out` must be in a directory that may be written to" in done.stdout, done.stdout
