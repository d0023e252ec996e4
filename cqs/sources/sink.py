"""What the result is written to, row by row, each row once."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from cqs.schedule import WRITE_BYTES
from cqs.types import Array, DType

__all__ = ["Sink", "byte_parts", "steps"]


@runtime_checkable
class Sink(Protocol):
    """A place for an array `(*B, H, T, E)`, which is filled by rows and looks finished only when it is.

    Rows come from one thread at a time, in any order, each once, as blocks of the accumulators' type, or rounded to
    that of the array. Then comes either `finish` or, if anything failed, `abandon`.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, `(*B, H, T, E)`."""

    @property
    def dtype(self) -> DType:
        """Its type: that of the inputs, or the accumulators'."""

    def write(self, lead: tuple[int | slice, ...] | None, start: int, stop: int, rows: Array) -> None:
        """Write rows of some heads.

        Parameters
        ----------
        lead : tuple of int or slice, or None
            Index of the heads in the leading axes, `(*B, H)`; None for all of them.
        start, stop : int
            The rows `start` to `stop - 1` of each of these heads.
        rows : array, `(*, stop - start, E)`
            Where `*` is what `lead` leaves of the leading axes. It is to be rounded to the type of the output, and not
            to be kept: its memory is used again.

        Raises
        ------
        SinkError
            If it cannot be written.
        """

    def finish(self) -> Array:
        """Mark the array as complete, and return it or a view of it."""

    def abandon(self) -> None:
        """Leave nothing that looks finished. May be called again, or after a `finish` that failed."""


def steps(start: int, stop: int, row_size: int) -> Iterator[tuple[int, int]]:
    """Cut rows of so many numbers into parts of which a copy takes at most `WRITE_BYTES`, or of one row.

    >>> list(steps(0, 5000, 64))
    [(0, 2048), (2048, 4096), (4096, 5000)]
    """
    step = max(WRITE_BYTES // max(8 * row_size, 1), 1)
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def byte_parts(rows: npt.NDArray[Any], dtype: Any = None) -> Iterator[memoryview]:
    r"""Yield the bytes of rows `(n, width)` in C order, converted to a type and copied, if need be, little by little.

    >>> [bytes(part) for part in byte_parts(np.array([[1, 2], [3, 4]], np.uint8).T)]
    [b'\x01\x03\x02\x04']
    """
    width = rows.shape[-1]
    for first, last in steps(0, len(rows), width):
        for start, stop in steps(0, width, 1) if last - first == 1 else ((0, width),):  # one row may itself be long
            part = np.ascontiguousarray(rows[first:last, start:stop], dtype=dtype)
            yield part.reshape(-1).view(np.uint8).data if part.size else memoryview(b"")
