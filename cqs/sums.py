"""Where rows of the output are summed up until they are complete: in the output itself, in memory, or in a file."""

import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from cqs.backend import namespace_of
from cqs.errors import SinkError
from cqs.partial import Merge, Partial, copy_into
from cqs.schedule import UNSEEN_BYTES, HeadBlock, Strip, even_cuts
from cqs.types import DType, Namespace

__all__ = ["InMemory", "InPlace", "Spilled", "Sums"]


class Sums(Protocol):
    """Partial results of the rows of one block of heads, which grow until they are complete."""

    def add(self, heads: HeadBlock | None, strips: tuple[Strip, ...], partials: tuple[Partial, ...]) -> int:
        """Merge results into the rows of their strips; return the bytes written to and read from a file."""

    def take(self, heads: HeadBlock | None, rows: range) -> Iterator[tuple[range, Partial, int]]:
        """Yield what rows have come to, part by part: rows, their result, and the bytes read from a file."""


class InPlace:
    """Sums kept where they end: in the output `(*B, H, T, E)`, beside log-sum-exps `(*B, H, T)` of the same type.

    The rest of those is to be 0.
    """

    def __init__(self, merge: Merge, xp: Namespace, total: Partial) -> None:
        self._merge = merge
        self._xp = xp
        self.total = total
        self._begun: set[tuple[HeadBlock | None, int]] = set()
        total.out[...] = 0
        total.lse[...] = -xp.inf

    def add(self, heads: HeadBlock | None, strips: tuple[Strip, ...], partials: tuple[Partial, ...]) -> int:
        """Merge results into the rows of their strips."""
        merged: list[tuple[Partial, Partial]] = []
        for strip, part in zip(strips, partials, strict=True):
            total, place = self._rows(heads, strip.query.tokens), (heads, strip.query.start)
            if place in self._begun:
                merged.append((total, part))
            else:  # the first to come
                self._begun.add(place)
                copy_into(total, part)
        if merged:
            self._merge(self._xp, *zip(*merged, strict=True))
        return 0

    def take(self, heads: HeadBlock | None, rows: range) -> Iterator[tuple[range, Partial, int]]:
        """Yield all rows at once."""
        self._begun = {(block, start) for block, start in self._begun if block != heads or start not in rows}
        yield rows, self._rows(heads, rows), 0

    def _rows(self, heads: HeadBlock | None, rows: range) -> Partial:
        lead = (...,) if heads is None else heads.of_queries
        return self.total.at(*lead, slice(rows.start, rows.stop))


class InMemory:
    """Sums of one block of heads in arrays of their own: of the library and on the device of the results.

    Parameters
    ----------
    merge : function
        By which results are merged.
    xp : namespace
        Of the arrays, if no result comes at all.
    shape : tuple of int
        `(*B, H, T, E)`.
    dtype, device
        Likewise.
    """

    def __init__(self, merge: Merge, xp: Namespace, shape: tuple[int, ...], dtype: DType, device: object) -> None:
        self._merge = merge
        self._xp, self._shape, self._dtype, self._device = xp, shape, dtype, device
        self._sums: InPlace | None = None
        self._heads: HeadBlock | None = None

    def add(self, heads: HeadBlock | None, strips: tuple[Strip, ...], partials: tuple[Partial, ...]) -> int:
        """Merge results into the rows of their strips."""
        if not partials:  # the task sees nothing, and does not tell where the results of others will be
            return 0
        first = partials[0].out
        self._xp, self._dtype, self._device = namespace_of(out=first), first.dtype, first.device
        return self._of(heads).add(None, strips, partials)

    def take(self, heads: HeadBlock | None, rows: range) -> Iterator[tuple[range, Partial, int]]:
        """Yield the rows, and let go of everything with the last of them."""
        yield from self._of(heads).take(None, rows)
        if rows.stop == self._shape[-2]:
            self._sums = None

    def _of(self, heads: HeadBlock | None) -> InPlace:
        if self._sums is None or self._heads != heads:
            self._sums = None
            leading = self._shape[:-2] if heads is None else (len(heads.queries),)
            total = Partial.empty(self._xp, (*leading, *self._shape[-2:]), self._dtype, self._device)
            self._sums, self._heads = InPlace(self._merge, self._xp, total), heads
        return self._sums


