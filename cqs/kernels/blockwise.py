"""Attention block by block with a running softmax, for any array-API library."""

from collections.abc import Sequence

from cqs.backend import dtype_of, namespace_of
from cqs.kernels.blocks import KeyBlock, even_cuts, key_blocks
from cqs.kernels.chunk import KeyChunk
from cqs.masks import Mask
from cqs.partial import Partial
from cqs.problem import DTYPES, dtype_name
from cqs.types import Array, DType, Namespace

__all__ = ["attend"]

_ROWS, _COLS = 512, 1024  # of a block of scores


def attend(
    q: Array, chunks: Sequence[KeyChunk], *, scale: float, mask: Mask, q_start: int = 0, threads: int = 1
) -> Partial:
    """Compute attention in blocks of 512 queries by 1024 keys; never a T x S array.

    Keeps, for each query, the largest score so far, the sum of exponentials relative to it, and the weighted
    sum of values; each block of keys rescales them once (Milakov and Gimelshein, arXiv 1805.02867).
    See `cqs.kernels.Attend` for the arguments; the threads are the library's own.
    """
    xp = namespace_of(q=q)
    dtype = dtype_of(xp, DTYPES[dtype_name(q)][1])
    *batch, H, T, D = q.shape
    *_, G, _, E = chunks[0].v.shape
    tokens = [chunk.tokens for chunk in chunks]
    result = Partial.empty(xp, (*batch, H, T, E), dtype, q.device)
    for rows in even_cuts(T, _ROWS):
        q_rows = xp.reshape(q[..., rows.start : rows.stop, :], (*batch, G, H // G, len(rows), D))
        q_rows = xp.astype(q_rows, dtype) * scale
        q_idx = range(q_start + rows.start, q_start + rows.stop)
        blocks = key_blocks(q_idx, tokens, mask, _COLS)
        partial = _attend_rows(xp, q_rows, q_idx, chunks, blocks, mask, dtype)
        result.out[..., rows.start : rows.stop, :] = xp.reshape(partial.out, (*batch, H, len(rows), E))
        result.lse[..., rows.start : rows.stop] = xp.reshape(partial.lse, (*batch, H, len(rows)))
    return result


def _attend_rows(
    xp: Namespace, q: Array, q_idx: range, chunks: Sequence[KeyChunk], blocks: list[KeyBlock], mask: Mask, dtype: DType
) -> Partial:
    """Attend to every block; q is scaled and (*B, G, H/G, rows, D)."""
    E = chunks[0].v.shape[-1]
    top = xp.full((*q.shape[:-1], 1), -xp.inf, dtype=dtype, device=q.device)
    total = xp.zeros_like(top)
    out = xp.zeros((*q.shape[:-1], E), dtype=dtype, device=q.device)
    for block in blocks:
        k = xp.astype(_gather(xp, [chunk.k for chunk in chunks], block), dtype)
        v = xp.astype(_gather(xp, [chunk.v for chunk in chunks], block), dtype)
        scores = q @ xp.matrix_transpose(k)[..., None, :, :]  # (*B, G, H/G, rows, block)
        for column, piece in block.masked_columns():
            start = chunks[piece.chunk].start
            visible = mask.visible(
                xp.arange(q_idx.start, q_idx.stop, device=q.device)[:, None],
                xp.arange(start + piece.start, start + piece.stop, device=q.device)[None, :],
            )
            columns = slice(column, column + len(piece))
            scores[..., columns] = xp.where(visible, scores[..., columns], -xp.inf)
        new_top = xp.maximum(top, xp.max(scores, axis=-1, keepdims=True))
        shift = xp.where(new_top == -xp.inf, xp.zeros_like(top), new_top)  # no key seen yet: -inf - -inf is NaN
        weights = xp.exp(scores - shift)
        rescale = xp.exp(top - shift)
        total = total * rescale + xp.sum(weights, axis=-1, keepdims=True)
        out = out * rescale + weights @ v[..., None, :, :]
        top = new_top
    seen = xp.where(total == 0, xp.ones_like(total), total)
    lse = xp.where(total == 0, top, top + xp.log(seen))
    return Partial(out / seen, lse)


def _gather(xp: Namespace, arrays: Sequence[Array], block: KeyBlock) -> Array:
    """Put the block's keys (or values) side by side; a view where they are so already."""
    first, last = block.pieces[0], block.pieces[-1]
    if block.is_one_run:
        return arrays[first.chunk][..., first.start : last.stop, :]
    return xp.concat([arrays[piece.chunk][..., piece.start : piece.stop, :] for piece in block.pieces], axis=-2)
