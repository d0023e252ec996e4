"""A kernel that knows only a few shapes of mask, made to compute any region: cut into those shapes, and a rest.

The visible keys of a query are ranges between edges. As rows go on, an edge of most masks stands still or moves on by
one key a row: then the rows between two changes of that make a part of one of four shapes. What is left over, small or
irregular, goes to another kernel. The cutting is integers only; no part has a row that sees nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from cqs.kernels.blocks import in_chunks
from cqs.kernels.region import Region
from cqs.masks import Coverage, Mask
from cqs.masks.mask import Booleans, Integers, merged

__all__ = ["Cut", "Part", "Rest", "Shape", "cut_by_coverage", "part_of"]

_MOST_GRAPHS = 32  # a shape of part with less than 1/32 of a rectangle's visible pairs is not worth a graph of its own
_FEW, _LEAST_PAIRS = 8, 1 << 16  # if a rectangle has more than a few parts, each has so many visible pairs
_MOST_CHANGES = 256  # of which more are not looked at one by one, if too small on average
_LEAST_SQUARE = 1 << 15  # columns; with so many a square takes much longer than starting it
_NOTHING = 1 << 60  # stands for an edge that a row does not have; far from any token


class Shape(Enum):
    """How the visible part of n rows and s columns is bounded; (whether its left and right edge move with the rows).

    Row r sees the columns

    ========= ================================
    FULL      all
    CAUSAL    up to r + s - n: bottom-right aligned, s >= n
    LATER     from r on, s >= n
    BAND      from r on, up to r + s - n
    ========= ================================
    """

    FULL = (False, False)
    CAUSAL = (False, True)
    LATER = (True, False)
    BAND = (True, True)

    def visible(self, n_rows: int, n_columns: int) -> Booleans:
        """Return the mask that it is, `(n_rows, n_columns)`."""
        ahead = np.arange(n_columns) - np.arange(n_rows)[:, None]
        is_left, is_right = self.value
        return (ahead >= (0 if is_left else -n_rows)) & (ahead <= (n_columns - n_rows if is_right else n_columns))

    def n_pairs(self, n_rows: int, n_columns: int) -> int:
        """Return how many pairs are visible."""
        return n_rows * n_columns - sum(self.value) * (n_rows * (n_rows - 1) // 2)


class Part(NamedTuple):
    """Rows and columns of a call whose visible pairs are of a shape; the columns lie in one array."""

    rows: range
    columns: range
    shape: Shape


class Rest(NamedTuple):
    """Rows, and pieces of the columns, in increasing order, that are left to the other kernel."""

    rows: range
    pieces: tuple[range, ...]


class Cut(NamedTuple):
    """A region in parts: every visible pair is in exactly one part, or in the rest."""

    parts: tuple[Part, ...]
    rest: tuple[Rest, ...]


class _Segment(NamedTuple):
    """Columns of one array, and the consecutive tokens that they are."""

    columns: range
    tokens: range


class _Knots(NamedTuple):
    """Rows of a rectangle from which on its edges move otherwise than before; the first of its rows, and the last."""

    rows: Integers  # (n,), counted from the first
    edges: Integers  # (n, e), of these rows

    def run_from(self, row: int) -> tuple[int, Integers, Integers]:
        """Return how far the edges stand still or move on by one from a row on, and the edges here and there."""
        i = int(np.searchsorted(self.rows, row, side="right")) - 1
        here, start = self.edges[i], int(self.rows[i])
        if i + 1 == len(self.rows):
            return row, here, here
        there, stop = self.edges[i + 1], int(self.rows[i + 1])
        step = (there - here) // (stop - start)
        here = here + step * (row - start)
        return (stop, here, there) if ((step == 0) | (step == 1)).all() else (row, here, here)


def cut_by_coverage(region: Region, sizes: Sequence[int]) -> Cut:
    """Cut a region into parts of the four shapes and a rest.

    Parameters
    ----------
    region : Region
        Of which all heads share the mask.
    sizes : sequence of int
        Columns of the arrays that stand side by side; a part has columns of one of them.

    Notes
    -----
    O(rows) for each rectangle that is seen in part, O(1) for the others; the rows are looked at some at a time, and
    kept where something changes. Of a mask without edges, as arrays and functions are, a rectangle that is seen in part
    is left to the other kernel as a whole. It depends on the region alone, so that the same call always adds numbers in
    the same order.
    """
    parts: list[Part] = []
    rest: defaultdict[tuple[int, int], list[range]] = defaultdict(list)
    first = 0
    for i, queries in enumerate(region.queries):
        for segment in _segments(region, i, sizes) if queries else ():
            for part in _cut_rectangle(region, queries, segment, first):
                if isinstance(part, Part):
                    parts.append(part)
                else:
                    rest[part.start, part.stop].append(segment.columns)
        first += len(queries)
    return Cut(
        tuple(_joined_parts(parts, set(accumulate(sizes)))),
        tuple(_joined_rest(Rest(range(*rows), merged(pieces)) for rows, pieces in sorted(rest.items()))),
    )


def part_of(region: Region, rows: range, pieces: Sequence[range]) -> Region:
    """Return the region that some rows and columns of a region make up."""
    row_runs = in_chunks([rows], [len(run) for run in region.queries])
    key_runs = in_chunks(pieces, [len(run) for run in region.keys])
    return Region(
        queries=tuple(region.queries[i][part.start : part.stop] for i, part in row_runs),
        keys=tuple(region.keys[j][part.start : part.stop] for j, part in key_runs),
        mask=region.mask,
        foreign=frozenset(
            (a, b) for a, (i, _) in enumerate(row_runs) for b, (j, _) in enumerate(key_runs) if (i, j) in region.foreign
        ),
        scores=region.scores,
    )


def _segments(region: Region, i: int, sizes: Sequence[int]) -> list[_Segment]:
    """Return the keys that a run of queries is to meet, as few segments as their tokens and arrays allow."""
    segments: list[_Segment] = []
    ends = list(accumulate(map(len, region.keys)))
    starts = [0, *accumulate(sizes)]
    own = [(range(end - len(keys), end), keys) for keys, end in zip(region.keys, ends, strict=True)]
    for j, (columns, keys) in enumerate(own):
        if (i, j) in region.foreign:
            continue
        for number, part in in_chunks([columns], sizes):
            here = range(starts[number] + part.start, starts[number] + part.stop)
            tokens = range(keys.start + here.start - columns.start, keys.start + here.stop - columns.start)
            last = segments[-1] if segments else None
            if last and part.start > 0 and (last.columns.stop, last.tokens.stop) == (here.start, tokens.start):
                segments[-1] = _Segment(range(last.columns.start, here.stop), range(last.tokens.start, tokens.stop))
            else:
                segments.append(_Segment(here, tokens))
    return segments


def _cut_rectangle(region: Region, queries: range, segment: _Segment, first: int) -> Iterator[Part | range]:
    """Yield the parts of a rectangle, and the rows that are left over; `first` is the first row."""
    rows, (columns, tokens) = range(first, first + len(queries)), segment
    coverage = region.mask.classify(queries, tokens) if region.is_masked else Coverage.FULL
    if coverage is Coverage.FULL:
        yield Part(rows, columns, Shape.FULL)
    elif coverage is Coverage.PARTIAL and not region.mask.has_edges:
        yield rows
    elif coverage is Coverage.PARTIAL:
        knots = _knots(region.mask, queries, tokens)
        if knots is None:
            yield rows
            return
        row, column = rows.start - queries.start, columns.start - tokens.start  # of a token, less the token
        for group, is_worth_it in _worth_it(list(_groups(knots, queries))):
            if is_worth_it:
                yield from (Part(_moved(part.rows, row), _moved(part.columns, column), part.shape) for part in group)
            else:
                yield _moved(group[0].rows, row)


def _knots(mask: Mask, queries: range, keys: range) -> _Knots | None:
    """Return where the edges change how they move; None if they jump so often that, on average, no call is worth it."""
    rows, edges, first, n_jumps, most_jumps = [], [], 0, 0, None
    last = step = np.empty((0, 0), np.int64)
    for block in _edges(mask, queries, keys):
        if not len(last):
            last, step = block[:0], np.full((1, block.shape[1]), 2 * _NOTHING)  # which no step is
        block = np.concatenate([last, block])
        steps = np.diff(block, axis=0)
        n_jumps += int(np.count_nonzero(((steps != 0) & (steps != 1)).any(axis=1)))
        if n_jumps > _MOST_CHANGES:
            most_jumps = mask.count(queries, keys) // _LEAST_PAIRS if most_jumps is None else most_jumps
            if n_jumps > most_jumps:
                return None
        step = np.concatenate([step, steps])
        changes = np.flatnonzero((step[1:] != step[:-1]).any(axis=1))
        rows.append(first + changes)
        edges.append(block[changes])
        first, last, step = first + len(steps), block[-1:], step[-1:]
    return _Knots(np.array([*np.concatenate(rows), first]), np.concatenate([*edges, last]))


def _groups(knots: _Knots, queries: range) -> Iterator[list[Part]]:
    """Yield the parts, in tokens, of each group of rows between two changes of how the edges move."""
    row, last = 0, len(queries) - 1
    while row <= last:
        stop, here, there = knots.run_from(row)
        rows = range(queries.start + row, queries.start + stop + 1)
        found = [
            Part(rows, range(start, end), Shape((bool(there[k] > start), bool(end > here[k + 1]))))
            for k in range(0, len(here) - 1, 2)
            if (start := int(here[k])) < (end := int(there[k + 1])) < _NOTHING
        ]
        if found:
            yield found
        row = stop + 1


def _edges(mask: Mask, queries: range, keys: range) -> Iterator[Integers]:
    """Yield, of some rows at a time, where visible ranges start and stop, in turn, `(n, e)`; then `_NOTHING`."""
    for starts, stops, is_seen in mask.segments(queries, keys):
        edges = np.full((starts.shape[0], starts.shape[1] + 1), _NOTHING)
        seen_before = np.zeros(len(starts), dtype=bool)
        for j in range(starts.shape[1]):
            seen = np.where(starts[:, j] < stops[:, j], is_seen[:, j], seen_before)
            edges[:, j] = np.where(seen != seen_before, starts[:, j], _NOTHING)
            seen_before = seen
        edges[:, -1] = np.where(seen_before, keys.stop, _NOTHING)
        yield np.sort(edges, axis=1)


def _worth_it(groups: list[list[Part]]) -> Iterator[tuple[list[Part], bool]]:
    """Say of each group of parts whether it is worth calls and graphs of its own."""

    def kinds(group: list[Part]) -> tuple[tuple[int, int, Shape], ...]:
        return tuple((len(part.rows), len(part.columns), part.shape) for part in group)

    pairs = [sum(part.shape.n_pairs(len(part.rows), len(part.columns)) for part in group) for group in groups]
    of_kind: Counter[tuple[tuple[int, int, Shape], ...]] = Counter()
    for group, n_pairs in zip(groups, pairs, strict=True):
        of_kind[kinds(group)] += n_pairs
    is_few = len(groups) <= _FEW
    for group, n_pairs in zip(groups, pairs, strict=True):
        yield group, of_kind[kinds(group)] * _MOST_GRAPHS >= sum(pairs) and (is_few or n_pairs >= _LEAST_PAIRS)


def _joined_parts(parts: Sequence[Part], ends: set[int]) -> Iterator[Part]:
    """Join full parts of the same rows that stand side by side in an array, and then those of the same columns.

    Those that are tall and large are cut into squares: where keys stream by a diagonal, each would have another height,
    and so want a graph of its own.
    """
    by_rows: defaultdict[tuple[int, int], list[range]] = defaultdict(list)
    by_columns: defaultdict[tuple[int, int], list[range]] = defaultdict(list)
    for rows, columns, shape in parts:
        if shape is Shape.FULL:
            by_rows[rows.start, rows.stop].append(columns)
    for (start, stop), pieces in by_rows.items():
        for columns in _side_by_side(pieces, ends):
            by_columns[columns.start, columns.stop].append(range(start, stop))
    full = [
        Part(piece, range(*columns), Shape.FULL)
        for columns, runs in by_columns.items()
        for rows in merged(runs)
        for piece in _square_rows(rows, columns[1] - columns[0])
    ]
    yield from sorted(full, key=lambda part: (part.rows.start, part.columns.start))
    yield from (part for part in parts if part.shape is not Shape.FULL)


def _square_rows(rows: range, n_columns: int) -> list[range]:
    """Cut the rows of a full part into those of squares, if they are large; the last may be less."""
    height = n_columns if n_columns >= _LEAST_SQUARE else len(rows)
    return [rows[start : start + height] for start in range(0, len(rows), height)]


def _side_by_side(pieces: list[range], ends: set[int]) -> list[range]:
    """Join ranges of columns that continue each other within an array."""
    joined: list[range] = []
    for piece in sorted(pieces, key=lambda piece: piece.start):
        if joined and joined[-1].stop == piece.start and piece.start not in ends:
            joined[-1] = range(joined[-1].start, piece.stop)
        else:
            joined.append(piece)
    return joined


def _joined_rest(rest: Iterable[Rest]) -> Iterator[Rest]:
    """Join rows that follow each other and have the same columns left over."""
    last: Rest | None = None
    for item in rest:
        if last is not None and last.rows.stop == item.rows.start and last.pieces == item.pieces:
            last = Rest(range(last.rows.start, item.rows.stop), last.pieces)
        else:
            if last is not None:
                yield last
            last = item
    if last is not None:
        yield last


def _moved(part: range, by: int) -> range:
    return range(part.start + by, part.stop + by)
