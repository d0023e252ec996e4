"""Tiles that move along chains of workers, until all have room; a few workers at a time are packed anew."""

from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Optional

from cqs.schedule.fitting_tree import Open, Tree

__all__ = ["Chains"]

_Chain = tuple[int, Optional["_Chain"]]  # a tile, and the chain that ended with its arrival at the tile's owner

_DEAREST = 4  # by how much the price of a worker that stays too full grows at most
_PACKED, _VISITS = 14, 4_000  # workers that are packed anew together, and what that may cost
_A_VISIT = 2  # what it does cost, in continuations of chains


class Chains:
    """Owners that change by chains: a tile goes to a worker, one of whose tiles goes to a third, and so on.

    The best chain is that which lowers the sum of what is too much, at a price for each worker, the most: a shortest
    path, so that chains of any length cost little more than swaps (ejection chains; Glover 1996). Where none
    lowers it, some workers among the fullest and their neighbours are packed anew by all assignments of their tiles,
    and if that does not end it, workers that stay too full become dearer (breakout; Morris 1993).

    Parameters
    ----------
    weights : sequence of int
        Of each tile, greater than 0.
    tiles : dict from int to list of int
        The tiles to be given away, and the workers that each may go to.
    room : sequence of int
        What each worker can take.
    seed : int
        Of the prices and neighbours: the result is a function of the arguments alone.
    """

    def __init__(self, weights: Sequence[int], tiles: Open, room: Sequence[int], seed: int) -> None:
        self.weights, self.holders, self.random, self.looks = weights, tiles, Random(seed), 0
        self.over = [-n for n in room]  # what each worker has too much
        self.price = [1] * len(room)
        self.owners: dict[int, int] = {}
        self.owned: list[dict[int, None]] = [{} for _ in room]  # sets, in order of arrival
        self.too_full: dict[int, None] = {}
        for t in sorted(tiles, key=lambda t: -weights[t]):
            self._give(t, min(tiles[t], key=self.over.__getitem__))

    def has_fitted(self, most_looks: int) -> bool:
        """Change owners until all fits, or so many continuations of chains have been looked at."""
        while self.too_full and self.looks < most_looks:
            chain, j = self._best_chain()
            if chain is None and not self._has_packed():
                for i in self.too_full:
                    self.price[i] += 1 + self.random.randrange(_DEAREST)
            while chain:
                t, chain = chain
                i = self.owners[t]
                self._give(t, j)
                j = i
        return not self.too_full

    def _give(self, t: int, j: int) -> None:
        if (i := self.owners.get(t, -1)) >= 0:
            del self.owned[i][t]
            self.over[i] -= self.weights[t]
            if self.over[i] <= 0:
                self.too_full.pop(i, None)
        self.owners[t] = j
        self.owned[j][t] = None
        self.over[j] += self.weights[t]
        if self.over[j] > 0:
            self.too_full[j] = None

    def _best_chain(self) -> tuple[_Chain | None, int]:
        """Return the chain that lowers the priced sum the most, and where its last tile goes; None if none does."""
        weights, over, price, least = self.weights, self.over, self.price, 0
        best: tuple[_Chain | None, int] = None, -1
        costs: dict[int, int] = {}  # of the cheapest way to take a tile from its owner and leave it without one
        queue = deque[tuple[int, _Chain, int, int, int]]()  # and the workers passed, as bits, the first, its new excess
        for i in self.too_full:
            for t in self.owned[i]:
                costs[t] = price[i] * (max(over[i] - weights[t], 0) - over[i])
                queue.append((costs[t], (t, None), 1 << i, i, over[i] - weights[t]))
        while queue:
            cost, chain, passed, first, rest = queue.popleft()
            t = chain[0]
            if cost > costs[t] or cost >= least:
                continue
            w = weights[t]
            self.looks += len(self.holders[t])
            for j in self.holders[t]:
                if (is_passed := passed >> j & 1) and (j != first or chain[1] is None):
                    continue
                had = rest if is_passed else over[j]
                base = cost - (had * price[j] if had > 0 else 0)
                total = base + ((had + w) * price[j] if had + w > 0 else 0)
                if total < least:
                    least, best = total, (chain, j)
                if is_passed:
                    continue
                self.looks += len(self.owned[j])
                for u in self.owned[j]:
                    more = had + w - weights[u]
                    total = base + (more * price[j] if more > 0 else 0)
                    if total < least and total < costs.get(u, least):
                        costs[u] = total
                        queue.append((total, (u, chain), passed | 1 << j, first, rest))
        return best

    def _has_packed(self) -> bool:
        """Fit the tiles of the workers that are too full and of some neighbours, in all ways; False if that fails."""
        chosen, reached = dict(self.too_full), list(self.too_full)
        while reached and len(chosen) < _PACKED:
            i = reached.pop(self.random.randrange(len(reached)))
            others = [j for t in self.owned[i] for j in self.holders[t] if j not in chosen]
            if others:
                j = self.random.choice(others)
                chosen[j] = None
                reached += [i, j]
        free = {t: list(self.holders[t]) for i in chosen for t in self.owned[i]}
        room = [-n for n in self.over]
        for t in free:
            room[self.owners[t]] += self.weights[t]
        tree = Tree(self.weights, _VISITS)
        found = tree.descend(dict(free), room, [-1] * len(self.weights))
        self.looks += _A_VISIT * tree.visits
        if found is None:
            return False
        for t in free:
            self._give(t, found[t])
        return True
