"""Who owns which tile when tiles differ in work: an even assignment that the quorums allow. Integers only."""

import reprlib
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.errors import OptionError
from cqs.quorum import CyclicQuorumSet
from cqs.schedule.balance_period import fitted_in_period, period
from cqs.schedule.fitting import fitted

__all__ = ["balanced_owners", "load_bound"]

_Matrix = npt.NDArray[np.int64]

_CLOSE = 1.005  # times the bound: a largest load that is even enough to stop
_MOVES, _TRIALS = 8, 2_000  # in a rearrangement; of each number of moves
_STEPS = 30  # for each worker
_EVEN = 21, 20  # largest load to mean load that is worth a search of all assignments: 1.05


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
    swap of two, or else by a rearrangement of up to 8 moves. It ends when 5000 trials of each length find nothing,
    when the largest load is within 0.5 % of `load_bound`, or after 30 W steps. If it is then above 1.05 times the mean,
    and `load_bound` is not, tiles are fitted into workers of that room by `cqs.schedule.fitting.fitted`; at first such
    that owners repeat where the weights do, as for documents of one length that end with a group.

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
    least, bound = _largest_load(best, weights), load_bound(quorums, weights)
    goal = max(ceil(bound), int(bound * _CLOSE))
    for joined in (True, False):
        if least > goal:
            units = _Units.of(quorums, weights, joined)
            for start in (units.owners_in(best), units.longest_first()):
                owners = units.matrix(_Search(units, start).down_to(goal), weights)
                if (load := _largest_load(owners, weights)) < least:
                    best, least = owners, load
    even = int(weights.sum()) * _EVEN[0] // (_EVEN[1] * len(weights))
    if least > even >= bound:
        units = _Units.of(quorums, weights, joined=False)
        if found := units.fitted_to(even, period(weights)):
            best = units.matrix(_Search(units, found).down_to(goal), weights)
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


def _checked(quorums: CyclicQuorumSet, weights: npt.NDArray[np.integer[Any]]) -> _Matrix:
    W = quorums.modulus
    if weights.shape != (W, W) or weights.dtype.kind not in "iu" or (weights < 0).any():
        got = f"{weights.dtype} of shape {weights.shape}: {reprlib.repr(weights.ravel().tolist())}"
        raise OptionError.of("weights", f"be {W} x {W} integers of at least 0", got, "count each tile's visible pairs")
    return weights.astype(np.int64)


def _largest_load(owners: _Matrix, weights: _Matrix) -> int:
    loads = np.zeros(len(owners), dtype=np.int64)
    np.add.at(loads, owners[owners >= 0], weights[owners >= 0])
    return int(loads.max())


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

    def fitted_to(self, limit: int, p: int) -> list[int] | None:
        """Return owners that give nobody more than the limit, first of all owners that repeat after p; if found."""
        room = [limit - load for load in self.forced]
        if p < len(room) and (found := fitted_in_period(p, self.tiles, self.weights, self.holders, room)):
            return found
        return fitted(self.weights, self.holders, room)

    def matrix(self, owners: list[int], weights: _Matrix) -> _Matrix:
        matrix = self.settled.copy()
        for tile, i in zip(self.tiles, owners, strict=True):
            matrix[tile] = i
        if self.joined:
            matrix = np.where(matrix < 0, matrix.T, matrix)
        return np.where(weights > 0, matrix, -1)


class _Search:
    """Owners that are made more even step by step: each step lowers a largest load and raises none to it."""

    def __init__(self, units: _Units, owners: list[int]) -> None:
        self.weights, self.holders, self.owners = units.weights, units.holders, owners.copy()
        self.loads, self.trials = units.forced.copy(), 0
        self.owned: list[dict[int, None]] = [{} for _ in self.loads]  # sets, in order of arrival
        for u, i in enumerate(owners):
            self.loads[i] += self.weights[u]
            self.owned[i][u] = None

    def down_to(self, goal: int) -> list[int]:
        for _ in range(_STEPS * len(self.loads)):
            i = self.loads.index(max(self.loads))
            fewest_first = (self._relieve([i], self.loads[i], n) for n in range(1, _MOVES + 1))
            if self.loads[i] <= goal or not (self._move_or_swap(i) or any(fewest_first)):
                break
        return self.owners

    def _give(self, u: int, j: int) -> None:
        i, self.owners[u] = self.owners[u], j
        del self.owned[i][u]
        self.owned[j][u] = None
        self.loads[i] -= self.weights[u]
        self.loads[j] += self.weights[u]

    def _move_or_swap(self, i: int) -> bool:
        """Make the move, or the swap, that leaves i and the worker it deals with the least largest load; if any."""
        loads, weights, least, best = self.loads, self.weights, self.loads[i], list[tuple[int, int]]()
        returns: dict[int, list[int]] = {}  # what each other worker could give to i
        for u in self.owned[i]:
            for j in self.holders[u]:
                if loads[j] < loads[i] and j not in returns:
                    returns[j] = [v for v in self.owned[j] if i in self.holders[v]]
                for v in (-1, *returns.get(j, ())):
                    more = weights[u] - (weights[v] if v >= 0 else 0)
                    if (peak := max(loads[i] - more, loads[j] + more)) < least:
                        least, best = peak, [(u, j), (v, i)] if v >= 0 else [(u, j)]
        for u, j in best:
            self._give(u, j)
        return bool(best)

    def _relieve(self, over: list[int], limit: int, n_moves: int, moved: frozenset[int] = frozenset()) -> bool:
        """Bring the workers in `over`, and all that are given to, below the limit in so many moves; False if not."""
        self.trials = self.trials if moved else 0
        over = [i for i in over if self.loads[i] >= limit]
        if not over or len(over) > n_moves:
            return not over
        i = over[-1]
        for u in [u for u in self.owned[i] if u not in moved]:
            moved = moved | {u}  # what moves u, in whatever order, is tried here and not again
            for j in self.holders[u]:
                if j == i or self.trials == _TRIALS or (n_moves == 1 and self.loads[j] + self.weights[u] >= limit):
                    continue
                self.trials += 1
                self._give(u, j)
                if self._relieve([k for k in over if k != j] + [j], limit, n_moves - 1, moved):
                    return True
                self._give(u, i)
        return False
