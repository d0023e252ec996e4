"""Where to cut a cover open before it is lifted beyond what the ruler reaches, so that least is left out."""

from collections.abc import Iterator
from itertools import islice
from math import gcd

import numpy as np
import numpy.typing as npt

from cqs.quorum.constructions.singer_sets import Singer
from cqs.quorum.cover import DifferenceCover

__all__ = ["best_moves", "cells_measured"]

Integers = npt.NDArray[np.int64]
Arcs = tuple[Integers, Integers]  # starts and lengths, on a circle

_EFFORT, _LEAST_FACTORS = 1_000_000, 8  # residues to go through for all factors, and how many are tried at least


def best_moves(cover: DifferenceCover, ruler: tuple[int, ...], W: int) -> list[tuple[int, int, int]]:
    r"""Return each (n, t, s) such that (t D + s) + v R leaves out at most n of the residues 1..W/2, the best first.

    The best cut s for each factor t that is tried.

    Parameters
    ----------
    cover : DifferenceCover
        D, of Z_v.
    ruler : tuple of int
        R, any marks in increasing order from 0.
    W : int
        The modulus of the lift.

    Notes
    -----
    Write :math:`x = \tau v + \sigma` with :math:`0 \le \sigma < v`, and let a, b in D differ by :math:`\sigma` modulo
    v. As integers in 0..v-1 they differ by :math:`\sigma` or by :math:`\sigma - v`, so x is a difference of D + v R if
    R measures :math:`\tau` in the one case and :math:`\tau + 1` in the other. Only where R measures just one of the
    two does it matter which case it is, and x is reached all the same if that holds for W - x.

    Which case it is depends on where the circle Z_v is cut open: it is the second if the cut s lies on the way up from
    b to a. So each x that is not reached for certain is left out for the cuts in the intersection of two arcs. Counting
    how many such intersections cover each point of the circle takes O(v + W), for all v cuts at once. This is done for
    a number of factors t, all that differ if W is small.

    If D is perfect the count is exact, if marks of the lift do not go around Z_W; or else it may be too large.
    """
    v = cover.modulus
    base = np.asarray(cover.base, dtype=np.int64)
    lower = np.zeros(v, dtype=np.int64)  # of each difference, an element b with b + difference in D
    lower[(base[:, None] - base) % v] = base
    kinds, residues = _not_certain(W, v, ruler)
    n_factors = max(_EFFORT // (v + kinds.shape[1]), _LEAST_FACTORS)
    best: list[tuple[int, int, int]] = []
    for t in islice(_factors(cover), n_factors if kinds.size else 1):
        starts = t * lower[residues * pow(t, -1, v) % v] % v
        left = _depths(v, *(_arcs(v, *side) for side in zip(kinds, starts, residues, strict=True)))
        cut = int(left.argmin())
        best.append((int(left[cut]), t, -cut % v))
    return sorted(best)


def cells_measured(ruler: tuple[int, ...], n: int) -> Integers:
    """Return for each c = 0..n-1 whether the ruler measures c, and whether it measures c + 1, as 1 and 2 added up."""
    marks = np.asarray(ruler)
    measured = np.zeros(max(n, int(marks[-1])) + 2, dtype=np.int64)
    measured[np.abs(marks[:, None] - marks)] = 1
    kinds: Integers = measured[:n] + 2 * measured[1 : n + 1]
    return kinds


def _not_certain(W: int, v: int, ruler: tuple[int, ...]) -> tuple[Integers, Integers]:
    """Return kinds and residues of x and of W - x, (2, n), for the x that the cut decides on, or that are left out."""
    measured = cells_measured(ruler, W // v + 1)
    x = np.arange(1, W // 2 + 1)
    both = np.stack([x, W - x])
    kinds = measured[both // v]
    chosen = np.flatnonzero((kinds != 3).all(axis=0))
    return kinds[:, chosen], both[:, chosen] % v


def _arcs(v: int, kinds: Integers, starts: Integers, residues: Integers) -> Arcs:
    """Return the cuts for which each residue is not reached: an arc that begins behind its start."""
    only_second = kinds == 2
    begins = np.where(only_second, starts + residues, starts) % v
    return begins, np.where(kinds == 1, residues, np.where(only_second, v - residues, v))


def _depths(v: int, one: Arcs, other: Arcs) -> Integers:
    """Return how many pairs of arcs have each point of the circle Z_v in common."""
    offset = (other[0] - one[0]) % v
    change = np.zeros(2 * v + 1, dtype=np.int64)
    for begin, length in (
        (other[0], np.minimum(one[1], offset + other[1]) - offset),
        (one[0], np.minimum(one[1], offset + other[1] - v)),  # where the other goes around
    ):
        length = np.maximum(length, 0)
        change += np.bincount(begin, minlength=2 * v + 1) - np.bincount(begin + length, minlength=2 * v + 1)
    depth = np.cumsum(change)
    around: Integers = depth[:v] + depth[v : 2 * v]
    return np.roll(around, 1)  # an arc contains its end, not its beginning


def _factors(cover: DifferenceCover) -> Iterator[int]:
    """Yield units modulo v; of those that are known to give the same sets but for a shift or the sign, one."""
    v = cover.modulus
    p = cover.construction.p if isinstance(cover.construction, Singer) else 1  # p D is a translate of D
    seen: set[int] = set()
    for t in range(1, max(v, 2)):
        if gcd(t, v) == 1 and t not in seen:
            yield t
            while t not in seen:
                seen.update((t, -t % v))
                t = t * p % v
