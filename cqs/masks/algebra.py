"""Masks combined: both, either, not."""

from dataclasses import dataclass

import numpy as np

from cqs.masks.mask import Booleans, Coverage, Integers, Mask, merged

__all__ = ["And", "Not", "Or"]


@dataclass(frozen=True, slots=True)
class And(Mask):
    """A query sees what it sees by both masks; written `a & b`."""

    left: Mask
    right: Mask

    @property
    def hides_nothing(self) -> bool:
        """Whether neither hides anything."""
        return self.left.hides_nothing and self.right.hides_nothing

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Return what both let through."""
        return self.left.visible(q_idx, k_idx) & self.right.visible(q_idx, k_idx)

    def edges(self, queries: Integers) -> Integers:
        """Return the edges of both."""
        return np.concatenate([self.left.edges(queries), self.right.edges(queries)], axis=1)

    def classify(self, rows: range, cols: range) -> Coverage:
        """Ask both, and count only where that does not decide. O(1), or O(rows)."""
        both = {self.left.classify(rows, cols), self.right.classify(rows, cols)}
        if Coverage.EMPTY in both:
            return Coverage.EMPTY
        return Coverage.FULL if both == {Coverage.FULL} else Mask.classify(self, rows, cols)

    def reach(self, rows: range, cols: range) -> tuple[range, ...]:
        """Return what both reach."""
        common = [
            range(max(a.start, b.start), min(a.stop, b.stop))
            for a in self.left.reach(rows, cols)
            for b in self.right.reach(rows, cols)
        ]
        return merged(common)


@dataclass(frozen=True, slots=True)
class Or(Mask):
    """A query sees what it sees by either mask; written `a | b`."""

    left: Mask
    right: Mask

    @property
    def hides_nothing(self) -> bool:
        """Whether one of them hides nothing."""
        return self.left.hides_nothing or self.right.hides_nothing

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Return what either lets through."""
        return self.left.visible(q_idx, k_idx) | self.right.visible(q_idx, k_idx)

    def edges(self, queries: Integers) -> Integers:
        """Return the edges of both."""
        return np.concatenate([self.left.edges(queries), self.right.edges(queries)], axis=1)

    def classify(self, rows: range, cols: range) -> Coverage:
        """Ask both, and count only where that does not decide. O(1), or O(rows)."""
        both = {self.left.classify(rows, cols), self.right.classify(rows, cols)}
        if Coverage.FULL in both:
            return Coverage.FULL
        return Coverage.EMPTY if both == {Coverage.EMPTY} else Mask.classify(self, rows, cols)

    def reach(self, rows: range, cols: range) -> tuple[range, ...]:
        """Return what either reaches."""
        return merged([*self.left.reach(rows, cols), *self.right.reach(rows, cols)])


@dataclass(frozen=True, slots=True)
class Not(Mask):
    """A query sees what it does not see by the mask; written `~a`."""

    mask: Mask

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Return what the mask hides."""
        return ~self.mask.visible(q_idx, k_idx)

    def edges(self, queries: Integers) -> Integers:
        """Return the edges of the mask."""
        return self.mask.edges(queries)

    def classify(self, rows: range, cols: range) -> Coverage:
        """Exchange EMPTY and FULL."""
        if not rows or not cols:
            return Coverage.EMPTY
        swapped = {Coverage.EMPTY: Coverage.FULL, Coverage.FULL: Coverage.EMPTY}
        coverage = self.mask.classify(rows, cols)
        return swapped.get(coverage, coverage)

    def count(self, rows: range, cols: range) -> int:
        """Return the area without what the mask lets through."""
        return len(rows) * len(cols) - self.mask.count(rows, cols)
