"""Zarr arrays and h5py datasets under a budget: measured is at most projected, and that at most the budget."""

import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from budgets import tracing
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

import cqs
from cqs.errors import BudgetError
from cqs.sources import ZarrInput, ZarrSink

MIB = 1 << 20
X = np.random.default_rng(0).standard_normal((2, 5000, 64)).astype(np.float32)
LAYOUTS: dict[str, dict[str, Any]] = {
    "1 MiB": {"chunks": (1, 4096, 64)},
    "1 MiB, not compressed": {"chunks": (1, 4096, 64), "compressors": None},
    "64 KiB": {"chunks": (1, 256, 64)},
    "16 KiB": {"chunks": (1, 128, 32)},
    "all heads": {"chunks": (2, 1000, 64)},
    "no axis evenly": {"chunks": (2, 777, 33)},
    "gzip": {"chunks": (1, 1024, 64), "compressors": GzipCodec(level=1)},
    "more codecs": {
        "chunks": (1, 1024, 64),
        "filters": [TransposeCodec(order=(2, 1, 0))],
        "compressors": [BloscCodec(), ZstdCodec(), Crc32cCodec()],
    },
    "shards": {"chunks": (1, 256, 64), "shards": (1, 2048, 64)},
}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A directory with q, k and v."""
    folder = tmp_path_factory.mktemp("layout")
    for name in "qkv":
        array = zarr.create_array(str(folder / f"{name}.zarr"), shape=X.shape, dtype="f4", **LAYOUTS[request.param])
        array[...] = X
    cqs.attention(*(folder / f"{name}.zarr" for name in "qkv"), memory="64 MiB")  # imports what is first needed now
    return folder, LAYOUTS[request.param]


def holds_what_it_says(inputs: list[Any], **options: Any) -> cqs.Plan:
    plan = cqs.plan(*inputs, **options)
    with tracing():
        cqs.attention(*inputs, **options)
        peak = tracemalloc.get_traced_memory()[1]
    assert peak <= plan.projected_bytes, f"{peak / MIB:.2f} of {plan.projected_bytes / MIB:.2f} MiB: {plan.footprint}"
    assert plan.projected_bytes <= options["memory"]
    return plan


@pytest.mark.thinned(2)
@pytest.mark.parametrize("strategy", ["cqs", "tiles"])
@pytest.mark.parametrize("mib", [20, 64])
@pytest.mark.parametrize("kind", ["path", "like the inputs"])
def test_zarr(layout: tuple[Path, dict[str, Any]], tmp_path: Path, strategy: str, mib: int, kind: str) -> None:
    folder, how = layout
    out: Any = tmp_path / "out.zarr"
    if kind != "path":
        out = zarr.create_array(str(tmp_path / "given.zarr"), shape=X.shape, dtype="f4", **how)
    inputs = [folder / f"{name}.zarr" for name in "qkv"]
    holds_what_it_says(inputs, memory=mib * MIB, strategy=strategy, is_causal=True, out=out)


def test_one_slice_and_one_piece_hold_what_they_say(layout: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, how = layout
    source = ZarrInput.open(folder / "q.zarr")
    sink = ZarrSink.of(zarr.create_array(str(tmp_path / "x.zarr"), shape=X.shape, dtype="f4", **how))
    sink.write((slice(0, 1),), 0, 1999, source.read((slice(0, 1),), 0, 1999))  # modules are imported, threads start
    rng = np.random.default_rng(0)
    with tracing():
        for _ in range(20):
            start = int(rng.integers(0, 4500))
            stop = int(rng.integers(start + 1, 5001))
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            rows = source.read((slice(0, 1),), start, stop)
            assert tracemalloc.get_traced_memory()[1] - before <= rows.nbytes + source.read_bytes
            if stop - start < 2000:
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                sink.write((slice(0, 1),), start, stop, rows)
                assert tracemalloc.get_traced_memory()[1] - before <= sink.write_bytes
            del rows


@pytest.mark.parametrize("suffix", ["in", "out"])
def test_a_chunk_that_is_larger_than_the_budget_is_refused(tmp_path: Path, suffix: str) -> None:
    x = np.zeros((1, 40_000, 64), np.float32)
    array = zarr.create_array(str(tmp_path / "x.zarr"), shape=x.shape, dtype="f4", chunks=x.shape)
    inputs, out = ([array, x, x], tmp_path / "out.npy") if suffix == "in" else ([x, x, x], array)
    with pytest.raises(BudgetError, match=r"`memory` must be at least \d+\.\d MiB .*, got 12.0 MiB; raise it"):
        cqs.attention(*inputs, memory="12 MiB", out=out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zarr"]
    assert "cqs" not in array.attrs


@pytest.mark.parametrize("strategy", ["cqs", "tiles"])
@pytest.mark.parametrize(
    "how", [{}, {"chunks": (1, 1024, 64)}, {"chunks": (2, 777, 33), "compression": "gzip", "compression_opts": 1}]
)
def test_h5py(tmp_path: Path, strategy: str, how: dict[str, Any]) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        inputs = [file.create_dataset(name, data=X, **how) for name in "qkv"]
        for mib in (16, 32):
            out = file.create_dataset(f"out{mib}", X.shape, "f4", **how)
            holds_what_it_says(inputs, memory=mib * MIB, strategy=strategy, is_causal=True, out=out)
