"""How the gemm kernel cuts a call into blocks, and what it allocates for them. Integers only."""

import itertools
from collections.abc import Iterator
from math import isqrt, prod
from typing import NamedTuple

import numpy as np

from cqs.schedule.call_shape import CallShape
from cqs.schedule.task import even_cuts, largest_cut

__all__ = ["GemmBlock", "Heads", "buffer_sizes", "gemm_block", "gemm_bytes", "head_groups", "row_pitch"]

_LEAST_AREA = 1 << 17  # scores of a head that keep a GPU's matrix units busy; with fewer, heads are cut instead
_ROWS_IN_ALL = 1 << 14  # rows of all heads: as many 128 x 128 tiles of the result as an H200 has multiprocessors
_LEAST_ROWS, _LEAST_COLUMNS, _MOST_COLUMNS = 256, 1024, 8192
_PITCH = 32  # scores; rows begin at multiples of 128 bytes
_SCORE_COPIES = 6  # blocks that changing scores takes, beyond the block itself
_ALLOCATIONS, _GRANULE = 16, 512  # arrays that a call makes, and what CuPy's pool rounds each up to


class GemmBlock(NamedTuple):
    """What is computed at a time: query heads of some batch entries and key heads, by rows, by columns."""

    batch: int
    kv_heads: int
    shared: int
    rows: int
    columns: int

    @property
    def n_heads(self) -> int:
        """Query heads of all its batch entries."""
        return self.batch * self.kv_heads * self.shared


class Heads(NamedTuple):
    """Query heads that follow each other: of one batch entry, `batch` being its index, or of all, if that is ()."""

    batch: tuple[int, ...]
    kv_heads: slice
    shared: slice
    first: int  # number of the first of them, counted over the batch

    @property
    def of_queries(self) -> tuple[object, ...]:
        """What to index arrays `(*B, G, H/G, rows, width)` by."""
        return (*self.batch, ..., self.kv_heads, self.shared, slice(None), slice(None))

    @property
    def of_keys(self) -> tuple[object, ...]:
        """What to index arrays `(*B, G, columns, width)` by."""
        return (*self.batch, ..., self.kv_heads, slice(None), slice(None))


def gemm_block(call: CallShape, block_bytes: int) -> GemmBlock:
    """Return the largest blocks that a call is cut into.

    On an edge of the mask about half of a block is wasted, so in a masked call rows are few.
    """
    area = max(block_bytes // call.itemsize, 1)
    batch, kv_heads, shared = call.batch, call.kv_heads, call.shared
    heads = max(area // _LEAST_AREA, 1)
    if heads < call.n_heads:
        batch, kv_heads, shared = 1, largest_cut(kv_heads, max(heads // shared, 1)), largest_cut(shared, heads)
    area = max(area // (batch * kv_heads * shared), 1)  # of one head
    rows = min(max(_ROWS_IN_ALL // (batch * kv_heads * shared), _LEAST_ROWS), call.n_queries)
    rows = min(rows, max(area // _LEAST_COLUMNS, isqrt(area)))
    if call.is_masked:
        rows = min(rows, max(call.n_queries // 16, _LEAST_ROWS))
    columns = min(area // rows, _MOST_COLUMNS)
    columns = max(columns // _PITCH * _PITCH, min(columns, _PITCH), 1)
    return GemmBlock(batch, kv_heads, shared, rows, min(columns, call.n_keys))


def head_groups(batch: tuple[int, ...], kv_heads: int, shared: int, block: GemmBlock) -> Iterator[Heads]:
    """Cut the heads of a call `(*batch, kv_heads, shared)` into those of a block, in the order in which they stand."""
    entries = [()] if block.batch == prod(batch) else list(np.ndindex(*batch))
    cuts = even_cuts(kv_heads, block.kv_heads), even_cuts(shared, block.shared)
    for (n, b), (g, r) in itertools.product(enumerate(entries), itertools.product(*cuts)):
        first = (n * kv_heads + g.start) * shared + r.start
        yield Heads(b, slice(g.start, g.stop), slice(r.start, r.stop), first)


def row_pitch(columns: int) -> int:
    """Return how many scores apart the rows of a block stand."""
    return -(-columns // _PITCH) * _PITCH


def buffer_sizes(call: CallShape, block: GemmBlock) -> dict[str, int]:
    """Return the elements of each array that a call allocates once and uses for block after block, if at all."""
    kv_heads = block.batch * block.kv_heads
    return {
        "scores": block.n_heads * block.rows * row_pitch(block.columns),
        "q": block.n_heads * block.rows * call.width,
        "k": kv_heads * block.columns * call.width,
        "v": kv_heads * block.columns * call.value_width,
        "hold": block.n_heads * block.rows * call.value_width,
        "top": call.n_heads * block.rows,
        "total": call.n_heads * block.rows,
    }


def gemm_bytes(call: CallShape, block_bytes: int, has_scores: bool = False) -> int:
    """Return an upper bound of the device memory that a call of the gemm kernel allocates, its result not counted.

    For arrays whose last axis is contiguous, and whose batch and head axes do not run backwards: with the blocks of
    `gemm_block`, of h heads (g key heads), t rows and c columns, c' being c rounded up to 32,

        a (h t c' + 2 H t)                     scores, maxima and sums
        + a (h t D + g c (D + E))              if keys are gathered, cast or masked
        + a h t E + 2 t max(8, (c + 7) // 8)   if masked: sums before a product; two masks
        + 6 a h t c'                           if scores are changed

    where a is the accumulator's item size and H counts all heads of the call; and 8 KiB for rounding up.
    """
    if 0 in (call.n_queries, call.n_keys, call.n_heads):
        return 0
    block = gemm_block(call, block_bytes)
    sizes = buffer_sizes(call, block)
    names = ["scores", "top", "total"] + ["hold"] * call.is_masked
    names += ["q", "k", "v"] * (call.is_gathered or call.is_masked)
    n_elements = sum(sizes[name] for name in names) + _SCORE_COPIES * sizes["scores"] * has_scores
    masks = 2 * block.rows * max(8, -(-block.columns // 8)) * call.is_masked
    return n_elements * call.itemsize + masks + _ALLOCATIONS * _GRANULE
