"""Zarr arrays as outputs: written chunk by chunk, and marked as complete at the end."""

import json
import os
import shutil
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cqs.errors import SinkError
from cqs.sources.files import hold, reason_of, unfinished_of
from cqs.sources.marks import mark
from cqs.sources.on_disk import OnDisk
from cqs.sources.pieces import bounds_of, pieces
from cqs.sources.zarrs import A_CHUNK, PLAIN_WRITE, Layout, directory_of, import_zarr, layout_of

__all__ = ["ZarrFileSink", "ZarrSink", "file_write_bytes", "is_array", "output_chunks"]

Lead = tuple[int | slice, ...] | None

CHUNK_BYTES = 1 << 20  # of an array that is made here


def output_chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return chunks of rows of one head, of about a mebibyte.

    >>> output_chunks((8, 100_000, 64), 4)
    (1, 4096, 64)
    """
    rows = min(max(CHUNK_BYTES // max(shape[-1] * itemsize, 1), 1), max(shape[-2], 1))
    return (*(1 for _ in shape[:-2]), rows, max(shape[-1], 1))


def file_write_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Return what writing a new array takes, as `ZarrSink.write_bytes`, before it is there; zarr must be."""
    import_zarr()
    return PLAIN_WRITE * prod(output_chunks(shape, itemsize)) * itemsize + A_CHUNK


def is_array(path: Path) -> bool:
    """Whether a directory is a Zarr array."""
    try:
        return bool(json.loads((path / "zarr.json").read_bytes())["node_type"] == "array")
    except (OSError, ValueError, KeyError, TypeError):
        return (path / ".zarray").is_file()


@dataclass(frozen=True, slots=True, eq=False)
class ZarrSink(OnDisk):
    """A Zarr array that is given. `attrs["cqs"]["complete"]` is False from before the first row until after the last.

    Parameters
    ----------
    array : zarr.Array
        Of shape `(*B, H, T, E)`, open for writing.
    layout : Layout
        As `layout_of` gives it.
    """

    array: Any
    layout: Layout

    @classmethod
    def of(cls, array: Any) -> Self:
        """Take an array as an output; it is left as it is until `begin`."""
        return cls(array, layout_of(array))

    @property
    def where(self) -> str:
        """What it is called in errors."""
        return str(directory_of(self.array) or self.array.store_path)

    @property
    def write_bytes(self) -> int:
        """What writing a part of a chunk, or of a shard of chunks, takes: it is read, changed and written back."""
        return self.layout.write_bytes

    def begin(self) -> Self:
        """Mark the array as not complete.

        Raises
        ------
        SinkError
            If it cannot be written to.
        """
        self._mark(False)
        return self

    def write(self, lead: Lead, start: int, stop: int, rows: npt.NDArray[Any]) -> None:
        """Write some rows of some heads, or of all, chunk by chunk.

        Raises
        ------
        SinkError
            If a chunk cannot be written, as on a full disk.
        """
        bounds = bounds_of(self.shape, lead, start, stop)
        block = rows.reshape([len(axis) for axis in bounds])
        for own, part in pieces(bounds, self.layout.write_box) if block.size else ():
            try:
                self.array.set_basic_selection(own, block[part].astype(self.dtype, copy=False))
            except MemoryError:
                raise
            except Exception as error:
                raise _failed(self.where, error) from error

    def finish(self) -> Any:
        """Mark the array as complete, and return it."""
        self._mark(True)
        return self.array

    def abandon(self) -> None:
        """Do nothing: what the array holds is undefined, and its mark says so."""

    def _mark(self, is_complete: bool) -> None:
        try:
            mark(self.array.attrs, is_complete, as_text=False)
        except Exception as error:
            raise _failed(self.where, error) from error


@dataclass(frozen=True, slots=True, eq=False)
class ZarrFileSink(ZarrSink):
    """A new Zarr array in a directory, beside its name as `NAME.unfinished` until it is complete.

    Parameters
    ----------
    array, layout
        As of `ZarrSink`.
    path : Path
        Where the array goes, links followed; a Zarr array that is there is replaced at the end.
    """

    path: Path
    _lock: list[int]

    @property
    def where(self) -> str:
        """What it is called in errors."""
        return str(self.path)

    @classmethod
    def create(cls, path: str | os.PathLike[str], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Self:
        """Begin an array, in chunks of a mebibyte, not compressed, filled with NaN.

        Results of attention are as random as their inputs: Zstandard saves 8 % of them, and takes four times as long.

        Raises
        ------
        BackendError
            If Zarr is missing.
        SinkError
            If it cannot be written there, or another run is writing it.
        """
        zarr, target = import_zarr(), Path(os.path.realpath(path))
        lock, unfinished = hold(target, is_directory=True), unfinished_of(target)
        try:
            for left in unfinished.iterdir():  # by a run that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            array = zarr.create_array(
                str(unfinished),
                shape=shape,
                dtype=dtype,
                chunks=output_chunks(shape, dtype.itemsize),
                compressors=None,
                fill_value=np.nan,
                config={"write_empty_chunks": True},  # else each chunk is first compared with the fill value
                attributes={"cqs": {"complete": False}},
            )
        except Exception as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            os.close(lock)
            raise _failed(str(target), error) from error
        return cls(array, layout_of(array), target, [lock])

    def finish(self) -> Any:
        """Give the directory its name, once all of it is on the disk, and return the array, read-only.

        Raises
        ------
        SinkError
            If that fails; then the new array is removed, and one that was there before is still there.
        """
        try:
            unfinished = unfinished_of(self.path)
            _sync(unfinished)
            self._mark(True)
            _sync(unfinished, ["zarr.json"])
            _replace(unfinished, self.path)
        except OSError as error:
            self.abandon()
            raise error if isinstance(error, SinkError) else _failed(self.where, error) from error
        os.close(self._lock.pop())
        return import_zarr().open_array(str(self.path), mode="r")

    def abandon(self) -> None:
        """Remove what was written. Once it is finished, or abandoned, do nothing."""
        if self._lock:  # then the unfinished directory is this one
            shutil.rmtree(unfinished_of(self.path), ignore_errors=True)
            os.close(self._lock.pop())


def _failed(where: str, error: Exception) -> SinkError:
    reason = reason_of(error) if isinstance(error, OSError) else f"{error or type(error).__name__}; check it"
    return SinkError(f"{where} cannot be written: {reason}")


def _sync(directory: Path, names: list[str] | None = None) -> None:
    """Wait until files are on the disk: all, or some."""
    files = (Path(folder, name) for folder, _, found in os.walk(directory) for name in found)
    for file in files if names is None else (directory / name for name in names):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(unfinished: Path, target: Path) -> None:
    """Give a directory its name, and remove one that has it. If the name cannot be given, the old one keeps it."""
    if not target.exists():
        unfinished.rename(target)
        return
    import tempfile  # slow to import, and not needed to import cqs

    old = Path(tempfile.mkdtemp(prefix=f"{target.name}.replaced-", dir=target.parent))
    target.rename(old)
    try:
        unfinished.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
