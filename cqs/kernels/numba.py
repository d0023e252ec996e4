"""The fast kernel for NumPy arrays where Numba is installed: compiled loops, on threads of its own.

Where rows are cut into blocks depends on the shapes alone, and each block of each head is computed by one thread, so
the result is bitwise the same on any number of threads. What a thread does with a block is in
`cqs.kernels.compiled.loops`: scores never leave the core's caches, keys and values are read where they are, and Python
is not needed. A processor with Intel's AMX multiplies by that, which is as exact, and takes half of the time or less.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import copysign, e, log2
from typing import NamedTuple, Self

import numpy as np

from cqs import partial
from cqs.backend import Workspace, compute_threads, raise_if_stopped
from cqs.kernels import numpy_threads
from cqs.kernels.blocks import columns_seen, row_blocks
from cqs.kernels.contract import KeyChunk, Request
from cqs.kernels.numba_modules import compiled, missing
from cqs.kernels.numba_scores import Change, change_of, is_compiled
from cqs.kernels.numba_tables import KINDS, BlockTables, Tables, heads_together, places, places_of_keys
from cqs.kernels.numpy_threads import Unit
from cqs.kernels.numpy_unit import Floats
from cqs.kernels.region import Region
from cqs.masks.mask import Integers
from cqs.once import once
from cqs.partial import Partial
from cqs.problem import DTYPES, dtype_name
from cqs.schedule import (
    BLOCK_BYTES,
    LEAST_ROWS,
    LEAST_SPLIT_LANES,
    MOST_ITEMS,
    NumbaBlock,
    careful_bytes,
    even_cuts,
    numba_block,
)
from cqs.types import Array, Namespace

__all__ = ["attend", "can_scale", "factors", "merge_into", "missing", "refusal"]

_MOST_WORK = 1 << 33  # multiplications that a thread does without looking whether it is to stop: a tenth of a second
_LEAST_WORK = 1 << 26  # that is worth a call of its own
_WEIGHING = 50  # multiplications that take as long as what is done to a score
_MOST_EXPONENT = 20  # of the scale in queries, which could be pushed out of range
_MOST_FACTOR = 2.0**40  # of scores: with larger ones, products that are too small to have all digits might matter
_PARTS_A_THREAD = 8
_MOST_KEYS = 1 << 22  # of a piece, which are counted in float32
_FLOAT32 = np.dtype(np.float32).num
_PIECES = {"float32": 3, "float16": 2, "bfloat16": 1}
_SMALL_ROWS = 16  # of strips that may share a block with others: no more than fill a vector
_SMALL_SPLIT_ROWS = 160  # likewise, if AMX multiplies, for which each block splits its keys anew


def refusal(request: Request) -> str | None:
    """Return why this kernel cannot be taken for arrays of NumPy, and what would help; None if it can."""
    return missing()


def attend(
    q: Floats,
    chunks: Sequence[KeyChunk],
    *,
    scale: float,
    region: Region | None = None,
    threads: int = 1,
    block_bytes: int = BLOCK_BYTES,
) -> Partial:
    """Compute attention over NumPy arrays of any strides, read-only or not, on `threads` threads.

    Left to the NumPy kernel are calls in float64, or whose scores are changed as `is_compiled` refuses; and in small
    blocks those of arrays whose bytes are swapped, of heads without width, and with a scale of 0, or very small or
    large; and blocks whose results are not finite, or all tiny. Beyond the result, each thread holds at most 16 MiB
    with the blocks that are the default, and less with smaller. See `cqs.kernels.Attend` for the arguments.
    """
    if DTYPES[dtype_name(q)][1] != "float32" or not is_compiled(region):
        return numpy_threads.attend(q, chunks, scale=scale, region=region, threads=threads, block_bytes=block_bytes)
    call = _Call.of(q, chunks, scale, region, block_bytes)
    is_native = all(array.dtype.isnative for array in (q, *itertools.chain(*chunks)))
    is_computed = is_native and q.shape[-1] > 0 and can_scale(scale)
    return call.computed(threads) if is_computed and compiled("loops") is not None else call.plain.computed(threads)


def merge_into(xp: Namespace, totals: Sequence[Partial], parts: Sequence[Partial]) -> None:
    """Merge each part into the total beside it, in place, as `cqs.partial.merge_into` does, but for the last bits."""
    is_mergeable = all(_are_mergeable(x.out, x.lse, x.rest) for x in (*totals, *parts))
    merging = compiled("merging") if is_mergeable else None
    if merging is None:
        partial.merge_into(xp, totals, parts)
        return
    for total, part in zip(totals, parts, strict=True):
        arrays = total.out, total.lse, total.rest, part.out, part.lse, part.rest
        if total.out.ndim == 3:
            merging.merge_rows(*arrays)
            continue
        for batch in np.ndindex(*total.out.shape[:-3]):
            merging.merge_rows(*(array[batch] for array in arrays))


def _are_mergeable(*arrays: Array) -> bool:
    """Whether they are NumPy's, `(*B, H, T)` or with rows of adjacent numbers `(*B, H, T, E)`, of float32."""
    for x in arrays:
        if not isinstance(x, np.ndarray) or x.dtype.num != _FLOAT32 or not x.dtype.isnative or x.ndim < 2:
            return False
        if x.strides[-1] != x.itemsize or not x.flags.aligned:
            return False
    return True


