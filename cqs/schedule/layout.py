"""How the score matrix is cut into tasks: by a cyclic quorum set, by a grid, or as other schemes do it.

A layout answers two questions, lazily: which strips of tiles has task i, and which queries are complete after it.
Nothing of the size W^2 is ever built.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isqrt, sqrt
from operator import itemgetter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cqs.masks import Causal, Mask
from cqs.once import once
from cqs.quorum import CyclicQuorumSet
from cqs.schedule.balance import balanced_owners
from cqs.schedule.balance_parts import Assignment, even_parts
from cqs.schedule.task import Group, Strip, group

__all__ = ["BalancedLayout", "GridLayout", "Layout", "QuorumLayout", "RingLayout", "TreeLayout"]


class Layout(Protocol):
    """A partition of the T x S score matrix into the tiles of `n_tasks` tasks."""

    @property
    def n_tasks(self) -> int:
        """How many tasks there are, W."""

    def strips(self, i: int) -> Iterable[Strip]:
        """Return the tiles that task i owns, strip by strip, in increasing order of query, then of key."""

    def completes(self, i: int) -> range:
        """Return the queries whose last tile is in task i, if tasks come in order."""


@dataclass(frozen=True, slots=True)
class QuorumLayout:
    """Self-attention over `n_tokens` tokens in W groups; task i owns what worker i of a quorum set owns."""

    n_tokens: int
    quorums: CyclicQuorumSet

    @property
    def n_tasks(self) -> int:
        """W, the modulus."""
        return self.quorums.modulus

    def strips(self, i: int) -> Iterator[Strip]:
        """Return the strips of worker i, which have W tiles. O(W log W)."""
        held = {g: group(g, self.n_tasks, self.n_tokens) for g in self.quorums.quorum(i)}
        of_queries = groupby(self.quorums.tiles(i), key=itemgetter(0))
        return (Strip(held[g], tuple(held[h] for _, h in tiles)) for g, tiles in of_queries)

    def completes(self, i: int) -> range:
        """Return all queries for the last task: each group is in as many quorums as it has groups."""
        return range(self.n_tokens) if i == self.n_tasks - 1 else range(0)


_MOST_BALANCED = 200  # workers whose W^2 tiles are counted and assigned one by one


@dataclass(frozen=True)
class BalancedLayout:
    """Like `QuorumLayout`, for a mask whose tiles differ in work: tiles go to whichever holder has least to do.

    Tiles that the mask leaves empty belong to nobody; where whole tiles do not come out even, some are cut. The W^2
    tiles are counted when the first is asked for.
    """

    n_tokens: int
    quorums: CyclicQuorumSet
    mask: Mask

    @staticmethod
    def is_worth(n_workers: int, mask: Mask) -> bool:
        """Whether the closed form may be uneven, and the tiles are few enough and can be counted without the data."""
        return n_workers <= _MOST_BALANCED and not (mask.hides_nothing or mask == Causal()) and mask.has_edges

    @property
    def n_tasks(self) -> int:
        """W, the modulus."""
        return self.quorums.modulus

    def strips(self, i: int) -> Iterator[Strip]:
        """Return the strips of worker i, of whole tiles and parts. O(W^2)."""
        of_queries = groupby(self._assignment.tiles(i), key=lambda tile: tile.query)
        return (Strip(query, tuple(tile.key for tile in tiles)) for query, tiles in of_queries)

    def completes(self, i: int) -> range:
        """Return all queries for the last task."""
        return range(self.n_tokens) if i == self.n_tasks - 1 else range(0)

    @once
    def _assignment(self) -> Assignment:
        groups = [group(g, self.n_tasks, self.n_tokens) for g in range(self.n_tasks)]
        weights = _visible_pairs(self.mask, groups)
        owners = balanced_owners(self.quorums, weights)
        return even_parts(self.quorums, self.mask, groups, weights, owners)


def _visible_pairs(mask: Mask, groups: Sequence[Group]) -> npt.NDArray[np.int64]:
    """Count the visible pairs of each tile; those out of reach have none, and are not looked at."""
    starts, pairs = [g.start for g in groups], np.zeros((len(groups), len(groups)), dtype=np.int64)
    for g in groups:
        for part in mask.reach(g.tokens, range(groups[-1].stop)):
            for h in groups[bisect_right(starts, part.start) - 1 : bisect_left(starts, part.stop)]:
                pairs[g.index, h.index] = mask.count(g.tokens, h.tokens)
    return pairs


@dataclass(frozen=True, slots=True)
class GridLayout:
    """A ragged grid of W rectangles of equal area, one for each task, for T queries against S keys.

    The W rectangles stand in R rows. Rows hold floor(W/R) or ceil(W/R) of them, and are as high as the number that
    they hold, so that areas agree for every W. By default R makes rectangles nearly square, which makes the tokens that
    a task reads, its height and twice its width, nearly least; with R = W a task completes its queries.
    """

    n_queries: int
    n_keys: int
    n_tasks: int
    row_groups: int | None = None

    @property
    def n_rows(self) -> int:
        """R, the number of query groups."""
        W, T, S = self.n_tasks, self.n_queries, self.n_keys
        if self.row_groups is not None:
            return self.row_groups
        wanted = round(sqrt(W * T / S)) if S > 0 else isqrt(W)
        return min(max(wanted, 1), W)

    def strips(self, i: int) -> Iterator[Strip]:
        """Return the one rectangle of task i, a strip of one tile."""
        rows, first, last = self._row(i)
        yield Strip(rows, (group(i - first, last - first, self.n_keys),))

    def completes(self, i: int) -> range:
        """Return the queries of a row of rectangles for the last of them."""
        rows, _, last = self._row(i)
        return rows.tokens if i == last - 1 else range(0)

    def _row(self, i: int) -> tuple[Group, int, int]:
        """Return the query group of task i, and the first and last (not included) of the tasks that share it."""
        W, R = self.n_tasks, self.n_rows
        row = ((i + 1) * R - 1) // W  # the row r with r*W//R <= i < (r + 1)*W//R
        first, last = row * W // R, (row + 1) * W // R
        return Group(row, first * self.n_queries // W, last * self.n_queries // W), first, last


@dataclass(frozen=True, slots=True)
class RingLayout:
    """Ring attention, to compare with: worker i keeps query group i, and all W key groups pass by it.

    References
    ----------
    Li et al., *Sequence Parallelism: Long Sequence Training from System Perspective*, arXiv 2105.13120.
    """

    n_queries: int
    n_keys: int
    n_tasks: int

    def strips(self, i: int) -> Iterator[Strip]:
        """Return the one strip of worker i: its row of tiles."""
        rows = group(i, self.n_tasks, self.n_queries)
        yield Strip(rows, tuple(group(j, self.n_tasks, self.n_keys) for j in range(self.n_tasks)))

    def completes(self, i: int) -> range:
        """Return the queries of worker i."""
        return group(i, self.n_tasks, self.n_queries).tokens


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Tree attention, to compare with: worker i keeps key group i, and all queries are sent to everyone.

    References
    ----------
    Shyam et al., *Tree Attention*, arXiv 2408.04093.
    """

    n_queries: int
    n_keys: int
    n_tasks: int

    def strips(self, i: int) -> Iterator[Strip]:
        """Return the column of worker i, a strip of one tile."""
        yield Strip(group(0, 1, self.n_queries), (group(i, self.n_tasks, self.n_keys),))

    def completes(self, i: int) -> range:
        """Return all queries for the last task."""
        return range(self.n_queries) if i == self.n_tasks - 1 else range(0)
