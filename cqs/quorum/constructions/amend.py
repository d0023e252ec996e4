"""Amending a set: elements added until it is a cover, and elements dropped that a cover does not need."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cqs.quorum.construction import Construction, registered
from cqs.quorum.cover import DifferenceCover
from cqs.quorum.proof import Step

__all__ = ["Reduced", "Repaired", "drop_redundant", "repair"]

Integers = npt.NDArray[np.int64]

_MOST_TRIES, _EFFORT = 100, 500_000  # how often to repair anew; residues to go through for it


@registered
@dataclass(frozen=True, slots=True)
class Repaired:
    """A construction that does not quite cover Z_W, and the elements that complete it.

    Parameters
    ----------
    construction : Construction
        What is completed.
    added : tuple of int
        What it is completed by.
    """

    kind: ClassVar[str] = "repaired"

    construction: Construction
    added: tuple[int, ...]

    @property
    def modulus(self) -> int:
        """W."""
        return self.construction.modulus

    def elements(self) -> tuple[int, ...]:
        """Return all elements."""
        return tuple(sorted({*self.construction.elements(), *self.added}))

    def steps(self) -> Iterator[Step]:
        """Yield the steps of the construction, and what is added; the Hall identity shows that it is enough."""
        yield from self.construction.steps()
        own = self.construction.elements()
        yield Step(
            f"what that leaves out is reached with {len(self.added)} more elements: {', '.join(map(str, self.added))}",
            check=lambda: len(set(own) | set(self.added)) == len(own) + len(self.added) and bool(self.added),
        )

    def __str__(self) -> str:
        return f"{self.construction}, {len(self.added)} added"


@registered
@dataclass(frozen=True, slots=True)
class Reduced:
    """A cover without elements that it does not need.

    Parameters
    ----------
    construction : Construction
        Of the cover.
    dropped : tuple of int
        Elements of it that are left out.
    """

    kind: ClassVar[str] = "reduced"

    construction: Construction
    dropped: tuple[int, ...]

    @property
    def modulus(self) -> int:
        """W."""
        return self.construction.modulus

    def elements(self) -> tuple[int, ...]:
        """Return what is left."""
        return tuple(sorted(set(self.construction.elements()) - set(self.dropped)))

    def steps(self) -> Iterator[Step]:
        """Yield the steps of the construction, and what is dropped; the Hall identity shows that the rest is enough."""
        yield from self.construction.steps()
        own = set(self.construction.elements())
        yield Step(
            f"{len(self.dropped)} of these are not needed: {', '.join(map(str, self.dropped))}",
            check=lambda: own.issuperset(self.dropped) and len(set(self.dropped)) == len(self.dropped) > 0,
        )

    def __str__(self) -> str:
        return f"{self.construction}, {len(self.dropped)} dropped"


def repair(W: int, elements: tuple[int, ...], most: int | None = None) -> tuple[int, ...] | None:
    """Return elements that complete a cover, or None where that seems to take more than `most`.

    Greedy: each is one that reaches most of what is left. It is tried several times with ties broken at random, the
    same way every time, and the fewest are taken. O(m u) for each element, with u residues that are not reached.
    """
    base = np.asarray(elements, dtype=np.int64)
    counts = _difference_counts(W, base)
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


def drop_redundant(cover: DifferenceCover) -> DifferenceCover:
    """Return the cover without elements that it can do without, found one after the other. O(W + m^2).

    Examples
    --------
    >>> drop_redundant(DifferenceCover(7, (0, 1, 3, 5))).base
    (0, 1, 3)
    """
    W, base = cover.modulus, np.asarray(cover.base, dtype=np.int64)
    counts = _difference_counts(W, base)
    dropped: list[int] = []
    for element in cover.base[::-1]:
        rest = base[base != element]
        differences = np.concatenate([(element - rest) % W, (rest - element) % W])
        np.subtract.at(counts, differences, 1)
        if counts[differences].all() and len(rest):
            base = rest
            dropped.append(element)
        else:
            np.add.at(counts, differences, 1)
    return DifferenceCover.by(Reduced(cover.construction, tuple(dropped))) if dropped else cover


def _difference_counts(W: int, base: Integers) -> Integers:
    """Return a_d, the number of pairs of elements with each difference d. O(W + m^2)."""
    counts: Integers = np.bincount(((base[:, None] - base) % W).ravel(), minlength=W)
    return counts
