"""Sums of attention weights over bins of queries and of keys, for one head, block by block. Any array-API library."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cqs.backend import Workspace, namespace_of, on_host, raise_if_stopped
from cqs.kernels import Region
from cqs.kernels.blocks import column_blocks, in_chunks, split_scale
from cqs.kernels.known_rows import Blocks, unseeing
from cqs.masks.mask import Integers
from cqs.schedule import BLOCK_BYTES, blockwise_block, even_cuts
from cqs.types import Array, DType, Namespace

__all__ = ["Sums", "sum_weights"]

Sums = npt.NDArray[np.float64]


def sum_weights(
    q: Array,
    lse: Array,
    keys: Sequence[Array],
    bins: tuple[Integers, Integers],
    sums: Sums,
    *,
    scale: float,
    region: Region,
    dtype: DType,
    block_bytes: int = BLOCK_BYTES,
    space: Workspace | None = None,
) -> None:
    """Add the weights of some queries on some keys, bin by bin.

    Parameters
    ----------
    q, lse : array, `(t, D)` and `(t,)`
        Queries, and their log-sum-exps over all keys that they see.
    keys : sequence of array, `(s, D)`
        Side by side.
    bins : two of int64, `(t,)` and `(s,)`
        For each query the row of `sums`, and for each key the column.
    sums : float64, `(r, c)`
        What is added to.
    scale, region, dtype, block_bytes, space
        As of `cqs.backward.differentiate`. O(t s D) operations.
    """
    xp = namespace_of(q=q)
    for_q, for_scores = split_scale(scale)
    of_rows, most = unseeing(xp, lse), blockwise_block(block_bytes)
    arrays = Blocks(xp, space or Workspace())
    for own in even_cuts(q.shape[0], most[0]):
        raise_if_stopped()
        here = slice(own.start, own.stop)
        scaled, own_lse = xp.astype(q[here, :], dtype, copy=False) * for_q, of_rows[here, None]
        for pieces in column_blocks(region, own, most[1]):
            k = arrays.joined("k", keys, in_chunks(pieces, [x.shape[0] for x in keys]), dtype)
            scores = arrays.product("scores", scaled, k.T)
            if for_scores != 1:
                scores *= for_scores
            weights, _ = arrays.weights(scores, own_lse, region, own, pieces)
            columns = np.concatenate([bins[1][piece.start : piece.stop] for piece in pieces])
            _add(xp, weights, bins[0][here], columns, sums)


def _add(xp: Namespace, weights: Array, rows: Integers, columns: Integers, sums: Sums) -> None:
    """Add a block of weights to the sums of its rows and columns: first over those that leave less to be done."""
    (own_rows, row_of), (own_columns, column_of) = (np.unique(x, return_inverse=True) for x in (rows, columns))
    by_row, by_column = (
        None if len(own) == len(of) else _members(xp, of, len(own), weights)
        for own, of in ((own_rows, row_of), (own_columns, column_of))
    )
    if by_row is not None and len(own_rows) * len(columns) <= len(own_columns) * len(rows):
        weights, by_row = by_row.T @ weights, None
    if by_column is not None:
        weights = weights @ by_column
    if by_row is not None:
        weights = by_row.T @ weights
    sums[np.ix_(own_rows, own_columns)] += np.asarray(on_host(weights), np.float64)


def _members(xp: Namespace, bins: Integers, n_bins: int, like: Array) -> Array:
    """Return a matrix that has 1 where something is in a bin, `(n, bins)`."""
    found = np.zeros((len(bins), n_bins), np.float32)
    found[np.arange(len(bins)), bins] = 1
    return xp.astype(xp.asarray(found, device=like.device), like.dtype)
