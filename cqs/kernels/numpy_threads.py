"""The fast kernel for NumPy arrays: threads of its own, one BLAS thread each, buffers allocated once a thread.

The work is cut into *units*, some query rows of some heads; a thread takes a unit, walks over the keys that those rows
see, and writes the unit's rows of the result. Where a unit is cut depends on the shapes alone, and each is computed by
one thread, so the result is bitwise the same on any number of threads.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from cqs.backend import share, single_threaded_blas
from cqs.kernels.blocks import KeyBlock, even_cuts, key_blocks
from cqs.kernels.chunk import KeyChunk
from cqs.kernels.numpy_unit import BASE, Floats, Workspace, attend_unit
from cqs.masks import Coverage, Mask
from cqs.partial import Partial
from cqs.problem import DTYPES, dtype_name

__all__ = ["attend"]

# A block of scores is at most _ROWS x _COLS for one head, and _AREA for several: 2 MiB in float32.
_ROWS, _COLS, _AREA = 512, 1024, 512 * 1024
_LEAST_ROWS = 128
_BUFFER_BYTES = 2 << 20  # most bytes of one head's rows or columns in a buffer; blocks of wide heads shrink to it
_UNIT_FLOPS = 50_000_000  # about a millisecond: a unit of more heads is not worth it, less work is not worth a thread


def attend(
    q: Floats, chunks: Sequence[KeyChunk], *, scale: float, mask: Mask, q_start: int = 0, threads: int = 1
) -> Partial:
    """Compute attention over NumPy arrays of any strides, read-only or not, on `threads` threads.

    Beyond the result, each thread holds at most 16 MiB. See `cqs.kernels.Attend` for the arguments.
    """
    dtype = np.dtype(DTYPES[dtype_name(q)][1])
    shape = (*q.shape[:-1], chunks[0].v.shape[-1])
    result = Partial(np.empty(shape, dtype), np.empty(shape[:-1], dtype))
    strip = _Strip(q, chunks, scale, mask, q_start, result)
    with single_threaded_blas():
        share(strip.units(), strip.run, threads if strip.flops > _UNIT_FLOPS else 1)
    return result


@dataclass(frozen=True, slots=True)
class _Unit:
    """Query rows of the heads that belong to some key heads: all of them, or some of those of a single key head."""

    batch: tuple[int, ...]
    kv_heads: slice
    heads_per_kv: slice
    rows: range


@dataclass(frozen=True, slots=True, eq=False)
class _Strip:
    """The arguments of one `attend`, and where its result goes."""

    q: Floats
    chunks: Sequence[KeyChunk]
    scale: float
    mask: Mask
    q_start: int
    result: Partial

    @property
    def n_keys(self) -> int:
        return sum(len(chunk.tokens) for chunk in self.chunks)

    @property
    def flops(self) -> int:
        return 2 * (self.q.size + self.result.out.size) * self.n_keys

    @property
    def n_kv_heads(self) -> int:
        return int(self.chunks[0].k.shape[-3])

    @property
    def block_shape(self) -> tuple[int, int]:
        """Most rows and columns of a block of scores."""
        n_rows = self.q.shape[-2]
        rows = range(self.q_start, self.q_start + n_rows)
        is_masked = any(self.mask.classify(rows, c.tokens) is Coverage.PARTIAL for c in self.chunks)
        # half of a block on the diagonal is wasted, so there rows are few
        most_rows = min(_ROWS, max(n_rows // 8, _LEAST_ROWS)) if is_masked else _ROWS
        widest = max(self.q.shape[-1], self.result.out.shape[-1]) * self.result.out.itemsize
        most = max(_BUFFER_BYTES // widest, 16)
        return min(most_rows, most), min(_COLS, most, max(self.n_keys, 1))

    def units(self) -> list[_Unit]:
        """Cut the strip: by rows, then by heads, of which small blocks take several at once."""
        *batch, H, T, _ = self.q.shape
        if self.q.size == 0:
            return []
        rows, cols = self.block_shape
        row_cuts = even_cuts(T, rows)
        area = len(row_cuts[0]) * cols
        flops = self.flops // (self.q.size // self.q.shape[-1]) * len(row_cuts[0])
        n_heads = max(min(_AREA // area, _UNIT_FLOPS // max(flops, 1)), 1)
        G, shared = self.n_kv_heads, H // self.n_kv_heads
        kv_cuts, shared_cuts = even_cuts(G, max(n_heads // shared, 1)), even_cuts(shared, n_heads)
        heads = [(slice(g.start, g.stop), slice(r.start, r.stop)) for g in kv_cuts for r in shared_cuts]
        return [_Unit(b, g, r, t) for b in np.ndindex(*batch) for (g, r), t in itertools.product(heads, row_cuts)]

    def run(self, units: Iterator[_Unit]) -> None:
        """Compute units one after the other with one set of buffers; one thread calls this."""
        work = Workspace()
        with np.errstate(all="ignore"):  # overflow is expected, and seen in the sums
            for unit in units:
                self._attend(unit, work)

    def _attend(self, unit: _Unit, work: Workspace) -> None:
        *_, H, T, D = self.q.shape
        per_kv = (self.n_kv_heads, H // self.n_kv_heads, T)  # split the heads axis: always a view
        where = (unit.kv_heads, unit.heads_per_kv, slice(unit.rows.start, unit.rows.stop))
        q = self.q[unit.batch].reshape(*per_kv, D)[where]
        out = self.result.out[unit.batch].reshape(*per_kv, -1)[where]
        lse = self.result.lse[unit.batch].reshape(per_kv)[where]

        q_idx = range(self.q_start + unit.rows.start, self.q_start + unit.rows.stop)
        blocks = key_blocks(q_idx, [chunk.tokens for chunk in self.chunks], self.mask, self.block_shape[1])
        if not blocks:  # no query of the unit sees any key
            out[...], lse[...] = 0, -np.inf
            return
        scaled = work.buffer("q", q.shape, out.dtype)
        np.copyto(scaled, q, casting="unsafe")
        scaled *= out.dtype.type(self.scale / log(BASE))
        load = _BlockLoader(self, unit, scaled, q_idx, blocks, work)
        shape = (q.shape[0], q.shape[1] * q.shape[2], out.shape[-1])
        unit_out, product = (work.buffer(name, shape, out.dtype) for name in ("out", "product"))
        lse[...] = attend_unit(load, len(blocks), unit_out, product).reshape(lse.shape)
        out[...] = unit_out.reshape(out.shape)


@dataclass(frozen=True, slots=True, eq=False)
class _BlockLoader:
    """Gives a unit its n-th block: masked scores `(g, r t, C)` in the workspace, and values `(g, C, E)`."""

    strip: _Strip
    unit: _Unit
    q: Floats  # scaled, (g, r, t, D) for g key heads, r query heads of each, and t rows
    q_idx: range
    blocks: list[KeyBlock]
    work: Workspace

    def __call__(self, n: int) -> tuple[Floats, Floats]:
        block, (g, r, t, D) = self.blocks[n], self.q.shape
        k = self._gather("k", block)
        scores = self.work.buffer("scores", (g, r * t, len(block)), self.q.dtype)
        np.matmul(self.q.reshape(g, r * t, D), k.swapaxes(-1, -2), out=scores)
        for column, piece in block.masked_columns():
            start = self.strip.chunks[piece.chunk].start
            k_idx = np.arange(start + piece.start, start + piece.stop)
            visible = self.strip.mask.visible(np.arange(self.q_idx.start, self.q_idx.stop)[:, None], k_idx[None, :])
            columns = scores.reshape(g, r, t, -1)[..., column : column + len(piece)]
            np.copyto(columns, -np.inf, where=~visible)
        return scores, self._gather("v", block)

    def _gather(self, name: str, block: KeyBlock) -> Floats:
        """Return the block's keys or values: a view where BLAS can take one, else gathered and cast."""
        where = (*self.unit.batch, self.unit.kv_heads)
        arrays = [getattr(chunk, name)[where] for chunk in self.strip.chunks]
        first, last = block.pieces[0], block.pieces[-1]
        if block.is_one_run:
            run: Floats = arrays[first.chunk][:, first.start : last.stop]
            if run.dtype == self.q.dtype and _is_blasable(run):
                return run
        shape = (arrays[0].shape[0], len(block), arrays[0].shape[-1])
        gathered = self.work.buffer(name, shape, self.q.dtype)
        column = 0
        for piece in block.pieces:
            columns = gathered[:, column : column + len(piece)]
            np.copyto(columns, arrays[piece.chunk][:, piece.start : piece.stop], casting="unsafe")
            column += len(piece)
        return gathered


def _is_blasable(matrices: Floats) -> bool:
    """Whether `matmul` hands matrices `(g, rows, width)` to BLAS as they are: rows of adjacent elements."""
    size, row = matrices.itemsize, matrices.strides[-2]
    return (
        matrices.flags.aligned
        and matrices.strides[-1] == size
        and row % size == 0
        and row >= matrices.shape[-1] * size
    )
