"""Arrays on disk of other libraries: anything with `shape`, `dtype` and slicing, such as h5py gives."""

from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cqs.errors import SinkError, SourceError
from cqs.schedule import WRITE_BYTES
from cqs.sources.files import Stamp
from cqs.sources.marks import mark, refuse_unfinished
from cqs.sources.on_disk import OnDisk
from cqs.sources.pieces import bounds_of, grown, pieces

__all__ = ["SliceInput", "SliceSink", "file_of", "is_sliceable"]

Lead = tuple[int | slice, ...] | None

_CACHE_BYTES = 1 << 20  # of chunks, that HDF5 keeps of each array


def is_sliceable(x: object) -> bool:
    """Whether something looks like an array on disk: it has a shape, a type and slices, but is of no array library."""
    return all(hasattr(x, name) for name in ("shape", "dtype", "__getitem__"))


def file_of(array: Any) -> tuple[str, str] | None:
    """Return the path of the file that an array is in and its name there, as of h5py; None for others."""
    path, name = getattr(getattr(array, "file", None), "filename", None), getattr(array, "name", None)
    return (path, name) if isinstance(path, str) and isinstance(name, str) else None


def _chunk_bytes(array: Any) -> int:
    chunks = getattr(array, "chunks", None)
    return prod(chunks) * np.dtype(array.dtype).itemsize if chunks else 0


@dataclass(frozen=True, slots=True, eq=False)
class SliceInput(OnDisk):
    """Something that gives NumPy arrays for slices. Slices are copied into memory.

    Parameters
    ----------
    array : object
        With `shape` `(*B, heads, tokens, width)`, `dtype` and `__getitem__` for integers and slices.
    name : str
        What it is called in errors.

    Notes
    -----
    A dataset of h5py goes to another process as file and name, and is opened again there. Of one that is open for
    reading it is checked, whenever something is read, that the file is still the same.
    """

    array: Any
    name: str
    _stamp: Stamp | None = None

    is_staged: bool = field(default=True, init=False)

    @classmethod
    def of(cls, array: Any, name: str) -> Self:
        """Take an array as an input.

        Raises
        ------
        SourceError
            If it carries the mark of an output that is not complete.
        """
        refuse_unfinished(array, name)
        is_read_only = file_of(array) is not None and getattr(array.file, "mode", None) == "r"
        return cls(array, name, Stamp.of(array.file.filename) if is_read_only else None)

    @property
    def read_bytes(self) -> int:
        """What a library takes to read chunks one by one, as they are and decompressed, and those that HDF5 keeps."""
        size = _chunk_bytes(self.array)
        return 3 * size + _CACHE_BYTES if size else 0

    def read(self, lead: Lead, start: int, stop: int) -> npt.NDArray[Any]:
        """Read some tokens of some heads, or of all.

        Raises
        ------
        SourceError
            If the library fails, or gives fewer than it should, or the file has changed.
        """
        index = (slice(None),) * (len(self.shape) - 2) if lead is None else lead
        try:
            rows = np.asarray(self.array[(*index, slice(start, stop), slice(None))])
        except MemoryError:
            raise
        except Exception as error:  # of whatever kind the library raises
            raise SourceError(f"`{self.name}` cannot be read: {error or type(error).__name__}; check it") from error
        n_rows = rows.shape[-2] if rows.ndim > 1 else 0
        if n_rows != stop - start:
            what = f"of {stop - start} rows {n_rows} are there"
            raise SourceError(f"`{self.name}` changed while it was read: {what}; run again when it is complete")
        if self._stamp is not None:
            now = Stamp.of(self.array.file.filename)
            if now != self._stamp:
                raise _changed(self.name, self.array.file.filename, self._stamp.difference(now))
        return rows

    def close(self) -> None:
        """Do nothing: it is the caller's."""

    def __reduce__(self) -> tuple[Any, ...]:
        place = file_of(self.array)
        return (type(self), (self.array, self.name)) if place is None else (_reopened, (*place, self.name, self._stamp))


def _changed(name: str, path: str, what: str) -> SourceError:
    return SourceError(f"`{name}` changed while it was read: {path}: {what}; run again when it is complete")


@lru_cache(maxsize=8)  # one process opens it once, and not for each task
def _reopened(path: str, dataset: str, name: str, stamp: Stamp | None) -> SliceInput:
    """Open a dataset in another process."""
    import h5py

    try:
        array = h5py.File(path, "r")[dataset]
    except (OSError, KeyError) as error:
        remedy = "open it with mode 'r', so that other processes can, too"
        raise SourceError(f"`{name}` cannot be read in another process: {error}; {remedy}") from error
    now = Stamp.of(path)
    if stamp is not None and now != stamp:
        raise _changed(name, path, stamp.difference(now))
    return SliceInput(array, name, now)


@dataclass(frozen=True, slots=True, eq=False)
class SliceSink(OnDisk):
    """Something that takes NumPy arrays into slices.

    If it has attributes, as h5py's datasets have, `attrs["cqs"]` says whether it is complete.

    Parameters
    ----------
    array : object
        With `shape` `(*B, H, T, E)`, `dtype` and `__setitem__` for integers and slices.
    """

    array: Any

    @property
    def write_bytes(self) -> int:
        """What a library takes to write chunks one by one, and those that HDF5 keeps."""
        size = _chunk_bytes(self.array)
        return 3 * size + _CACHE_BYTES if size else 0

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
        """Write some rows of some heads, or of all, in pieces along the borders of chunks.

        Raises
        ------
        SinkError
            If the library fails, as on a full disk.
        """
        bounds = bounds_of(self.shape, lead, start, stop)
        block = rows.reshape([len(axis) for axis in bounds])
        chunk = getattr(self.array, "chunks", None) or (*(1 for _ in self.shape[:-1]), self.shape[-1])
        for own, part in pieces(bounds, grown(chunk, self.shape, WRITE_BYTES // 8)):
            try:
                self.array[own] = block[part].astype(self.dtype, copy=False)
            except MemoryError:
                raise
            except Exception as error:  # of whatever kind the library raises
                raise SinkError(f"`out` cannot be written: {error or type(error).__name__}; check it") from error

    def finish(self) -> Any:
        """Mark the array as complete, once what was written is on its way to the disk, and return it."""
        self._flush()
        self._mark(True)
        self._flush()
        return self.array

    def abandon(self) -> None:
        """Do nothing: what the array holds is undefined, and its mark says so."""

    def _mark(self, is_complete: bool) -> None:
        try:
            mark(getattr(self.array, "attrs", None), is_complete, as_text=True)
        except Exception as error:
            raise SinkError(f"`out` cannot be written: {error}; open it for writing") from error

    def _flush(self) -> None:
        if file_of(self.array) is not None:
            try:
                self.array.file.flush()
            except Exception as error:
                raise SinkError(f"`out` cannot be written: {error}; check it") from error
