r"""Gradients of attention over some queries and some keys, block by block. Any array-API library.

With weights :math:`p_{ij} = e^{s_{ij} - l_i}` of the whole row, whose log-sum-exp l is known,

.. math::

    \mathrm dv_j = \sum_i p_{ij}\, \mathrm do_i, \qquad
    \mathrm ds_{ij} = p_{ij}\,(\mathrm do_i \cdot v_j - \delta_i), \qquad \delta_i = \mathrm do_i \cdot o_i,

.. math::

    \mathrm dq_i = \mathrm{scale} \sum_j \mathrm ds_{ij}\, k_j, \qquad
    \mathrm dk_j = \mathrm{scale} \sum_i \mathrm ds_{ij}\, q_i.

The gradient of a bias, which is added to scores, is ds itself, summed over all that a number of it is added to. If a
soft cap c bends scores x first, what q and k are given is ds times its slope, :math:`1 - \tanh^2(x / c)`.

All are sums over pairs. So whoever has some queries, with their o, do and l, and some keys can compute what these pairs
add, and parts add up, in any order.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cqs.backend import Workspace, namespace_of, raise_if_stopped
from cqs.kernels import KeyChunk, Region
from cqs.kernels.blocks import column_blocks, in_chunks, split_scale
from cqs.kernels.known_rows import Blocks, set_hidden, unseeing
from cqs.masks.mask import Booleans
from cqs.schedule import BLOCK_BYTES, blockwise_block, even_cuts
from cqs.types import Array, DType, Namespace

__all__ = ["QueryRows", "differentiate"]


class QueryRows(NamedTuple):
    """Queries, and what the forward pass and its caller say of them.

    Parameters
    ----------
    q, dout : array, `(*, t, D)` and `(*, t, E)`
        t queries, and the gradients of their outputs.
    lse, delta : array, `(*, t)`
        Log-sum-exps, over all keys that a query sees; and dot products of output and its gradient.
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
    blocks: Sequence[range] | None = None,
    block_bytes: int = BLOCK_BYTES,
    space: Workspace | None = None,
    bias_sums: Array | None = None,
) -> Array:
    """Compute what pairs of some queries and some keys of one head add to the gradients.

    Parameters
    ----------
    rows : QueryRows
        The queries of one head, `(t, D)`.
    chunks : sequence of KeyChunk
        Keys and values, `(s, D)` and `(s, E)`, side by side.
    gradients : sequence of KeyChunk
        Of each chunk, of type `dtype`: what these pairs add is added to it.
    scale, region
        As of `cqs.kernels.Attend`; mask and scores are those of the head. No `score_mod`.
    dtype : data type
        What is computed in, float32 or float64.
    blocks : sequence of range, optional
        The rows to compute, by default all; of others the result is 0.
    block_bytes : int
        About how large a block of scores is, of which there are three. It decides in which order numbers are added.
    space : Workspace, optional
        Where blocks of NumPy arrays are, from call to call: threads that all allocate them wait for each other.
    bias_sums : array, `(t, s)`, where either may be 1, optional
        Of type `dtype`: what these pairs add to the gradient of a bias is added to it, or over an axis that is 1 the
        sum of it.

    Returns
    -------
    array, `(t, D)`
        What these pairs add to the gradients of the queries, of type `dtype`. O(t s (D + E)) operations.
    """
    xp = namespace_of(q=rows.q)
    n_rows, D = rows.q.shape
    for_q, for_scores = split_scale(scale)
    dq = xp.zeros((n_rows, D), dtype=dtype, device=rows.q.device)
    lse_of_rows = unseeing(xp, rows.lse)
    most_rows, most_columns = blockwise_block(block_bytes)
    arrays = Blocks(xp, space or Workspace())
    for own in _cuts([range(n_rows)] if blocks is None else blocks, most_rows):
        raise_if_stopped()
        here = slice(own.start, own.stop)
        q, dout = (xp.astype(x[here, :], dtype, copy=False) for x in (rows.q, rows.dout))
        lse, delta = lse_of_rows[here, None], rows.delta[here, None]
        scaled = q * for_q
        for pieces in column_blocks(region, own, most_columns):
            places = in_chunks(pieces, [chunk.k.shape[-2] for chunk in chunks])
            k, v = (arrays.joined(name, [c[i] for c in chunks], places, dtype) for i, name in enumerate(("k", "v")))
            scores = arrays.product("scores", scaled, k.T)  # (rows, columns)
            if for_scores != 1:
                scores *= for_scores
            slopes = _slopes_of_cap(xp, region, scores)
            weights, hidden = arrays.weights(scores, lse, region, own, pieces)
            dscores = arrays.product("dscores", dout, v.T)
            dscores -= delta
            dscores *= weights
            if bias_sums is not None:
                set_hidden(xp, dscores, hidden, 0.0)
                _add_to_bias(xp, dscores, own, pieces, bias_sums)
            if slopes is not None:
                dscores *= slopes
            set_hidden(xp, dscores, hidden, 0.0)  # which is not 0 there if a value is not finite

            def sees(own: range = own, pieces: Sequence[range] = pieces) -> Booleans:
                return region.visible(own, pieces)

            dq[here, :] += scale * arrays.weighted("dq", dscores, k, sees)
            by_key = arrays.weighted("dk", dscores.T, q, lambda: sees().T)  # called at once
            by_key *= scale
            _add(by_key, places, [g.k for g in gradients])
            _add(arrays.weighted("dv", weights.T, dout, lambda: sees().T), places, [g.v for g in gradients])
    return dq


def _cuts(blocks: Sequence[range], most: int) -> Iterator[range]:
    """Cut blocks of rows into some of at most so many."""
    return (rows[cut.start : cut.stop] for rows in blocks for cut in even_cuts(len(rows), most))


def _slopes_of_cap(xp: Namespace, region: Region, scores: Array) -> Array | None:
    """Return the derivative of `c tanh(s / c)` at each score, if they are bent."""
    softcap = None if region.scores is None else region.scores.softcap
    # 1 - tanh^2 would have no digits left where scores are far above the cap
    return None if softcap is None else 1 / xp.cosh(scores / softcap) ** 2


def _add_to_bias(xp: Namespace, dscores: Array, rows: range, pieces: Sequence[range], sums: Array) -> None:
    """Add a block's gradients of scores to sums, over axes of these that are 1 their own sum."""
    if sums.shape[0] == 1:
        dscores = xp.sum(dscores, axis=0, keepdims=True)
    here, first = slice(rows.start, rows.stop) if sums.shape[0] > 1 else slice(1), 0
    if sums.shape[1] == 1:
        sums[here, :] += xp.sum(dscores, axis=1, keepdims=True)
        return
    for part in pieces:
        sums[here, part.start : part.stop] += dscores[:, first : first + len(part)]
        first += len(part)


def _add(sums: Array, places: Sequence[tuple[int, range]], arrays: Sequence[Array]) -> None:
    """Add rows that stand side by side to where they belong."""
    first = 0
    for n, part in places:
        arrays[n][part.start : part.stop, :] += sums[first : first + len(part), :]
        first += len(part)
