"""Who owns which tile when tiles differ in work: an even assignment that the quorums allow. Integers only."""

import reprlib
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.errors import OptionError
from cqs.quorum import CyclicQuorumSet
from cqs.schedule.balance_search import Search

__all__ = ["balanced_owners", "even_load", "largest_load", "load_bound"]

_Matrix = npt.NDArray[np.int64]

_CLOSE = 1.005  # times the bound: a largest load that is even enough to stop
_EVEN = 21, 20  # largest load to mean load for which tiles stay whole: 1.05


def balanced_owners(quorums: CyclicQuorumSet, weights: npt.NDArray[np.integer[Any]]) -> _Matrix:
    """Choose one owner for every tile with work, so that the largest load of a worker is small.

    Parameters
    ----------
    quorums : CyclicQuorumSet
        Who holds which of the W groups.
    weights : (W, W) integer array
        The work of each tile (query group, key group), at least 0; for attention its visible pairs.

    Returns
    -------
    (W, W) int64 array
        The owner of each tile, who holds both its groups; -1 for a tile of weight 0, which nobody owns.

    Raises
    ------
    OptionError
        If `weights` are not W x W integers of at least 0.

    Notes
    -----
    The closed form, `quorums.ownership()` without the empty tiles, is returned unless a smaller largest load is found.
    The search starts from it, and from longest processing time (Graham 1969): heaviest first, each to the least loaded
    of its holders. Each step lowers a most loaded worker and makes no other as loaded, by the best move of one tile or
    swap of two, or else by a rearrangement of up to 8 moves. It ends when 2000 trials of each length find nothing,
    when the largest load is within 0.5 % of `load_bound`, or after 30 W steps. What is then not even takes parts of
    tiles: `cqs.schedule.balance_parts.even_parts`.

    Tiles (g, h) and (h, g) stay together at first, as they need the same tokens; then they may part, which is kept only
    where it lowers the largest load. The result is a function of the arguments alone. A pair with one holder leaves
    no choice: under a perfect cover only the diagonal is free. Memory O(W^2 m); time that, and the search.

    Examples
    --------
    Eight groups, each of which sees itself and the one before:

    >>> quorums, weights = CyclicQuorumSet(8), 4 * np.eye(8, dtype=int) + 2 * np.eye(8, k=-1, dtype=int)
    >>> np.bincount(quorums.ownership().ravel(), weights.ravel()).astype(int).tolist()
    [2, 2, 2, 2, 10, 10, 10, 8]
    >>> owners = balanced_owners(quorums, weights)
    >>> [int(weights[owners == i].sum()) for i in range(8)]
    [6, 6, 6, 6, 6, 6, 6, 4]
    """
    weights = _checked(quorums, weights)
    best = np.where(weights > 0, quorums.ownership(), -1)
    least, bound = largest_load(best, weights), load_bound(quorums, weights)
    goal = max(ceil(bound), int(bound * _CLOSE))
    for joined in (True, False):
        if least > goal:
            units = _Units.of(quorums, weights, joined)
            for start in (units.owners_in(best), units.longest_first()):
                owners = units.matrix(Search(units.weights, units.holders, units.forced, start).down_to(goal), weights)
                if (load := largest_load(owners, weights)) < least:
                    best, least = owners, load
    return best


def load_bound(quorums: CyclicQuorumSet, weights: npt.NDArray[np.integer[Any]]) -> float:
    """Return a load that some worker has at least, whoever owns what; parameters as for `balanced_owners`.

    It is the greatest of the mean load; the load of a worker from the tiles that only it can own; and, for each tile,
    the tile and that load of its least loaded holder. O(W^2 m).

    >>> load_bound(CyclicQuorumSet(7), np.ones((7, 7), dtype=int))
    7.0
    """
    weights = _checked(quorums, weights)
    units = _Units.of(quorums, weights, joined=False)
    forced = units.forced
    placed = (w + min(forced[i] for i in held) for w, held in zip(units.weights, units.holders, strict=True))
    return max(int(weights.sum()) / quorums.modulus, float(max(forced)), float(max(placed, default=0)))


