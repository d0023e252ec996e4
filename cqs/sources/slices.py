"""Arrays on disk of other libraries: anything with `shape`, `dtype` and slicing, such as Zarr and h5py give."""

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.errors import SinkError, SourceError

__all__ = ["SliceInput", "SliceSink", "is_sliceable"]

Lead = tuple[int | slice, ...] | None


def is_sliceable(x: object) -> bool:
    """Whether something looks like an array on disk: it has a shape, a type and slices, but is of no array library."""
    return all(hasattr(x, name) for name in ("shape", "dtype", "__getitem__"))


@dataclass(frozen=True, slots=True, eq=False)
class SliceInput:
    """Something that gives NumPy arrays for slices. Slices are copied into memory.

    Parameters
    ----------
    array : object
        With `shape`, `dtype` and `__getitem__` for integers and slices.
    name : str
        What it is called in errors.
    """

    array: Any
    name: str

    is_staged: bool = field(default=True, init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type."""
        dtype: np.dtype[Any] = np.dtype(self.array.dtype)
        return dtype

    @property
    def read_bytes(self) -> int:
        """What a library takes to read some chunks, besides what it returns: as is and decompressed."""
        chunks = getattr(self.array, "chunks", None)
        return 4 * prod(chunks) * self.dtype.itemsize if chunks else 0

    def read(self, lead: Lead, start: int, stop: int) -> npt.NDArray[Any]:
        """Read some tokens of some heads, or of all."""
        index = (slice(None),) * (len(self.shape) - 2) if lead is None else lead
        try:
            rows = np.asarray(self.array[(*index, slice(start, stop), slice(None))])
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise SourceError(f"`{self.name}` cannot be read: {error}") from error
        if rows.shape[-2] != stop - start:
            raise SourceError(f"`{self.name}` changed while it was read: it was cut off; run again when it is complete")
        return rows

    def close(self) -> None:
        """Do nothing: it is the caller's."""


@dataclass(frozen=True, slots=True, eq=False)
class SliceSink:
    """Something that takes NumPy arrays into slices.

    Parameters
    ----------
    array : object
        With `shape`, `dtype` and `__setitem__` for integers and slices.
    """

    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type."""
        dtype: np.dtype[Any] = np.dtype(self.array.dtype)
        return dtype

    def write(self, lead: Lead, start: int, stop: int, rows: npt.NDArray[Any]) -> None:
        """Write some rows of some heads, or of all."""
        index = (slice(None),) * (len(self.shape) - 2) if lead is None else lead
        try:
            self.array[(*index, slice(start, stop), slice(None))] = rows.astype(self.dtype, copy=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise SinkError(f"`out` cannot be written: {error}") from error

    def finish(self) -> Any:
        """Return the array."""
        return self.array

    def abandon(self) -> None:
        """Do nothing: what the array holds is undefined."""
