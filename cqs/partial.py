"""A partial result of attention, and the operation that merges two of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Self

from cqs.backend import is_cupy, namespace_of
from cqs.cuda import merge_rows
from cqs.errors import OptionError, ShapeError
from cqs.schedule import MERGE_BLOCK
from cqs.types import Array, DType, Namespace

__all__ = ["Merge", "Partial", "merge", "merge_into", "merge_weights"]


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    """Attention of some queries over some of the keys.

    Parameters
    ----------
    out : array, `(*B, H, T, E)`
        Softmax-weighted mean of the values of those keys; 0 for a query that saw none.
    lse : array, `(*B, H, T)`
        Natural logarithm of the sum of the exponentials of the scores; -inf for a query that saw no key.

    Both are float32, or float64 for float64 inputs, whatever the type of the inputs.
    """

    out: Array
    lse: Array

    @classmethod
    def empty(cls, xp: Namespace, out_shape: tuple[int, ...], dtype: DType, device: object = None) -> Self:
        """Return the identity of `merge`: no key was seen, so out is 0 and lse is -inf."""
        return cls(
            xp.zeros(out_shape, dtype=dtype, device=device),
            xp.full(out_shape[:-1], -xp.inf, dtype=dtype, device=device),
        )


def merge(a: Partial, b: Partial) -> Partial:
    r"""Merge two partial results of the same queries over disjoint sets of keys.

    .. math::

        l = \log(e^{l_a} + e^{l_b}), \qquad o = e^{l_a - l}\, o_a + e^{l_b - l}\, o_b

    Parameters
    ----------
    a, b : Partial
        With arrays of one library, of the same shapes and type.

    Returns
    -------
    Partial
        New arrays; `a` and `b` are left as they are. O(T E) a head.

    Raises
    ------
    OptionError, ShapeError, BackendError
        If they are no partial results, or their arrays have other shapes, or are of other libraries.

    Notes
    -----
    *Law.* `attend(q, keys + more) == merge(attend(q, keys), attend(q, more))`: attention maps the joining of key
    sets to `merge`. So `merge` is associative and commutative with `Partial.empty` as identity, up to
    rounding. Nothing overflows: only differences to the larger log-sum-exp are exponentiated.

    References
    ----------
    Shyam et al., *Tree Attention*, arXiv 2408.04093.
    """
    for name, partial in (("a", a), ("b", b)):
        if not isinstance(partial, Partial):
            remedy = "as in `Partial(out, lse)`, or one of `TaskResult.partials`"
            raise OptionError.of(name, "be a `Partial`", type(partial).__name__, remedy)
        of_out, of_lse = tuple(partial.out.shape), tuple(partial.lse.shape)
        if of_out[:-1] != of_lse:
            remedy = "`out` is `(*B, H, T, E)` and `lse` `(*B, H, T)`"
            raise ShapeError.of(name, "have a log-sum-exp for each row", f"shapes {of_out} and {of_lse}", remedy)
    shapes = [(tuple(x.out.shape), tuple(x.lse.shape)) for x in (a, b)]
    if shapes[0] != shapes[1]:
        rule, got = "have the shapes of `a`, {} and {}".format(*shapes[0]), "shapes {} and {}".format(*shapes[1])
        raise ShapeError.of("b", rule, got, "merge results of the same queries and heads")
    weight_a, weight_b, lse = merge_weights(namespace_of(a=a.lse, b=b.lse), a.lse, b.lse)
    return Partial(a.out * weight_a[..., None] + b.out * weight_b[..., None], lse)


# Merges each of the second partial results into the first beside it, in place
Merge = Callable[[Namespace, Sequence[Partial], Sequence[Partial]], None]


def merge_into(xp: Namespace, totals: Sequence[Partial], parts: Sequence[Partial]) -> None:
    """Merge each part into the total beside it, in place, some rows at a time, so that little is held meanwhile."""
    if is_cupy(xp):
        for total, part in zip(totals, parts, strict=True):
            merge_rows(total.out, total.lse, part.out, part.lse)
        return
    weights = merge_weights(xp, *(_side_by_side(xp, [p.lse for p in partials]) for partials in (totals, parts)))
    first = 0
    for total, part in zip(totals, parts, strict=True):
        *heads, n_rows, width = part.out.shape
        weight_total, weight_part, lse = (w[..., first : first + n_rows] for w in weights)
        a_row = max(prod(heads) * width, 1)
        step = max(MERGE_BLOCK // a_row, 1)
        for start in range(0, n_rows, step):
            rows = slice(start, min(start + step, n_rows))
            out = total.out[..., rows, :]
            out *= weight_total[..., rows, None]
            out += part.out[..., rows, :] * weight_part[..., rows, None]
        total.lse[...] = lse
        first += n_rows


def _side_by_side(xp: Namespace, arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else xp.concat(arrays, axis=-1)


def merge_weights(xp: Namespace, lse_a: Array, lse_b: Array) -> tuple[Array, Array, Array]:
    """Return the weight of each side in a merge, and the merged log-sum-exp."""
    top = xp.maximum(lse_a, lse_b)
    # where neither side saw a key, top is -inf, and -inf - -inf would be NaN: subtract the lowest finite number instead
    shift = xp.maximum(top, xp.full_like(top, xp.finfo(top.dtype).min))
    weight_a, weight_b = xp.exp(lse_a - shift), xp.exp(lse_b - shift)
    total = weight_a + weight_b  # in [1, 2], or 0 where no key was seen, or NaN
    divisor = xp.maximum(total, xp.ones_like(total))
    return weight_a / divisor, weight_b / divisor, top + xp.log(divisor)
