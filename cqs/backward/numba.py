"""Gradients of NumPy arrays by compiled loops, where Numba is installed.

What a thread takes at a time are all queries that share a key head: it alone adds to the gradients of these keys. Where
there are few key heads, rows are dealt out too, and sums of each share are added up in the end. Shares, and what is
summed up together, depend on shapes alone, so the gradients are bitwise the same on any number of threads. What is done
with a block is in `cqs.kernels.compiled.backward`.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np

from cqs.backend import Workspace, compute_threads, quiet_floats, raise_if_stopped
from cqs.backward.heads import differentiate_heads, rows_of_head
from cqs.backward.kernel import QueryRows, differentiate
from cqs.kernels import KeyChunk, Region
from cqs.kernels.blocks import row_blocks
from cqs.kernels.numba import can_scale, factors
from cqs.kernels.numba_modules import compiled
from cqs.kernels.numba_scores import Change, change_of, is_compiled
from cqs.kernels.numba_tables import FLOAT32, KINDS, BlockTables, Tables, heads_together, places, places_of_keys
from cqs.masks.mask import Integers
from cqs.once import once
from cqs.problem import DTYPES, dtype_name
from cqs.schedule import BLOCK_BYTES, CallShape
from cqs.schedule.scratch import BACKWARD_LANES, BACKWARD_SHARES, MOST_NUMBA_KEYS
from cqs.types import Array

__all__ = ["differentiate_compiled"]

_MOST_SUMMED = 4096  # queries whose sums are put aside: a sum of few numbers, and of few such sums, is more exact
_MOST_WORK = 1 << 33  # multiplications that a thread does without looking whether it is to stop
_WEIGHING = 50  # multiplications that take as long as what is done to a score
_SMALL_ROWS = 16  # of strips that may share a block with others


def differentiate_compiled(
    rows: QueryRows,
    chunks: Sequence[KeyChunk],
    gradients: Sequence[KeyChunk],
    *,
    scale: float,
    region: Region,
    threads: int = 1,
    block_bytes: int = BLOCK_BYTES,
    bias_sums: Array | None = None,
) -> Array:
    """Do as `cqs.backward.heads.Differentiate` says with arrays of NumPy.

    Left to array code are calls in float64, whose scores are changed as `is_compiled` refuses, of heads without width,
    or with a scale of 0, or very small or large; and rows whose gradients are not finite. Beyond the result, each
    thread holds the gradients of the keys of one head and some 2 MiB; where key heads are fewer than four, the sums of
    up to three more shares.
    """
    is_float32, is_empty = DTYPES[dtype_name(rows.q)][1] == "float32", 0 in (*rows.q.shape, *rows.dout.shape)
    is_computed = is_float32 and not is_empty and can_scale(scale) and is_compiled(region)
    if not is_computed or compiled("backward") is None:
        return differentiate_heads(
            rows, chunks, gradients, scale=scale, region=region, threads=threads, block_bytes=block_bytes,
            bias_sums=bias_sums,
        )  # fmt: skip
    return _Call(rows, chunks, gradients, scale, region, block_bytes, bias_sums).computed(threads)


class _Part(NamedTuple):
    """Blocks of rows, for query heads that share a key head: batch entry, key head, first of them, how many."""

    heads: Integers  # `(n, 4)`
    blocks: Sequence[range]
    share: int  # to whose sums it is added


@dataclass(frozen=True, eq=False)
class _Call:
    """The arguments of one call."""

    rows: QueryRows
    chunks: Sequence[KeyChunk]
    gradients: Sequence[KeyChunk]
    scale: float
    region: Region
    block_bytes: int
    bias_sums: Array | None

    def computed(self, threads: int) -> Array:
        """Compute the result."""
        n_threads = threads if self.shape.is_shared else 1
        _ = self.dq, self.places, self.arrays, self.lse_and_delta, self.change, self.tables  # once, for all threads
        with compute_threads() as pool:
            pool.share(self.shares, self.run, n_threads)
        for more in self.targets[1:]:
            for target, part in zip(self.gradients, more, strict=True):
                for own, added in zip(target, part, strict=True):
                    own += added
        return self.dq

    @once
    def dq(self) -> Array:
        """The gradients of the queries."""
        return np.zeros(self.rows.q.shape, np.float32)

    @once
    def shape(self) -> CallShape:
        """The sizes of the call."""
        *batch, H, T, D = self.rows.q.shape
        G, E = self.chunks[0].v.shape[-3], self.chunks[0].v.shape[-1]
        return CallShape(
            batch=prod(batch), kv_heads=G, shared=H // G, n_queries=T, n_keys=self.starts[-1], width=D, value_width=E,
            itemsize=4, is_gathered=True, is_masked=self.region.is_masked,
        )  # fmt: skip

    @once
    def starts(self) -> list[int]:
        """How many keys are before each chunk, and in all."""
        return list(itertools.accumulate((chunk.k.shape[-2] for chunk in self.chunks), initial=0))

    @once
    def blocks(self) -> list[range]:
        """The blocks that the rows are cut into."""
        return row_blocks(self.region, BACKWARD_LANES, BACKWARD_LANES, _SMALL_ROWS)

    @property
    def n_shares(self) -> int:
        """How many shares the rows of a key head are dealt out in."""
        n_heads = self.shape.batch * self.shape.kv_heads
        return min(-(-BACKWARD_SHARES // n_heads), len(self.blocks)) if self.shape.is_shared else 1

    @once
    def targets(self) -> list[Sequence[KeyChunk]]:
        """What each share is added to, of which the first are the gradients themselves."""
        more = range(self.n_shares - 1)
        return [self.gradients, *([KeyChunk(*map(np.zeros_like, g)) for g in self.gradients] for _ in more)]

    @once
    def heads(self) -> Integers:
        """The heads that are computed together, their queries side by side, `(key heads of all entries, n, 4)`."""
        return heads_together(self.shape, BACKWARD_LANES // max(map(len, self.blocks)))

    @once
    def shares(self) -> list[list[_Part]]:
        """What a thread takes at a time: parts that add to the same gradients, one after the other."""
        if not self.shape.is_shared:
            heads = self.heads.reshape(-1, 4)
            return [[_Part(heads, blocks, 0) for blocks in self._summed(self.blocks, heads)]]
        return [
            [_Part(heads, blocks, share) for blocks in self._summed(self.blocks[share :: self.n_shares], heads)]
            for share in range(self.n_shares)
            for heads in self.heads
        ]

    def _summed(self, blocks: Sequence[range], heads: Integers) -> Iterator[list[range]]:
        """Cut blocks into those whose sums are added up together."""
        together: list[range] = []
        most = _MOST_SUMMED // int(heads[:, 3].max())
        for rows in blocks:
            if together and sum(map(len, together)) + len(rows) > most:
                yield together
                together = []
            together.append(rows)
        yield together

    @once
    def tables(self) -> BlockTables:
        """Which keys blocks see."""
        sizes = [chunk.k.shape[-2] for chunk in self.chunks]
        return BlockTables(self.region, sizes, max(_MOST_WORK // self._work_of_a_key, 1), self.block_bytes // 8)

    @property
    def _work_of_a_key(self) -> int:
        """Multiplications for the lanes of a block and one key."""
        return BACKWARD_LANES * (3 * self.shape.width + 2 * self.shape.value_width + _WEIGHING)

    @once
    def arrays(self) -> tuple[Integers, Integers, Integers]:
        """Where queries are, gradients of outputs, and keys and values."""
        q, dout = (places([x], KINDS[dtype_name(x)])[:, 0] for x in (self.rows.q, self.rows.dout))
        return q, dout, places_of_keys(self.chunks, KINDS[dtype_name(self.rows.q)])

    @once
    def places(self) -> list[Integers]:
        """Where it is that each share is added to."""
        return [places_of_keys(target, FLOAT32) for target in self.targets]

    @once
    def lse_and_delta(self) -> tuple[Array, Array]:
        """Log-sum-exps and deltas, `(heads, T)`."""
        T = self.rows.q.shape[-2]
        found = [np.ascontiguousarray(x, np.float32).reshape(-1, T) for x in (self.rows.lse, self.rows.delta)]
        return found[0], found[1]

    @once
    def change(self) -> tuple[np.float32, np.float32, Change, Integers]:
        """What queries are multiplied by, then scores; what else is done to these, and the tokens of the rows."""
        of_queries, _ = factors(self.scale)
        of_scores = np.float32(abs(self.scale / float(of_queries)))
        tokens = np.empty(0, np.int64) if self.region.scores is None else self.region.query_tokens
        return of_queries, of_scores, change_of(self.region.scores, of_scores), tokens

    def run(self, share: list[_Part], work: Workspace) -> None:
        """Compute some parts in the buffers of one thread."""
        for part in share:
            steps = self._steps(part.blocks, len(part.heads))
            first, is_long = next(steps), next(steps, None) is not None
            if not is_long:  # all heads at once, by the same tables
                self._run_steps(part, part.heads, [first], work)
                continue
            del steps, first  # which hold tables
            for n in range(len(part.heads)):  # sums wait in the buffers from step to step, so head by head
                self._run_steps(part, part.heads[n : n + 1], self._steps(part.blocks, 1), work)

    def _steps(self, blocks: Sequence[range], n_items: int) -> Iterator[Tables]:
        """Yield what is computed at a time of some blocks, for so many items."""
        most = max(_MOST_WORK // (self._work_of_a_key * self.starts[-1] * n_items), 1)
        for first in range(0, len(blocks), most):
            for table in self.tables.of(blocks[first : first + most]):
                yield from self.tables.steps(table) if isinstance(table, range) else [table]

    def _run_steps(self, part: _Part, heads: Integers, steps: Iterable[Tables], work: Workspace) -> None:
        """Compute some heads of a part, step by step."""
        loops, is_fit, is_first = compiled("backward"), np.ones(len(heads), bool), True
        assert loops is not None  # or array code would compute
        (query_factor, factor, change, tokens), shape = self.change, self.shape
        sizes = loops.room_sizes(BACKWARD_LANES, MOST_NUMBA_KEYS, shape.width, shape.value_width)
        room = tuple(work.buffer(f"backward {n}", (size,), self.dq.dtype) for n, size in enumerate(sizes))
        sums = tuple(
            work.buffer(f"backward {name}", (self.starts[-1] * loops.padded(width),), self.dq.dtype)
            for name, width in (("dk", shape.width), ("dv", shape.value_width))
        )
        bias_sums = self._bias_sums(work)
        of_bias = (0, 0, 0) if bias_sums is None else _place_of(bias_sums)
        for step, is_last in _with_last(steps):
            raise_if_stopped()
            loops.differentiate(
                *self.arrays, self.places[part.share], np.array(self.starts), *self.lse_and_delta, query_factor, factor,
                np.float32(self.scale), heads, step.blocks, step.pieces, step.bounds, step.hidden, tuple(change),
                tokens, room, sums, MOST_NUMBA_KEYS, self.dq.reshape(-1, *self.dq.shape[-2:]),
                (step.begins, step.ends, is_first, is_last), is_fit, of_bias,
            )  # fmt: skip
            is_first = False
        if self.bias_sums is not None and bias_sums is not None:
            assert len(heads) == 1
            self._keep_bias_sums(part, bias_sums, bool(is_fit[0]))
        for unfit in heads[~is_fit].tolist():
            self._differentiate_carefully(part, unfit, work)

    def _bias_sums(self, work: Workspace) -> Array | None:
        """Return where a part adds up gradients of scores: its own rows, or beside them where one row is for all."""
        sums = self.bias_sums
        if sums is None or sums.shape[0] > 1:
            return sums
        own = work.buffer("bias", sums.shape, sums.dtype)
        own.fill(0)
        return own

    def _keep_bias_sums(self, part: _Part, found: Array, is_fit: bool) -> None:
        """Add up what a part has found; or forget it, where array code is to compute the part."""
        assert self.bias_sums is not None
        if found is not self.bias_sums:
            self.bias_sums[...] += found if is_fit else 0
        elif not is_fit:
            for rows in part.blocks:
                found[rows.start : rows.stop, :] = 0

    def _differentiate_carefully(self, part: _Part, heads: list[int], work: Workspace) -> None:
        """Compute some heads of a part by array code, where what is hidden may not take part with weight 0."""
        entry, kv_head, first, n_heads = heads
        batch = tuple(map(int, np.unravel_index(entry, self.dq.shape[:-3]))) if self.dq.ndim > 3 else ()
        chunks, target = (
            [KeyChunk(*(x[(*batch, kv_head, ...)] for x in c)) for c in some]
            for some in (self.chunks, self.targets[part.share])
        )
        for head in range(first, first + n_heads):
            with quiet_floats():
                found = differentiate(
                    rows_of_head(self.rows, (*batch, head)), chunks, target, scale=self.scale, region=self.region,
                    dtype=self.dq.dtype, blocks=part.blocks, block_bytes=self.block_bytes, space=work,
                    bias_sums=self.bias_sums,
                )  # fmt: skip
            for rows in part.blocks:
                own = slice(rows.start, rows.stop)
                self.dq[(*batch, head, own)] = found[own]


def _place_of(sums: Array) -> tuple[int, int, int]:
    """Return the address of sums, `(t, s)` or 1, and how many bytes are from row to row and from key to key; or 0."""
    row, item = (stride if n > 1 else 0 for n, stride in zip(sums.shape, sums.strides, strict=True))
    return sums.__array_interface__["data"][0], row, item


def _with_last(steps: Iterable[Tables]) -> Iterator[tuple[Tables, bool]]:
    """Say of each step whether it is the last."""
    before: Tables | None = None
    for step in steps:
        if before is not None:
            yield before, False
        before = step
    if before is not None:
        yield before, True
