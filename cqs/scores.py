r"""What is done to scores before the mask: a soft cap, a bias, a function.

.. math:: s = \mathrm{mod}(c \tanh(\mathrm{scale} \cdot q k^\top / c) + \mathrm{bias})

in this order: scale, softcap, bias, `score_mod`, and then the mask.
"""

import math
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np

from cqs.backend import dtype_of, is_of_jax, namespace_of, on_host
from cqs.checks import described, of_arrays, takes, whole_number
from cqs.errors import DTypeError, OptionError, ShapeError
from cqs.problem import DTYPES, AttentionProblem, dtype_name
from cqs.types import Array, Namespace

__all__ = ["ALiBi", "Scores", "checked_sink_logits"]

# (scores, batch entry, query head, queries, keys) -> scores
ScoreMod = Callable[[Array, int, int, Array, Array], Array]


_MOST_OFFSET = 1 << 60  # so that tokens and offsets add up to an int64


@dataclass(frozen=True, slots=True)
class ALiBi:
    """Attention with linear biases: the score of query i and key j is lessened by `slope * |i + offset - j|`.

    Parameters
    ----------
    slopes : sequence of float
        One for each query head; `ALiBi.standard(H)` gives those of the paper.
    offset : int
        How many tokens the first query is after the first key, as the offset of `cqs.masks.Causal`; one for all.

    Raises
    ------
    OptionError
        If they are no finite numbers, or the offset is no whole one.

    References
    ----------
    Press, Smith and Lewis, *Train Short, Test Long*, arXiv 2108.12409.
    """

    slopes: Sequence[float]
    offset: int = 0

    def __post_init__(self) -> None:
        slopes: Iterable[Any] = self.slopes
        try:
            numbers = tuple(float(slope) for slope in slopes)
        except (TypeError, ValueError):
            raise OptionError.of(
                "slopes", "be numbers, one for each head", repr(slopes), "see ALiBi.standard"
            ) from None
        if not all(map(math.isfinite, numbers)):
            raise OptionError.of("slopes", "be finite", repr(numbers), "see ALiBi.standard")
        object.__setattr__(self, "slopes", numbers)
        is_whole = not isinstance(self.offset, bool) and hasattr(self.offset, "__index__")
        if not is_whole or abs(operator.index(self.offset)) > _MOST_OFFSET:
            rule, remedy = "be a whole number up to 2^60", "0 aligns the top left, S - T the bottom right"
            raise OptionError.of("offset", rule, repr(self.offset), remedy)
        object.__setattr__(self, "offset", operator.index(self.offset))

    @classmethod
    def standard(cls, n_heads: int) -> Self:
        """Return 2^(-8/H), 2^(-16/H), ..., for H a power of two; else those of the next lower, and every other between.

        >>> ALiBi.standard(4).slopes
        (0.25, 0.0625, 0.015625, 0.00390625)
        """
        n_heads = whole_number("n_heads", n_heads, 1, "it is the number of query heads")
        lower = 2 ** int(math.log2(n_heads))
        slopes = [2 ** (-8 * (i + 1) / lower) for i in range(lower)]
        between = [2 ** (-4 * (i + 1) / lower) for i in range(0, 2 * lower, 2)]
        return cls((*slopes, *between[: n_heads - lower]))


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """A rule for scores; made by `Scores.of`, which checks it.

    Parameters
    ----------
    softcap : float or None
        c: scores are bent to stay between -c and c.
    bias : array, ALiBi or None
        What is added, of a shape that broadcasts to `(*B, H, T, S)`.
    score_mod : function or None
        Of (scores, b, h, q_idx, k_idx), as PyTorch's FlexAttention: `b` counts batch entries in C order; the
        indices are integer arrays `(t, 1)` and `(s,)` of the inputs' library. Returns the new scores.
    heads : tuple of int
        `(*B, H)`.
    """

    softcap: float | None = None
    bias: Array | ALiBi | None = None
    score_mod: ScoreMod | None = None
    heads: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        problem: AttentionProblem,
        like: Array,
        softcap: float | None = None,
        bias: Array | ALiBi | None = None,
        score_mod: Any = None,
    ) -> Self | None:
        """Check the options, which are those of `cqs.attention`; None if there is nothing to be done.

        Parameters
        ----------
        problem : AttentionProblem
            Whose scores are changed.
        like : array
            Of the library and on the device that a `bias` has to be of.
        softcap, bias, score_mod
            As of `Scores`.

        Raises
        ------
        OptionError, ShapeError, DTypeError, BackendError
            Saying which argument broke which rule.
        """
        if softcap is None and bias is None and score_mod is None:
            return None
        if softcap is not None:
            _check_softcap(softcap)
        if isinstance(bias, ALiBi):
            if len(bias.slopes) != problem.n_heads:
                rule, got = f"have a slope for each of the {problem.n_heads} heads", f"{len(bias.slopes)}"
                raise ShapeError.of("bias", rule, got, "see ALiBi.standard")
        elif bias is not None:
            _check_bias(bias, like, problem)
        if score_mod is not None and not callable(score_mod):
            rule = "be a function of (score, b, h, q_idx, k_idx)"
            raise OptionError.of("score_mod", rule, repr(score_mod), "for an array use `bias`")
        if score_mod is not None and not takes(score_mod, 5):
            remedy = "as in `lambda score, b, h, q_idx, k_idx: score * 2`"
            raise OptionError.of("score_mod", "take (score, b, h, q_idx, k_idx)", described(score_mod), remedy)
        return cls(softcap, bias, score_mod, (*problem.batch, problem.n_heads))

    @property
    def lead(self) -> tuple[int, ...]:
        """Shape of the batch entries and heads that it differs between, which broadcasts to `(*B, H)`."""
        if self.score_mod is not None:
            return self.heads
        if isinstance(self.bias, ALiBi):
            return (len(self.bias.slopes),)
        return () if self.bias is None else tuple(self.bias.shape[:-2])

    def at(self, index: tuple[int, ...]) -> "Scores":
        """Return the rule for one batch entry and head, an index into `(*B, H)`."""
        bias, score_mod = self.bias, self.score_mod
        if isinstance(bias, ALiBi):
            bias = ALiBi(bias.slopes[index[-1] : index[-1] + 1] if len(bias.slopes) > 1 else bias.slopes, bias.offset)
        elif bias is not None:
            lead = bias.shape[:-2]
            own = index[len(index) - len(lead) :]
            bias = bias[(*(i if n > 1 else 0 for i, n in zip(own, lead, strict=True)), ...)]
        if score_mod is not None:
            *batch, h = index
            b = int(np.ravel_multi_index(batch, self.heads[:-1])) if batch else 0
            score_mod = partial(_of_head, score_mod, b, h)
        return replace(self, bias=bias, score_mod=score_mod, heads=())

    def apply(self, xp: Namespace, scores: Array, queries: range, keys: range) -> Array:
        """Return the new scores `(..., t, s)` of some queries and keys, for a rule that all heads share."""
        if self.softcap is not None:
            scores = xp.tanh(scores / self.softcap) * self.softcap
        q_idx = xp.arange(queries.start, queries.stop, device=scores.device)[:, None]
        k_idx = xp.arange(keys.start, keys.stop, device=scores.device)
        if isinstance(self.bias, ALiBi):
            # distances are made in the scores' own type, from those of the first key, which have no more digits
            from_first = xp.astype(q_idx + (self.bias.offset - keys.start), scores.dtype)
            distances = xp.abs(from_first - xp.astype(k_idx - keys.start, scores.dtype))
            scores = scores - self.bias.slopes[0] * distances
        elif self.bias is not None:
            T, S = self.bias.shape[-2:]
            rows = slice(queries.start, queries.stop) if T > 1 else slice(None)
            cols = slice(keys.start, keys.stop) if S > 1 else slice(None)
            block = self.bias[..., rows, cols]
            block = xp.reshape(xp.asarray(block, device=scores.device), block.shape[-2:])
            scores = scores + xp.astype(block, scores.dtype)
        if self.score_mod is not None:
            scores = xp.astype(self.score_mod(scores, q_idx, k_idx), scores.dtype)  # type: ignore[call-arg, misc]
        return scores


