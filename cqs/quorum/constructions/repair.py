"""Completing a set to a cover with few more elements, by a greedy choice and a walk from there."""

import numpy as np
import numpy.typing as npt

__all__ = ["difference_counts", "repair"]

Integers = npt.NDArray[np.int64]

_EFFORT, _MOST_STEPS = 600_000, 20  # residues to go through for the walk, and its steps
_NEARLY = 8  # residues left out from which a walk may lead to a cover
_TENURE = 2  # steps for which an element that was added is not removed


def difference_counts(W: int, base: Integers) -> Integers:
    """Return a_d, the number of pairs of elements with each difference d. O(W + m^2)."""
    counts: Integers = np.bincount(((base[:, None] - base) % W).ravel(), minlength=W)
    return counts


def repair(W: int, elements: tuple[int, ...], most: int | None = None) -> tuple[int, ...] | None:
    """Return elements that complete a cover, or None where that seems to take more than `most`.

    First greedy: each is one that reaches most of what is left. Then one is removed and the best is added, over and
    over, ties broken at random, the same way every time; whenever nothing is left out, one fewer has to do.
    O(m u + W) for each element, with u residues that are not reached.
    """
    state = _Repair(W, elements)
    while state.missing.size and (most is None or len(state.added) < most):
        highest = state.add()
        # who comes later hardly reaches more than this one did
        if most is not None and state.missing.size > highest * (most - len(state.added)) + _NEARLY:
            return None
    best = None
    for _ in range(1 + (min(_MOST_STEPS, _EFFORT // W) if state.missing.size <= _NEARLY else 0)):
        if state.missing.size == 0:
            best = tuple(state.added)
            if best:
                state.remove()
        elif state.added:
            state.remove()
            state.add()
    return tuple(state.added) if state.missing.size == 0 else best


class _Repair:
    """A set that is not quite a cover, the elements added to it, and which residues up to W/2 are left out."""

    def __init__(self, W: int, elements: tuple[int, ...]) -> None:
        self.base = np.asarray(elements, dtype=np.int64)
        self.counts = difference_counts(W, self.base)
        self.n_own = len(self.base)
        self.rng = np.random.default_rng(0)
        self.missing = np.flatnonzero(self.counts[: W // 2 + 1] == 0)  # d is reached exactly if -d is

    @property
    def added(self) -> list[int]:
        """What was added, the last one last."""
        own: list[int] = self.base[self.n_own :].tolist()
        return own

    def add(self) -> int:
        """Add one of the elements that reach most of what is left, and return how much that is."""
        W = len(self.counts)
        # each candidate that would reach a residue has one vote for it
        sums = (self.base[:, None] + self.missing) % W, (self.base[:, None] - self.missing) % W
        votes = np.bincount(np.concatenate([part.ravel() for part in sums]), minlength=W)
        votes[self.base] = 0
        highest = int(votes.max())
        element = int(self.rng.choice(np.flatnonzero(votes == highest)))
        np.add.at(self.counts, self._differences(element, self.base), 1)
        self.base = np.append(self.base, element)
        self.missing = self.missing[self.counts[self.missing] == 0]
        return highest

    def remove(self) -> None:
        """Remove one that was added, not of the last few, at random but rather one that reaches little on its own."""
        candidates = range(self.n_own, max(len(self.base) - _TENURE, self.n_own + 1))
        alone = [np.count_nonzero(self.counts[(self.base[i] - self.base) % len(self.counts)] == 1) for i in candidates]
        i = candidates[int(np.argmin(alone + 3 * self.rng.random(len(alone))))]
        element, self.base = int(self.base[i]), np.delete(self.base, i)
        np.subtract.at(self.counts, self._differences(element, self.base), 1)
        W = len(self.counts)
        self.missing = np.flatnonzero(self.counts[: W // 2 + 1] == 0)

    def _differences(self, element: int, rest: Integers) -> Integers:
        return np.concatenate([element - rest, rest - element]) % len(self.counts)
