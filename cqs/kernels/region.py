"""Which part of the score matrix a kernel call computes: the tokens of its rows and columns, and what is visible.

A kernel counts rows and columns from 0; a `Region` knows which token each of them is, which rectangles are not this
task's to compute, and what the mask hides.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod
from types import EllipsisType
from typing import Literal, Self

import numpy as np

from cqs.masks import Coverage, Mask, NoMask
from cqs.masks.mask import Booleans, Integers, merged
from cqs.once import Few, once
from cqs.scores import Scores
from cqs.types import Array, Namespace

__all__ = ["Hidden", "Region"]

Window = tuple[EllipsisType, slice, slice]
Hidden = tuple[Window, Booleans | Literal[True]]  # part of a block of scores, and what is hidden in it
HiddenPart = tuple[Window, tuple[range, range] | None]  # all of it, or what the mask hides of queries and keys

_FINEST = 128  # a rectangle that is visible in part is halved down to this many columns before the mask is evaluated
_MOST_KEPT = 512  # rectangles that are remembered to be hidden


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

    @once
    def is_masked(self) -> bool:
        """Whether the mask hides anything that is not foreign."""
        return any(map(self._is_run_masked, range(len(self.queries))))

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

    def hides_from(self, rows: range) -> bool:
        """Whether the mask hides anything from these rows, or others of their runs, that is not foreign."""
        return any(self._is_run_masked(i) for i, _, _ in _overlaps(self.queries, self._query_ends, rows))

    def is_all_seen(self, rows: range) -> bool:
        """Whether each of the rows sees all columns that any of them sees, as far as is known without much ado."""
        runs = [i for i, _, _ in _overlaps(self.queries, self._query_ends, rows)]
        is_alike = len(runs) == 1 or self.foreign.isdisjoint(itertools.product(runs, range(len(self.keys))))
        return is_alike and not self.hides_from(rows)

    def coverage(self, rows: range, columns: range) -> Coverage:
        """Return whether the rows see all of some columns, or none; PARTIAL, too, if that is not known at once."""
        found = {
            Coverage.EMPTY if (i, j) in self.foreign else self._coverage(i, queries, keys)
            for i, j, _, queries, keys in self._rectangles(rows, [columns])
        }
        return found.pop() if len(found) == 1 else Coverage.PARTIAL

    @property
    def query_tokens(self) -> Integers:
        """The token numbers of all rows."""
        return np.concatenate([np.arange(run.start, run.stop, dtype=np.int64) for run in self.queries])

    def query_runs(self, rows: range) -> Iterator[tuple[int, range]]:
        """Cut some rows where runs do, and return of each part which run it is of."""
        return ((number, part) for number, part, _ in _overlaps(self.queries, self._query_ends, rows))

    def key_runs(self, columns: range) -> Iterator[tuple[range, range]]:
        """Cut some columns where runs do, and return with each part its token numbers."""
        return ((part, tokens) for _, part, tokens in _overlaps(self.keys, self._key_ends, columns))

    def seen(self, rows: range) -> Iterator[range]:
        """Return the columns that some of the rows see, or a little more, as increasing ranges."""
        runs = list(_overlaps(self.queries, self._query_ends, rows))
        if len(runs) == 1 and not self._is_run_masked(runs[0][0]):
            yield from self._columns_of(runs[0][0])
            return
        is_masked = self.hides_from(rows)
        for j, (keys, end) in enumerate(zip(self.keys, self._key_ends, strict=True)):
            first = end - len(keys)
            own = [queries for i, _, queries in runs if (i, j) not in self.foreign]
            if own and not is_masked:
                yield range(first, end)
            elif own:
                reached = merged([part for queries in own for part in self.mask.reach(queries, keys)])
                yield from (range(first + part.start - keys.start, first + part.stop - keys.start) for part in reached)

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
        for window, part in self._hidden_parts(rows, tuple(pieces)):
            yield window, True if part is None else ~self.mask.block(*part)

    def hidden_columns(self, rows: range, pieces: Sequence[range]) -> range:
        """Return the columns of a block between which all is that is hidden in it, without looking at the mask."""
        columns = [window[2] for window, _ in self._hidden_parts(rows, tuple(pieces))]
        return range(min((c.start for c in columns), default=0), max((c.stop for c in columns), default=0))

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
            if (i, j) in self.foreign:
                continue
            coverage = self._coverage(i, queries, keys)
            if coverage is Coverage.EMPTY:
                continue
            window = slice(row, row + len(queries))
            start: int | Integers = column
            stop: int | Integers = column + len(keys)
            n: int | Integers = len(keys)
            if coverage is Coverage.PARTIAL:
                start, stop, n = self._spans(queries, keys)
                start = np.where(n > 0, start + (column - keys.start), n_columns)
                stop = np.where(n > 0, stop + (column - keys.start), 0)
            np.minimum(first[window], start, out=first[window])
            np.maximum(last[window], stop, out=last[window])
            n_seen[window] += n
        if np.any(n_seen != np.maximum(last - first, 0)):
            return None
        first[n_seen == 0] = 0
        return np.stack([first, last])

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

    def _hidden_parts(self, rows: range, pieces: tuple[range, ...]) -> list[HiddenPart]:
        """Return the rectangles of a block that are hidden, or where to ask the mask; found once for all heads."""
        return self._found.get((rows, pieces), lambda: list(self._hide(rows, pieces)))

    def _hide(self, rows: range, pieces: Sequence[range]) -> Iterator[HiddenPart]:
        for i, j, corner, queries, keys in self._rectangles(rows, pieces):
            if (i, j) in self.foreign:
                yield _window(corner, queries, keys), None
            elif self._is_run_masked(i):
                yield from self._masked(corner, queries, keys)

    def _is_run_masked(self, i: int) -> bool:
        """Whether the mask hides anything of a run of queries that is not foreign."""
        if self.mask.hides_nothing:
            return False
        if i not in self._masked_runs:
            own = (keys for j, keys in enumerate(self.keys) if (i, j) not in self.foreign)
            is_full = all(self.mask.classify(self.queries[i], keys) is Coverage.FULL for keys in own)
            self._masked_runs[i] = not is_full
        return self._masked_runs[i]

    def _coverage(self, i: int, queries: range, keys: range) -> Coverage:
        """Classify queries of the i-th run against keys that are not foreign to it."""
        return self.mask.classify(queries, keys) if self._is_run_masked(i) else Coverage.FULL

    def _spans(self, queries: range, keys: range) -> Integers:
        """Return the first key that each query sees, the one after the last, and how many it sees, `(3, queries)`."""
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

    def _masked(self, corner: tuple[int, int], queries: range, keys: range) -> Iterator[HiddenPart]:
        """Yield what the mask hides in one rectangle, whose first row and column in the block are `corner`."""
        coverage = self.mask.classify(queries, keys)
        if coverage is Coverage.EMPTY:
            yield _window(corner, queries, keys), None
        elif coverage is Coverage.PARTIAL and len(keys) > _FINEST:
            middle = len(keys) // 2
            yield from self._masked(corner, queries, keys[:middle])
            yield from self._masked((corner[0], corner[1] + middle), queries, keys[middle:])
        elif coverage is Coverage.PARTIAL:
            yield _window(corner, queries, keys), (queries, keys)

    def _columns_of(self, i: int) -> list[range]:
        """Return the columns of a run of queries that are not foreign."""
        if not self.foreign:
            return [range(self.n_columns)]
        pairs = zip([0, *self._key_ends], self._key_ends, strict=False)
        return [range(first, end) for j, (first, end) in enumerate(pairs) if (i, j) not in self.foreign]

    @once
    def _found(self) -> Few[HiddenPart]:
        return Few(_MOST_KEPT)

    @once
    def _masked_runs(self) -> dict[int, bool]:
        return {}

    @once
    def _query_ends(self) -> list[int]:
        return list(accumulate(map(len, self.queries)))

    @once
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
