"""Local search for an even assignment: moves, swaps, and rearrangements of a few units. Integers only."""

from collections.abc import Sequence

__all__ = ["Search"]

_MOVES, _TRIALS = 8, 2_000  # in a rearrangement; of each number of moves
_STEPS = 30  # for each worker


class Search:
    """Owners that are made more even step by step: each step lowers a largest load and raises none to it.

    Parameters
    ----------
    weights : sequence of int
        The work of each unit: a tile, a pair of tiles, or a part of one.
    holders : sequence of sequence of int
        The workers that each may go to.
    loads : sequence of int
        What each worker has to do besides.
    owners : sequence of int
        Of each unit, at first.
    """

    def __init__(
        self, weights: Sequence[int], holders: Sequence[Sequence[int]], loads: Sequence[int], owners: Sequence[int]
    ) -> None:
        self.weights, self.holders, self.owners = weights, holders, list(owners)
        self.loads, self.trials = list(loads), 0
        self.owned: list[dict[int, None]] = [{} for _ in self.loads]  # sets, in order of arrival
        for u, i in enumerate(owners):
            self.loads[i] += self.weights[u]
            self.owned[i][u] = None

    def down_to(self, goal: int) -> list[int]:
        """Return owners whose largest load is the goal or less, or what was the end of the search."""
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
