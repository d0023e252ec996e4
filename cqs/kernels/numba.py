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
from typing import Self

import numpy as np

from cqs import partial
from cqs.backend import Workspace, compute_threads, raise_if_stopped
from cqs.kernels import numpy_threads
from cqs.kernels.contract import KeyChunk, Request
from cqs.kernels.numba_cut import Cut, cut_of
from cqs.kernels.numba_modules import compiled, missing
from cqs.kernels.numba_rounds import Alone, Round, Rounds, rounds_of
from cqs.kernels.numba_scores import Change, change_of, is_compiled
from cqs.kernels.numba_tables import KINDS, places, places_of_keys
from cqs.kernels.numpy_threads import Unit
from cqs.kernels.numpy_unit import Floats
from cqs.kernels.region import Region
from cqs.masks.mask import Booleans, Integers
from cqs.once import once
from cqs.partial import Partial
from cqs.problem import DTYPES, dtype_name
from cqs.schedule import (
    BLOCK_BYTES,
    LEAST_SPLIT_LANES,
    careful_bytes,
    even_cuts,
    numba_block,
)
from cqs.types import Array, Namespace

__all__ = ["attend", "can_scale", "factors", "merge_into", "missing", "refusal"]

_MOST_WORK = 1 << 33  # multiplications that a thread does without looking whether it is to stop: a tenth of a second
_MOST_EXPONENT = 20  # of the scale in queries, which could be pushed out of range
_MOST_FACTOR = 2.0**40  # of scores: with larger ones, products that are too small to have all digits might matter
_FLOAT32 = np.dtype(np.float32).num
_PIECES = {"float32": 3, "float16": 2, "bfloat16": 1}


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
                n_threads = min(n_threads, len(self.cut.heads) * len(self.cut.blocks))
                rounds = Rounds(self.cut.rounds(n_threads))
                pool.share(range(n_threads), lambda _, work: self.run(rounds, work), n_threads)
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
    def cut(self) -> Cut:
        """Into what it is cut."""
        call, block = self.plain, numba_block(self.plain.shape, self.block_bytes)
        is_split = _pieces(dtype_name(self.q)) > 0 and block.lanes >= LEAST_SPLIT_LANES
        return cut_of(call.shape, call.region, call.sizes, block, is_split, _MOST_WORK)

    @once
    def arrays(self) -> tuple[Integers, Integers]:
        """Where queries are, and keys and values."""
        kind = KINDS[dtype_name(self.q)]
        return places([self.q], kind)[:, 0], places_of_keys(self.chunks, kind)

    def run(self, rounds: Rounds, work: Workspace) -> None:
        """Compute what other threads have not taken, in the buffers of one thread."""
        last = None
        try:
            while (last := rounds.after(last)) is not None:
                if isinstance(last, Alone):  # sums are kept from one table to the next
                    for step in self.cut.tables.steps(last.rows):
                        if rounds.is_closed:
                            return
                        self._attend(next(rounds_of(last.heads, step)), work)
                else:
                    self._attend(last, work)
        except BaseException:
            rounds.close()
            raise

    def _attend(self, this: Round, work: Workspace) -> None:
        """Compute items of a round until all are taken, and those whose result does not count in another way."""
        n, table = len(this.items), this.table
        is_left = np.zeros(n, bool)
        while this.turn[0] < n:
            self._loop(this, is_left, work)
        if is_left.any():
            work.clear()
            for entry, kv_head, head, n_heads, n in this.items[is_left].tolist():
                rows = range(*table.blocks[n, :2].tolist())
                self._attend_carefully(entry, kv_head, head, n_heads, rows, work)
            work.clear()

    def _loop(self, this: Round, is_left: Booleans, work: Workspace) -> None:
        """Compute items, as of `attend` in `cqs.kernels.compiled.loops`, for about a tenth of a second."""
        raise_if_stopped()
        loops, table, result = compiled("loops"), this.table, self.plain.result
        assert loops is not None  # or another kernel would compute
        (change, tokens), (out, lse, rest), block = self.change, (result.out, result.lse, result.rest), self.cut.block
        *_, T, E = out.shape
        size = loops.room_size(block.lanes, block.keys, self.q.shape[-1], E)
        loops.attend(
            *self.arrays, *self.factors, self.score_scale, this.items, table.blocks, table.pieces, table.bounds,
            table.hidden, tuple(change), tokens, work.buffer("numba", (size,), out.dtype), block.lanes, block.keys,
            out.reshape(-1, T, E), lse.reshape(-1, T), rest.reshape(-1, T), table.begins, table.ends, this.turn,
            self.cut.most_scores, is_left, _pieces(dtype_name(self.q)),
        )  # fmt: skip

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
