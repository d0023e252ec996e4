"""Gradients for all heads of a call: by array code, head by head, on threads that share key heads out."""

from collections.abc import Sequence
from itertools import product
from typing import Protocol

import numpy as np

from cqs.backend import Workspace, compute_threads, dtype_of, namespace_of, quiet_floats
from cqs.backward.kernel import QueryRows, differentiate
from cqs.kernels import KeyChunk, Region
from cqs.problem import DTYPES, dtype_name
from cqs.schedule import BLOCK_BYTES
from cqs.types import Array

__all__ = ["Differentiate", "differentiate_heads", "differentiate_per_head", "rows_of_head"]


class Differentiate(Protocol):
    """A function that computes what some queries and some keys add to the gradients."""

    def __call__(
        self,
        rows: QueryRows,
        chunks: Sequence[KeyChunk],
        gradients: Sequence[KeyChunk],
        *,
        scale: float,
        region: Region,
        threads: int = 1,
        block_bytes: int = BLOCK_BYTES,
        bias_sums: Array | None = None,
    ) -> Array:
        """Compute what some pairs add.

        Parameters
        ----------
        rows : QueryRows
            `(*B, H, t, D)` and so on.
        chunks : sequence of KeyChunk
            Keys and values, `(*B, G, s, D)` and `(*B, G, s, E)`.
        gradients : sequence of KeyChunk
            Of each chunk, of the type that sums are kept in: what these pairs add is added to it.
        scale, region, threads, block_bytes
            As of `cqs.kernels.Attend`. All heads have the same mask and scores.
        bias_sums : array of zeros, `(t, s)`, where either may be 1, optional
            As of `cqs.backward.differentiate`, for a call of one head.

        Returns
        -------
        array, `(*B, H, t, D)`
            What these pairs add to the gradients of the queries, of the type that sums are kept in.
        """


def differentiate_heads(
    rows: QueryRows,
    chunks: Sequence[KeyChunk],
    gradients: Sequence[KeyChunk],
    *,
    scale: float,
    region: Region,
    threads: int = 1,
    block_bytes: int = BLOCK_BYTES,
    bias_sums: Array | None = None,
) -> Array:
    """Do as `Differentiate` says with arrays of any library."""
    xp = namespace_of(q=rows.q)
    dtype = dtype_of(xp, DTYPES[dtype_name(rows.q)][1])
    *batch, H, n_rows, D = rows.q.shape
    G = chunks[0].k.shape[-3]
    dq = xp.zeros((*batch, H, n_rows, D), dtype=dtype, device=rows.q.device)

    def work(item: tuple[tuple[int, ...], int], space: Workspace) -> None:
        b, g = item
        own_chunks, own_gradients = (
            [KeyChunk(c.k[(*b, g, ...)], c.v[(*b, g, ...)]) for c in some] for some in (chunks, gradients)
        )
        with quiet_floats():  # which holds for one thread only
            for h in range(g * (H // G), (g + 1) * (H // G)):
                dq[(*b, h, ...)] = differentiate(
                    rows_of_head(rows, (*b, h)), own_chunks, own_gradients, scale=scale, region=region, dtype=dtype,
                    block_bytes=block_bytes, space=space, bias_sums=bias_sums,
                )  # fmt: skip

    items = [(b, g) for b in np.ndindex(*batch) for g in range(G)]
    with compute_threads() as shared:
        shared.share(items, work, threads)
    return dq


def rows_of_head(rows: QueryRows, index: tuple[int | slice, ...]) -> QueryRows:
    """Return what is known of the queries of one head, an index into `(*B, H)`."""
    return QueryRows(*(x[(*index, ...)] for x in rows))


def differentiate_per_head(
    how: Differentiate,
    rows: QueryRows,
    chunks: Sequence[KeyChunk],
    gradients: Sequence[KeyChunk],
    *,
    scale: float,
    region: Region,
    threads: int = 1,
    block_bytes: int = BLOCK_BYTES,
    first: tuple[tuple[int, ...], int] = ((), 0),
    bias_sums: Array | None = None,
) -> Array:
    """Call a function once where all heads share mask and scores, else for each head, with what is its own.

    `first` says which batch entry and head of the problem the first head of `rows` is of. To sums `(*B, H, t, s)`, of
    which any axis may be 1, what the pairs add to the gradient of a bias is added; heads that add to the same are one
    thread's, so that it adds them up in one order.
    """
    (entry, first_head), (*batch, H, _, _) = first, rows.q.shape
    if region.is_shared and bias_sums is None:
        region = region.at((0,) * (len(entry) + len(batch) + 1))
        return how(rows, chunks, gradients, scale=scale, region=region, threads=threads, block_bytes=block_bytes)
    G = chunks[0].k.shape[-3]
    xp = namespace_of(q=rows.q)
    dq = xp.empty(rows.q.shape, dtype=gradients[0].k.dtype, device=rows.q.device)
    differs = [n > 1 for n in ((*batch, H) if bias_sums is None else bias_sums.shape[:-2])]  # along these axes
    is_alone = all(is_own or n == 1 for is_own, n in zip(differs, (*batch, H), strict=True))

    def work(item: tuple[int, ...], space: Workspace) -> None:
        axes = zip(item, (*batch, G), differs, strict=True)
        for *b, g in product(*([i] if is_own else range(n) for i, n, is_own in axes)):
            add_group(tuple(b), g)

    def add_group(b: tuple[int, ...], g: int) -> None:
        own_chunks, own_gradients = (
            [KeyChunk(*(x[(*b, slice(g, g + 1), ...)] for x in c)) for c in some] for some in (chunks, gradients)
        )
        for h in range(g * (H // G), (g + 1) * (H // G)):
            own: tuple[int | slice, ...] = (*b, slice(h, h + 1))
            of_bias = tuple(i if is_own else 0 for i, is_own in zip((*b, h), differs, strict=True))
            sums = None if bias_sums is None else bias_sums[(*of_bias, ...)]
            # apart from those of other heads, for what is not finite is computed again, and its rows are forgotten
            own_sums = sums if is_alone or sums is None else xp.zeros_like(sums)
            dq[(*own, ...)] = how(
                rows_of_head(rows, own), own_chunks, own_gradients, scale=scale, block_bytes=block_bytes,
                region=region.at((*entry, *b, first_head + h)), bias_sums=own_sums,
            )  # fmt: skip
            if sums is not None and own_sums is not sums:
                sums[...] += own_sums

    with compute_threads() as shared:
        items = np.ndindex(*(n if is_own else 1 for n, is_own in zip((*batch, G), differs, strict=True)))
        shared.share(list(items), work, threads)
    return dq
