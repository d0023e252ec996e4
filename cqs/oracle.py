"""The plain softmax formula in any precision and in bounded memory, and the one rule that judges a result by it.

NumPy only, and none of what it judges: no kernel, no merge, no region, of a mask only its definition.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.backend import dtype_of, is_cupy, namespace_of, on_host, refuse_gradients, single_threaded_blas
from cqs.errors import BackendError
from cqs.masks import Mask
from cqs.problem import DTYPES, dtype_name

__all__ = ["EVALUATIONS", "ULPS", "Deviation", "Floats", "Judgement", "Rows", "as_numpy", "judge_lse", "judge_out"]

# What the rule grants beyond twice the error of the plain formula. Each merge rounds the weights of its sides, and on
# GPUs the log-sum-exps that they come from; where the plain formula is right to the last place, that shows.
ULPS = 8
EVALUATIONS = 9  # of the plain formula; on a handful of numbers a single one may be nearly exact by luck

_AREA = 2 << 20  # elements of a block of scores, keys or values: 16 MiB in float64

Floats = npt.NDArray[np.floating[Any]]


def as_numpy(name: str, array: Any) -> npt.NDArray[Any]:
    """View an array of any library as NumPy's; bfloat16 is copied, and what is in a GPU's memory only if CuPy's.

    Raises
    ------
    BackendError
        If it is no array, or one that NumPy cannot read.
    """
    if isinstance(array, np.ndarray):
        return array
    xp = namespace_of(**{name: array})
    refuse_gradients(**{name: array})
    is_bfloat16 = dtype_name(array) == "bfloat16" and not is_cupy(xp)
    try:
        if is_bfloat16:  # which DLPack does not bring to NumPy: each is a float32, too
            return on_host(xp.astype(array, xp.float32)).astype(dtype_of(np, "bfloat16"))
        return on_host(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        rule, got = "be an array that NumPy can read", f"{type(array).__name__}, {error}"
        raise BackendError.of(name, rule, got, "move it to the machine's memory, as in `x.cpu()`") from None


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far an array is from float64 by one measure, and how far it may be.

    Parameters
    ----------
    error, plain_error : float
        Largest error against float64, and the largest of the plain softmax formula.
    granted : float
        What is allowed beyond twice the formula's.
    worst : tuple of int or None
        Where the largest error is; None if there is nothing to compare.
    """

    error: float
    plain_error: float
    granted: float
    worst: tuple[int, ...] | None

    @property
    def bound(self) -> float:
        """The largest error that is allowed."""
        return 2 * self.plain_error + self.granted

    @property
    def is_within(self) -> bool:
        """Whether the error is allowed."""
        return self.error <= self.bound


@dataclass(frozen=True, slots=True)
class Judgement:
    """How far an array is from float64, and how far it may be: in all, and for what each number is made of.

    Parameters
    ----------
    absolute : Deviation
        In the array's own units.
    relative : Deviation
        Of each element, as a share of the weighted mean of its values' magnitudes.
    ulp : float
        One unit in the last place of the largest element.
    n_lost : int
        Elements that are not finite where the plain formula is.
    n_unlike : int
        Elements that differ from float64 where that is not finite.
    """

    absolute: Deviation
    relative: Deviation
    ulp: float
    n_lost: int
    n_unlike: int

    @property
    def error(self) -> float:
        """The largest absolute error."""
        return self.absolute.error

    @property
    def plain_error(self) -> float:
        """The largest absolute error of the plain softmax formula."""
        return self.absolute.plain_error

    @property
    def bound(self) -> float:
        """The largest absolute error that is allowed."""
        return self.absolute.bound

    @property
    def worst(self) -> tuple[int, ...] | None:
        """Where the largest absolute error is."""
        return self.absolute.worst

    @property
    def n_broken(self) -> int:
        """Elements that are not finite where they should be, or the other way round."""
        return self.n_lost + self.n_unlike

    @property
    def passed(self) -> bool:
        """Whether both errors are within their bounds and nothing is broken."""
        return self.absolute.is_within and self.relative.is_within and self.n_broken == 0


