"""The plain formula of attention's gradients in any precision, which holds all T x S scores. NumPy only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cqs.backend import single_threaded_blas
from cqs.oracle import EVALUATIONS, Floats, Judgement, judge_out
from cqs.problem import DTYPES, dtype_name

__all__ = ["BackwardFormula", "judge_gradients"]


class _Evaluation(NamedTuple):
    """Queries as they are or a unit in the last place away, and where the scale goes."""

    q: Floats
    for_q: float
    for_scores: float


@dataclass(frozen=True, slots=True, eq=False)
class BackwardFormula:
    """What gradients are computed from, with the heads as (G, H / G), whose second axis shares keys.

    Parameters
    ----------
    q, dout : array, `(*B, G, H / G, T, D)` and `(*B, G, H / G, T, E)`
        Queries, and the gradient of the output.
    k, v : array, `(*B, G, 1, S, D)` and `(*B, G, 1, S, E)`
        Keys and values.
    scale : float
        What scores are multiplied by.
    visible : array of bool
        Which scores count; it broadcasts to all of them.
    softcap : float or None
        What bends scores.
    change : function
        Of all scaled scores, returns what becomes of them, cap and all.
    bias_shape : tuple of int, or None
        Shape of a bias whose gradient is to be judged, with all axes that scores have, and the heads as they are.
    """

    q: Floats
    dout: Floats
    k: Floats
    v: Floats
    scale: float
    visible: npt.NDArray[np.bool_]
    softcap: float | None
    change: Callable[[Floats], Floats]
    bias_shape: tuple[int, ...] | None = None

    def exact(self) -> tuple[list[Floats], list[Floats]]:
        """Evaluate in a better type; return the gradients, and of each the sums of magnitudes of what is added up."""
        better: Any = np.float64 if self._dtype == np.float32 else np.longdouble
        side = _Evaluation(self.q.astype(better), 1.0, self.scale)
        return self._gradients(side), self._gradients(side, of_magnitudes=True)

    def plain(self, n: int = EVALUATIONS) -> list[list[Floats]]:
        """Evaluate n times, in the type that scores are kept in, as is done where weights are not kept.

        Weights are then exponentials of the scores less a log-sum-exp that was rounded, of scores that were computed
        in another order: here those of the evaluation before.
        """
        q, rng = self.q.astype(self._dtype), np.random.default_rng(0)
        found, lse = [], None
        for i in range(n + 1):
            towards = rng.choice([-np.inf, np.inf], q.shape).astype(q.dtype)
            near = q if i < 2 else np.nextafter(q, towards)
            for_q, for_scores = ((1.0, self.scale), (self.scale, 1.0))[i % 2]
            side = _Evaluation(near, for_q, for_scores)
            if lse is not None:
                found.append(self._gradients(side, lse))
            lse = _log_sum_exp(self._scores(side)[1])
        return found

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(DTYPES[dtype_name(self.q)][1])

    def _scores(self, side: _Evaluation) -> tuple[Floats, Floats]:
        """Return the scaled scores, and what becomes of them."""
        q, dtype = side.q, side.q.dtype.type
        with np.errstate(all="ignore"):
            products = (q * dtype(side.for_q)) @ self.k.astype(q.dtype).swapaxes(-1, -2)
            scores = dtype(side.for_scores) * products
            return scores, np.where(self.visible, self.change(scores).astype(q.dtype), -np.inf)

    def _gradients(self, side: _Evaluation, lse: Floats | None = None, of_magnitudes: bool = False) -> list[Floats]:
        """Evaluate the formula; or with magnitudes in place of all numbers that are multiplied with weights."""
        q, dtype = side.q, side.q.dtype.type
        k, v, dout = (x.astype(q.dtype) for x in (self.k, self.v, self.dout))
        scores, bent = self._scores(side)
        with np.errstate(all="ignore"):
            slopes = 1 if self.softcap is None else 1 / np.cosh(scores / dtype(self.softcap)) ** 2
            weights = _softmax(bent) if lse is None else np.exp(bent - np.where(lse == -np.inf, np.inf, lse))
            if of_magnitudes:
                q, k, v, dout = map(abs, (q, k, v, dout))
            dweights = dout @ v.swapaxes(-1, -2)
            mean = (weights * dweights).sum(-1, keepdims=True)
            dscores = weights * (dweights + mean if of_magnitudes else dweights - mean)
            of_bias = [] if self.bias_shape is None else [_summed(dscores, self.bias_shape)]
            dscores *= slopes
            scale = dtype(abs(self.scale) if of_magnitudes else self.scale)
            by_key = dscores.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ dout
            return [scale * (dscores @ k), scale * by_key[0].sum(-3), by_key[1].sum(-3), *of_bias]


def _summed(dscores: Floats, shape: tuple[int, ...]) -> Floats:
    """Sum up gradients of scores, `(*B, G, H / G, T, S)`, over the axes of a bias that are 1."""
    *batch, G, shared, T, S = dscores.shape
    axes = tuple(i for i, n in enumerate(shape) if n == 1)
    found: Floats = dscores.reshape(*batch, G * shared, T, S).sum(axes, keepdims=True)
    return found


def _softmax(scores: Floats) -> Floats:
    """Return the softmax of each row; 0 where nothing is seen."""
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(top == -np.inf, 0, top))
    total = weights.sum(-1, keepdims=True)
    found: Floats = weights / np.where(total == 0, 1, total)
    return found


def _log_sum_exp(scores: Floats) -> Floats:
    """Return the log-sum-exp of each row, `(..., T, 1)`; -inf where nothing is seen."""
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    shift = np.where(top == -np.inf, 0, top)
    with np.errstate(all="ignore"):
        found: Floats = shift + np.log(np.exp(scores - shift).sum(-1, keepdims=True))
        return found


def judge_gradients(actual: list[Floats], formula: BackwardFormula) -> list[Judgement]:
    """Judge dq, dk, dv and perhaps dbias by the rule for outputs, with the sums of magnitudes in place of means."""
    with single_threaded_blas():  # whose threads cost more than they save here
        exact, magnitudes = formula.exact()
        plain = formula.plain()
    judged = []
    for i, x in enumerate(actual):
        formulas = [found[i].reshape(x.shape) for found in plain]
        judged.append(judge_out(x, exact[i].reshape(x.shape), formulas, magnitudes[i].reshape(x.shape)))
    return judged
