"""One unit of the fast NumPy kernel: some query rows of some heads, over all the keys that they see.

Two ways are kept. The *optimistic* one exponentiates scores as they are: no row maximum, no subtraction, no rescaling of
what came before. It is as exact as the other as long as no exponential overflows and no row's sum drowns, which the sums
themselves show afterwards. Where they do not, the unit is computed again by the *running maximum* of the textbook.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["Floats", "attend_unit"]

Floats = npt.NDArray[np.floating]
# n -> scores of the n-th block of keys, (G, R, C), which may be overwritten, and the values of those keys, (G, C, E)
LoadBlock = Callable[[int], tuple[Floats, Floats]]


# A row whose sum is below the first may have lost terms to underflow, and outputs that all are below the second may have
# lost theirs. Both are far above where float32 loses anything, and far below what ordinary inputs give.
_LEAST_SUM, _LEAST_OUT = 2.0**-10, 2.0**-90
# Weights are at most exp(-headroom); the second is for values so large that a sum of them would overflow.
_HEADROOMS = (0, 30)


def attend_unit(load: LoadBlock, n_blocks: int, out: Floats, product: Floats) -> Floats:
    """Write the output `(G, R, E)` to `out`, and return the natural log-sum-exp `(G, R)`.

    Scores come with the scale in them. `product` is a buffer like `out`.
    """
    total = _optimistic(load, n_blocks, out, product)
    top: Floats | float = 0.0
    if total is None:
        for headroom in _HEADROOMS:
            total, top = _running_maximum(load, n_blocks, out, product, headroom)
            if np.isfinite(out).all():
                break
    divisor = np.where(total == 0, 1, total)
    out /= divisor[..., None]
    return np.where(total == 0, -np.inf, top + np.log(divisor))


def _optimistic(load: LoadBlock, n_blocks: int, out: Floats, product: Floats) -> Floats | None:
    """Sum weights and weighted values without a maximum; return the sums, or None when they may be inexact."""
    total = np.empty(out.shape[:-1], out.dtype)
    for n in range(n_blocks):
        weights, values = load(n)
        np.exp(weights, out=weights)
        ones = np.ones(weights.shape[-1], out.dtype)
        if n == 0:
            np.matmul(weights, ones, out=total)  # a row sum at the speed of BLAS
            np.matmul(weights, values, out=out)
            if not total.min() >= _LEAST_SUM:
                return None
        else:
            total += weights @ ones
            out += np.matmul(weights, values, out=product)
    largest = max(out.max(), -out.min())
    return total if largest >= _LEAST_OUT and np.isfinite(largest) and np.isfinite(total.max()) else None


def _running_maximum(
    load: LoadBlock, n_blocks: int, out: Floats, product: Floats, headroom: int
) -> tuple[Floats, Floats]:
    """Sum weights relative to the largest score so far; return the sums, and what they are relative to."""
    total = np.zeros(out.shape[:-1], out.dtype)
    top = np.full_like(total, -np.inf)
    out[...] = 0
    for n in range(n_blocks):
        weights, values = load(n)
        new_top = np.maximum(top, weights.max(axis=-1))
        shift = np.where(new_top == -np.inf, 0, new_top)  # no key seen yet, and -inf - -inf would be NaN
        rescale = np.exp(top - shift)
        weights -= (shift + headroom)[..., None]
        np.exp(weights, out=weights)
        total *= rescale
        total += weights @ np.ones(weights.shape[-1], out.dtype)
        out *= rescale[..., None]
        out += np.matmul(weights, values, out=product)
        top = new_top
    return total, top + headroom
