"""The gradient of a bias: of which numbers a task knows a part, and how parts add up."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Self

from cqs.problem import DTYPES, AttentionProblem, dtype_name
from cqs.schedule import Bundle, CallShape, HeadBlock
from cqs.types import Array

__all__ = ["BiasShape"]

Index = tuple[int | slice, ...]


@dataclass(frozen=True, slots=True)
class BiasShape:
    """The axes of a bias, `(*B, H, T, S)`, of which some may be 1: what is added there is the sum over the axis.

    Parameters
    ----------
    lead : tuple of int
        `(*B, H)`, or 1 for those that are alike.
    rows, columns : int
        T and S, or 1.
    itemsize : int
        Bytes of a number of the bias itself.
    """

    lead: tuple[int, ...]
    rows: int
    columns: int
    itemsize: int

    @classmethod
    def of(cls, bias: Array, problem: AttentionProblem) -> Self:
        """Take the shape of an array that broadcasts to `(*B, H, T, S)`."""
        shape = (1,) * (len(problem.batch) + 3 - bias.ndim) + tuple(map(int, bias.shape))
        return cls(shape[:-2], shape[-2], shape[-1], DTYPES[dtype_name(bias)][0])

    @property
    def whole(self) -> tuple[int, ...]:
        """All axes."""
        return (*self.lead, self.rows, self.columns)

    def heads(self, block: HeadBlock | None) -> Index:
        """Return where the heads of a task are in the leading axes."""
        if block is None:
            return tuple(slice(n) for n in self.lead)
        *batch, own = self.lead
        entry = (b if n > 1 else 0 for b, n in zip(block.batch, batch, strict=True))
        return (*entry, slice(block.queries.start, block.queries.stop) if own > 1 else slice(1))

    def part(self, bundle: Bundle, block: HeadBlock | None) -> tuple[int, ...]:
        """Return the shape of what a bundle adds: its queries side by side, and its keys."""
        lead = self.lead if block is None else (len(block.queries) if self.lead[-1] > 1 else 1,)
        n_rows, n_columns = sum(len(strip.query) for strip in bundle.strips), sum(map(len, bundle.keys))
        return (*lead, n_rows if self.rows > 1 else 1, n_columns if self.columns > 1 else 1)

    def most_of_task(self, call: CallShape, strips: int, rows: int, columns: int) -> int:
        """Bound how many numbers a task adds.

        Parameters
        ----------
        call : CallShape
            Of its kernel calls, which says how many heads there are.
        strips, rows, columns : int
            The most strips that it has, rows of all of them, and keys.
        """
        *batch, n_heads = self.lead
        n_own = min(prod(batch), call.batch) * min(n_heads, call.kv_heads * call.shared)
        return n_own * self._most_of_head(strips, rows, columns)

    def most_beside(self, call: CallShape, strips: int, rows: int, columns: int) -> int:
        """Bound how many numbers a thread holds until they are added: those of a head, if heads share, and of a row."""
        *batch, n_heads = self.lead
        is_shared = prod(batch) < call.batch or n_heads < call.kv_heads * call.shared
        return self._most_of_head(strips, rows, columns) * is_shared + columns * (self.rows == 1 or rows == 1)

    def _most_of_head(self, strips: int, rows: int, columns: int) -> int:
        return (rows if self.rows > 1 else min(strips, rows)) * (columns if self.columns > 1 else 1)

    def places(self, bundle: Bundle) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
        """Yield rectangles of what a bundle adds, and where they belong: rows and columns each."""
        one = [(slice(1), slice(1))]
        queries, keys = [strip.query for strip in bundle.strips], bundle.keys
        rows, columns = (
            [
                (slice(*own), slice(group.start, group.stop))
                for own, group in zip(pairwise(accumulate(map(len, groups), initial=0)), groups, strict=True)
            ]
            for groups in (queries, keys)
        )
        for i, (r, in_rows) in enumerate(rows if self.rows > 1 else one):
            for j, (c, in_columns) in enumerate(columns if self.columns > 1 else one):
                if min(self.rows, self.columns) == 1 or (i, j) not in bundle.foreign:
                    yield (r, c), (in_rows, in_columns)
