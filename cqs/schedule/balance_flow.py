"""Tiles shared by their holders, where whole tiles do not come out even: a maximal flow. Integers only."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.quorum import CyclicQuorumSet

__all__ = ["Shares", "shared"]

Shares = dict[tuple[int, int], dict[int, int]]  # tile (g, h): how much of its work each of its owners has


def shared(
    quorums: CyclicQuorumSet, weights: npt.NDArray[np.integer[Any]], owners: npt.NDArray[np.integer[Any]], limit: int
) -> Shares | None:
    """Share tiles among several of their holders, such that no load exceeds the limit; None if no sharing does that.

    Parameters
    ----------
    quorums : CyclicQuorumSet
        Who holds which of the W groups.
    weights, owners : (W, W) integer array
        The work of each tile and its one owner so far, -1 for a tile without work.
    limit : int
        The largest load allowed.

    Returns
    -------
    dict or None
        Of each tile that does not stay with its owner, or not all of it: how much of its work each owner has.

    Notes
    -----
    Work flows from workers above the limit to such below it, along shortest chains: part of a tile from i to j, who
    holds it too, part of another from j to k, and so on (Edmonds & Karp 1972). If a worker above the limit has no such
    chain, then those that its work can reach hold all of their tiles between them, so that no assignment is within the
    limit, of whole tiles or of parts. At worst all tiles are looked at for a chain. Memory O(W^2), 8 bytes a tile.

    Examples
    --------
    Three tiles of work 4, each held by both of two workers:

    >>> weights, owners = np.array([[4, 4], [4, 0]]), np.array([[0, 0], [1, -1]])
    >>> shared(CyclicQuorumSet(2), weights, owners, 6)
    {(0, 0): {0: 2, 1: 2}}
    >>> shared(CyclicQuorumSet(2), weights, owners, 5) is None
    True
    """
    flow = _Flow(quorums, weights, owners)
    for i in range(quorums.modulus):
        while flow.loads[i] > limit:
            steps = flow.chain_from(i, limit)
            if not steps:
                return None
            flow.push(steps, limit)
    return flow.shares


_Chain = list[tuple[int, tuple[int, int], int]]  # steps (i, tile, j): from worker i to j, some of the tile


class _Flow:
    def __init__(
        self, quorums: CyclicQuorumSet, weights: npt.NDArray[np.integer[Any]], owners: npt.NDArray[np.integer[Any]]
    ) -> None:
        W = quorums.modulus
        self._holders = [quorums.holders(0, d) for d in range(W)]
        self._weights, self._owners = weights, owners
        by_owner = np.argsort(owners.ravel(), kind="stable")
        self._owned = np.split(by_owner, np.searchsorted(owners.ravel()[by_owner], np.arange(W)))[1:]  # as g W + h
        self._gained: list[dict[tuple[int, int], None]] = [{} for _ in self._owned]  # sets, in order of arrival
        self.loads = [int(weights.ravel()[own].sum()) for own in self._owned]
        self.shares: Shares = {}

    def _share(self, tile: tuple[int, int]) -> dict[int, int]:
        return self.shares.get(tile) or {int(self._owners[tile]): int(self._weights[tile])}

    def _owned_by(self, i: int) -> Iterator[tuple[int, int]]:
        at_first = (divmod(tile, len(self.loads)) for tile in self._owned[i].tolist())
        return (tile for tile in chain(at_first, self._gained[i]) if i in self._share(tile))

    def _holders_of(self, tile: tuple[int, int]) -> list[int]:
        (g, h), W = tile, len(self.loads)
        return sorted((g + i) % W for i in self._holders[(h - g) % W])

    def _add(self, i: int, tile: tuple[int, int], amount: int) -> None:
        share = self.shares.setdefault(tile, self._share(tile))
        share[i] = share.get(i, 0) + amount
        self.loads[i] += amount
        if i != self._owners[tile]:
            self._gained[i][tile] = None
        if not share[i]:
            del share[i]
            self._gained[i].pop(tile, None)

    def chain_from(self, start: int, limit: int) -> _Chain:
        """Return the steps to the nearest worker below the limit; none if there is no way."""
        came: dict[int, _Chain] = {start: []}
        queue = [start]
        for i in queue:
            if self.loads[i] < limit:
                return came[i]
            for tile in self._owned_by(i):
                for j in self._holders_of(tile):
                    if j not in came:
                        came[j] = [*came[i], (i, tile, j)]
                        queue.append(j)
        return []

    def push(self, steps: _Chain, limit: int) -> None:
        """Move as much along a chain as its start has too much, its end has room for, and each step has."""
        first, last = steps[0][0], steps[-1][2]
        parts = (self._share(tile)[i] for i, tile, _ in steps)
        amount = min(self.loads[first] - limit, limit - self.loads[last], *parts)
        for i, tile, j in steps:
            self._add(i, tile, -amount)
            self._add(j, tile, amount)
