"""The fast kernel for NumPy arrays: threads of its own, one BLAS thread each, buffers allocated once a thread.

The work is cut into *blocks* of rows, of one head or several; for each of them a thread walks over the columns that it
sees, and writes its rows of the result. Where blocks are cut depends on the shapes alone, and each is computed by one
thread, so the result is bitwise the same on any number of threads. What a thread takes at a time is a *unit*: a block,
or all blocks for which it puts the same keys side by side.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Self

import numpy as np

from cqs.backend import Workspace, compute_threads, raise_if_stopped
from cqs.kernels.blocks import column_blocks, in_chunks, row_blocks, split_scale
from cqs.kernels.contract import KeyChunk
from cqs.kernels.numpy_unit import Floats, UnitBuffers, attend_unit
from cqs.kernels.region import Region
from cqs.masks.mask import Booleans
from cqs.once import Few, once
from cqs.partial import Partial
from cqs.problem import DTYPES, dtype_name
from cqs.schedule import BLOCK_BYTES, CallShape, UnitShape, even_cuts, numpy_rows, numpy_unit
from cqs.schedule.scratch import LEAST_UNITS, joined_keys

__all__ = ["Call", "Unit", "attend"]

_MOST_KEPT = 512  # blocks of columns that are remembered


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

    Beyond the result, each thread holds at most 16 MiB with the blocks that are the default, and less with smaller.
    See `cqs.kernels.Attend` for the arguments.
    """
    return Call.of(q, chunks, scale, region, block_bytes).computed(threads)


