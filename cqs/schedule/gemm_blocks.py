"""How the gemm kernel cuts a call into blocks, and what it allocates for them. Integers only."""

import itertools
from collections.abc import Iterator
from math import isqrt, prod
from typing import NamedTuple

import numpy as np

from cqs.schedule.call_shape import CallShape
from cqs.schedule.task import even_cuts, largest_cut

__all__ = ["SCORE_COPIES", "GemmBlock", "Heads", "buffer_sizes", "gemm_block", "gemm_bytes", "head_groups", "row_pitch"]

_LEAST_AREA = 1 << 17  # scores of a head that keep a GPU's matrix units busy; with fewer, heads are cut instead
_ROWS_IN_ALL = 1 << 14  # rows of all heads: as many 128 x 128 tiles of the result as an H200 has multiprocessors
_LEAST_ROWS, _LEAST_COLUMNS, _MOST_COLUMNS = 256, 1024, 8192
_PITCH = 32  # scores; rows begin at multiples of 128 bytes
SCORE_COPIES = 6  # blocks that changing scores takes, beyond the block itself: softcap, distances, a `score_mod`
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
    """Return the largest blocks that a call is cut into; the keys, or the values, of one take no more than its scores.

    On an edge of the mask about half of a block is wasted, so in a masked call rows are few.
    """
    heads, area = _heads(call, block_bytes)
    rows = _most_rows(call, block_bytes)
    if call.is_masked:
        rows = min(rows, max(call.n_queries // 16, _LEAST_ROWS))
    columns = min(area // rows, _most_columns(call, block_bytes))
    columns = max(columns // _PITCH * _PITCH, min(columns, _PITCH), 1)
    return GemmBlock(*heads, rows, min(columns, call.n_keys))


def _heads(call: CallShape, block_bytes: int) -> tuple[tuple[int, int, int], int]:
    """Return how many batch entries, key heads and query heads of each a block has, and how many scores of a head."""
    area, most = max(block_bytes // call.itemsize, 1), max(block_bytes // call.itemsize // _LEAST_AREA, 1)
    heads = call.batch, call.kv_heads, call.shared
    if most < call.n_heads:
        heads = 1, largest_cut(call.kv_heads, max(most // call.shared, 1)), largest_cut(call.shared, most)
    return heads, max(area // prod(heads), 1)


def _most_rows(call: CallShape, block_bytes: int) -> int:
    """Return the rows of a block where nothing is masked; fewer queries never have more."""
    heads, area = _heads(call, block_bytes)
    rows = min(max(_ROWS_IN_ALL // prod(heads), _LEAST_ROWS), max(area // _LEAST_COLUMNS, isqrt(area)))
    return min(rows, call.n_queries)


def _most_columns(call: CallShape, block_bytes: int) -> int:
    """Return the most columns of a block, however few its rows are."""
    (batch, kv_heads, _), _ = _heads(call, block_bytes)
    by_keys = block_bytes // (batch * kv_heads * call.widest_bytes)
    return min(_MOST_COLUMNS, max(by_keys, _PITCH))


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
    """Return an upper bound of the device memory that the gemm kernel allocates in any call of at most these sizes.

    Its result is not counted. Arrays have to be such that they are not copied: with rows of adjacent elements, and no
    axis that runs backwards. With blocks of h query heads (g key heads), at most t rows and c columns, and n scores
    or 32 h t, whichever is more,

        a (n + 2 H t)                      scores, maxima and sums
        + a (h t D + g c (D + E))          if keys are gathered or cast; keys also if masked
        + a h t E + 2 (9 t + n / 8 h)      if masked or bundled: sums before a product; two masks
        + 6 a n                            if scores are changed

    where a is the accumulator's item size, n = block_bytes / a, and H counts all heads of the call; and 8 KiB for
    rounding up.
    """
    if 0 in (call.n_queries, call.n_keys, call.n_heads):
        return 0
    heads, area = _heads(call, block_bytes)
    rows, columns = _most_rows(call, block_bytes), min(_most_columns(call, block_bytes), call.n_keys)
    sizes = buffer_sizes(call, GemmBlock(*heads, rows, columns))
    sizes["scores"] = prod(heads) * min(max(area, rows * _PITCH), rows * row_pitch(call.n_keys))
    is_cut = call.is_masked or call.is_bundled  # then keys that are computed together may stand apart
    names = ["scores", "top", "total"] + ["hold"] * is_cut + ["k", "v"] * (call.is_gathered or is_cut)
    names += ["q"] * call.is_gathered
    n_elements = sum(sizes[name] for name in names) + SCORE_COPIES * sizes["scores"] * has_scores
    masks = 2 * (9 * rows + min(area, rows * columns) // 8) * is_cut
    return n_elements * call.itemsize + masks + _ALLOCATIONS * _GRANULE
