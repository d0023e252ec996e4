"""Masks combined: both, either, not."""

import math
from dataclasses import dataclass

import numpy as np

from cqs.masks.mask import Booleans, Coverage, Integers, Mask, merged
from cqs.masks.per_head import as_mask

__all__ = ["And", "Not", "Or"]


@dataclass(frozen=True, slots=True)
class _Pair(Mask):
    """What `And` and `Or` have in common."""

    left: Mask
    right: Mask

    def __post_init__(self) -> None:
        object.__setattr__(self, "left", as_mask("mask", self.left))
        object.__setattr__(self, "right", as_mask("mask", self.right))

    @property
    def arrays(self) -> tuple[Booleans, ...]:
        """Those of both."""
        return self.left.arrays + self.right.arrays

    @property
    def lead(self) -> tuple[int, ...]:
        """What either differs between."""
        return np.broadcast_shapes(self.left.lead, self.right.lead)

    @property
    def is_shared(self) -> bool:
        """Whether both are."""
        return self.left.is_shared and self.right.is_shared

    @property
    def has_edges(self) -> bool:
        """Whether both have."""
        return self.left.has_edges and self.right.has_edges

    def at(self, index: tuple[int, ...]) -> Mask:
        """Combine both masks of that head."""
        return type(self)(self.left.at(index), self.right.at(index))

    def bind(self, batch: tuple[int, ...], n_heads: int, n_queries: int, n_keys: int) -> Mask:
        """Bind both."""
        sizes = batch, n_heads, n_queries, n_keys
        return type(self)(self.left.bind(*sizes), self.right.bind(*sizes))

    def edges(self, queries: Integers) -> Integers:
        """Return the edges of both."""
        return np.concatenate([self.left.edges(queries), self.right.edges(queries)], axis=1)


@dataclass(frozen=True, slots=True)
class And(_Pair):
    """A query sees what it sees by both masks; written `a & b`."""

    @property
    def hides_nothing(self) -> bool:
        """Whether neither hides anything."""
        return self.left.hides_nothing and self.right.hides_nothing

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Return what both let through."""
        return self.left.visible(q_idx, k_idx) & self.right.visible(q_idx, k_idx)

    def block(self, rows: range, cols: range) -> Booleans:
        """Return what both let through."""
        return self.left.block(rows, cols) & self.right.block(rows, cols)

    def classify(self, rows: range, cols: range) -> Coverage:
        """Ask both, and count only where that does not decide. O(1), or O(rows)."""
        left, right = self.left.classify(rows, cols), self.right.classify(rows, cols)
        if Coverage.EMPTY in (left, right):
            return Coverage.EMPTY
        if Coverage.FULL in (left, right):
            return right if left is Coverage.FULL else left
        return Mask.classify(self, rows, cols)

    def reach(self, rows: range, cols: range) -> tuple[range, ...]:
        """Return what both reach."""
        left, right = self.left.reach(rows, cols), self.right.reach(rows, cols)
        common, i, j = [], 0, 0
        while i < len(left) and j < len(right):
            a, b = left[i], right[j]
            common.append(range(max(a.start, b.start), min(a.stop, b.stop)))
            if a.stop < b.stop:
                i += 1
            else:
                j += 1
        return merged(common)


@dataclass(frozen=True, slots=True)
class Or(_Pair):
    """A query sees what it sees by either mask; written `a | b`."""

    @property
    def hides_nothing(self) -> bool:
        """Whether one of them hides nothing."""
        return self.left.hides_nothing or self.right.hides_nothing

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Return what either lets through."""
        return self.left.visible(q_idx, k_idx) | self.right.visible(q_idx, k_idx)

    def block(self, rows: range, cols: range) -> Booleans:
        """Return what either lets through."""
        return self.left.block(rows, cols) | self.right.block(rows, cols)

    def classify(self, rows: range, cols: range) -> Coverage:
        """Ask both, and count only where that does not decide. O(1), or O(rows)."""
        left, right = self.left.classify(rows, cols), self.right.classify(rows, cols)
        if Coverage.FULL in (left, right):
            return Coverage.FULL
        if Coverage.EMPTY in (left, right):
            return right if left is Coverage.EMPTY else left
        return Mask.classify(self, rows, cols)

    def reach(self, rows: range, cols: range) -> tuple[range, ...]:
        """Return what either reaches."""
        return merged([*self.left.reach(rows, cols), *self.right.reach(rows, cols)])


@dataclass(frozen=True, slots=True)
class Not(Mask):
    """A query sees what it does not see by the mask; written `~a`."""

    mask: Mask

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", as_mask("mask", self.mask))

    @property
    def arrays(self) -> tuple[Booleans, ...]:
        """Those of the mask."""
        return self.mask.arrays

    @property
    def lead(self) -> tuple[int, ...]:
        """What the mask differs between."""
        return self.mask.lead

    @property
    def is_shared(self) -> bool:
        """Whether the mask is."""
        return self.mask.is_shared

    @property
    def has_edges(self) -> bool:
        """Whether the mask has."""
        return self.mask.has_edges

    def at(self, index: tuple[int, ...]) -> Mask:
        """Negate the mask of that head."""
        return Not(self.mask.at(index))

    def bind(self, batch: tuple[int, ...], n_heads: int, n_queries: int, n_keys: int) -> Mask:
        """Bind the mask."""
        return Not(self.mask.bind(batch, n_heads, n_queries, n_keys))

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Return what the mask hides."""
        return ~self.mask.visible(q_idx, k_idx)

    def block(self, rows: range, cols: range) -> Booleans:
        """Return what the mask hides."""
        return ~self.mask.block(rows, cols)

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
        return math.prod(self.lead) * len(rows) * len(cols) - self.mask.count(rows, cols)
