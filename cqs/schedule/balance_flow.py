"""Tiles shared by their holders, where whole tiles do not come out even: a maximal flow. Integers only."""

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
        Of every tile with work: how much of it each owner has. Most keep the one that they had.

    Notes
    -----
    Work flows from workers above the limit to such below it, along shortest chains: part of a tile from i to j, who
    holds it too, part of another from j to k, and so on (Edmonds & Karp 1972). If a worker above the limit has no such
    chain, then those that its work can reach hold all of their tiles between them, so that no assignment is within the
    limit, of whole tiles or of parts. O(W m) tiles are looked at for a chain, m being the size of a quorum.

    Examples
    --------
    Three tiles of work 4, each held by both of two workers:

    >>> weights, owners = np.array([[4, 4], [4, 0]]), np.array([[0, 0], [1, -1]])
    >>> shared(CyclicQuorumSet(2), weights, owners, 6)
    {(0, 0): {0: 2, 1: 2}, (0, 1): {0: 4}, (1, 0): {1: 4}}
    >>> shared(CyclicQuorumSet(2), weights, owners, 5) is None
    True
    """
    flow = _Flow(quorums, weights, owners)
    for i in range(quorums.modulus):
        while flow.loads[i] > limit:
            chain = flow.chain_from(i, limit)
            if not chain:
                return None
            flow.push(chain, limit)
    return flow.shares


_Chain = list[tuple[int, tuple[int, int], int]]  # steps (i, tile, j): from worker i to j, some of the tile


class _Flow:
    def __init__(
        self, quorums: CyclicQuorumSet, weights: npt.NDArray[np.integer[Any]], owners: npt.NDArray[np.integer[Any]]
    ) -> None:
        self.shares: Shares = {}
        self.loads = [0] * quorums.modulus
        self._owned: list[dict[tuple[int, int], None]] = [{} for _ in self.loads]  # sets, in order of arrival
        self._holders: dict[tuple[int, int], tuple[int, ...]] = {}
        for g, h in np.argwhere(weights > 0).tolist():
            self.shares[g, h], self._holders[g, h] = {}, quorums.holders(g, h)
            self._add(int(owners[g, h]), (g, h), int(weights[g, h]))

    def _add(self, i: int, tile: tuple[int, int], amount: int) -> None:
        share = self.shares[tile]
        share[i] = share.get(i, 0) + amount
        self.loads[i] += amount
        self._owned[i][tile] = None
        if not share[i]:
            del share[i], self._owned[i][tile]

    def chain_from(self, start: int, limit: int) -> _Chain:
        """Return the steps to the nearest worker below the limit; none if there is no way."""
        came: dict[int, _Chain] = {start: []}
        queue = [start]
        for i in queue:
            if self.loads[i] < limit:
                return came[i]
            for tile in self._owned[i]:
                for j in self._holders[tile]:
                    if j not in came:
                        came[j] = [*came[i], (i, tile, j)]
                        queue.append(j)
        return []

    def push(self, chain: _Chain, limit: int) -> None:
        """Move as much along a chain as its start has too much, its end has room for, and each step has."""
        first, last = chain[0][0], chain[-1][2]
        parts = (self.shares[tile][i] for i, tile, _ in chain)
        amount = min(self.loads[first] - limit, limit - self.loads[last], *parts)
        for i, tile, j in chain:
            self._add(i, tile, -amount)
            self._add(j, tile, amount)
