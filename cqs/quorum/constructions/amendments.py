"""Amending a set: elements added until it is a cover, and elements dropped that a cover does not need."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cqs.quorum.construction import Construction, registered
from cqs.quorum.constructions.repair import difference_counts
from cqs.quorum.cover import DifferenceCover
from cqs.quorum.proof import Step

__all__ = ["Reduced", "Repaired", "drop_redundant"]


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
    """A construction without some of its elements.

    Parameters
    ----------
    construction : Construction
        What the elements are taken from.
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
        """Yield the steps of the construction, and what is dropped."""
        yield from self.construction.steps()
        own = set(self.construction.elements())
        yield Step(
            f"{len(self.dropped)} of these are left out: {', '.join(map(str, self.dropped))}",
            check=lambda: own.issuperset(self.dropped) and len(set(self.dropped)) == len(self.dropped) > 0,
        )

    def __str__(self) -> str:
        return f"{self.construction}, {len(self.dropped)} dropped"


def drop_redundant(cover: DifferenceCover) -> DifferenceCover:
    """Return the cover without elements that it can do without, found one after the other. O(W + m^2).

    Examples
    --------
    >>> drop_redundant(DifferenceCover(7, (0, 1, 3, 5))).base
    (0, 1, 3)
    """
    W, base = cover.modulus, np.asarray(cover.base, dtype=np.int64)
    counts = difference_counts(W, base)
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
