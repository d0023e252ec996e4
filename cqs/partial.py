"""A partial result of attention, and the operation that merges two of them."""

from dataclasses import dataclass
from typing import Self

from cqs.backend import namespace_of
from cqs.types import Array, DType, Namespace

__all__ = ["Partial", "merge"]


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

    Notes
    -----
    *Law.* `attend(q, keys + more) == merge(attend(q, keys), attend(q, more))`: attention maps the joining of key
    sets to `merge`. So `merge` is associative and commutative with `Partial.empty` as identity, up to
    rounding. Nothing overflows: only differences to the larger log-sum-exp are exponentiated.

    References
    ----------
    Shyam et al., *Tree Attention*, arXiv 2408.04093.
    """
    xp = namespace_of(a=a.lse, b=b.lse)
    top = xp.maximum(a.lse, b.lse)
    # a query that saw no key on either side has top = -inf, and -inf - -inf would be NaN
    shift = xp.where(top == -xp.inf, xp.zeros_like(top), top)
    weight_a, weight_b = xp.exp(a.lse - shift), xp.exp(b.lse - shift)
    total = weight_a + weight_b  # in [1, 2], or 0 where no key was seen, or NaN
    divisor = xp.where(total == 0, xp.ones_like(total), total)
    out = a.out * (weight_a / divisor)[..., None] + b.out * (weight_b / divisor)[..., None]
    return Partial(out, xp.where(total == 0, top, shift + xp.log(divisor)))
