r"""Gradients of attention over some queries and some keys, block by block. Any array-API library.

With weights :math:`p_{ij} = e^{s_{ij} - l_i}` of the whole row, whose log-sum-exp l is known,

.. math::

    \mathrm dv_j = \sum_i p_{ij}\, \mathrm do_i, \qquad
    \mathrm ds_{ij} = p_{ij}\,(\mathrm do_i \cdot v_j - \delta_i), \qquad \delta_i = \mathrm do_i \cdot o_i,

.. math::

    \mathrm dq_i = \mathrm{scale} \sum_j \mathrm ds_{ij}\, k_j, \qquad
    \mathrm dk_j = \mathrm{scale} \sum_i \mathrm ds_{ij}\, q_i.

All are sums over pairs. So whoever has some queries, with their o, do and l, and some keys can compute what these pairs
add, and parts add up, in any order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cqs.backend import Workspace, is_numpy, namespace_of
from cqs.kernels import KeyChunk, Region
from cqs.kernels.blocks import column_blocks, in_chunks, split_scale
from cqs.kernels.reference import weighted_sum
from cqs.masks.mask import Booleans
from cqs.schedule import BLOCK_BYTES, blockwise_block, even_cuts
from cqs.types import Array, DType, Namespace

__all__ = ["QueryRows", "differentiate"]


class QueryRows(NamedTuple):
    """Queries that share a key head, and what the forward pass and its caller say of them.

    Parameters
    ----------
    q, dout : array, `(R, t, D)` and `(R, t, E)`
        t queries of R heads, and the gradients of their outputs.
    lse, delta : array, `(R, t)`
        Log-sum-exps, over all keys that a query sees; and the products of output and its gradient.
    """

    q: Array
    dout: Array
    lse: Array
    delta: Array


def differentiate(
    rows: QueryRows,
    chunks: Sequence[KeyChunk],
    gradients: Sequence[KeyChunk],
    *,
    scale: float,
    region: Region,
    dtype: DType,
    block_bytes: int = BLOCK_BYTES,
    space: Workspace | None = None,
) -> Array:
    """Compute what pairs of some queries and the keys of one head add to the gradients.

    Parameters
    ----------
    rows : QueryRows
        The queries.
    chunks : sequence of KeyChunk
        Keys and values, `(s, D)` and `(s, E)`, side by side.
    gradients : sequence of KeyChunk
        Of each chunk, of type `dtype`: what these pairs add is added to it.
    scale, region
        As of `cqs.kernels.Attend`; mask and scores are those of one head, or of all R alike. No `score_mod`.
    dtype : data type
        What is computed in, float32 or float64.
    block_bytes : int
        About how large a block of scores is, for each of the R heads. It decides in which order numbers are added.
    space : Workspace, optional
        Where blocks of NumPy arrays are, from call to call: threads that all allocate them wait for each other.

    Returns
    -------
    array, `(R, t, D)`
        What these pairs add to the gradients of the queries, of type `dtype`. O(R t s (D + E)) operations.
    """
    xp = namespace_of(q=rows.q)
    R, n_rows, D = rows.q.shape
    for_q, for_scores = split_scale(scale)
    dq = xp.zeros((R, n_rows, D), dtype=dtype, device=rows.q.device)
    never = xp.where(rows.lse == -xp.inf, xp.full_like(rows.lse, xp.inf), rows.lse)  # of a row that sees nothing
    most_rows, most_columns = blockwise_block(block_bytes)
    blocks = _Blocks(xp, space or Workspace())
    for own in even_cuts(n_rows, most_rows):
        here = slice(own.start, own.stop)
        q, dout = (xp.astype(x[:, here, :], dtype) for x in (rows.q, rows.dout))
        lse, delta = never[:, here, None], rows.delta[:, here, None]
        scaled = q * for_q
        for pieces in column_blocks(region, own, most_columns):
            places = in_chunks(pieces, [chunk.k.shape[-2] for chunk in chunks])
            k, v = (_gathered(xp, [c[side] for c in chunks], places, dtype) for side in (0, 1))
            scores = blocks.product("scores", scaled, xp.matrix_transpose(k))  # (R, rows, columns)
            if for_scores != 1:
                scores *= for_scores
            slopes = _slopes_of_cap(xp, region, scores)
            region.change(xp, scores, own, pieces)
            region.hide(xp, scores, own, pieces)
            scores -= lse
            weights = blocks.exp(scores)
            dscores = blocks.product("dscores", dout, xp.matrix_transpose(v))
            dscores -= delta
            dscores *= weights
            if slopes is not None:
                dscores *= slopes
            _forget_hidden(xp, region, dscores, own, pieces)
            sees = _Sees(region, own, pieces)
            dq[:, here, :] += scale * weighted_sum(xp, dscores, k, sees.keys)
            _add(scale * _sum_over_queries(xp, dscores, q, sees), places, [g.k for g in gradients])
            _add(_sum_over_queries(xp, weights, dout, sees), places, [g.v for g in gradients])
    return dq


class _Blocks:
    """Blocks of scores, which NumPy can write where others have been."""

    def __init__(self, xp: Namespace, space: Workspace) -> None:
        self._xp, self._space, self._is_numpy = xp, space, is_numpy(xp)

    def product(self, name: str, a: Array, b: Array) -> Array:
        """Return `a @ b`, of matrices `(R, n, width)` and `(width, m)`; with NumPy in the buffer of that name."""
        if not self._is_numpy:
            return a @ b
        return np.matmul(a, b, out=self._space.buffer(name, (*a.shape[:-1], b.shape[-1]), a.dtype))

    def exp(self, x: Array) -> Array:
        """Return the exponentials; with NumPy in place."""
        return np.exp(x, out=x) if self._is_numpy else self._xp.exp(x)


class _Sees:
    """Which pairs of a block count, asked only where a number is not finite."""

    def __init__(self, region: Region, rows: range, pieces: Sequence[range]) -> None:
        self._block = region, rows, pieces

    def keys(self) -> Booleans:
        """Return it as `(rows, columns)`."""
        region, rows, pieces = self._block
        return region.visible(rows, pieces)

    def queries(self) -> Booleans:
        """Return it as `(columns, rows)`."""
        return self.keys().T


def _slopes_of_cap(xp: Namespace, region: Region, scores: Array) -> Array | None:
    """Return the derivative of `c tanh(s / c)` at each score, if they are bent."""
    softcap = None if region.scores is None else region.scores.softcap
    return None if softcap is None else 1 - xp.tanh(scores / softcap) ** 2


def _forget_hidden(xp: Namespace, region: Region, dscores: Array, rows: range, pieces: Sequence[range]) -> None:
    """Set to 0 what is hidden, whose weight is 0, but whose value may be infinite or NaN."""
    for window, hidden in region.hidden(rows, pieces):
        if hidden is True:
            dscores[window] = 0
        else:
            part = dscores[window]
            dscores[window] = xp.where(xp.asarray(hidden, device=part.device), xp.zeros_like(part), part)


def _sum_over_queries(xp: Namespace, weights: Array, values: Array, sees: _Sees) -> Array:
    """Return `weights^T @ values`, summed over heads, `(columns, width)`."""
    if bool(xp.all(xp.isfinite(values))):
        *_, n_columns = weights.shape
        flat = xp.reshape(weights, (-1, n_columns)), xp.reshape(values, (-1, values.shape[-1]))
        return xp.matrix_transpose(flat[0]) @ flat[1]
    return xp.sum(weighted_sum(xp, xp.matrix_transpose(weights), values, sees.queries), axis=0)


def _gathered(xp: Namespace, arrays: Sequence[Array], places: Sequence[tuple[int, range]], dtype: DType) -> Array:
    """Put the keys, or values, of some columns side by side; a view where they are so already."""
    parts = [xp.astype(arrays[n][part.start : part.stop, :], dtype, copy=False) for n, part in places]
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-2)


def _add(sums: Array, places: Sequence[tuple[int, range]], arrays: Sequence[Array]) -> None:
    """Add rows that stand side by side to where they belong."""
    first = 0
    for n, part in places:
        arrays[n][part.start : part.stop, :] += sums[first : first + len(part), :]
        first += len(part)
