"""Masks and scores that differ between heads: a kernel is called for each of them, with what is its own."""

from collections.abc import Sequence
from math import prod

import numpy as np

from cqs.backend import dtype_of, namespace_of
from cqs.kernels.contract import Attend, KeyChunk
from cqs.kernels.region import Region
from cqs.partial import Partial
from cqs.problem import DTYPES, dtype_name
from cqs.types import Array

__all__ = ["attend_per_head"]


def attend_per_head(
    attend: Attend, q: Array, chunks: Sequence[KeyChunk], *, scale: float, region: Region, threads: int = 1
) -> Partial:
    """Call `attend` once where all heads share mask and scores, else for each batch entry or head that has its own.

    See `cqs.kernels.Attend` for the arguments.
    """
    if region.is_shared:
        return attend(q, chunks, scale=scale, region=region.at((0,) * (q.ndim - 2)), threads=threads)
    xp = namespace_of(q=q)
    *batch, H, T, _ = q.shape
    G, E = chunks[0].v.shape[-3], chunks[0].v.shape[-1]
    result = Partial.empty(xp, (*batch, H, T, E), dtype_of(xp, DTYPES[dtype_name(q)][1]), q.device)
    n_masks = prod(region.lead[-1:])  # along the heads
    for b in np.ndindex(*batch):
        for h in range(H) if n_masks > 1 else (None,):
            heads = slice(None) if h is None else slice(h, h + 1)
            kv_heads = slice(None) if h is None else slice(h // (H // G), h // (H // G) + 1)
            own = region.at((*b, h or 0))
            parts = [KeyChunk(chunk.k[(*b, kv_heads, ...)], chunk.v[(*b, kv_heads, ...)]) for chunk in chunks]
            part = attend(q[(*b, heads, ...)], parts, scale=scale, region=own, threads=threads)
            result.out[(*b, heads, ...)], result.lse[(*b, heads, ...)] = part.out, part.lse
    return result
