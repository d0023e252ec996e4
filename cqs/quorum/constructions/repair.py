"""Completing a set to a cover with few more elements."""

import numpy as np
import numpy.typing as npt

__all__ = ["difference_counts", "repair"]

Integers = npt.NDArray[np.int64]

_MOST_TRIES, _EFFORT = 100, 500_000  # how often to repair anew; residues to go through for it


def difference_counts(W: int, base: Integers) -> Integers:
    """Return a_d, the number of pairs of elements with each difference d. O(W + m^2)."""
    counts: Integers = np.bincount(((base[:, None] - base) % W).ravel(), minlength=W)
    return counts


def repair(W: int, elements: tuple[int, ...], most: int | None = None) -> tuple[int, ...] | None:
    """Return elements that complete a cover, or None where that seems to take more than `most`.

    Greedy: each is one that reaches most of what is left. It is tried several times with ties broken at random, the
    same way every time, and the fewest are taken. O(m u + W) for each element, with u residues that are not reached.
    """
    base = np.asarray(elements, dtype=np.int64)
    counts = difference_counts(W, base)
    missing = np.flatnonzero(counts[: W // 2 + 1] == 0)  # d is reached exactly if -d is
    rng = np.random.default_rng(0)
    best: tuple[int, ...] | None = None
    for _ in range(1 + min(_MOST_TRIES, _EFFORT // W)):
        found = _repair_once(base, counts.copy(), missing, most, rng)
        if found is not None:
            best, most = found, len(found) - 1
        elif best is None:
            break  # hopeless
    return best


def _repair_once(
    base: Integers, counts: Integers, missing: Integers, most: int | None, rng: "np.random.Generator"
) -> tuple[int, ...] | None:
    W = len(counts)
    added: list[int] = []
    while len(missing):
        # each candidate that would reach a residue has one vote for it
        sums = (base[:, None] + missing) % W, (base[:, None] - missing) % W
        votes = np.bincount(np.concatenate([part.ravel() for part in sums]), minlength=W)
        highest = votes.max()
        # who comes later has hardly more votes than the best has now
        if most is not None and len(missing) > highest * (most - len(added)):
            return None
        element = int(rng.choice(np.flatnonzero(votes == highest)))
        for differences in ((element - base) % W, (base - element) % W):
            counts[differences] += 1
        base = np.append(base, element)
        added.append(element)
        missing = missing[counts[missing] == 0]
    return tuple(added)
