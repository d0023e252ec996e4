"""Attention as its formula says it, for reading and for checking the others. Any array-API library."""

from collections.abc import Callable, Sequence

from cqs.backend import dtype_of, namespace_of
from cqs.kernels.contract import KeyChunk
from cqs.kernels.region import Region
from cqs.masks.mask import Booleans
from cqs.partial import LogSum, Partial, log_sum
from cqs.problem import DTYPES, dtype_name
from cqs.schedule import BLOCK_BYTES
from cqs.types import Array, Namespace

__all__ = ["attend", "softmax_parts", "weighted_sum"]


def attend(
    q: Array,
    chunks: Sequence[KeyChunk],
    *,
    scale: float,
    region: Region | None = None,
    threads: int = 1,
    block_bytes: int = BLOCK_BYTES,
) -> Partial:
    r"""Compute :math:`o = \mathrm{softmax}(\mathrm{scale} \cdot q k^\top)\, v` and its log-sum-exp in one piece.

    Holds the whole T x S array of scores: O(H T S) memory. See `cqs.kernels.Attend` for the arguments.
    """
    xp = namespace_of(q=q)
    dtype = dtype_of(xp, DTYPES[dtype_name(q)][1])
    q = xp.astype(q, dtype)
    k = xp.astype(xp.concat([chunk.k for chunk in chunks], axis=-2), dtype)
    v = xp.astype(xp.concat([chunk.v for chunk in chunks], axis=-2), dtype)
    *batch, H, T, D = q.shape
    *_, G, S, E = v.shape

    if S == 0:
        return Partial.empty(xp, (*batch, H, T, E), dtype, q.device)
    q = xp.reshape(q, (*batch, G, H // G, T, D))  # H / G query heads share a key head
    scores = scale * (q @ xp.matrix_transpose(k)[..., None, :, :])  # (*B, G, H/G, T, S)
    region = region or Region.whole(T, S)
    region.change(xp, scores, range(T), [range(S)])
    region.hide(xp, scores, range(T), [range(S)])
    weights, sums = softmax_parts(xp, scores)
    out = weighted_sum(xp, weights, v[..., None, :, :], lambda: region.visible(range(T), [range(S)]))
    lse, rest = (x if x is None else xp.reshape(x, (*batch, H, T)) for x in sums)
    return Partial(xp.reshape(out, (*batch, H, T, E)), lse, rest)


def softmax_parts(xp: Namespace, scores: Array) -> tuple[Array, LogSum]:
    """Return the softmax of the last axis and its log-sum-exp; a row of -inf has weights 0 and lse -inf."""
    top = xp.max(scores, axis=-1, keepdims=True)
    shift = xp.where(top == -xp.inf, xp.zeros_like(top), top)  # a row that sees nothing: -inf - -inf would be NaN
    weights = xp.exp(scores - shift)
    total = xp.sum(weights, axis=-1, keepdims=True)
    divisor = xp.where(total == 0, xp.ones_like(total), total)
    return weights / divisor, log_sum(xp, *(x[..., 0] for x in (top, shift, xp.log(divisor))))


def weighted_sum(xp: Namespace, weights: Array, values: Array, visible: Callable[[], Booleans]) -> Array:
    """Return `weights @ values`, in which values that are not finite reach the rows that see them, and no other.

    `visible` says which rows `(T, S)` see which keys; it is asked only where a value is not finite: a weight of 0 times
    infinity would be NaN in rows that the mask hides the key from.
    """
    is_finite = xp.isfinite(values)
    if bool(xp.all(is_finite)):
        return weights @ values
    zeros = xp.zeros_like(values)
    total = weights @ xp.where(is_finite, values, zeros)
    rest = xp.where(is_finite, zeros, values)
    sees = xp.asarray(visible(), device=weights.device)
    for key in range(values.shape[-2]):
        part = weights[..., :, key : key + 1] * rest[..., key : key + 1, :]
        total = total + xp.where(sees[:, key : key + 1], part, xp.zeros_like(part))
    return total
