"""A partial result of attention, and the operation that merges two of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, Self

from cqs.backend import is_cupy, namespace_of, on_host
from cqs.cuda import merge_rows
from cqs.errors import DTypeError, OptionError, ShapeError
from cqs.problem import dtype_name
from cqs.schedule import MERGE_BLOCK
from cqs.types import Array, DType, Namespace

__all__ = ["LogSum", "Merge", "Partial", "copy_into", "log_sum", "merge", "merge_into", "merge_weights"]


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    """Attention of some queries over some of the keys.

    Parameters
    ----------
    out : array, `(*B, H, T, E)`
        Softmax-weighted mean of the values of those keys; 0 for a query that saw none.
    lse : array, `(*B, H, T)`
        Natural logarithm of the sum of the exponentials of the scores; -inf for a query that saw no key.
    rest : array, `(*B, H, T)`, optional
        What rounding took from `lse`: the logarithm is the sum of both, which has twice the digits. By default 0; None
        for CuPy's arrays, which are merged without.

    All are float32, or float64 for float64 inputs, whatever the type of the inputs.

    Notes
    -----
    Where scores are large, a logarithm that is a single number has no place for that of the number of keys: beside a
    score of -3.4e38, as some write padding, 1 key and 1000 keys would weigh the same.
    """

    out: Array
    lse: Array
    rest: Array = None

    def __post_init__(self) -> None:
        if self.rest is None and self.lse is not None:
            xp = namespace_of(lse=self.lse)
            object.__setattr__(self, "rest", None if is_cupy(xp) else xp.zeros_like(self.lse))

    @classmethod
    def empty(cls, xp: Namespace, out_shape: tuple[int, ...], dtype: DType, device: object = None) -> Self:
        """Return the identity of `merge`: no key was seen, so out is 0 and lse is -inf."""
        return cls(
            xp.zeros(out_shape, dtype=dtype, device=device),
            xp.full(out_shape[:-1], -xp.inf, dtype=dtype, device=device),
        )

    def at(self, *index: Any) -> Self:
        """View some rows: those of `lse[index]`."""
        rest = None if self.rest is None else self.rest[index]
        return type(self)(self.out[(*index, slice(None))], self.lse[index], rest)

    def on_host(self) -> Self:
        """Return it in NumPy's arrays."""
        return type(self)(*(on_host(x) for x in (self.out, self.lse, self.rest) if x is not None))


class LogSum(NamedTuple):
    """Log-sum-exps as sums of two numbers: rounded, and what rounding took; None for the latter counts as 0."""

    lse: Array
    rest: Array


