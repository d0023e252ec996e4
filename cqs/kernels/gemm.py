"""The kernel for CuPy arrays of any type, mask and change of scores: cuBLAS, and one kernel between its products.

For a block of rows and a block of columns that they see: scores by a matrix product, whatever is done to scores, then
`cuda/softmax_block.cu`, which hides, turns scores into weights by a running maximum and sums them, then a matrix
product that adds the weighted values to the result's rows. Everything is put on the current stream, and nothing is
waited for.

float32 is multiplied as float32 whatever CuPy's or the environment's setting is; 16-bit blocks are cast to float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np

from cqs.backend import dtype_of, import_cupy, is_cupy, namespace_of, quiet_floats
from cqs.cuda import launch, scan_values, stacks, step_of
from cqs.kernels.blocks import column_blocks, in_chunks
from cqs.kernels.contract import KeyChunk, Request
from cqs.kernels.gemm_products import Products, is_ready
from cqs.kernels.region import Region
from cqs.once import once
from cqs.partial import Partial
from cqs.problem import DTYPES, dtype_name
from cqs.schedule import BLOCK_BYTES, CallShape, even_cuts
from cqs.schedule.gemm_blocks import GemmBlock, Heads, buffer_sizes, gemm_block, head_groups, row_pitch
from cqs.types import Array, DType, Namespace

__all__ = ["attend", "attend_in_blocks", "refusal"]

_THREADS = 256  # of a block of threads, at most
_MOST_BLOCKS = 2048  # of threads, where each takes more than one thing


def refusal(request: Request) -> str | None:
    """Return why the kernel cannot do what is asked, or None: it takes all that is in the memory of a CUDA device."""
    return None if is_cupy(request.xp) else "takes CuPy arrays"


def attend(
    q: Array,
    chunks: Sequence[KeyChunk],
    *,
    scale: float,
    region: Region | None = None,
    threads: int = 1,
    block_bytes: int = BLOCK_BYTES,
) -> Partial:
    """Compute attention over CuPy arrays of any strides; those whose last axis is contiguous are not copied.

    The result is on its way when this returns: it is in order on the current stream. `block_bytes` is of the scores of
    all heads together; a GPU likes tens of MiB, and `cqs.schedule.gemm_blocks.gemm_bytes` says what a call allocates.
    See `cqs.kernels.Attend` for the arguments; `threads` does not matter.
    """
    return attend_in_blocks(q, chunks, scale=scale, region=region, block_bytes=block_bytes)


def attend_in_blocks(
    q: Array,
    chunks: Sequence[KeyChunk],
    *,
    scale: float,
    region: Region | None = None,
    block_bytes: int = BLOCK_BYTES,
    uses_tf32: bool = False,
) -> Partial:
    """Do what `attend` does; `uses_tf32` multiplies float32 with 10 bits of mantissa, which is faster and not exact."""
    xp = namespace_of(q=q)
    dtype = np.dtype(dtype_of(xp, DTYPES[dtype_name(q)][1]))
    *batch, H, T, D = q.shape
    (*_, G, _, E), S = chunks[0].v.shape, sum(chunk.k.shape[-2] for chunk in chunks)
    if 0 in (*batch, T, S):
        return Partial.empty(xp, (*batch, H, T, E), dtype, q.device)
    region, cupy = region or Region.whole(T, S), import_cupy()
    shape = CallShape(
        prod(batch), G, H // G, T, S, D, E, dtype.itemsize, True, region.is_masked or bool(region.foreign)
    )
    with q.device, quiet_floats():
        block, products = gemm_block(shape, block_bytes), Products(cupy, dtype, uses_tf32)
        # the largest first, where the call before had its own: a pool that splits that for a result has no such piece
        buffers = {"scores": cupy.empty(buffer_sizes(shape, block)["scores"], dtype)}
        result = Partial(cupy.empty((*batch, H, T, E), dtype), cupy.empty((*batch, H, T), dtype))
        call = _Call(xp, cupy, q, chunks, scale, region, result, shape, block, products, buffers)
        with products.in_own_precision():
            call.run()
    return result


class _Hidden(NamedTuple):
    """What rows do not see of a block, on the device: see `softmax_block.cu`. Nothing, if all are None."""

    bounds: Array | None = None  # (2, rows) int32
    bits: Array | None = None  # (rows, columns / 8) uint8

    @property
    def is_any(self) -> bool:
        """Whether something is hidden."""
        return self.bounds is not None or self.bits is not None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What kernels are given."""
        return self.bounds, self.bits, 0 if self.bits is None else self.bits.shape[1]