class Spilled:
    """Sums of one block of heads in a scratch file, which has no name and is gone when the process is. NumPy only.

    Parameters
    ----------
    merge : function
        By which results are merged.
    shape : tuple of int
        `(*B, H, T, E)`.
    dtype : NumPy dtype
        Of the sums.
    directory : str, optional
        Where the file is, by default where the system keeps temporary files.
    """

    def __init__(
        self, merge: Merge, shape: tuple[int, ...], dtype: np.dtype[Any], directory: str | None = None
    ) -> None:
        import tempfile  # slow to import, and not needed to import cqs

        self._merge, self._shape, self._dtype = merge, shape, dtype
        self._where = directory or tempfile.gettempdir()
        try:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._failed(error) from None
        weakref.finalize(self, self._file.close)
        self._heads: HeadBlock | None = None
        self._begun: dict[int, int] = {}  # first row of a group, and the row after its last

    def add(self, heads: HeadBlock | None, strips: tuple[Strip, ...], partials: tuple[Partial, ...]) -> int:
        """Merge results into the rows of their strips; a group must come with the same rows each time."""
        if heads != self._heads:
            self._heads, self._begun = heads, {}
        n_bytes = 0
        for strip, partial in zip(strips, partials, strict=True):
            rows = strip.query.tokens
            if rows.start in self._begun:
                total = self._read(rows)
                self._merge(np, [total], [partial])
                n_bytes += self._size(rows)
            else:
                self._begun[rows.start] = rows.stop
                total = partial
            self._write(rows, total)
            n_bytes += self._size(rows)
            del total  # before the next is read
        return n_bytes

    def take(self, heads: HeadBlock | None, rows: range) -> Iterator[tuple[range, Partial, int]]:
        """Yield the rows group by group, and between them those that no result came for."""
        begun = sorted(self._begun.items()) if heads == self._heads else []
        self._heads, self._begun = heads, {}
        first = rows.start
        for start, stop in [*begun, (rows.stop, rows.stop)]:
            step = max(UNSEEN_BYTES // max(self._size(range(1)), 1), 1)
            for unseen in even_cuts(start - first, step):
                yield (
                    range(first + unseen.start, first + unseen.stop),
                    Partial.empty(np, self._shape_of(len(unseen)), self._dtype),
                    0,
                )
            if start < stop:
                yield range(start, stop), self._read(range(start, stop)), self._size(range(start, stop))
            first = stop

    def _shape_of(self, n_rows: int) -> tuple[int, ...]:
        leading = self._shape[:-2] if self._heads is None else (len(self._heads.queries),)
        return (*leading, n_rows, self._shape[-1])

    def _size(self, rows: range) -> int:
        return int(np.prod(self._shape_of(len(rows))[:-1])) * (self._shape[-1] + 2) * self._dtype.itemsize

    def _read(self, rows: range) -> Partial:
        shape = self._shape_of(len(rows))
        numbers = np.empty(self._size(rows) // self._dtype.itemsize, self._dtype)
        self._file.seek(self._place(rows))
        view = numbers.view(np.uint8).data
        while view:
            try:
                n = self._file.readinto(view)
            except OSError as error:
                raise SinkError(
                    f"sums cannot be read back from the scratch file: {error.strerror}; run again"
                ) from None
            if not n:
                raise SinkError("the scratch file was cut off while it was in use; run again")
            view = view[n:]
        n_rows = int(np.prod(shape[:-1]))
        out, lse, rest = np.split(numbers, [n_rows * shape[-1], n_rows * (shape[-1] + 1)])
        return Partial(out.reshape(shape), lse.reshape(shape[:-1]), rest.reshape(shape[:-1]))

    def _write(self, rows: range, partial: Partial) -> None:
        self._file.seek(self._place(rows))
        try:
            for array in (partial.out, partial.lse, partial.rest):
                view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                while view:
                    view = view[self._file.write(view) :]
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> SinkError:
        return SinkError(
            f"sums cannot be written to a scratch file in {self._where}: {error.strerror}; free some space"
        )

    def _place(self, rows: range) -> int:
        return rows.start * self._size(range(1))
