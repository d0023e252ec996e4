"""Attention block by block with a running softmax, for any array-API library."""

from collections.abc import Sequence

from cqs.backend import dtype_of, namespace_of
from cqs.kernels.blocks import column_blocks, even_cuts, in_chunks
from cqs.kernels.contract import KeyChunk
from cqs.kernels.region import Region
from cqs.partial import Partial
from cqs.problem import DTYPES, dtype_name
from cqs.types import Array, DType, Namespace

__all__ = ["attend"]

_ROWS, _COLS = 512, 1024  # of a block of scores


def attend(
    q: Array, chunks: Sequence[KeyChunk], *, scale: float, region: Region | None = None, threads: int = 1
) -> Partial:
    """Compute attention in blocks of at most 512 queries by 1024 keys; never a T x S array.

    Keeps, for each query, the largest score so far, the sum of exponentials relative to it, and the weighted
    sum of values; each block of keys rescales them once (Milakov and Gimelshein, arXiv 1805.02867).
    See `cqs.kernels.Attend` for the arguments; the threads are the library's own.
    """
    xp = namespace_of(q=q)
    dtype = dtype_of(xp, DTYPES[dtype_name(q)][1])
    *batch, H, T, D = q.shape
    *_, G, _, E = chunks[0].v.shape
    region = region or Region.whole(T, sum(chunk.k.shape[-2] for chunk in chunks))
    result = Partial.empty(xp, (*batch, H, T, E), dtype, q.device)
    for rows in even_cuts(T, _ROWS):
        here = slice(rows.start, rows.stop)
        q_rows = xp.reshape(q[..., here, :], (*batch, G, H // G, len(rows), D))
        partial = _attend_rows(xp, xp.astype(q_rows, dtype) * scale, chunks, region, rows, dtype)
        result.out[..., here, :] = xp.reshape(partial.out, (*batch, H, len(rows), E))
        result.lse[..., here] = xp.reshape(partial.lse, (*batch, H, len(rows)))
    return result


def _attend_rows(
    xp: Namespace, q: Array, chunks: Sequence[KeyChunk], region: Region, rows: range, dtype: DType
) -> Partial:
    """Attend with some rows, which are scaled and `(*B, G, H/G, rows, D)`."""
    top = xp.full((*q.shape[:-1], 1), -xp.inf, dtype=dtype, device=q.device)
    total = xp.zeros_like(top)
    out = xp.zeros((*q.shape[:-1], chunks[0].v.shape[-1]), dtype=dtype, device=q.device)
    for pieces in column_blocks(region, rows, _COLS):
        k = xp.astype(_gather(xp, [chunk.k for chunk in chunks], pieces), dtype)
        v = xp.astype(_gather(xp, [chunk.v for chunk in chunks], pieces), dtype)
        scores = q @ xp.matrix_transpose(k)[..., None, :, :]  # (*B, G, H/G, rows, columns)
        region.hide(xp, scores, rows, pieces)
        new_top = xp.maximum(top, xp.max(scores, axis=-1, keepdims=True))
        shift = xp.where(new_top == -xp.inf, xp.zeros_like(top), new_top)  # nothing seen yet: -inf - -inf is NaN
        weights, rescale = xp.exp(scores - shift), xp.exp(top - shift)
        total = total * rescale + xp.sum(weights, axis=-1, keepdims=True)
        out = out * rescale + weights @ v[..., None, :, :]
        top = new_top
    divisor = xp.where(total == 0, xp.ones_like(total), total)
    return Partial(out / divisor, xp.where(total == 0, top, top + xp.log(divisor)))


def _gather(xp: Namespace, arrays: Sequence[Array], pieces: Sequence[range]) -> Array:
    """Put the keys (or values) of some columns side by side; a view where they are so already."""
    places = in_chunks(pieces, [array.shape[-2] for array in arrays])
    parts = [arrays[n][..., part.start : part.stop, :] for n, part in places]
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-2)