@dataclass(frozen=True, eq=False)
class _Call:
    """The arguments of one call, and what it keeps on the device."""

    xp: Namespace
    cupy: Any
    q: Array
    chunks: Sequence[KeyChunk]
    scale: float
    region: Region
    result: Partial
    shape: CallShape
    block: GemmBlock
    products: Products
    buffers: dict[str, Array]

    def run(self) -> None:
        """Compute the result: for some rows at a time, block by block of the columns that they see."""
        batch = self.q.shape[:-3]
        groups = list(head_groups(batch, self.shape.kv_heads, self.shape.shared, self.block))
        self._look_at_values()
        for rows in even_cuts(self.shape.n_queries, self.block.rows):
            blocks = column_blocks(self.region, rows, self.block.columns)
            for n, pieces in enumerate(blocks):
                hidden = self._hidden(rows, pieces)
                for heads in groups:
                    self._attend(heads, rows, pieces, hidden, n == 0)
            if blocks:
                self._finish(rows)
            else:  # no row sees any column
                self.result.out[..., rows.start : rows.stop, :] = 0
                self.result.lse[..., rows.start : rows.stop] = -np.inf

    @property
    def dtype(self) -> DType:
        """The type of scores and sums."""
        return self.products.dtype

    @once
    def facts(self) -> Array:
        """Whether some value is infinite or NaN, and whether some are large; known to the device alone."""
        return self.cupy.zeros(2, np.int32)

    @once
    def factor(self) -> Any:
        """What weights are multiplied by where values are large: then a sum over all keys cannot overflow."""
        return self.dtype.type(2.0 ** -(self.shape.n_keys.bit_length() + 1))

    @once
    def by_group(self) -> tuple[Array, Array]:
        """Queries and output as `(*B, G, H/G, T, width)`: splitting an axis is always a view."""
        heads = self.shape.kv_heads, self.shape.shared
        return tuple(x.reshape(*x.shape[:-3], *heads, *x.shape[-2:]) for x in (self.q, self.result.out))

    def _look_at_values(self) -> None:
        """Find out, on the device, whether values are such that sums of them need care; reads all of them once."""
        for chunk in self.chunks:
            scan_values(chunk.v, self.shape.n_keys, self.facts)

    def _hidden(self, rows: range, pieces: Sequence[range]) -> _Hidden:
        """Put what is hidden of a block on the device: from pinned memory that CuPy keeps until it is copied."""
        if self.region.is_full:
            return _Hidden()
        bounds = self.region.bounds(rows, pieces)
        if bounds is not None:
            is_full = not bounds[0].any() and bool(np.all(bounds[1] == sum(map(len, pieces))))
            return _Hidden() if is_full else _Hidden(bounds=self.cupy.asarray(bounds.astype(np.int32)))
        visible = self.region.visible(rows, pieces)
        bits = np.packbits(visible, axis=-1, bitorder="little")
        return _Hidden() if visible.all() else _Hidden(bits=self.cupy.asarray(bits))

    def _attend(self, heads: Heads, rows: range, pieces: Sequence[range], hidden: _Hidden, is_first: bool) -> None:
        """Add the columns of a block to the sums of its rows, of some heads."""
        q, out = (x[heads.of_queries][..., rows.start : rows.stop, :] for x in self.by_group)
        q = self._ready("q", [q])
        n_columns = sum(map(len, pieces))
        lead, pitch = q.shape[:-1], row_pitch(n_columns)
        weights = self._buffer("scores", (*lead, pitch))[..., :n_columns]
        k = self._columns("k", heads, pieces)
        self.products.add(q, k, weights, factor=self.scale or 1, transposes=True)
        if self.scale == 0:  # cuBLAS would not look at the factors then, which may be infinite
            weights *= 0
        self.region.change(self.xp, weights, rows, pieces)
        hold = self._buffer("hold", out.shape) if hidden.is_any else None
        top, total = (self._sums(name, rows)[heads.first : heads.first + prod(lead[:-1])] for name in ("top", "total"))
        self._launch(
            *("softmax_block", prod(lead), _threads(-(-n_columns * self.dtype.itemsize // 32))),
            *(weights, pitch, len(rows), n_columns, top, total),
            *(out, step_of(self.result.out, -3), out.shape[-1], hold, *hidden.arguments),
            *(self.facts, self.factor, int(is_first)),
        )
        v = self._columns("v", heads, pieces)
        self.products.add(weights, v, out, keeps=not is_first)
        if hidden.is_any:
            self._repair(weights, v, out, hold, hidden)

    def _repair(self, weights: Array, v: Array, out: Array, hold: Array, hidden: _Hidden) -> None:
        """Correct the rows that infinite values reached which they do not see."""
        v = self.cupy.broadcast_to(v[..., None, :, :], (*weights.shape[:-2], *v.shape[-2:]))
        for w, values, sums, held in stacks(weights, v, out, hold):
            n, n_rows, n_columns = w.shape
            self._launch(
                *("repair_values", min(n * n_rows, _MOST_BLOCKS), _threads(sums.shape[-1])),
                *(w, step_of(w, 0), step_of(w, 1), n, n_rows, n_columns),
                *(values, step_of(values, 0), step_of(values, 1)),
                *(sums, step_of(sums, 0), sums.shape[-1], held, step_of(held, 0)),
                *(*hidden.arguments, self.facts),
            )

    def _finish(self, rows: range) -> None:
        """Divide the sums of some rows of all heads, and write their log-sum-exps."""
        E, out, lse = self.shape.value_width, self.result.out, self.result.lse
        self._launch(
            *("finish_rows", self.shape.n_heads * len(rows), _threads(E)),
            *(out[..., rows.start : rows.stop, :], self.shape.n_queries * E, E),
            *(self._sums("top", rows), self._sums("total", rows)),
            *(lse[..., rows.start : rows.stop], self.shape.n_queries, len(rows), self.facts, self.factor),
        )

    def _launch(self, name: str, n_blocks: int, threads: int, *arguments: Any) -> None:
        """Start a kernel of `softmax_block.cu`."""
        option = "-DREAL=float" if self.dtype.itemsize == 4 else "-DREAL=double"
        launch("softmax_block.cu", option, name, n_blocks, threads, *arguments)

    def _columns(self, name: str, heads: Heads, pieces: Sequence[range]) -> Array:
        """Return the keys or values of a block, `(*B, G, columns, width)`."""
        places = in_chunks(pieces, [chunk.k.shape[-2] for chunk in self.chunks])
        arrays = [getattr(self.chunks[n], name)[heads.of_keys] for n, _ in places]
        parts = [array[..., part.start : part.stop, :] for array, (_, part) in zip(arrays, places, strict=True)]
        return self._ready(name, parts)

    def _ready(self, name: str, parts: Sequence[Array]) -> Array:
        """Return matrices side by side, in the type of scores: as they are where cuBLAS takes them, else copied."""
        if len(parts) == 1 and parts[0].dtype == self.dtype and is_ready(parts[0]):
            return parts[0]
        *lead, _, width = parts[0].shape
        copy = self._buffer(name, (*lead, sum(part.shape[-2] for part in parts), width))
        first = 0
        for part in parts:
            copy[..., first : first + part.shape[-2], :] = part
            first += part.shape[-2]
        return copy

    def _sums(self, name: str, rows: range) -> Array:
        """Return the maxima or the sums of some rows so far, `(heads, rows)`."""
        return self._buffer(name, (self.shape.n_heads, len(rows)))

    def _buffer(self, name: str, shape: Sequence[int]) -> Array:
        """Return an array of a shape, over memory that is allocated once a call."""
        if name not in self.buffers:
            self.buffers[name] = self.cupy.empty(buffer_sizes(self.shape, self.block)[name], self.dtype)
        return self.buffers[name][: prod(shape)].reshape(*shape)


def _threads(n: int) -> int:
    """Return how many threads a block has for n things to do: whole warps."""
    return min(max(-(-n // 32) * 32, 32), _THREADS)
