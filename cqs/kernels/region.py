"""Which part of the score matrix a kernel call computes: the tokens of its rows and columns, and what is visible.

A kernel counts rows and columns from 0; a `Region` knows which token each of them is, which rectangles are not this
task's to compute, and what the mask hides.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from types import EllipsisType
from typing import Literal, Self

import numpy as np

from cqs.masks import Coverage, Mask, NoMask
from cqs.masks.mask import Booleans, Integers, merged
from cqs.scores import Scores
from cqs.types import Array, Namespace

__all__ = ["Region"]

Window = tuple[EllipsisType, slice, slice]
Hidden = tuple[Window, Booleans | Literal[True]]  # part of a block of scores, and what is hidden in it

_FINEST = 128  # a rectangle that is visible in part is halved down to this many columns before the mask is evaluated


@dataclass(frozen=True)
class Region:
    """Rows made of runs of consecutive query tokens, columns of runs of consecutive key tokens.

    Parameters
    ----------
    queries, keys : tuple of range
        Token numbers, run by run.
    mask : Mask
        What each query sees, by token number.
    foreign : frozenset of (int, int)
        Pairs (run of queries, run of keys) that another task owns.
    scores : Scores, optional
        What is done to scores before the mask.
    """

    queries: tuple[range, ...]
    keys: tuple[range, ...]
    mask: Mask = field(default_factory=NoMask)
    foreign: frozenset[tuple[int, int]] = frozenset()
    scores: Scores | None = None

    @classmethod
    def whole(cls, n_queries: int, n_keys: int, mask: Mask | None = None) -> Self:
        """Return the region of a plain call: all queries against all keys, numbered from 0."""
        return cls((range(n_queries),), (range(n_keys),), NoMask() if mask is None else mask)

    @property
    def n_columns(self) -> int:
        """The number of keys."""
        return self._key_ends[-1]

    @cached_property
    def is_masked(self) -> bool:
        """Whether the mask hides anything from any of the rows."""
        return not self.mask.hides_nothing and any(
            self.mask.classify(queries, keys) is not Coverage.FULL for queries in self.queries for keys in self.keys
        )

    @property
    def lead(self) -> tuple[int, ...]:
        """Shape of the batch entries and heads between which mask or scores differ, which broadcasts to `(*B, H)`."""
        return np.broadcast_shapes(self.mask.lead, self.scores.lead if self.scores else ())

    @property
    def is_shared(self) -> bool:
        """Whether all batch entries and heads have the same mask and scores."""
        return self.mask.is_shared and prod(self.lead) == 1

    def at(self, index: tuple[int, ...]) -> Self:
        """Return the region of one batch entry and head, an index into `(*B, H)`."""
        return replace(self, mask=self.mask.at(index), scores=self.scores and self.scores.at(index))

    @property
    def is_full(self) -> bool:
        """Whether every row sees every column."""
        return not self.foreign and not self.is_masked

    def seen(self, rows: range) -> Iterator[range]:
        """Return the columns that some of the rows see, or a little more, as increasing ranges."""
        if not self.is_masked:  # a run of keys is in the region because some row sees it
            yield range(self.n_columns)
            return
        query_runs = list(_overlaps(self.queries, self._query_ends, rows))
        for j, (keys, end) in enumerate(zip(self.keys, self._key_ends, strict=True)):
            first = end - len(keys) - keys.start  # of token t, first + t is the column
            reached = [
                part
                for i, _, queries in query_runs
                if (i, j) not in self.foreign
                for part in self.mask.reach(queries, keys)
            ]
            yield from (range(first + part.start, first + part.stop) for part in merged(reached))

    def hidden(self, rows: range, pieces: Sequence[range]) -> Iterator[Hidden]:
        """Yield the rectangles of a block of scores in which something is to be hidden, and what.

        The scores are not looked at, so that each kernel may hide in the way that suits its arrays.

        Parameters
        ----------
        rows : range
            Rows of the block.
        pieces : sequence of range
            Its columns, side by side.

        Yields
        ------
        window : tuple
            What to index the scores by, `(..., rows, columns)`.
        hidden : NumPy array of bool, or True
            Which scores of the window count for nothing, `(rows, columns)`; True for all of them.
        """
        if not self.is_masked:
            yield from self._foreign_to(rows, tuple(pieces))
            return
        for i, j, corner, queries, keys in self._rectangles(rows, pieces):
            if (i, j) in self.foreign:
                yield _window(corner, queries, keys), True
            else:
                yield from self._masked(corner, queries, keys)

    def change(self, xp: Namespace, scores: Array, rows: range, pieces: Sequence[range]) -> None:
        """Do to the scores of a block, which are scaled, what is to be done before the mask; in place. Any library."""
        if self.scores is not None:
            for _, _, corner, queries, keys in self._rectangles(rows, pieces):
                window = _window(corner, queries, keys)
                scores[window] = self.scores.apply(xp, scores[window], queries, keys)

    def hide(self, xp: Namespace, scores: Array, rows: range, pieces: Sequence[range]) -> None:
        """Set the scores of a block to -inf that are not visible, in place, whatever they were. Any library."""
        for window, hidden in self.hidden(rows, pieces):
            if hidden is True:
                scores[window] = -xp.inf
            else:
                scores[window] = xp.where(xp.asarray(hidden, device=scores.device), -xp.inf, scores[window])

    def visible(self, rows: range, pieces: Sequence[range]) -> Booleans:
        """Return which scores of a block count, `(rows, columns)`."""
        visible = np.ones((len(rows), sum(map(len, pieces))), dtype=bool)
        for window, hidden in self.hidden(rows, pieces):
            visible[window] &= not hidden if hidden is True else ~hidden
        return visible

    def bounds(self, rows: range, pieces: Sequence[range]) -> Integers | None:
        """Return, for each row of a block, the first column that it sees and the one after the last, `(2, rows)`.

        Of a row that sees nothing they are 0 and 0. None where a row sees columns that do not follow each other, or
        where the mask can only be evaluated pair by pair. O(rows) for each two runs that meet in the block.
        """
        if self.is_masked and not self.mask.has_edges:
            return None
        n_columns = sum(map(len, pieces))
        first, last, n_seen = np.full(len(rows), n_columns), *np.zeros((2, len(rows)), dtype=np.int64)
        for i, j, (row, column), queries, keys in self._rectangles(rows, pieces):
            if (i, j) not in self.foreign:
                window = slice(row, row + len(queries))
                start, stop, n = self._span(queries, keys)
                start, stop = start + (column - keys.start), stop + (column - keys.start)
                first[window] = np.minimum(first[window], np.where(n > 0, start, n_columns))
                last[window] = np.maximum(last[window], np.where(n > 0, stop, 0))
                n_seen[window] += n
        if np.any(n_seen != np.maximum(last - first, 0)):
            return None
        return np.stack([np.where(n_seen > 0, first, 0), last])

    def _rectangles(
        self, rows: range, pieces: Sequence[range]
    ) -> Iterator[tuple[int, int, tuple[int, int], range, range]]:
        """Yield the parts of a block in which tokens are consecutive: runs, first row and column, tokens."""
        n_before = 0  # columns of earlier pieces
        query_runs = list(_overlaps(self.queries, self._query_ends, rows))
        for piece in pieces:
            key_runs = list(_overlaps(self.keys, self._key_ends, piece))
            for (i, row_part, queries), (j, col_part, keys) in itertools.product(query_runs, key_runs):
                yield i, j, (row_part.start - rows.start, n_before + col_part.start - piece.start), queries, keys
            n_before += len(piece)

    def _foreign_to(self, rows: range, pieces: tuple[range, ...]) -> list[Hidden]:
        """Return the rectangles of a block that another task owns; found once for all heads."""
        if (rows, pieces) not in self._found:
            rectangles = self._rectangles(rows, pieces)
            self._found[rows, pieces] = [
                (_window(at, q, k), True) for i, j, at, q, k in rectangles if (i, j) in self.foreign
            ]
        return self._found[rows, pieces]

    def _span(self, queries: range, keys: range) -> Integers:
        """Return the first key that each query sees, the one after the last, and how many it sees, `(3, queries)`."""
        coverage = self.mask.classify(queries, keys) if self.is_masked else Coverage.FULL
        if coverage is not Coverage.PARTIAL:
            n_seen = len(keys) if coverage is Coverage.FULL else 0
            return np.array([[keys.start], [keys.stop], [n_seen]]) + np.zeros(len(queries), dtype=np.int64)
        parts = [
            np.stack(
                [
                    np.where(is_seen, starts, keys.stop).min(axis=1),
                    np.where(is_seen, stops, keys.start).max(axis=1),
                    ((stops - starts) * is_seen).sum(axis=1),
                ]
            )
            for starts, stops, is_seen in self.mask.segments(queries, keys)
        ]
        return np.concatenate(parts, axis=1)

    def _masked(self, corner: tuple[int, int], queries: range, keys: range) -> Iterator[Hidden]:
        """Yield what the mask hides in one rectangle, whose first row and column in the block are `corner`."""
        coverage = self.mask.classify(queries, keys)
        if coverage is Coverage.EMPTY:
            yield _window(corner, queries, keys), True
        elif coverage is Coverage.PARTIAL and len(keys) > _FINEST:
            middle = len(keys) // 2
            yield from self._masked(corner, queries, keys[:middle])
            yield from self._masked((corner[0], corner[1] + middle), queries, keys[middle:])
        elif coverage is Coverage.PARTIAL:
            yield _window(corner, queries, keys), ~self.mask.block(queries, keys)

    @cached_property
    def _found(self) -> dict[tuple[range, tuple[range, ...]], list[Hidden]]:
        return {}

    @cached_property
    def _query_ends(self) -> list[int]:
        return list(accumulate(map(len, self.queries)))

    @cached_property
    def _key_ends(self) -> list[int]:
        return list(accumulate(map(len, self.keys)))


def _overlaps(runs: Sequence[range], ends: Sequence[int], part: range) -> Iterator[tuple[int, range, range]]:
    """Yield (number of the run, its share of `part`, the tokens of that share) for runs that end at `ends`."""
    for number in range(bisect_right(ends, part.start), len(runs)):
        first = ends[number] - len(runs[number])
        if first >= part.stop:
            return
        share = range(max(part.start, first), min(part.stop, ends[number]))
        if share:
            yield number, share, runs[number][share.start - first : share.stop - first]


def _window(corner: tuple[int, int], queries: range, keys: range) -> Window:
    """Index the rectangle of these sizes at a corner."""
    row, column = corner
    return ..., slice(row, row + len(queries)), slice(column, column + len(keys))
