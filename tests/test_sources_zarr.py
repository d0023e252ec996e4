"""Zarr arrays as inputs: any chunks, shards and codecs, objects and paths; what is damaged or changes is refused."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

import cqs
from cqs.errors import BackendError, DTypeError, SourceError
from cqs.sources import ZarrInput
from cqs.sources.pieces import bounds_of, grown, pieces

X = np.random.default_rng(0).standard_normal((2, 3, 50, 4)).astype(np.float32)
LAYOUTS: dict[str, dict[str, Any]] = {
    "one chunk": {"chunks": X.shape},
    "tokens": {"chunks": (1, 1, 7, 4)},
    "heads": {"chunks": (2, 2, 50, 4)},
    "no axis evenly": {"chunks": (2, 2, 13, 3)},
    "one token": {"chunks": (1, 1, 1, 4)},
    "shards": {"chunks": (1, 1, 5, 4), "shards": (1, 3, 20, 4)},
    "not compressed": {"chunks": (1, 2, 16, 4), "compressors": None},
    "gzip": {"chunks": (1, 2, 16, 4), "compressors": GzipCodec()},
    "blosc and a checksum": {"chunks": (1, 2, 16, 4), "compressors": [BloscCodec(), Crc32cCodec()]},
    "transposed": {
        "chunks": (1, 2, 16, 4),
        "filters": [TransposeCodec(order=(3, 2, 1, 0))],
        "compressors": ZstdCodec(),
    },
    "big-endian on disk": {"chunks": (1, 2, 16, 4), "serializer": BytesCodec(endian="big")},
    "format 2": {"chunks": (1, 2, 16, 4), "zarr_format": 2},
}


def stored(path: Path | str, x: np.ndarray = X, **layout: Any) -> zarr.Array:
    array = zarr.create_array(str(path), shape=x.shape, dtype=x.dtype, **({"chunks": (1, 2, 16, 4)} | layout))
    array[...] = x
    return array


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_slice_of_any_layout(tmp_path: Path, name: str) -> None:
    source = ZarrInput.of(stored(tmp_path / "x.zarr", **LAYOUTS[name]), "q")
    assert (source.shape, source.dtype) == (X.shape, X.dtype)
    for start, stop in [(0, 50), (0, 1), (12, 14), (13, 39), (49, 50), (20, 20)]:
        np.testing.assert_array_equal(source.read(None, start, stop), X[:, :, start:stop])
        np.testing.assert_array_equal(source.read((1, slice(0, 2)), start, stop), X[1, 0:2, start:stop])
        np.testing.assert_array_equal(source.read((slice(0, 2), 2), start, stop), X[:, 2, start:stop])


@given(data=st.data())
def test_pieces_are_every_element_of_a_slice_once_and_none_crosses_a_border(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 12), min_size=3, max_size=4)))
    chunk = tuple(data.draw(st.integers(1, n + 3)) for n in shape)
    start = data.draw(st.integers(0, shape[-2]))
    stop = data.draw(st.integers(start, shape[-2]))
    lead = data.draw(
        st.sampled_from([None, tuple(n // 2 for n in shape[:-2]), (slice(0, shape[0]),) * (len(shape) - 2)])
    )
    most = data.draw(st.integers(1, 200))
    box, bounds = grown(chunk, shape, most), bounds_of(shape, lead, start, stop)
    assert all(n % c == 0 for n, c in zip(box, chunk, strict=True))
    assert np.prod(box) <= max(most, np.prod(chunk))
    seen, count = np.zeros(shape, int), np.zeros([len(axis) for axis in bounds], int)
    for own, part in pieces(bounds, box):
        assert seen[own].shape == count[part].shape
        seen[own] += 1
        count[part] += 1
        assert all(s.start // n == (s.stop - 1) // n for s, n in zip(own, box, strict=True))
    assert (count == 1).all()
    assert seen.sum() == count.size
    assert (seen[(*((...,) if lead is None else lead), slice(start, stop), slice(None))] == 1).all()


@pytest.mark.parametrize("strategy", ["cqs", "tiles"])
def test_objects_paths_and_groups_are_inputs(tmp_path: Path, strategy: str) -> None:
    root = zarr.open_group(str(tmp_path / "all.zarr"), mode="w")
    for name in "kv":
        root.create_array(f"inner/{name}", data=X, chunks=(1, 2, 13, 4))
    q = stored(tmp_path / "q.zarr")
    options = {"is_causal": True, "memory": "16 MiB", "strategy": strategy}
    expected = cqs.attention(X, X, X, workers=7, is_causal=True)
    found = cqs.attention(q, tmp_path / "all.zarr" / "inner" / "k", str(tmp_path / "all.zarr/inner/v"), **options)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(cqs.attention(q, root["inner/k"], X, **options), expected, atol=1e-6)


def test_arrays_in_memory_stores_are_inputs() -> None:
    array = zarr.create_array(zarr.storage.MemoryStore(), data=X, chunks=(1, 1, 13, 4))
    np.testing.assert_array_equal(cqs.attention(array, array, array, workers=7), cqs.attention(X, X, X, workers=7))


def test_a_chunk_that_was_never_written_holds_the_fill_value(tmp_path: Path) -> None:
    array = zarr.create_array(str(tmp_path / "x.zarr"), shape=X.shape, dtype="f4", chunks=(1, 1, 10, 4), fill_value=2.5)
    array[:, :, :10] = X[:, :, :10]
    rows = ZarrInput.of(array, "q").read(None, 5, 15)
    np.testing.assert_array_equal(rows[..., :5, :], X[..., 5:10, :])
    assert (rows[..., 5:, :] == 2.5).all()


def refused(path: Any, *words: str) -> None:
    for call in (cqs.attention, cqs.plan):
        with pytest.raises(SourceError) as caught:
            call(X, path, X)
        for word in (";", *words):
            assert word in str(caught.value), caught.value


def test_paths_without_an_array(tmp_path: Path) -> None:
    refused(tmp_path / "x.zarr", "x.zarr cannot be read: No such file", "check the path")
    refused(tmp_path / "all.zarr" / "k", "cannot be read: No such file")
    (tmp_path / "empty.zarr").mkdir()
    refused(tmp_path / "empty.zarr", "empty.zarr is a directory without zarr.json")
    zarr.open_group(str(tmp_path / "all.zarr"), mode="w").create_array("k", data=X)
    refused(tmp_path / "all.zarr", "is a Zarr group, with the arrays k; give one")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"zarr_format": 3, "node_type": "array"}', '{"zarr_format": 9}'])
def test_damaged_descriptions(tmp_path: Path, text: str) -> None:
    stored(tmp_path / "x.zarr")
    (tmp_path / "x.zarr" / "zarr.json").write_text(text)
    refused(tmp_path / "x.zarr", "x.zarr is no complete Zarr array", "write it again")


@pytest.mark.parametrize("dtype", ["int32", "complex64"])
def test_types_that_attention_is_not_defined_for(tmp_path: Path, dtype: str) -> None:
    stored(tmp_path / "x.zarr", X.astype(dtype))
    with pytest.raises(DTypeError, match=rf"`k` must have one of the types .*, got {dtype}; convert it"):
        cqs.attention(X, tmp_path / "x.zarr", X)


@pytest.mark.parametrize("layout", ["not compressed", "gzip", "shards", "blosc and a checksum"])
@pytest.mark.parametrize("kept", [0, 10, 0.5])
def test_chunks_that_are_truncated(tmp_path: Path, layout: str, kept: float) -> None:
    """Found by the thread that reads ahead, and told to the caller."""
    stored(tmp_path / "x.zarr", **LAYOUTS[layout])
    chunk = max(path for path in (tmp_path / "x.zarr" / "c").rglob("*") if path.is_file())
    size = chunk.stat().st_size
    os.truncate(chunk, int(size * kept) if kept == 0.5 else int(kept))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SourceError, match=r"x.zarr` cannot be read at \[.*write it again"):
        cqs.attention(X, tmp_path / "x.zarr", X, out=tmp_path / "out.npy", workers=7)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_an_array_that_is_marked_as_not_complete(tmp_path: Path) -> None:
    array = stored(tmp_path / "x.zarr", attributes={"cqs": {"complete": False}, "mine": 1})
    refused(tmp_path / "x.zarr", "must be complete", '"complete": false', "run it again")
    refused(array, "`k` must be complete")
    array.attrs["cqs"] = {"complete": True}
    cqs.attention(X, tmp_path / "x.zarr", array)


@pytest.mark.parametrize("change", ["written to", "removed", "directory removed"])
def test_a_chunk_that_changes_during_the_run(tmp_path: Path, change: str) -> None:
    array = stored(tmp_path / "x.zarr", chunks=(1, 1, 5, 4))
    changed = threading.Event()
    for path in [tmp_path / "x.zarr", *(tmp_path / "x.zarr").rglob("*")]:
        os.utime(path, ns=(10**18, 10**18))

    def on_event(event: Any) -> None:
        if type(event).__name__ == "TaskDone" and not changed.is_set():
            changed.set()
            if change == "written to":
                array[...] = X + 1
            elif change == "removed":
                for path in (tmp_path / "x.zarr" / "c").rglob("*"):
                    path.unlink() if path.is_file() else None
            else:
                shutil.rmtree(tmp_path / "x.zarr" / "c")

    with pytest.raises(SourceError, match=r"x.zarr` changed while it was read: .*; run again when it is complete"):
        cqs.attention(
            X, tmp_path / "x.zarr", X, workers=21, strategy="cqs", out=tmp_path / "out.zarr", on_event=on_event
        )
    assert changed.is_set()
    assert os.listdir(tmp_path) == ["x.zarr"]


def test_many_threads_read_one_array(tmp_path: Path) -> None:
    source, wrong = ZarrInput.of(stored(tmp_path / "x.zarr", chunks=(1, 2, 13, 4)), "q"), []

    def read(i: int) -> None:
        start = i % 40
        if not np.array_equal(source.read((i % 2, slice(None)), start, start + 9), X[i % 2, :, start : start + 9]):
            wrong.append(i)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(read, range(200)))
    assert wrong == []


def test_processes_read_arrays(processes: ProcessPoolExecutor, tmp_path: Path) -> None:
    stored(tmp_path / "x.zarr")
    x = tmp_path / "x.zarr"
    assert len(pickle.dumps(ZarrInput.open(x))) < 5000
    expected = cqs.attention(X, X, X, workers=3)
    found = cqs.attention(x, x, x, workers=3, engine=processes, out=tmp_path / "out.zarr")
    np.testing.assert_array_equal(found[...], expected)


def test_another_process_sees_that_an_array_has_changed(tmp_path: Path) -> None:
    array = stored(tmp_path / "x.zarr", chunks=(1, 1, 5, 4))
    for path in [tmp_path / "x.zarr", *(tmp_path / "x.zarr").rglob("*")]:
        os.utime(path, ns=(10**18, 10**18))
    sent = pickle.dumps(ZarrInput.of(array, "v"))
    array[...] = X + 1
    with pytest.raises(SourceError, match="`v` changed while it was read"):
        pickle.loads(sent).read(None, 0, 9)


def test_without_zarr_the_message_says_what_to_install(tmp_path: Path) -> None:
    stored(tmp_path / "x.zarr")
    code = (
        "import sys; sys.modules['zarr'] = None\n"
        "import cqs, numpy; x = numpy.zeros((1, 5, 4), 'f4')\n"
        "for options in ({'k': sys.argv[1]}, {'k': x, 'out': sys.argv[1] + '/../out.zarr'}):\n"
        "    try: cqs.attention(x, v=x, **options)\n"
        "    except cqs.errors.BackendError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.zarr"], capture_output=True, text=True, check=True)
    assert done.stdout.count("need the package zarr; `pip install 'cqs-attention[zarr]'`") == 2
    assert os.listdir(tmp_path) == ["x.zarr"]


def test_an_old_zarr_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stored(tmp_path / "x.zarr")
    monkeypatch.setattr(zarr, "__version__", "2.18.3")
    with pytest.raises(BackendError, match=r"zarr 3 or later, got 2.18.3; `pip install"):
        cqs.attention(X, tmp_path / "x.zarr", X)


def test_the_mark_is_plain_json(tmp_path: Path) -> None:
    cqs.attention(X, X, X, out=tmp_path / "out.zarr")
    description = json.loads((tmp_path / "out.zarr" / "zarr.json").read_text())
    assert description["attributes"] == {"cqs": {"complete": True}}