def _of_head(score_mod: ScoreMod, b: int, h: int, scores: Array, q_idx: Array, k_idx: Array) -> Array:
    with of_arrays("score_mod", "be a function of (score, b, h, q_idx, k_idx)"):
        new = score_mod(scores, b, h, q_idx, k_idx)
    new = on_host(new) if is_of_jax(new) else new  # JAX's functions take arrays of NumPy
    if tuple(getattr(new, "shape", ())) != tuple(scores.shape):
        rule, got = f"return scores of the shape it is given, {tuple(scores.shape)}", getattr(new, "shape", type(new))
        raise ShapeError.of("score_mod", rule, got, "index by `q_idx` and `k_idx` alone")
    return new


def _check_softcap(softcap: Any) -> None:
    try:
        is_right = not isinstance(softcap, bool | str) and 0 < float(softcap) < math.inf
    except (TypeError, ValueError):
        is_right = False
    if not is_right:
        raise OptionError.of("softcap", "be a finite number greater than 0", repr(softcap), "leave it out for no cap")


def _check_bias(bias: Array, like: Array, problem: AttentionProblem) -> None:
    full = (*problem.batch, problem.n_heads, problem.n_queries, problem.n_keys)
    if not hasattr(bias, "shape") or not hasattr(bias, "dtype"):
        rule = "be an array or a `cqs.scores.ALiBi`"
        is_path = isinstance(bias, (str, os.PathLike))
        remedy = "give `np.load(path, mmap_mode='r')`" if is_path else "a number for all scores changes nothing"
        raise OptionError.of("bias", rule, repr(bias), remedy)
    if dtype_name(bias) == "bool":
        raise DTypeError.of("bias", "be numbers to add", "bool", "booleans that hide scores are a `mask`")
    if dtype_name(bias) not in DTYPES:
        raise DTypeError.of("bias", f"have one of the types {', '.join(DTYPES)}", dtype_name(bias), "convert it first")
    shape = tuple(bias.shape)
    if (
        len(shape) < 2
        or len(shape) > len(full)
        or any(n not in (1, m) for n, m in zip(shape[::-1], full[::-1], strict=False))
    ):
        rule = f"have a shape of at least (T, S) that broadcasts to (*B, H, T, S) = {full}"
        raise ShapeError.of("bias", rule, f"shape {shape}", "axes of length 1 stand for all")
    namespace_of(q=like, bias=bias)  # of one library, on one device


