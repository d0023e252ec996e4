"""The gradient of a bias: of which numbers a task knows a part, and how parts add up."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Self

from cqs.problem import AttentionProblem
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
    """

    lead: tuple[int, ...]
    rows: int
    columns: int

    @classmethod
    def of(cls, bias: Array, problem: AttentionProblem) -> Self:
        """Take the shape of an array that broadcasts to `(*B, H, T, S)`."""
        shape = (1,) * (len(problem.batch) + 3 - bias.ndim) + tuple(map(int, bias.shape))
        return cls(shape[:-2], *shape[-2:])

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

    def most_of_head(self, strips: int, rows: int, columns: int) -> int:
        """Bound how many numbers a task adds for one head.

        It has at most so many strips, which have so many rows together, and so many columns.
        """
        return (rows if self.rows > 1 else min(strips, rows)) * (columns if self.columns > 1 else 1)

    def heads_of_task(self, call: CallShape) -> int:
        """Return for how many of its heads what a task adds is kept apart."""
        *batch, n_heads = self.lead
        return min(prod(batch), call.batch) * min(n_heads, call.kv_heads * call.shared)

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