@cache
def _pieces(dtype: str) -> int:
    """Return of how many 16-bit numbers AMX makes a number; 0 without AMX."""
    loops = compiled("loops")
    return _PIECES[dtype] if loops is not None and loops.has_amx() else 0


@lru_cache(maxsize=16)
def factors(scale: float) -> tuple[np.float32, np.float32]:
    """Return by what queries are multiplied, and then scores, so that powers of 2 of them are weights.

    The first is the power of 2 in a scale that is less than 1, and its sign: it rounds nothing but queries near the
    smallest numbers, and scores that are not too large for float32 are not on the way, either.
    """
    with np.errstate(all="ignore"):
        in_all = np.float32(scale * log2(e))
    exponent = int(np.clip(np.frexp(in_all)[1], -_MOST_EXPONENT, 0)) if np.isfinite(in_all) else 0
    return np.float32(copysign(2.0**exponent, scale)), np.float32(abs(in_all) * 2.0**-exponent)


def can_scale(scale: float) -> bool:
    """Return whether the factors of a scale are such that no digits are lost; not if it is 0, very small or large."""
    return bool(0 < factors(scale)[1] < _MOST_FACTOR)


class _Part(NamedTuple):
    """What a thread takes at a time.

    Parameters
    ----------
    heads : int64, `(n, 4)`
        Query heads that share a key head, or some of them: batch entry, key head, the first of them and how many.
    blocks : sequence of range
        Rows, for all of the heads.
    size : int
        The multiplications that it takes.
    """

    heads: Integers
    blocks: Sequence[range]
    size: int