def checked_sink_logits(logits: Array, problem: AttentionProblem, like: Array) -> Array:
    """Return attention-sink logits as `(*B, H, 1)`, in the accumulators' type.

    Raises
    ------
    ShapeError, DTypeError, OptionError, BackendError
        If they are no numbers that broadcast to `(*B, H)`, or of another library.
    """
    heads = (*problem.batch, problem.n_heads)
    if not hasattr(logits, "shape") or not hasattr(logits, "dtype"):
        raise OptionError.of("sink_logits", "be an array, one logit for each head", repr(logits), "wrap it in an array")
    if dtype_name(logits) not in DTYPES:
        rule = f"have one of the types {', '.join(DTYPES)}"
        raise DTypeError.of("sink_logits", rule, dtype_name(logits), "convert it first")
    xp, shape = namespace_of(q=like, sink_logits=logits), tuple(logits.shape)
    if len(shape) > len(heads) or any(n not in (1, m) for n, m in zip(shape[::-1], heads[::-1], strict=False)):
        rule = f"broadcast to (*B, H) = {heads}"
        raise ShapeError.of("sink_logits", rule, f"shape {shape}", "give one logit for each head")
    wide = xp.astype(xp.broadcast_to(logits, heads), dtype_of(xp, problem.accumulator_dtype))
    return wide[..., None]
