"""What the compiled kernel is told in integers: where arrays are, and which keys the rows of its blocks see."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cqs.kernels.blocks import columns_seen, in_chunks
from cqs.kernels.contract import KeyChunk
from cqs.kernels.region import Region
from cqs.masks import Coverage
from cqs.masks.mask import Booleans, Integers
from cqs.once import once
from cqs.schedule import CallShape, even_cuts

__all__ = [
    "ALL_SEEN",
    "BFLOAT16",
    "BOUNDED",
    "FLAGGED",
    "FLOAT16",
    "FLOAT32",
    "FLOAT64",
    "KINDS",
    "BlockTables",
    "Tables",
    "heads_together",
    "places",
    "places_of_keys",
]

FLOAT32, FLOAT16, BFLOAT16, FLOAT64 = 0, 1, 2, 3
KINDS = {"float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}  # types of inputs
ALL_SEEN, BOUNDED, FLAGGED = 0, 1, 2  # what rows see of a run of keys
_BOUND_BYTES = 24  # of a row that sees a run in part: two ends of int64, which become two of int32


def places(arrays: Sequence[npt.NDArray[Any]], kind: int) -> Integers:
    """Say where the matrices of arrays `(*B, H, rows, width)` are, for each batch entry, `(batch, arrays, 6)`.

    That is: the address of the first, bytes from head to head, from row to row and from number to number, type, width.
    """
    rows = [(x.__array_interface__["data"][0], *x.strides[-3:], kind, x.shape[-1]) for x in arrays]
    found = np.array(rows, np.int64)[None]
    batch = arrays[0].shape[:-3]
    if batch:
        found = np.repeat(found, prod(batch), axis=0)
        for n, array in enumerate(arrays):
            for at, stride in zip(np.indices(batch), array.strides, strict=False):
                found[:, n, 0] += at.reshape(-1) * stride
    return found


def places_of_keys(chunks: Sequence[KeyChunk], kind: int) -> Integers:
    """Say where keys and values are, or what is as large, for each batch entry, `(batch, chunks, 2, 6)`."""
    found = places([array for chunk in chunks for array in chunk], kind)
    return found.reshape(-1, len(chunks), 2, found.shape[-1])


@lru_cache(maxsize=64)
def heads_together(shape: CallShape, most: int) -> Integers:
    """Return the heads that are computed together: at most so many that share a key head. Not to be written to.

    Returns
    -------
    int64, `(key heads of all batch entries, n, 4)`
        Of each of the n: batch entry, key head, first query head and how many.
    """
    cuts = even_cuts(shape.shared, max(most, 1))
    found = np.empty((shape.batch * shape.kv_heads, len(cuts), 4), np.int64)
    entries, kv_heads = np.divmod(np.arange(len(found)), shape.kv_heads)
    found[..., 0], found[..., 1] = entries[:, None], kv_heads[:, None]
    found[..., 2] = kv_heads[:, None] * shape.shared + [cut.start for cut in cuts]
    found[..., 3] = list(map(len, cuts))
    return found


class Tables(NamedTuple):
    """What some blocks of rows see: all of it, or for one block some of it.

    Parameters
    ----------
    blocks : int64, `(n, 4)`
        First row of each and the one after the last; first of its pieces and the one after the last.
    pieces : int64, `(m, 6)`
        Runs of keys: chunk, first key in it, number of keys; what rows see of them, and where that is said; the token
        number of the first key, 0 if scores are not changed.
    bounds : int32
        For BOUNDED pieces, one after the other, the first key that each row of the block sees and the one after the
        last, `(2, rows)`, counted from the piece's first key.
    hidden : bool
        For FLAGGED pieces which keys are hidden from which rows, `(keys, rows)`.
    begins, ends : bool
        Whether these are the blocks' first pieces, and their last.
    """

    blocks: Integers
    pieces: Integers
    bounds: npt.NDArray[np.int32]
    hidden: Booleans
    begins: bool
    ends: bool


class _Piece(NamedTuple):
    """A run of keys of one chunk that rows see.

    Parameters
    ----------
    chunk, first : int
        Where it is: chunk, first key in it.
    columns : range
        The columns of the call that these keys are.
    kind : int
        What rows see: ALL_SEEN, BOUNDED or FLAGGED.
    bounds : int64, `(2, rows)`, or None
        As of `Tables`, if BOUNDED.
    n_bytes : int
        Of what is said about single rows.
    """

    chunk: int
    first: int
    columns: range
    kind: int
    bounds: Integers | None = None
    n_bytes: int = 0


@dataclass(frozen=True)
class BlockTables:
    """Makes the tables of blocks of rows.

    Parameters
    ----------
    region : Region
        Of the call.
    sizes : sequence of int
        Keys of each chunk.
    most_keys : int
        Of a block in one table.
    most_bytes : int
        Of what one table says about single rows.
    """

    region: Region
    sizes: Sequence[int]
    most_keys: int
    most_bytes: int

    def of(self, blocks: Sequence[range]) -> Iterator[Tables | range]:
        """Yield tables of whole blocks; a block that sees too much for one table is yielded itself, for `steps`."""
        whole = self._of_whole_tiles(blocks)
        if whole is not None:
            yield whole
            return
        together: list[tuple[range, list[_Piece]]] = []
        n_bytes = 0
        for rows in blocks:
            steps = self._steps(rows)
            step, is_long = next(steps), next(steps, None) is not None
            own_bytes = sum(piece.n_bytes for piece in step)
            if together and (is_long or n_bytes + own_bytes > self.most_bytes):
                yield self._table(together)
                together, n_bytes = [], 0
            if not is_long:
                together.append((rows, step))
                n_bytes += own_bytes
            del steps, step  # a generator keeps what it has
            if is_long:
                yield rows
        if together:
            yield self._table(together)

    def _of_whole_tiles(self, blocks: Sequence[range]) -> Tables | None:
        """Return the table of blocks whose rows are of one run each, and see whole chunks; None if there are others.

        Without a look at single tiles, since a task may have many small ones.
        """
        region, owned = self.region, self._owned
        if owned is None or sum(self.sizes) > self.most_keys:
            return None
        ends = list(accumulate(map(len, region.queries)))
        runs = [bisect_right(ends, rows.start) for rows in blocks]
        if any(rows.stop > ends[run] for rows, run in zip(blocks, runs, strict=True)):
            return None
        of_blocks, chunks = np.nonzero(owned[runs])
        pieces = np.zeros((len(chunks), 6), np.int64)
        pieces[:, 0], pieces[:, 2] = chunks, np.array(self.sizes)[chunks]
        if region.scores is not None:
            pieces[:, 5] = np.array([keys.start for keys in region.keys])[chunks]
        cuts = np.searchsorted(of_blocks, np.arange(len(blocks) + 1))
        rows_of = np.array([(rows.start, rows.stop) for rows in blocks], np.int64)
        found = np.column_stack([rows_of, cuts[:-1], cuts[1:]])
        return Tables(found, pieces, np.empty(0, np.int32), np.empty(0, bool), True, True)

    @once
    def _owned(self) -> Booleans | None:
        """Which runs of queries own which chunks, `(runs, chunks)`; None if that is not all there is to say."""
        region = self.region
        if region.is_masked or [len(keys) for keys in region.keys] != list(self.sizes):
            return None
        owned = np.ones((len(region.queries), len(self.sizes)), bool)
        if region.foreign:
            owned[tuple(np.array(list(region.foreign)).T)] = False
        return owned

    def steps(self, rows: range) -> Iterator[Tables]:
        """Yield the tables of one block: its keys are for one after the other."""
        steps = self._steps(rows)
        step, begins = next(steps), True
        for later in steps:
            yield self._table([(rows, step)], begins, ends=False)
            step, begins = later, False
        yield self._table([(rows, step)], begins)

    def _steps(self, rows: range) -> Iterator[list[_Piece]]:
        """Yield what rows see, as much at a time as a table may hold."""
        step: list[_Piece] = []
        n_keys = n_bytes = 0
        for piece in self._pieces(rows):
            n_keys, n_bytes = n_keys + len(piece.columns), n_bytes + piece.n_bytes
            if step and (n_keys > self.most_keys or n_bytes > self.most_bytes):
                yield step
                step, n_keys, n_bytes = [], len(piece.columns), piece.n_bytes
            step.append(piece)
        yield step

    def _pieces(self, rows: range) -> Iterator[_Piece]:
        if self._owned is not None:
            yield from self._of_chunks(rows, self._owned)
            return
        is_all_seen = self.region.is_all_seen(rows)
        for columns in columns_seen(self.region, rows):
            for cut in (columns[n : n + self.most_keys] for n in range(0, len(columns), self.most_keys)):
                yield from self._in_chunks(cut) if is_all_seen else self._seen_in_part(rows, cut)

    def _of_chunks(self, rows: range, owned: Booleans) -> Iterator[_Piece]:
        """Yield chunks, of which each run of queries sees all or nothing."""
        runs, parts = zip(*self.region.query_runs(rows), strict=True)
        own, heights, starts = owned[list(runs)], list(map(len, parts)), list(accumulate(self.sizes, initial=0))
        for chunk in np.flatnonzero(own.any(axis=0)).tolist():
            n_before, is_all_seen = starts[chunk], bool(own[:, chunk].all())
            for first in range(0, self.sizes[chunk], self.most_keys):
                columns = range(n_before, n_before + self.sizes[chunk])[first : first + self.most_keys]
                piece = _Piece(chunk, first, columns, ALL_SEEN)
                if not is_all_seen:
                    ends = np.repeat(own[:, chunk] * len(columns), heights)
                    bounds = np.stack([np.zeros_like(ends), ends])
                    piece = piece._replace(kind=BOUNDED, bounds=bounds, n_bytes=_BOUND_BYTES * len(rows))
                yield piece

    def _in_chunks(self, columns: range) -> Iterator[_Piece]:
        """Yield columns that are all seen."""
        whole = [columns] if self.region.scores is None else [part for part, _ in self.region.key_runs(columns)]
        before = columns.start
        for chunk, part in in_chunks(whole, self.sizes):
            yield _Piece(chunk, part.start, range(before, before + len(part)), ALL_SEEN)
            before += len(part)

    def _seen_in_part(self, rows: range, columns: range) -> Iterator[_Piece]:
        """Yield columns of which some rows may not see all."""
        for piece in self._in_chunks(columns):
            coverage = self.region.coverage(rows, piece.columns)  # most are seen whole, which is known without arrays
            if coverage is not Coverage.PARTIAL:
                yield from [piece] if coverage is Coverage.FULL else []
                continue
            bounds = self.region.bounds(rows, [piece.columns])
            if bounds is None:
                yield from self._flagged(rows, piece)
                continue
            first, last = bounds
            if first.any() or last.min() < len(piece.columns):
                piece = piece._replace(kind=BOUNDED, bounds=bounds, n_bytes=_BOUND_BYTES * len(rows))
            if last.any():
                yield piece

    def _flagged(self, rows: range, piece: _Piece) -> Iterator[_Piece]:
        """Yield columns one by one of which is to be said what rows do not see, and those before and after."""
        hidden, most = self.region.hidden_columns(rows, [piece.columns]), max(self.most_bytes // len(rows), 1)
        cuts = sorted({0, hidden.start, *hidden[most::most], hidden.stop, len(piece.columns)})
        for start, stop in pairwise(cuts):
            own = piece._replace(first=piece.first + start, columns=piece.columns[start:stop])
            is_flagged = hidden.start <= start < hidden.stop
            yield own._replace(kind=FLAGGED, n_bytes=len(rows) * (stop - start)) if is_flagged else own

    def _table(self, steps: Sequence[tuple[range, list[_Piece]]], begins: bool = True, ends: bool = True) -> Tables:
        """Write down what blocks of rows see."""
        blocks: list[tuple[int, ...]] = []
        pieces: list[tuple[int, ...]] = []
        bounds: list[Integers] = []
        hidden: list[Booleans] = []
        n_bounds = n_flags = 0
        for rows, own in steps:
            blocks.append((rows.start, rows.stop, len(pieces), len(pieces) + len(own)))
            for piece in own:
                place = n_bounds if piece.kind == BOUNDED else n_flags
                pieces.append((piece.chunk, piece.first, len(piece.columns), piece.kind, place, self._token(piece)))
                if piece.bounds is not None:
                    bounds.append(piece.bounds.reshape(-1))
                    n_bounds += piece.bounds.size
                if piece.kind == FLAGGED:
                    hidden.append(self._hidden(rows, piece.columns))
                    n_flags += hidden[-1].size
        return Tables(
            np.array(blocks, np.int64),
            np.array(pieces, np.int64).reshape(-1, 6),
            np.concatenate(bounds, dtype=np.int32, casting="unsafe") if bounds else np.empty(0, np.int32),
            hidden[0] if len(hidden) == 1 else np.concatenate([np.empty(0, bool), *hidden]),
            begins,
            ends,
        )

    def _token(self, piece: _Piece) -> int:
        """Return the token number of a piece's first key, if it matters."""
        return 0 if self.region.scores is None else next(self.region.key_runs(piece.columns))[1].start

    def _hidden(self, rows: range, columns: range) -> Booleans:
        """Return which columns are hidden from which rows, column by column."""
        flags = np.zeros((len(columns), len(rows)), bool)
        for (_, some_rows, some_columns), hidden in self.region.hidden(rows, [columns]):
            flags[some_columns, some_rows] = hidden if hidden is True else hidden.T
        return flags.reshape(-1)
