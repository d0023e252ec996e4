"""The fast kernel for NumPy arrays: threads of its own, one BLAS thread each, buffers allocated once a thread.

The work is cut into *units*, some rows of some heads; a thread takes a unit, walks over the columns that those rows
see, and writes the unit's rows of the result. Where units are cut depends on the shapes alone, and each is computed by
one thread, so the result is bitwise the same on any number of threads.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from cqs.backend import Workspace, compute_threads, raise_if_stopped
from cqs.kernels.blocks import column_blocks, in_chunks, split_scale
from cqs.kernels.contract import KeyChunk
from cqs.kernels.numpy_unit import Floats, UnitBuffers, attend_unit
from cqs.kernels.region import Region
from cqs.masks.mask import Booleans
from cqs.partial import Partial
from cqs.problem import DTYPES, dtype_name
from cqs.schedule import BLOCK_BYTES, CallShape, UnitShape, even_cuts, numpy_block, numpy_unit

__all__ = ["attend"]


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
    dtype = np.dtype(DTYPES[dtype_name(q)][1])
    shape = (*q.shape[:-1], chunks[0].v.shape[-1])
    sizes = tuple(chunk.k.shape[-2] for chunk in chunks)
    if sum(sizes) == 0:
        return Partial.empty(np, shape, dtype)
    result = Partial(np.empty(shape, dtype), np.empty(shape[:-1], dtype))
    region = region or Region.whole(q.shape[-2], sum(sizes))
    call = _Call(q, chunks, sizes, scale, region, result, block_bytes)
    with compute_threads() as pool:
        pool.share(call.units(), call.run, threads if call.shape.is_shared else 1)
    return result


@dataclass(frozen=True, slots=True)
class _Unit:
    """Some rows of the query heads that belong to some key heads: all of those, or some of a single key head's."""

    batch: tuple[int, ...]
    kv_heads: slice
    heads_per_kv: slice
    rows: range


