"""Attention block by block, for any array-API library."""

from collections.abc import Sequence
from functools import partial

from cqs.backend import dtype_of, namespace_of, raise_if_stopped
from cqs.kernels.blocks import column_blocks, in_chunks, split_scale
from cqs.kernels.contract import KeyChunk
from cqs.kernels.reference import softmax_parts, weighted_sum
from cqs.kernels.region import Region
from cqs.partial import Partial, merge_into
from cqs.problem import DTYPES, dtype_name
from cqs.schedule import BLOCK_BYTES, blockwise_block, even_cuts
from cqs.types import Array, Namespace

__all__ = ["attend"]


def attend(
    q: Array,
    chunks: Sequence[KeyChunk],
    *,
    scale: float,
    region: Region | None = None,
    threads: int = 1,
    block_bytes: int = BLOCK_BYTES,
) -> Partial:
    """Compute attention in blocks, by default of 512 queries by 1024 keys for each head; never a T x S array.

    Each block is a partial result of its own, and they are merged as they come, by the law of `cqs.kernels.Attend`,
    which see for the arguments. The threads are the library's own.
    """
    xp = namespace_of(q=q)
    dtype = dtype_of(xp, DTYPES[dtype_name(q)][1])
    *batch, H, T, D = q.shape
    *_, G, _, E = chunks[0].v.shape
    region = region or Region.whole(T, sum(chunk.k.shape[-2] for chunk in chunks))
    for_q, for_scores = split_scale(scale)
    # H / G query heads share a key head
    split = Partial.empty(xp, (*batch, G, H // G, T, E), dtype, q.device)
    most_rows, most_columns = blockwise_block(block_bytes)
    for rows in even_cuts(T, most_rows):
        raise_if_stopped()
        here = slice(rows.start, rows.stop)
        q_rows = xp.reshape(q[..., here, :], (*batch, G, H // G, len(rows), D))
        q_rows = xp.astype(q_rows, dtype) * for_q
        total = split.at(..., here)
        for pieces in column_blocks(region, rows, most_columns):
            k = xp.astype(_gather(xp, [chunk.k for chunk in chunks], pieces), dtype)
            v = xp.astype(_gather(xp, [chunk.v for chunk in chunks], pieces), dtype)
            scores = q_rows @ xp.matrix_transpose(k)[..., None, :, :]  # (*B, G, H/G, rows, columns)
            if for_scores != 1:
                scores = scores * for_scores
            region.change(xp, scores, rows, pieces)
            region.hide(xp, scores, rows, pieces)
            weights, sums = softmax_parts(xp, scores)
            out = weighted_sum(xp, weights, v[..., None, :, :], partial(region.visible, rows, pieces))
            merge_into(xp, [total], [Partial(out, *sums)])
    lse, rest = (x if x is None else xp.reshape(x, (*batch, H, T)) for x in (split.lse, split.rest))
    return Partial(xp.reshape(split.out, (*batch, H, T, E)), lse, rest)


def _gather(xp: Namespace, arrays: Sequence[Array], pieces: Sequence[range]) -> Array:
    """Put the keys (or values) of some columns side by side; a view where they are so already."""
    places = in_chunks(pieces, [array.shape[-2] for array in arrays])
    parts = [arrays[n][..., part.start : part.stop, :] for n, part in places]
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-2)
