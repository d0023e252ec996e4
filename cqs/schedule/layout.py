"""How the score matrix is cut into tasks: by a cyclic quorum set, or by a grid.

A layout answers one question, `tiles(i)`, lazily: nothing of the size W^2 is ever built.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isqrt, sqrt
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cqs.masks import Causal, Mask
from cqs.quorum import CyclicQuorumSet
from cqs.schedule.balance import balanced_owners
from cqs.schedule.task import Group, Tile, group

__all__ = ["BalancedLayout", "GridLayout", "Layout", "QuorumLayout"]


class Layout(Protocol):
    """A partition of the T x S score matrix into the tiles of `n_tasks` tasks."""

    @property
    def n_tasks(self) -> int:
        """How many tasks there are, W."""

    def tiles(self, i: int) -> Iterable[Tile]:
        """Return the tiles that task i owns, in increasing order of query, then of key."""


@dataclass(frozen=True, slots=True)
class QuorumLayout:
    """Self-attention over `n_tokens` tokens in W groups; task i owns what worker i of a quorum set owns."""

    n_tokens: int
    quorums: CyclicQuorumSet

    @property
    def n_tasks(self) -> int:
        """W, the modulus."""
        return self.quorums.modulus

    def tiles(self, i: int) -> Iterator[Tile]:
        """Return the W tiles of worker i. O(W log W)."""
        held = {g: group(g, self.n_tasks, self.n_tokens) for g in self.quorums.quorum(i)}
        return (Tile(held[g], held[h]) for g, h in self.quorums.tiles(i))


_MOST_BALANCED = 200  # workers whose W^2 tiles are counted and assigned one by one


@dataclass(frozen=True)
class BalancedLayout:
    """Like `QuorumLayout`, for a mask whose tiles differ in work: tiles go to whichever holder has least to do.

    Tiles that the mask leaves empty belong to nobody. The W^2 tiles are counted when the first is asked for.
    """

    n_tokens: int
    quorums: CyclicQuorumSet
    mask: Mask

    @staticmethod
    def is_worth(n_workers: int, mask: Mask) -> bool:
        """Whether the closed form may be uneven, and the tiles are few enough and can be counted without the data."""
        return not (mask.hides_nothing or mask == Causal()) and mask.has_edges and n_workers <= _MOST_BALANCED

    @property
    def n_tasks(self) -> int:
        """W, the modulus."""
        return self.quorums.modulus

    def tiles(self, i: int) -> Iterator[Tile]:
        """Return the tiles of worker i. O(W^2)."""
        W = self.n_tasks
        for g, h in np.argwhere(self._owners == i).tolist():
            yield Tile(group(g, W, self.n_tokens), group(h, W, self.n_tokens))

    @cached_property
    def _owners(self) -> npt.NDArray[np.int64]:
        W = self.n_tasks
        tokens = [group(g, W, self.n_tokens).tokens for g in range(W)]
        weights = np.array([[self.mask.count(rows, cols) for cols in tokens] for rows in tokens], dtype=np.int64)
        return balanced_owners(self.quorums, weights)


@dataclass(frozen=True, slots=True)
class GridLayout:
    """A ragged grid of W rectangles of equal area, one for each task, for T queries against S keys.

    The W rectangles stand in R rows. Rows hold floor(W/R) or ceil(W/R) of them, and are as high as the number that
    they hold, so that areas agree for every W. R is chosen to make rectangles nearly square, which makes
    the tokens that a task reads, its height and twice its width, nearly least.
    """

    n_queries: int
    n_keys: int
    n_tasks: int

    @property
    def n_rows(self) -> int:
        """R, the number of query groups."""
        W, T, S = self.n_tasks, self.n_queries, self.n_keys
        wanted = round(sqrt(W * T / S)) if S > 0 else isqrt(W)
        return min(max(wanted, 1), W)

    def tiles(self, i: int) -> Iterator[Tile]:
        """Return the one rectangle of task i."""
        W, R = self.n_tasks, self.n_rows
        row = ((i + 1) * R - 1) // W  # the row r with r*W//R <= i < (r + 1)*W//R
        first, last = row * W // R, (row + 1) * W // R
        rows = Group(row, first * self.n_queries // W, last * self.n_queries // W)
        yield Tile(rows, group(i - first, last - first, self.n_keys))