def judge(actual: Floats, exact: Floats, plain: list[Floats], magnitudes: Floats, least: float) -> Judgement:
    """Judge an array by its exact value and evaluations of the plain formula, which are rounded to its type first.

    Parameters
    ----------
    actual : array
        What is to be judged.
    exact : array
        What it should be, of its shape and a better type.
    plain : list of array
        The formula, in the type that sums are kept in.
    magnitudes : array
        What the relative error of each element is relative to.
    least : float
        Units in the last place are those of the largest exact element, or of `least` if that is larger.

    Notes
    -----
    Where the formula or float64 is not finite there is no error. Relative to their magnitudes, elements may be off by 8
    units of the type that sums are kept in, and where they are rounded to a narrower type, or weights were before they
    were multiplied with values, as matrix hardware does, by one unit of that. Magnitudes so small that sums lose digits
    count as if they were larger.
    """
    eps, sums = _eps(actual.dtype), plain[0].dtype
    with np.errstate(all="ignore"):
        got, *rounded = (x.astype(actual.dtype).astype(exact.dtype) for x in (actual, *plain))
        hopeless = ~np.isfinite(exact)
        finite = np.isfinite(rounded[0]) & ~hopeless
        errors = [np.where(finite & np.isfinite(x), abs(x - exact), 0) for x in (got, *rounded)]
        scale = np.maximum(magnitudes, max(_smallest(actual.dtype), _smallest(sums) / _eps(sums)))
        shares = [np.where(np.isfinite(scale), error / scale, 0) for error in errors]
    ulp = eps * max(float(abs(exact).max(initial=0, where=finite)), least)
    unlike = hopeless & (got != exact) & ~(np.isnan(got) & np.isnan(exact))
    narrower = eps if eps > _eps(sums) else 0
    return Judgement(
        absolute=_deviation(errors, ULPS * ulp),
        relative=_deviation(shares, ULPS * _eps(sums) + narrower),
        ulp=ulp,
        n_lost=int((finite & ~np.isfinite(got)).sum()),
        n_unlike=int(unlike.sum()),
    )


def judge_out(actual: Floats, exact: Floats, plain: list[Floats], magnitudes: Floats) -> Judgement:
    """Judge an output; one unit of the largest of its magnitudes is always allowed."""
    return judge(
        actual, exact, plain, magnitudes, float(magnitudes.max(where=np.isfinite(magnitudes), initial=0)) / ULPS
    )


def judge_lse(actual: Floats, exact: Floats, plain: list[Floats]) -> Judgement:
    """Judge a log-sum-exp: it counts through its exponential, of which a unit is worth eps even where it is near 0."""
    return judge(actual, exact, plain, np.maximum(abs(exact), 1), least=1)


def _deviation(errors: list[Floats], granted: float) -> Deviation:
    """Take the largest error of the first array, and the largest of all others."""
    error, *plain = errors
    worst = np.unravel_index(int(error.argmax()), error.shape) if error.size else None
    return Deviation(
        error=float(error.max(initial=0)),
        plain_error=max(float(e.max(initial=0)) for e in plain),
        granted=granted,
        worst=None if worst is None else tuple(map(int, worst)),
    )


def _eps(dtype: Any) -> float:
    """Return one unit in the last place of 1."""
    return 2.0**-7 if dtype.name == "bfloat16" else float(np.finfo(dtype).eps)


def _smallest(dtype: Any) -> float:
    """Return the smallest number with all digits."""
    return 2.0**-126 if dtype.name == "bfloat16" else float(np.finfo(dtype).smallest_normal)


