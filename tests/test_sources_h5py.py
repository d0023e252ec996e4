"""Datasets of h5py as inputs and as outputs."""

import os
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import cqs
from cqs.errors import BackendError, DTypeError, OptionError, ShapeError, SinkError, SourceError
from cqs.sources import SliceInput

X = np.random.default_rng(0).standard_normal((2, 3, 50, 4)).astype(np.float32)
EXPECTED = cqs.attention(X, X, X, is_causal=True, workers=7)
LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": (1, 2, 13, 4)},
    "heads in chunks": {"chunks": (2, 3, 5, 3)},
    "compressed": {"chunks": (1, 1, 20, 4), "compression": "gzip", "shuffle": True},
    "checksums": {"chunks": (1, 1, 20, 4), "compression": "lzf", "fletcher32": True},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_slice_of_any_layout(tmp_path: Path, name: str) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        source = SliceInput.of(file.create_dataset("x", data=X, **LAYOUTS[name]), "q")
        for start, stop in [(0, 50), (12, 14), (49, 50), (20, 20)]:
            np.testing.assert_array_equal(source.read(None, start, stop), X[:, :, start:stop])
            np.testing.assert_array_equal(source.read((1, slice(0, 2)), start, stop), X[1, 0:2, start:stop])


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("strategy", ["cqs", "tiles"])
def test_inputs_and_output_in_files(tmp_path: Path, name: str, strategy: str) -> None:
    with h5py.File(tmp_path / "in.h5", "w") as file:
        for key in "qkv":
            file.create_dataset(key, data=X, **LAYOUTS[name])
    before = (tmp_path / "in.h5").read_bytes()
    with h5py.File(tmp_path / "in.h5", "r") as file, h5py.File(tmp_path / "out.h5", "w") as other:
        out = other.create_dataset("out", X.shape, "f4", **LAYOUTS[name])
        options = {"is_causal": True, "memory": "16 MiB", "strategy": strategy}
        assert cqs.attention(file["q"], file["k"], file["v"], out=out, **options) is out
        np.testing.assert_allclose(out[...], EXPECTED, atol=1e-6)
        assert out.attrs["cqs"] == '{"complete": true}'
    assert (tmp_path / "in.h5").read_bytes() == before


def test_one_file_may_hold_inputs_and_output(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        x, out = file.create_dataset("x", data=X), file.create_dataset("out", X.shape, "f8")
        with pytest.raises(OptionError, match="`out` must not be an input: `q`"):
            cqs.attention(x, X, X, out=file["x"])
        with pytest.raises(DTypeError, match="`out` must be of type float32, got float64"):
            cqs.attention(x, x, x, out=out)
        with pytest.raises(ShapeError, match="`out` must have the result's shape"):
            cqs.attention(x[..., :30, :], x, x, out=x)
        right = file.create_dataset("right", X.shape, "f4")
        cqs.attention(x, x, x, out=right, is_causal=True)
        np.testing.assert_allclose(right[...], EXPECTED, atol=1e-6)


def test_types_that_attention_is_not_defined_for(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        with pytest.raises(DTypeError, match=r"`k` must have one of the types .*, got >f4"):
            cqs.attention(X, file.create_dataset("big", data=X.astype(">f4")), X)
        with pytest.raises(BackendError, match="`k`"):
            cqs.attention(X, file, X)


def test_an_output_that_may_not_be_written_to(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("out", X.shape, "f4")
    with h5py.File(tmp_path / "x.h5", "r") as file, pytest.raises(SinkError, match="`out` cannot be written"):
        cqs.attention(X, X, X, out=file["out"])


def test_an_output_of_a_run_that_failed_is_not_taken_for_complete(tmp_path: Path) -> None:
    def stop(done: int, n: int) -> None:
        raise RuntimeError("stop")

    with h5py.File(tmp_path / "x.h5", "w") as file:
        out = file.create_dataset("out", X.shape, "f4")
        with pytest.raises(RuntimeError, match="stop"):
            cqs.attention(X, X, X, out=out, workers=7, progress=stop)
        assert out.attrs["cqs"] == '{"complete": false}'
        with pytest.raises(SourceError, match="`v` must be complete"):
            cqs.attention(X, X, out)
        cqs.attention(X, X, X, out=out, workers=7)
        cqs.attention(X, X, out)


def test_damaged_chunks_are_found_and_told(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        place = file.create_dataset("x", data=X, **LAYOUTS["checksums"]).id.get_chunk_info(5).byte_offset
    with path.open("r+b") as raw:
        raw.seek(place + 3)
        raw.write(b"damage")
    with h5py.File(path, "r") as file, pytest.raises(SourceError, match=r"`k` cannot be read: .*; check it"):
        cqs.attention(X, file["x"], X, out=tmp_path / "out.npy", workers=7)
    assert os.listdir(tmp_path) == ["x.h5"]


def test_a_file_that_changes_during_the_run(tmp_path: Path) -> None:
    path, changed = tmp_path / "x.h5", threading.Event()
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=X)

    def on_event(event: Any) -> None:
        if type(event).__name__ == "TaskDone" and not changed.is_set():
            changed.set()
            os.utime(path, ns=(5, 5))

    with h5py.File(path, "r") as file, pytest.raises(SourceError, match=r"`k` changed while it was read: .*x.h5"):
        cqs.attention(X, file["x"], X, workers=21, strategy="cqs", on_event=on_event)


def test_processes_open_the_file_again(processes: ProcessPoolExecutor, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=X)
        sent = processes.submit(pickle.loads, pickle.dumps(SliceInput.of(file["x"], "q")))
        with pytest.raises(SourceError, match=r"`q` cannot be read in another process: .*mode 'r'"):
            sent.result()
    with h5py.File(tmp_path / "x.h5", "r") as file:
        x = file["x"]
        found = cqs.attention(x, x, x, workers=7, is_causal=True, engine=processes)
        np.testing.assert_array_equal(found, EXPECTED)


class Strange:
    """An array that is cut short, or fails."""

    shape, dtype = X.shape, X.dtype

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __getitem__(self, index: Any) -> np.ndarray:
        if self.error:
            raise self.error
        return X[index][..., :-1, :]


def test_anything_with_slices_that_fails_is_named() -> None:
    with pytest.raises(SourceError, match=r"`v` changed while it was read: of \d+ rows \d+ are there; run again"):
        cqs.attention(X, X, Strange())
    with pytest.raises(SourceError, match="`k` cannot be read: no; check it"):
        cqs.attention(X, Strange(LookupError("no")), X)
