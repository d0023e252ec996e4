"""One unit of the fast NumPy kernel: some query rows of some heads, over all the keys that they see.

Two ways are kept. The *optimistic* one exponentiates scores as they are: no row maximum, no subtraction, no rescaling
of what came before. It is as exact as the other as long as no exponential overflows and no row's sum is small, which
the sums themselves show. Where they do not, the unit is computed again by the *running maximum* of the textbook.
"""

from collections.abc import Iterable, Sequence
from math import isfinite, log
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cqs.partial import log_sum

__all__ = ["Floats", "UnitBuffers", "attend_unit"]

Floats = npt.NDArray[np.floating]


class LoadBlock(Protocol):
    """Gives a unit's blocks of keys."""

    def __call__(self, n: int) -> tuple[Floats, Sequence[Floats]]:
        """Return the n-th block: scores `(G, R, C)`, which may be overwritten, and values, `(G, c, E)` side by side."""

    def visible(self, n: int) -> npt.NDArray[np.bool_]:
        """Return which scores of the n-th block count, `(R, C)`."""


class UnitBuffers(NamedTuple):
    """Where a unit sums up: weighted values so far, and the product that is added to them."""

    out: Floats
    product: Floats


# With smaller sums of weights, weighted values that are small themselves would lose digits below the smallest number
_LEAST_SUM = 2.0**-8

_ROWS_A_LOOK = 16  # of which one is looked at for small weights
_LOOKED_AT = 1 << 14  # values at a time
_ALIKE = 2.0**30  # values between this and its inverse leave small weights nothing to do

# What values are multiplied by where they are so large that a sum of them would overflow
_SMALL = 2.0**-40


def attend_unit(load: LoadBlock, n_blocks: int, work: UnitBuffers) -> tuple[Floats, Floats, Floats, Floats]:
    """Attend to every block.

    Parameters
    ----------
    load : function
        Gives the n-th block, with the scale in its scores.
    n_blocks : int
        How many blocks there are, at least 1.
    work : UnitBuffers
        Two buffers `(G, R, E)`.

    Returns
    -------
    out : array, `(G, R, E)`
        Weighted sums of values, not yet divided; a buffer of `work`.
    divisor, lse, rest : array, `(G, R)`
        What to divide them by, and the natural log-sum-exp, as of a `Partial`.
    """
    total = _optimistic(load, n_blocks, work)
    if total is not None:
        return work.out, total, *_logarithm(total)
    factor: Floats | float = 1.0
    total, top = _running_maximum(load, n_blocks, work)
    if not _is_finite(work.out):
        total, top = _running_maximum(load, n_blocks, work, is_careful=True)
        is_lost = np.asarray(~np.isfinite(work.out).all(axis=-1))
        if is_lost.any():  # sums may have overflowed; in other rows small values would lose their digits
            kept = work.out.copy()
            total, top = _running_maximum(load, n_blocks, work, _SMALL, is_careful=True)
            np.copyto(work.out, kept, where=~is_lost[..., None])
            factor = np.where(is_lost, _SMALL, 1.0).astype(total.dtype)
    divisor, shift = np.where(total == 0, 1, total), np.where(total == 0, 0, top)
    return work.out, divisor * factor, *log_sum(np, np.where(total == 0, -np.inf, top), shift, *_logarithm(divisor))


def _logarithm(total: Floats) -> tuple[Floats, Floats]:
    """Return a logarithm, rounded to the type of the sums, and what rounding took from it.

    In float64 it may be 700, where scores were exponentiated as they are: how far off that is says its exponential,
    which is taken in halves, so that it neither overflows nor vanishes.
    """
    wide = np.log(total.astype(np.float64, copy=False))
    if total.dtype == np.float64:
        root = np.exp(wide / -2)
        return wide, total * root * root - 1
    rounded = wide.astype(total.dtype)
    return rounded, (wide - rounded).astype(total.dtype)


def _optimistic(load: LoadBlock, n_blocks: int, work: UnitBuffers) -> Floats | None:
    """Sum weights and weighted values without a maximum; return the sums, or None when they may be inexact."""
    out, product = work.out, work.product
    for n in range(n_blocks):
        weights, values = load(n)
        _exponentiate(weights, values)
        sums = weights @ np.ones(weights.shape[-1], out.dtype)  # a row sum at the speed of BLAS
        if n == 0:
            total = sums
            _weigh(weights, values, out, product)
            if n_blocks > 1 and not _may_be_exact(total):
                return None
        else:
            total += sums
            _weigh(weights, values, out, product, adds=True)
    is_exact = total.min() >= _LEAST_SUM and total.max() < np.inf and _is_finite(out)
    return total if is_exact else None