def even_load(weights: npt.NDArray[np.integer[Any]]) -> int:
    """Return 1.05 times the mean load of W workers, rounded down: a largest load that is small enough.

    >>> even_load(np.full((7, 7), 9))
    66
    """
    return int(weights.sum()) * _EVEN[0] // (_EVEN[1] * len(weights))


def largest_load(owners: npt.NDArray[np.integer[Any]], weights: npt.NDArray[np.integer[Any]]) -> int:
    """Return the largest load of a worker.

    >>> largest_load(np.array([[0, 1], [1, -1]]), np.array([[3, 2], [2, 0]]))
    4
    """
    loads = np.zeros(len(owners), dtype=np.int64)
    np.add.at(loads, owners[owners >= 0], weights[owners >= 0])
    return int(loads.max())


def _checked(quorums: CyclicQuorumSet, weights: npt.NDArray[np.integer[Any]]) -> _Matrix:
    W = quorums.modulus
    if weights.shape != (W, W) or weights.dtype.kind not in "iu" or (weights < 0).any():
        got = f"{weights.dtype} of shape {weights.shape}: {reprlib.repr(weights.ravel().tolist())}"
        raise OptionError.of("weights", f"be {W} x {W} integers of at least 0", got, "count each tile's visible pairs")
    return weights.astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Units:
    """What one worker or another can own: tiles, or pairs of tiles when joined; and what is settled beforehand."""

    settled: _Matrix  # (W, W): the owner of units with a single holder, else -1
    forced: list[int]  # the load of each worker from these
    joined: bool
    tiles: list[tuple[int, int]]
    weights: list[int]
    holders: list[tuple[int, ...]]

    @classmethod
    def of(cls, quorums: CyclicQuorumSet, weights: _Matrix, joined: bool) -> "_Units":
        W, base = quorums.modulus, np.array(quorums.base)
        units = cls(np.full((W, W), -1), [0] * W, joined, [], [], [])
        for d in range(W // 2 + 1 if joined else W):
            g = np.arange(W // 2 if joined and 2 * d == W else W)  # the pairs at distance W/2 come twice
            h = (g + d) % W
            work = weights[g, h] + (weights[h, g] if joined and d else 0)
            g, h, work = g[work > 0], h[work > 0], work[work > 0]
            shifts = base[np.isin((base + d) % W, base)]
            holders = np.sort((g[:, None] - shifts) % W, axis=1)  # (tiles at this distance, workers that hold them)
            if len(shifts) > 1:
                units.tiles.extend(zip(g.tolist(), h.tolist(), strict=True))
                units.weights.extend(work.tolist())
                units.holders.extend(map(tuple, holders.tolist()))
                continue
            units.settled[g, h] = holders[:, 0]
            for i, w in zip(holders[:, 0].tolist(), work.tolist(), strict=True):
                units.forced[i] += w
        return units

    def owners_in(self, matrix: _Matrix) -> list[int]:
        return [int(max(matrix[g, h], matrix[h, g]) if self.joined else matrix[g, h]) for g, h in self.tiles]

    def longest_first(self) -> list[int]:
        loads, owners = self.forced.copy(), [-1] * len(self.tiles)
        for u in sorted(range(len(owners)), key=lambda u: -self.weights[u]):
            owners[u] = min(self.holders[u], key=loads.__getitem__)
            loads[owners[u]] += self.weights[u]
        return owners

    def matrix(self, owners: list[int], weights: _Matrix) -> _Matrix:
        matrix = self.settled.copy()
        for tile, i in zip(self.tiles, owners, strict=True):
            matrix[tile] = i
        if self.joined:
            matrix = np.where(matrix < 0, matrix.T, matrix)
        return np.where(weights > 0, matrix, -1)