@dataclass(frozen=True, eq=False)
class _Call:
    """The arguments of one `attend`, and where its result goes."""

    q: Floats
    chunks: Sequence[KeyChunk]
    scale: float
    plain: numpy_threads.Call  # the same call of the NumPy kernel, in smaller blocks
    block_bytes: int

    @classmethod
    def of(cls, q: Floats, chunks: Sequence[KeyChunk], scale: float, region: Region | None, block_bytes: int) -> Self:
        """Allocate the result."""
        plain = numpy_threads.Call.of(q, chunks, scale, region, careful_bytes(block_bytes))
        return cls(q, chunks, scale, plain, block_bytes)

    def computed(self, threads: int) -> Partial:
        """Compute the result."""
        result, n_threads = self.plain.result, threads if self.plain.shape.is_shared else 1
        if sum(self.plain.sizes) == 0:
            return Partial.empty(np, result.out.shape, result.out.dtype)
        if self.q.size > 0:
            with compute_threads() as pool:
                pool.share(self.parts(n_threads), self.run, n_threads)
        return result

    @property
    def factors(self) -> tuple[np.float32, np.float32]:
        """By what queries are multiplied, and then scores: if they are changed, those that have the scale already."""
        of_queries, of_scores = factors(self.scale)
        return of_queries, of_scores if self.plain.region.scores is None else np.float32(log2(e))

    @property
    def score_scale(self) -> float:
        """What scores are still to be multiplied by, where queries have been: 1, if scores are changed after that."""
        return abs(self.scale / float(self.factors[0])) if self.plain.region.scores is None else 1.0

    @once
    def change(self) -> tuple[Change, Integers]:
        """What is done to scores, and the token numbers of the rows, which may matter to it."""
        region = self.plain.region
        tokens = np.empty(0, np.int64) if region.scores is None else region.query_tokens
        return change_of(region.scores, np.float32(abs(self.scale / float(self.factors[0])))), tokens

    @once
    def block(self) -> NumbaBlock:
        """How large blocks are."""
        return numba_block(self.plain.shape, self.block_bytes)

    @once
    def blocks(self) -> list[range]:
        """The blocks that the rows are cut into."""
        is_split = _pieces(dtype_name(self.q)) > 0 and self.block.lanes >= LEAST_SPLIT_LANES
        small = _SMALL_SPLIT_ROWS if is_split else _SMALL_ROWS
        return row_blocks(self.plain.region, self.block.rows, self.block.rows, small)

    @once
    def heads(self) -> Integers:
        """The heads that are computed together, their queries side by side, as of `_Part`."""
        return heads_together(self.plain.shape, self.block.lanes // max(map(len, self.blocks))).reshape(-1, 4)

    def parts(self, n_threads: int) -> list[_Part]:
        """Cut the work into what a thread takes at a time, the largest first. Where does not matter to the result."""
        shape, n_heads = self.plain.shape, len(self.heads)
        of_a_pair = shape.n_heads * (shape.width + shape.value_width + _WEIGHING)  # multiplications, for all heads
        least_rows = -(-LEAST_ROWS // shape.shared)
        is_little = shape.n_queries * shape.n_keys * of_a_pair <= _MOST_WORK
        if n_threads == 1 and is_little and n_heads * len(self.blocks) <= MOST_ITEMS:
            return [_Part(self.heads, self.blocks, 0)]
        sizes = [
            max(len(rows), least_rows) * sum(map(len, columns_seen(self.plain.region, rows))) * of_a_pair
            for rows in self.blocks
        ]
        share = max(sum(sizes) // (_PARTS_A_THREAD * n_threads), _LEAST_WORK)
        most = _MOST_WORK if n_threads == 1 else min(_MOST_WORK, share)
        parts: list[_Part] = []
        for rows, size in zip(self.blocks, sizes, strict=True):
            last = parts[-1] if parts else _Part(self.heads, [], most + 1)
            fits = last.size + size <= most and n_heads * (len(last.blocks) + 1) <= MOST_ITEMS
            if last.heads is self.heads and fits:
                parts[-1] = _Part(self.heads, [*last.blocks, rows], last.size + size)
                continue
            n_parts = max(min(-(-size // max(most, 1)), n_heads), -(-n_heads // MOST_ITEMS), 1)
            cuts = even_cuts(n_heads, -(-n_heads // n_parts))
            for cut in cuts:
                own = self.heads if len(cuts) == 1 else self.heads[cut.start : cut.stop]
                parts.append(_Part(own, [rows], size // len(cuts)))
        return sorted(parts, key=lambda part: -part.size)

    @once
    def arrays(self) -> tuple[Integers, Integers]:
        """Where queries are, and keys and values."""
        kind = KINDS[dtype_name(self.q)]
        return places([self.q], kind)[:, 0], places_of_keys(self.chunks, kind)

    @once
    def tables(self) -> BlockTables:
        """Which keys blocks see."""
        plain = self.plain
        of_a_key = self.block.lanes * (plain.shape.width + plain.shape.value_width + _WEIGHING)  # multiplications
        most_keys = min(max(_MOST_WORK // of_a_key, 1), _MOST_KEYS)
        return BlockTables(plain.region, plain.sizes, most_keys, self.block.table_bytes)

    def run(self, part: _Part, work: Workspace) -> None:
        """Compute some blocks of rows of some heads in the buffers of one thread."""
        for table in self.tables.of(part.blocks):
            if isinstance(table, range):  # of several tables; sums are kept from one to the next, for one item
                for n in range(len(part.heads)):
                    for step in self.tables.steps(table):
                        self._attend(part.heads[n : n + 1], step, work)
            else:
                self._attend(part.heads, table, work)

    def _attend(self, heads: Integers, table: Tables, work: Workspace) -> None:
        n_blocks = len(table.blocks)
        items = np.empty((len(heads) * n_blocks, 5), np.int64)
        items[:, :4], items[:, 4] = np.repeat(heads, n_blocks, axis=0), np.tile(np.arange(n_blocks), len(heads))
        pieces = _pieces(dtype_name(self.q))
        left = self._loop(items, table, pieces, work)
        if pieces > 0 and len(left) > 0 and table.begins and table.ends:  # or sums would be lacking
            left = self._loop(left, table, 0, work)
        if len(left) > 0:
            work.clear()
            for entry, kv_head, head, n_heads, n in left.tolist():
                rows = range(*table.blocks[n, :2].tolist())
                self._attend_carefully(entry, kv_head, head, n_heads, rows, work)
            work.clear()

    def _loop(self, items: Integers, table: Tables, pieces: int, work: Workspace) -> Integers:
        """Compute items, as of `attend` in `cqs.kernels.compiled.loops`; return those whose result does not count."""
        raise_if_stopped()
        loops, result = compiled("loops"), self.plain.result
        assert loops is not None  # or another kernel would compute
        (change, tokens), (out, lse, rest) = self.change, (result.out, result.lse, result.rest)
        *_, T, E = out.shape
        is_fit = np.ones(len(items), bool)
        sizes = loops.room_sizes(self.block.lanes, self.block.keys, self.q.shape[-1], E)
        room = tuple(work.buffer(f"numba {n}", (size,), out.dtype) for n, size in enumerate(sizes))
        loops.attend(
            *self.arrays, *self.factors, self.score_scale, items, table.blocks, table.pieces, table.bounds,
            table.hidden, tuple(change), tokens, room, self.block.keys, out.reshape(-1, T, E), lse.reshape(-1, T),
            rest.reshape(-1, T), table.begins, table.ends, is_fit, pieces,
        )  # fmt: skip
        return items[~is_fit]

    def _attend_carefully(
        self, entry: int, kv_head: int, head: int, n_heads: int, rows: range, work: Workspace
    ) -> None:
        """Compute a block by the NumPy kernel, where values are not finite, or their sums overflow, or all are tiny.

        What is hidden must not take part there with weight 0. Head by head, so that blocks are no larger than its own.
        """
        plain, first = self.plain, head - kv_head * self.plain.shape.shared
        batch = tuple(map(int, np.unravel_index(entry, self.q.shape[:-3]))) if self.q.ndim > 3 else ()
        for cut in even_cuts(len(rows), plain.largest.rows):
            for r in range(first, first + n_heads):
                own = [rows[cut.start : cut.stop]]
                plain.run(Unit(batch, slice(kv_head, kv_head + 1), slice(r, r + 1), own), work)
