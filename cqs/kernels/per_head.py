"""Masks and scores that differ between heads: a kernel is called for each of them, with what is its own."""

from collections.abc import Sequence
from functools import partial
from math import prod

import numpy as np

from cqs.backend import dtype_of, namespace_of
from cqs.kernels.contract import Attend, KeyChunk
from cqs.kernels.region import Region
from cqs.partial import Partial, copy_into
from cqs.problem import DTYPES, dtype_name
from cqs.schedule import BLOCK_BYTES, HeadBlock
from cqs.types import Array

__all__ = ["attend_per_head"]


def attend_per_head(
    attend: Attend,
    q: Array,
    chunks: Sequence[KeyChunk],
    *,
    scale: float,
    region: Region,
    threads: int = 1,
    block_bytes: int = BLOCK_BYTES,
    heads: HeadBlock | None = None,
) -> Partial:
    """Call `attend` once where all heads share mask and scores, else for each batch entry or head that has its own.

    See `cqs.kernels.Attend` for the arguments. `heads` says which heads of the problem those of `q` are, if not all.
    """
    run = partial(attend, scale=scale, threads=threads, block_bytes=block_bytes)
    entry, first = ((), 0) if heads is None else (heads.batch, heads.queries.start)
    if region.is_shared:
        return run(q, chunks, region=region.at((0,) * (len(entry) + q.ndim - 2)))
    xp = namespace_of(q=q)
    *batch, H, T, _ = q.shape
    if not batch and prod(region.lead[-1:]) == 1:  # all heads of one entry
        return run(q, chunks, region=region.at((*entry, first)))
    G, E = chunks[0].v.shape[-3], chunks[0].v.shape[-1]
    result = Partial.empty(xp, (*batch, H, T, E), dtype_of(xp, DTYPES[dtype_name(q)][1]), q.device)
    n_masks = prod(region.lead[-1:])  # along the heads
    for b in np.ndindex(*batch):
        for h in range(H) if n_masks > 1 else (None,):
            own = slice(None) if h is None else slice(h, h + 1)
            kv_own = slice(None) if h is None else slice(h // (H // G), h // (H // G) + 1)
            parts = [KeyChunk(chunk.k[(*b, kv_own, ...)], chunk.v[(*b, kv_own, ...)]) for chunk in chunks]
            part = run(q[(*b, own, ...)], parts, region=region.at((*entry, *b, first + (h or 0))))
            copy_into(result.at(*b, own, ...), part)
            del part  # before the next is computed
    return result