@dataclass(frozen=True, slots=True)
class Unit:
    """Blocks of rows of the query heads that belong to some key heads: all of those, or some of a single key head's."""

    batch: tuple[int, ...]
    kv_heads: slice
    heads_per_kv: slice
    blocks: Sequence[range]


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one `attend`, and where its result goes."""

    q: Floats
    chunks: Sequence[KeyChunk]
    sizes: tuple[int, ...]  # keys in each chunk
    scale: float
    region: Region
    result: Partial
    block_bytes: int

    @classmethod
    def of(cls, q: Floats, chunks: Sequence[KeyChunk], scale: float, region: Region | None, block_bytes: int) -> Self:
        """Allocate the result."""
        dtype = np.dtype(DTYPES[dtype_name(q)][1])
        shape = (*q.shape[:-1], chunks[0].v.shape[-1])
        sizes = tuple(chunk.k.shape[-2] for chunk in chunks)
        result = Partial(*(np.empty(own, dtype) for own in (shape, shape[:-1], shape[:-1])))
        return cls(q, chunks, sizes, scale, region or Region.whole(q.shape[-2], sum(sizes)), result, block_bytes)

    def computed(self, threads: int) -> Partial:
        """Compute the result."""
        if sum(self.sizes) == 0:
            return Partial.empty(np, self.result.out.shape, self.dtype)
        with compute_threads() as pool:
            n_threads = threads if self.shape.is_shared else 1
            pool.share(self.units(n_threads), self.run, n_threads)
        return self.result

    @property
    def heads(self) -> tuple[int, int]:
        """Key heads, and query heads to each."""
        G = self.chunks[0].k.shape[-3]
        return G, self.q.shape[-3] // G

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The type of scores and sums."""
        dtype: np.dtype[np.floating] = self.result.out.dtype
        return dtype

    @once
    def shape(self) -> CallShape:
        """The sizes of the call."""
        *batch, _, T, D = self.q.shape
        G, shared = self.heads
        sizes = (prod(batch), G, shared, T, sum(self.sizes), D, self.result.out.shape[-1], self.dtype.itemsize)
        return CallShape(*sizes, True, self.region.is_masked, bool(self.region.foreign), len(self.chunks))

    @once
    def blocks(self) -> list[range]:
        """The blocks that the rows are cut into."""
        T = self.q.shape[-2]
        rows = masked_rows = numpy_rows(T, self.shape.widest_bytes, self.block_bytes)
        if self.region.is_masked:
            middle = range((T - rows) // 2, (T + rows) // 2)
            n_seen = sum(map(len, self.region.seen(middle)))
            masked_rows = numpy_rows(T, self.shape.widest_bytes, self.block_bytes, n_seen)
        return row_blocks(self.region, rows, masked_rows)

    @once
    def largest(self) -> UnitShape:
        """The sizes of the largest unit, by which buffers are allocated, and the most columns of a block."""
        return numpy_unit(self.shape, self.block_bytes, max(map(len, self.blocks)))

    def columns(self, rows: range) -> list[list[range]]:
        """Return the blocks of columns that a block of rows sees; found once for all heads, if they are few."""
        return self._columns.get(rows, lambda: column_blocks(self.region, rows, self.largest.columns))

    @once
    def _columns(self) -> Few[list[range]]:
        return Few(_MOST_KEPT)

    @once
    def are_keys_joined(self) -> bool:
        """Whether the keys and values of a unit are copied side by side once, for all its blocks of rows."""
        n_keys = self.largest.kv_heads * sum(self.sizes)
        fits = n_keys <= joined_keys(self.shape.widest_bytes, self.block_bytes)
        return fits and len(self.blocks) > 1 and bool(self.region.foreign)

    def units(self, n_threads: int) -> list[Unit]:
        """Cut the work: by heads, of which small blocks take several at once, and by rows."""
        *batch, _, _, _ = self.q.shape
        if self.q.size == 0:
            return []
        cuts = even_cuts(self.heads[0], self.largest.kv_heads), even_cuts(self.heads[1], self.largest.shared)
        heads = [(slice(g.start, g.stop), slice(r.start, r.stop)) for g, r in itertools.product(*cuts)]
        n_blocks = n_parts = len(self.blocks)
        if self.are_keys_joined:  # once a unit: so it has as many blocks as leave something for every thread
            n_parts = 1 if n_threads == 1 else -(-LEAST_UNITS // (len(heads) * prod(batch)))
        parts = [self.blocks[cut.start : cut.stop] for cut in even_cuts(n_blocks, max(n_blocks // n_parts, 1))]
        return [Unit(b, g, r, part) for b in np.ndindex(*batch) for (g, r), part in itertools.product(heads, parts)]

    @property
    def most_rows(self) -> int:
        """The most rows of a unit's block, over all its heads."""
        return self.largest.kv_heads * self.largest.shared * self.largest.rows

    def run(self, unit: Unit, work: Workspace) -> None:
        """Compute one unit in the buffers of one thread."""
        keys = _UnitKeys.of(self, unit, work)
        of_rows = (x[..., None] for x in (self.result.lse, self.result.rest))
        arrays = [self._heads_of(unit, x) for x in (self.q, self.result.out, *of_rows)]
        with np.errstate(all="ignore"):  # overflow is expected, and seen in the sums
            for rows in unit.blocks:
                parts = [x[:, :, rows.start : rows.stop] for x in arrays]
                if self.columns(rows):
                    self._attend(rows, keys, parts, work)
                else:  # no row sees any column
                    parts[1][...], parts[2][...], parts[3][...] = 0, -np.inf, 0

    def _attend(self, rows: range, keys: "_UnitKeys", arrays: Sequence[Floats], work: Workspace) -> None:
        """Compute a block of rows of a unit: queries, output, log-sum-exp and its rest, `(g, r, t, width)`."""
        blocks, (q, out, lse, rest) = self.columns(rows), arrays
        load = _BlockLoader(self, rows, keys, self._scaled(q, work), blocks, work)
        shape = (q.shape[0], q.shape[1] * q.shape[2], out.shape[-1])
        buffers = [work.buffer(name, shape, out.dtype, self.most_rows * shape[-1]) for name in ("out", "product")]
        sums, divisor, *logs = attend_unit(load, len(blocks), UnitBuffers(*buffers))
        np.divide(sums.reshape(out.shape), divisor.reshape(lse.shape), out=out)
        lse[...], rest[...] = (x.reshape(lse.shape) for x in logs)

    def _scaled(self, q: Floats, work: Workspace) -> Floats:
        dtype, for_q = self.dtype, split_scale(self.scale)[0]
        scaled: Floats = work.buffer("q", q.shape, dtype, self.most_rows * q.shape[-1])
        if q.dtype == dtype:
            np.multiply(q, dtype.type(for_q), out=scaled)
            return scaled
        np.copyto(scaled, q, casting="unsafe")
        scaled *= dtype.type(for_q)
        return scaled

    def _heads_of(self, unit: Unit, array: Floats) -> Floats:
        """View a unit's part of an array `(*B, H, T, width)` as `(g, r, T, width)`."""
        split: Floats = array[unit.batch].reshape(*self.heads, *array.shape[-2:])  # splitting an axis is always a view
        return split[unit.kv_heads, unit.heads_per_kv]


@dataclass(frozen=True, slots=True, eq=False)
class _UnitKeys:
    """The keys and values of a unit's heads: where they are, put side by side, or gathered block by block."""

    call: Call
    unit: Unit
    work: Workspace
    joined: dict[str, Floats]  # of all columns, by name; or nothing

    @classmethod
    def of(cls, call: Call, unit: Unit, work: Workspace) -> Self:
        """Return them, side by side if that is worth it."""
        keys = cls(call, unit, work, {})
        if not call.are_keys_joined:
            return keys
        everything = [range(sum(call.sizes))]
        return replace(keys, joined={name: keys._gathered(name, keys._parts(name, everything)) for name in ("k", "v")})

    def take(self, name: str, pieces: Sequence[range]) -> list[Floats]:
        """Return the keys or values of some columns, `(g, columns, width)` each: views where they can be."""
        if self.joined:
            return [self.joined[name][:, piece.start : piece.stop] for piece in pieces]
        parts = self._parts(name, pieces)
        if len(parts) == 1 and parts[0].dtype == self.call.dtype and _is_blasable(parts[0]):
            return parts
        return [self._gathered(name, parts)]

    def _parts(self, name: str, pieces: Sequence[range]) -> list[Floats]:
        heads = (*self.unit.batch, self.unit.kv_heads)
        places = in_chunks(pieces, self.call.sizes)
        return [getattr(self.call.chunks[n], name)[(*heads, slice(part.start, part.stop))] for n, part in places]

    def _gathered(self, name: str, parts: Sequence[Floats]) -> Floats:
        """Put matrices side by side in the type of scores."""
        g, width = parts[0].shape[0], parts[0].shape[-1]
        n_columns = sum(part.shape[1] for part in parts)
        largest = self.call.largest
        most = largest.kv_heads * max(largest.columns, n_columns) * width
        gathered = self.work.buffer(name, (g, n_columns, width), self.call.dtype, most)
        return np.concatenate(parts, axis=1, out=gathered, casting="unsafe")


@dataclass(frozen=True, slots=True, eq=False)
class _BlockLoader:
    """Gives a unit's n-th block of some rows: scores `(g, r t, columns)` in a buffer, and values `(g, columns, E)`."""

    call: Call
    rows: range
    keys: _UnitKeys
    q: Floats  # scaled, (g, r, t, D): g key heads, r query heads of each, t rows
    blocks: list[list[range]]
    work: Workspace

    def __call__(self, n: int) -> tuple[Floats, list[Floats]]:
        raise_if_stopped()  # a unit may take a minute
        pieces, (g, r, t, D), call = self.blocks[n], self.q.shape, self.call
        n_columns = sum(map(len, pieces))
        scores = self.work.buffer("scores", (g, r * t, n_columns), self.q.dtype, call.most_rows * call.largest.columns)
        q, first = self.q.reshape(g, r * t, D), 0
        for k in self.keys.take("k", pieces):
            np.matmul(q, k.swapaxes(-1, -2), out=scores[..., first : first + k.shape[1]])
            first += k.shape[1]
        for_scores = split_scale(call.scale)[1]
        if for_scores != 1:
            scores *= self.q.dtype.type(for_scores)
        split = scores.reshape(g, r, t, n_columns)
        call.region.change(np, split, self.rows, pieces)
        if not call.region.is_full:
            for window, hidden in call.region.hidden(self.rows, pieces):
                np.copyto(split[window], -np.inf, where=hidden)
        return scores, self.keys.take("v", pieces)

    def visible(self, n: int) -> Booleans:
        """Return which scores of the n-th block count, `(r t, columns)`."""
        block = self.call.region.visible(self.rows, self.blocks[n])
        return np.tile(block, (self.q.shape[1], 1))


def _is_blasable(matrices: Floats) -> bool:
    """Whether `matmul` hands matrices `(g, rows, width)` to BLAS as they are: rows of adjacent elements."""
    size, row = matrices.itemsize, matrices.strides[-2]
    is_row = row % size == 0 and matrices.shape[-1] * size <= row < size << 31  # BLAS counts in 32 bits
    return matrices.flags.aligned and matrices.strides[-1] == size and is_row