@dataclass(frozen=True, eq=False)
class _Call:
    """The arguments of one `attend`, and where its result goes."""

    q: Floats
    chunks: Sequence[KeyChunk]
    sizes: tuple[int, ...]  # keys in each chunk
    scale: float
    region: Region
    result: Partial
    block_bytes: int

    @property
    def heads(self) -> tuple[int, int]:
        """Key heads, and query heads to each."""
        G = self.chunks[0].k.shape[-3]
        return G, self.q.shape[-3] // G

    @cached_property
    def shape(self) -> CallShape:
        """The sizes of the call."""
        *batch, _, T, D = self.q.shape
        G, shared = self.heads
        dtype, E = self.result.out.dtype, self.result.out.shape[-1]
        is_masked = self.region.is_masked
        return CallShape(prod(batch), G, shared, T, sum(self.sizes), D, E, dtype.itemsize, True, is_masked)

    @cached_property
    def largest(self) -> UnitShape:
        """The sizes of the largest unit, by which buffers are allocated, and the most columns of a block."""
        if not self.region.is_masked:
            return numpy_unit(self.shape, self.block_bytes)
        T = self.q.shape[-2]
        rows, _ = numpy_block(T, self.shape.widest_bytes, self.block_bytes)
        middle = range((T - rows) // 2, (T + rows) // 2)
        n_seen = sum(map(len, self.region.seen(middle)))
        return numpy_unit(self.shape, self.block_bytes, n_seen)

    def units(self) -> list[_Unit]:
        """Cut the work: by rows, then by heads, of which small blocks take several at once."""
        *batch, _, T, _ = self.q.shape
        if self.q.size == 0:
            return []
        kv_heads, shared, rows, _ = self.largest
        cuts = even_cuts(self.heads[0], kv_heads), even_cuts(self.heads[1], shared)
        heads = [(slice(g.start, g.stop), slice(r.start, r.stop)) for g, r in itertools.product(*cuts)]
        row_cuts = even_cuts(T, rows)
        return [_Unit(b, g, r, t) for b in np.ndindex(*batch) for (g, r), t in itertools.product(heads, row_cuts)]

    @property
    def most_rows(self) -> int:
        """The most rows of a unit, over all its heads."""
        return self.largest.kv_heads * self.largest.shared * self.largest.rows

    def run(self, unit: _Unit, work: Workspace) -> None:
        """Compute one unit in the buffers of one thread."""
        with np.errstate(all="ignore"):  # overflow is expected, and seen in the sums
            self._attend(unit, work)

    def _attend(self, unit: _Unit, work: Workspace) -> None:
        blocks = column_blocks(self.region, unit.rows, self.largest.columns)
        q, out, lse = (self._rows(array, unit) for array in (self.q, self.result.out, self.result.lse[..., None]))
        if not blocks:  # no row of the unit sees any column
            out[...], lse[...] = 0, -np.inf
            return
        load = _BlockLoader(self, unit, self._scaled(q, work), blocks, work)
        shape = (q.shape[0], q.shape[1] * q.shape[2], out.shape[-1])
        buffers = [work.buffer(name, shape, out.dtype, self.most_rows * shape[-1]) for name in ("out", "product")]
        sums, divisor, unit_lse = attend_unit(load, len(blocks), UnitBuffers(*buffers))
        np.divide(sums.reshape(out.shape), divisor.reshape(lse.shape), out=out)
        lse[...] = unit_lse.reshape(lse.shape)

    def _scaled(self, q: Floats, work: Workspace) -> Floats:
        dtype, for_q = self.result.out.dtype, split_scale(self.scale)[0]
        scaled: Floats = work.buffer("q", q.shape, dtype, self.most_rows * q.shape[-1])
        if q.dtype == dtype:
            np.multiply(q, dtype.type(for_q), out=scaled)
            return scaled
        np.copyto(scaled, q, casting="unsafe")
        scaled *= dtype.type(for_q)
        return scaled

    def _rows(self, array: Floats, unit: _Unit) -> Floats:
        """View the unit's part of an array `(*B, H, T, width)` as `(g, r, t, width)`."""
        split: Floats = array[unit.batch].reshape(*self.heads, *array.shape[-2:])  # splitting an axis is always a view
        rows: Floats = split[unit.kv_heads, unit.heads_per_kv, unit.rows.start : unit.rows.stop]
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class _BlockLoader:
    """Gives a unit its n-th block: scores `(g, r t, columns)` in a buffer, and values `(g, columns, E)`."""

    call: _Call
    unit: _Unit
    q: Floats  # scaled, (g, r, t, D): g key heads, r query heads of each, t rows
    blocks: list[list[range]]
    work: Workspace

    def __call__(self, n: int) -> tuple[Floats, Floats]:
        raise_if_stopped()  # a unit may take a minute
        pieces, (g, r, t, D) = self.blocks[n], self.q.shape
        places = in_chunks(pieces, self.call.sizes)
        n_columns = sum(map(len, pieces))
        k = self._gather("k", places, n_columns)
        most = self.call.most_rows * self.call.largest.columns
        scores = self.work.buffer("scores", (g, r * t, n_columns), self.q.dtype, most)
        np.matmul(self.q.reshape(g, r * t, D), k.swapaxes(-1, -2), out=scores)
        for_scores = split_scale(self.call.scale)[1]
        if for_scores != 1:
            scores *= self.q.dtype.type(for_scores)
        split = scores.reshape(g, r, t, n_columns)
        self.call.region.change(np, split, self.unit.rows, pieces)
        if not self.call.region.is_full:
            for window, hidden in self.call.region.hidden(self.unit.rows, pieces):
                np.copyto(split[window], -np.inf, where=hidden)
        return scores, self._gather("v", places, n_columns)

    def visible(self, n: int) -> Booleans:
        """Return which scores of the n-th block count, `(r t, columns)`."""
        block = self.call.region.visible(self.unit.rows, self.blocks[n])
        return np.tile(block, (self.q.shape[1], 1))

    def _gather(self, name: str, places: list[tuple[int, range]], n_columns: int) -> Floats:
        """Return the keys or values of some columns: a view where BLAS can take one, else gathered and cast."""
        heads, chunks = (*self.unit.batch, self.unit.kv_heads), self.call.chunks
        parts: list[Floats] = [getattr(chunks[n], name)[(*heads, slice(part.start, part.stop))] for n, part in places]
        if len(parts) == 1 and parts[0].dtype == self.q.dtype and _is_blasable(parts[0]):
            return parts[0]
        g, width = parts[0].shape[0], parts[0].shape[-1]
        most = self.call.largest.kv_heads * self.call.largest.columns * width
        gathered = self.work.buffer(name, (g, n_columns, width), self.q.dtype, most)
        return np.concatenate(parts, axis=1, out=gathered, casting="unsafe")


def _is_blasable(matrices: Floats) -> bool:
    """Whether `matmul` hands matrices `(g, rows, width)` to BLAS as they are: rows of adjacent elements."""
    size, row = matrices.itemsize, matrices.strides[-2]
    return (
        matrices.flags.aligned and matrices.strides[-1] == size and row % size == 0 and row >= matrices.shape[-1] * size
    )
