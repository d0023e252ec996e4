"""The rulers to lift by, and what to expect of a lift before it is made."""

from functools import cache
from math import ceil, lgamma, log, sqrt

import numpy as np
import numpy.typing as npt

from cqs.quorum.constructions import RULERS, cells_measured, wichmann_ruler
from cqs.quorum.tables import listed_rulers

__all__ = ["MOST_DROPPED", "likely_added", "likely_left", "likely_size", "rulers"]

MOST_DROPPED = 2  # elements of a lift that often turn out redundant

_MOST_MARKS = 24
_POINTS = 8  # of each cell, at which a chance is taken
_SHARED = 0.5  # how few of the elements suffice that would have to be added if what is left had no structure
_LUCK = 3  # standard deviations by which the best of many moves leaves less than most


@cache
def rulers() -> dict[int, tuple[tuple[int, ...], ...]]:
    """Return rulers to lift by, for each number of marks.

    Of those that measure every length up to their reach the one that reaches farthest, and others that reach farther
    around a circle, though with gaps: of the rulers that are equivalent to a cover of Z_k, those with the fewest gaps.
    """
    found: dict[int, list[tuple[int, ...]]] = {}
    for ruler in [*listed_rulers(), *RULERS]:
        if ruler not in found.setdefault(len(ruler), []):
            found[len(ruler)].append(ruler)
    for n_marks in range(max(found) + 1, _MOST_MARKS + 1):
        r = max(range(1, (n_marks - 3) // 4 + 1), key=lambda r: wichmann_ruler(r, n_marks - 4 * r - 3)[-1])
        found[n_marks] = [wichmann_ruler(r, n_marks - 4 * r - 3)]
    return {n_marks: tuple(those) for n_marks, those in found.items()}


def likely_size(W: int, q: int, ruler: tuple[int, ...], most: int) -> float:
    """Return about how few elements a lift of Singer's set for q to Z_W may need; inf if that is over `most`."""
    v, size = q * q + q + 1, len(ruler) * (q + 1)
    left = v * likely_left(ruler, W / v)
    if left < 1:
        return size - MOST_DROPPED
    return size + _SHARED * likely_added(W, size, max(left - _LUCK * sqrt(left), 0), (most - size) / _SHARED)


def likely_left(ruler: tuple[int, ...], ratio: float) -> float:
    r"""Return what a lift of a perfect cover of Z_v to Z_W, W = ratio v, leaves out of 1..W/2, in units of v.

    Notes
    -----
    In a perfect cover cut open anywhere, two elements that differ by :math:`\sigma` modulo v do so as integers with
    the chance :math:`1 - \sigma / v`. This is integrated over all x, as if it were independent for x and W - x; see
    `best_moves`, which finds a cut that leaves less.
    """
    x = (np.arange(ceil(ratio / 2 * _POINTS)) + 0.5) / _POINTS
    x = x[x < ratio / 2]
    kinds = cells_measured(ruler, int(ratio) + 1)
    return float(_chances(kinds, x) @ _chances(kinds, ratio - x)) / _POINTS


def _chances(kinds: npt.NDArray[np.int64], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the chances that x is not reached, where the ruler measures the cell's number, the next one, or both."""
    cells = x.astype(np.int64)
    part = x - cells
    none = np.ones_like(part)
    chances: npt.NDArray[np.float64] = np.choose(kinds[cells], [none, part, 1 - part, 0 * none])
    return chances


def likely_added(W: int, size: int, left: float, most: float) -> float:
    """Return how many elements a greedy repair takes if it reaches `left` more residues of Z_W; inf if over `most`.

    Each candidate reaches a number that is about Poisson distributed, and the best of W is taken.
    """
    added = 0
    while left >= 1:
        highest = _highest_of(W, 2 * size * left / W)
        if left > highest * (most - added):  # those that come later reach no more than this one
            return float("inf")
        left -= highest
        added += 1
    return float(added)


def _highest_of(W: int, mean: float) -> int:
    """Return the highest of W independent numbers of a Poisson distribution, as may be expected; at least 1."""
    n = max(int(mean), 1)
    while log(W) + n * log(mean) - mean - lgamma(n + 1) > 0:
        n += 1
    return max(n - 1, 1)