@dataclass(frozen=True, slots=True)
class _Side:
    """Where the scale goes in one evaluation: scores are `for_scores * (q @ (for_k * k)^T)`."""

    q: Floats
    for_k: float
    for_scores: float


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some queries `(..., R, D)`, and all keys `(..., S, D)` and values `(..., S, E)`, of one head or of many.

    Parameters
    ----------
    q, k, v : array
        Their leading axes broadcast. Keys and values may be memory maps, which are read block by block.
    numbers : array of int, `(R,)`
        Which tokens the queries are.
    scale : float
        What scores are multiplied by.
    mask : Mask
        What each query sees; where heads differ, the leading axes are `(*B, G, H / G)`.
    change : function, optional
        Of the scaled scores `(..., R, s)` against a run of keys, and that run: returns what they become.
    sink_logits : array, optional
        Of a shape that broadcasts to the leading axes and `(R, 1)`: one more score of each query, without a value.
    """

    q: Floats
    k: Floats
    v: Floats
    numbers: npt.NDArray[np.int64]
    scale: float
    mask: Mask
    change: Callable[[Floats, slice], Floats] | None = None
    sink_logits: Floats | None = None

    def exact(self) -> tuple[Floats, Floats, Floats]:
        """Evaluate the formula in float64; for float64 in long double, which on some machines is float64 again.

        Returns
        -------
        out, lse : array, `(..., R, E)` and `(..., R)`
            Output, and log-sum-exp.
        magnitudes : array, `(..., R, E)`
            The weighted means of the values' magnitudes: where values cancel, their sum cannot be more exact than they
            are.
        """
        better: Any = np.float64 if self._dtype == np.float32 else np.longdouble
        ((both, lse),) = self._formula([_Side(self.q.astype(better), 1.0, self.scale)], with_magnitudes=True)
        E = self.v.shape[-1]
        out, of_magnitudes = both[..., :E], both[..., E:]
        return out, lse, of_magnitudes

    def plain(self, n: int = EVALUATIONS) -> list[tuple[Floats, Floats]]:
        """Evaluate the formula n times as a user would, in the type that scores are kept in; (output, lse) of each.

        The scale is multiplied into the scores, the queries or half into each side, in turn, of the inputs as they are
        and then of queries a unit in the last place away.
        """
        q, rng, root = self.q.astype(self._dtype), np.random.default_rng(0), np.sqrt(abs(self.scale))
        placements = [(1.0, 1.0, self.scale), (self.scale, 1.0, 1.0), (root, np.copysign(root, self.scale), 1.0)]
        sides = []
        for i in range(n):
            for_q, for_k, for_scores = placements[i % len(placements)]
            towards = rng.choice([-np.inf, np.inf], q.shape).astype(q.dtype)
            near_q = q if i < len(placements) else np.nextafter(q, towards)
            with np.errstate(all="ignore"):
                sides.append(_Side(near_q * q.dtype.type(for_q), for_k, for_scores))
        return self._formula(sides)

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(DTYPES[dtype_name(self.q)][1])

    def _formula(self, sides: list[_Side], with_magnitudes: bool = False) -> list[tuple[Floats, Floats]]:
        """Evaluate softmax(scores) v and the log-sum-exp of several sides, in their type; and after v its magnitudes.

        The keys are read twice, for the rows' maxima and for the sums, so that nothing is ever rescaled.
        """
        dtype, E = sides[0].q.dtype, self.v.shape[-1] * (2 if with_magnitudes else 1)
        tops = [np.full((*self._leading, 1), -np.inf, dtype) for _ in sides]
        totals = [np.zeros_like(top) for top in tops]
        sums = [np.zeros((*self._leading, E), dtype) for _ in sides]
        with np.errstate(all="ignore"), single_threaded_blas():  # whose threads cost more than they save here
            for keys in self._blocks():
                for i, scores in enumerate(self._scores(sides, keys)):
                    tops[i] = np.maximum(tops[i], scores.max(-1, keepdims=True))
            if self.sink_logits is not None:
                tops = [np.maximum(top, self.sink_logits.astype(dtype)) for top in tops]
            shifts = [np.where(top == -np.inf, 0, top) for top in tops]  # sees no key: -inf - -inf is NaN
            for keys in self._blocks():
                v = self.v[..., keys, :].astype(dtype)
                v = np.concatenate([v, abs(v)], axis=-1) if with_magnitudes else v
                for i, scores in enumerate(self._scores(sides, keys)):
                    weights = np.exp(scores - shifts[i])
                    totals[i] += weights.sum(-1, keepdims=True)
                    sums[i] += weights @ v
            if self.sink_logits is not None:
                for total, shift in zip(totals, shifts, strict=True):
                    total += np.exp(self.sink_logits.astype(dtype) - shift)
            divisors = [np.where(total == 0, 1, total) for total in totals]
            parts = zip(sums, divisors, tops, strict=True)
            return [(weighted / total, (top + np.log(total))[..., 0]) for weighted, total, top in parts]

    @property
    def _leading(self) -> tuple[int, ...]:
        """The axes of scores but for that of the keys."""
        return *np.broadcast_shapes(self.q.shape[:-2], self.k.shape[:-2]), len(self.numbers)

    def _blocks(self) -> Iterator[slice]:
        """Yield runs of keys of which neither the scores nor the keys or values themselves are large."""
        *kv_heads, S, D = self.k.shape
        a_key = max(int(np.prod(self._leading)), int(np.prod(kv_heads)) * max(D, self.v.shape[-1]), 1)
        width = max(_AREA // a_key, 1)
        return (slice(start, min(start + width, S)) for start in range(0, S, width))

    def _scores(self, sides: list[_Side], keys: slice) -> Iterator[Floats]:
        """Yield the scores of each side against a run of keys, -inf where a query does not see the key."""
        k = self.k[..., keys, :].astype(sides[0].q.dtype)
        visible = None
        if not self.mask.hides_nothing:
            visible = self.visible(np.arange(keys.start, keys.stop))
        for side in sides:
            for_k, for_scores = k.dtype.type(side.for_k), k.dtype.type(side.for_scores)
            scores = for_scores * (side.q @ (k * for_k).swapaxes(-1, -2))
            scores = scores if self.change is None else self.change(scores, keys).astype(scores.dtype)
            yield scores if visible is None else np.where(visible, scores, -np.inf)

    def visible(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of the keys each query sees, `(R, keys)`, or with the leading axes where heads differ."""
        queries = self.numbers[:, None]
        if self.mask.is_shared:
            return self.mask.at((0,) * 8).visible(queries, keys)
        *batch, G, shared, _ = self._leading
        heads = [self.mask.at(index).visible(queries, keys) for index in np.ndindex(*batch, G * shared)]
        return np.stack(heads).reshape(*self._leading, len(keys))
