"""How the score matrix is cut into tasks: by a cyclic quorum set, or by a grid.

A layout answers one question, `tiles(i)`, lazily: nothing of the size W^2 is ever built.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isqrt, sqrt
from typing import Protocol

from cqs.quorum import CyclicQuorumSet
from cqs.schedule.task import Group, Tile, group

__all__ = ["GridLayout", "Layout", "QuorumLayout"]


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
