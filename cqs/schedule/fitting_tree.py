"""All assignments of tiles to workers of limited room, depth first, with what is settled beforehand. Integers only."""

from collections.abc import Sequence

__all__ = ["Open", "Tree"]

Open = dict[int, list[int]]  # tiles that have no owner yet, and the workers that each fits into

_LARGEST_SUM = 1 << 16  # up to which the loads that a worker can have at all are listed


class Tree:
    """Assignments tile by tile, depth first.

    Parameters
    ----------
    weights : sequence of int
        Of each tile, greater than 0.
    most_visits : int
        Of tiles and their holders, after which the search is given up; few enough that Python's stack is as deep.
    """

    def __init__(self, weights: Sequence[int], most_visits: int) -> None:
        self.weights, self.most_visits, self.visits = weights, most_visits, 0

    @property
    def is_complete(self) -> bool:
        """Whether nothing was left out, so that None is a proof."""
        return self.visits <= self.most_visits

    def descend(self, tiles: Open, room: list[int], owners: list[int]) -> list[int] | None:
        """Return owners of all tiles, or None; the arguments are used up."""
        wanted = self.settle(tiles, room, owners)
        if wanted is None:
            return None
        if not tiles:
            return owners
        if not self.is_complete or sum(self.fillings(tiles, room)) < sum(self.weights[t] for t in tiles):
            return None
        t = min(tiles, key=lambda t: (len(tiles[t]), -self.weights[t]))
        held = tiles.pop(t)
        twins = [u for u, fits in tiles.items() if fits == held and self.weights[u] == self.weights[t]]
        for i in sorted(held, key=lambda i: wanted[i] - room[i]):
            rest, fewer = owners.copy(), room.copy()
            rest[t], fewer[i] = i, room[i] - self.weights[t]
            if (found := self.descend(dict(tiles), fewer, rest)) is not None:
                return found
            for u in twins:  # where a twin goes to i, t might as well
                tiles[u] = [j for j in tiles[u] if j != i]
        return None

    def settle(self, tiles: Open, room: list[int], owners: list[int]) -> list[int] | None:
        """Give away, in place, what fits into one worker only, and all to a worker who has room for all that it could.

        Returns what each worker could get of the other tiles, or None if a tile fits nowhere.
        """
        while True:
            wanted, n_tiles = [0] * len(room), len(tiles)
            self.visits += sum(map(len, tiles.values()))
            for t, held in list(tiles.items()):
                fits = [i for i in held if room[i] >= self.weights[t]]
                if not fits:
                    return None
                tiles[t] = fits
                for i in fits:
                    wanted[i] += self.weights[t]
                if len(fits) == 1:
                    self._give(t, fits[0], tiles, room, owners)
            if n_tiles > len(tiles):
                continue
            easy = [0 < wanted[i] <= room[i] for i in range(len(room))]
            for t, held in list(tiles.items()):
                if (i := next((i for i in held if easy[i]), -1)) >= 0:
                    self._give(t, i, tiles, room, owners)
            if n_tiles == len(tiles):
                return wanted

    def fillings(self, tiles: Open, room: Sequence[int]) -> list[int]:
        """Return the most that each worker by itself can take of these tiles, whole as they are."""
        sums, wanted = [1] * len(room), [0] * len(room)  # bit n is set if some of its tiles weigh n together
        for t, held in tiles.items():
            w = self.weights[t]
            for i in held:
                wanted[i] += w
                if room[i] <= _LARGEST_SUM:
                    sums[i] |= (sums[i] << w) & ((2 << room[i]) - 1)
        return [
            s.bit_length() - 1 if n <= _LARGEST_SUM else min(n, w) for s, n, w in zip(sums, room, wanted, strict=True)
        ]

    def _give(self, t: int, i: int, tiles: Open, room: list[int], owners: list[int]) -> None:
        owners[t] = i
        room[i] -= self.weights[t]
        del tiles[t]