def _exponentiate(scores: Floats, values: Sequence[Floats]) -> None:
    """Turn scores into weights, in place; those too small to have all digits into 0, if nothing depends on them.

    With such numbers some processors take a hundred times as long, and where scores differ much, they are many. Some
    rows show whether there are. Where values are of like magnitudes, keys of larger weights outweigh them all, so it
    does not matter either that weights below 2^-103 are rounded to multiples of 2^-126 (or so, in float32).
    """
    limits = np.finfo(scores.dtype)
    looked_at = scores[..., ::_ROWS_A_LOOK, :]
    n_small = np.count_nonzero(looked_at < log(limits.smallest_normal))
    has_small = n_small > 0 and n_small > np.count_nonzero(looked_at == -np.inf)
    np.exp(scores, out=scores)
    if has_small and all(map(_are_alike, values)):
        lift = limits.smallest_normal / limits.eps  # what is added to it is rounded to multiples of the smallest
        scores += lift
        scores -= lift


def _are_alike(values: Floats) -> bool:
    """Whether no value is much smaller or larger than 1."""
    step = max(_LOOKED_AT // max(values[..., :1, :].size, 1), 1)
    parts = (np.abs(values[..., n : n + step, :]) for n in range(0, values.shape[-2], step))
    return all(part.min() > 1 / _ALIKE and part.max() < _ALIKE for part in parts)


def _may_be_exact(total: Floats) -> bool:
    """Whether sums of weights are large enough, or may become so: rows that see none of these keys may see others."""
    return bool(total.min(where=total != 0, initial=np.inf) >= _LEAST_SUM and total.max() < np.inf)


def _running_maximum(
    load: LoadBlock, n_blocks: int, work: UnitBuffers, factor: float = 1.0, is_careful: bool = False
) -> tuple[Floats, Floats]:
    """Sum weights relative to the largest score so far; return the sums, and what they are relative to."""
    out, product = work.out, work.product
    total = np.zeros(out.shape[:-1], out.dtype)
    top = np.full_like(total, -np.inf)
    out[...] = 0
    for n in range(n_blocks):
        weights, values = load(n)
        new_top = np.maximum(top, weights.max(axis=-1))
        shift = np.where(new_top == -np.inf, 0, new_top)  # no key seen yet, and -inf - -inf would be NaN
        rescale = np.exp(top - shift)
        weights -= shift[..., None]
        _exponentiate(weights, values)
        total *= rescale
        total += weights @ np.ones(weights.shape[-1], out.dtype)
        out *= rescale[..., None]
        if is_careful:
            _weigh(weights, (_finite(piece) * factor for piece in values), out, product, adds=True)
            _add_what_is_not_finite(out, weights, values, load.visible(n))
        else:
            _weigh(weights, values, out, product, adds=True)
        top = new_top
    return total, top


def _weigh(weights: Floats, values: Iterable[Floats], out: Floats, product: Floats, adds: bool = False) -> None:
    """Write the sums of weighted values to `out`, or add them to it."""
    first = 0
    for piece in values:
        own = weights[..., first : first + piece.shape[1]]
        if first == 0 and not adds:
            np.matmul(own, piece, out=out)
        else:
            out += np.matmul(own, piece, out=product)
        first += piece.shape[1]


def _add_what_is_not_finite(
    out: Floats, weights: Floats, values: Sequence[Floats], visible: npt.NDArray[np.bool_]
) -> None:
    """Add infinite and NaN values to the rows that see them, and to no other: 0 times infinity would be NaN there."""
    first = 0
    for piece in values:
        for g, key in np.argwhere(~np.isfinite(piece).all(axis=-1)):
            value, rows = piece[g, key], visible[:, first + key]
            out[g, rows] += weights[g, rows, first + key, None] * np.where(np.isfinite(value), 0, value)
        first += piece.shape[1]


def _finite(values: Floats) -> Floats:
    """Return values with 0 in place of what is infinite or NaN."""
    return np.where(np.isfinite(values), values, 0).astype(values.dtype, copy=False)


def _is_finite(out: Floats) -> bool:
    """Whether no element is infinite or NaN, as their sum of squares shows; one that overflows counts as infinite."""
    flat = out.reshape(-1)
    return isfinite(np.dot(flat, flat))