def merge(a: Partial, b: Partial) -> Partial:
    r"""Merge two partial results of the same queries over disjoint sets of keys.

    .. math::

        l = \log(e^{l_a} + e^{l_b}), \qquad o = e^{l_a - l}\, o_a + e^{l_b - l}\, o_b

    where l is the sum of `lse` and `rest`.

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
    OptionError, ShapeError, DTypeError, BackendError
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
        arrays = {f"{name}.{of}": getattr(partial, of) for of in ("out", "lse", "rest")}
        namespace_of(**{what: x for what, x in arrays.items() if x is not None})
        if dtype_name(partial.lse) not in ("float32", "float64"):
            raise DTypeError.of(f"{name}.lse", "be float32 or float64", dtype_name(partial.lse), "convert it first")
        of_out, of_lse = tuple(partial.out.shape), tuple(partial.lse.shape)
        of_rest = of_lse if partial.rest is None else tuple(partial.rest.shape)
        if of_out[:-1] != of_lse or of_rest != of_lse:
            remedy = "`out` is `(*B, H, T, E)`, `lse` and `rest` are `(*B, H, T)`"
            raise ShapeError.of(
                name, "have a log-sum-exp for each row", f"shapes {of_out}, {of_lse} and {of_rest}", remedy
            )
    shapes = [(tuple(x.out.shape), tuple(x.lse.shape)) for x in (a, b)]
    if shapes[0] != shapes[1]:
        rule, got = "have the shapes of `a`, {} and {}".format(*shapes[0]), "shapes {} and {}".format(*shapes[1])
        raise ShapeError.of("b", rule, got, "merge results of the same queries and heads")
    xp = namespace_of(a=a.lse, b=b.lse)
    weight_a, weight_b, (lse, rest) = merge_weights(xp, LogSum(a.lse, a.rest), LogSum(b.lse, b.rest))
    return Partial(a.out * weight_a[..., None] + b.out * weight_b[..., None], lse, rest)


# Merges each of the second partial results into the first beside it, in place
Merge = Callable[[Namespace, Sequence[Partial], Sequence[Partial]], None]


def merge_into(xp: Namespace, totals: Sequence[Partial], parts: Sequence[Partial]) -> None:
    """Merge each part into the total beside it, in place, some rows at a time, so that little is held meanwhile."""
    if is_cupy(xp):
        for total, part in zip(totals, parts, strict=True):
            merge_rows(total.out, total.lse, part.out, part.lse)
        return
    weight_totals, weight_parts, merged = merge_weights(xp, *(_side_by_side(xp, x) for x in (totals, parts)))
    first = 0
    for total, part in zip(totals, parts, strict=True):
        *heads, n_rows, width = part.out.shape
        own = (..., slice(first, first + n_rows))
        weight_total, weight_part = weight_totals[own][..., None], weight_parts[own][..., None]
        a_row = max(prod(heads) * width, 1)
        step = max(MERGE_BLOCK // a_row, 1)
        for start in range(0, n_rows, step):
            rows = slice(start, min(start + step, n_rows))
            out = total.out[..., rows, :]
            out *= weight_total[..., rows, :]
            out += part.out[..., rows, :] * weight_part[..., rows, :]
        total.lse[...], total.rest[...] = merged.lse[own], merged.rest[own]
        first += n_rows


def copy_into(total: Partial, part: Partial) -> None:
    """Write a partial result over another, in place."""
    total.out[...], total.lse[...] = part.out, part.lse
    if total.rest is not None:
        total.rest[...] = part.rest


def _side_by_side(xp: Namespace, partials: Sequence[Partial]) -> LogSum:
    arrays = [[getattr(p, name) for p in partials] for name in ("lse", "rest")]
    return LogSum(*(x[0] if len(x) == 1 else xp.concat(x, axis=-1) for x in arrays))


def merge_weights(xp: Namespace, a: LogSum, b: LogSum) -> tuple[Array, Array, LogSum]:
    """Return the weight of each side in a merge, and the merged log-sum-exp.

    What each is above the larger rounded one is exact, or as exact as what is left of it: large numbers that are near
    each other differ by a number without rounding. The larger of these is the rest of the larger log-sum-exp.
    """
    limits = xp.finfo(a.lse.dtype)
    top = xp.maximum(a.lse, b.lse)
    # where neither side saw a key, top is -inf, and -inf - -inf would be NaN: subtract the lowest finite number instead
    shift = xp.maximum(top, xp.full_like(top, limits.min))
    above_a, above_b = (x.lse - shift if x.rest is None else (x.lse - shift) + x.rest for x in (a, b))
    rest = xp.maximum(above_a, above_b)
    rest = xp.maximum(rest, xp.full_like(top, limits.min * limits.eps / 4))  # than which no rest is less
    weight_a, weight_b = xp.exp(above_a - rest), xp.exp(above_b - rest)
    del above_a, above_b  # since there may be as many numbers as in all results of a task
    growth = xp.log1p(xp.minimum(weight_a, weight_b))
    divisor = weight_a + weight_b  # in [1, 2], or 0 where no key was seen, or NaN
    divisor = xp.maximum(divisor, xp.ones_like(divisor))
    weight_a = weight_a / divisor
    weight_b = weight_b / divisor
    del divisor
    return weight_a, weight_b, log_sum(xp, top, shift, growth, rest)


def log_sum(xp: Namespace, top: Array, shift: Array, growth: Array, rest: Array | None = None) -> LogSum:
    """Return `top + growth + rest` as a sum of two numbers; `shift` is `top`, or finite where that is -inf."""
    if is_cupy(xp):  # whose results are merged by compiled code, which knows no rest
        return LogSum(top + growth, None)
    total = shift + growth
    of_growth = total - shift
    lost = (shift - (total - of_growth)) + (growth - of_growth)  # Knuth's TwoSum: exact, whichever is larger
    del of_growth
    if rest is not None:
        lost = lost + rest
        sum_of_both = total + lost
        total, lost = sum_of_both, lost - (sum_of_both - total)  # Dekker's, since what was lost is small
    lse = xp.where(top == -xp.inf, top, total)
    return LogSum(lse, xp.where(xp.isfinite(lse), lost, xp.zeros_like(lost)))
