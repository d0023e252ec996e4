"""Whole tiles put into workers of limited room: a search among assignments, and then all of them. Integers only."""

from collections.abc import Sequence
from math import gcd

from cqs.schedule.fitting_chains import Chains
from cqs.schedule.fitting_tree import Tree

__all__ = ["fitted"]

_TRIES = 4
_LOOKS = (0, 100_000), (2_000_000, 15_000)  # at continuations of chains, and more for each worker; the lesser of two
_VISITS, _MORE_VISITS = 40_000, 400_000  # of tiles and their holders, in the tree: at first, and in the end
_FEW = 24  # workers for which the tree is searched twice


def fitted(weights: Sequence[int], holders: Sequence[Sequence[int]], room: Sequence[int]) -> list[int] | None:
    """Give each tile to one of its holders such that no worker gets more than its room; None if that is not found.

    Parameters
    ----------
    weights : sequence of int
        Of each tile, greater than 0.
    holders : sequence of sequence of int
        The workers that each tile may go to.
    room : sequence of int
        What each worker can take.

    Notes
    -----
    This is bin packing with restricted bins, which is NP-hard: None is a proof only where the tree of assignments is
    small. First, what is without alternative is settled, and rooms are lessened to loads that can occur. Then the tree
    is searched depth first, for 40000 visits, and cut where what single workers can take at all does not add up to
    what is left. Chains of moves follow (`cqs.schedule.fitting_chains`), in four tries, and for up to 24 workers the
    tree once more, for 400000 visits.

    The result is a function of the arguments alone.

    Examples
    --------
    >>> fitted([3, 3, 2, 2, 2], [(0, 1)] * 5, [6, 6])
    [0, 0, 1, 1, 1]
    >>> fitted([4, 4, 4], [(0, 1)] * 3, [6, 6]) is None
    True
    """
    unit = max(gcd(*weights), 1)
    weights, room = [w // unit for w in weights], [n // unit for n in room]
    tree = Tree(weights, _VISITS)
    start, left, owners = {t: list(held) for t, held in enumerate(holders)}, list(room), [-1] * len(weights)
    if tree.settle(start, left, owners) is None:
        return None
    left = tree.fillings(start, left)
    if (found := tree.descend(dict(start), left.copy(), owners.copy())) or tree.is_complete:
        return found
    looks = min(some + more * len(room) for some, more in _LOOKS)
    for seed in range(_TRIES):
        search = Chains(weights, start, left, seed)
        if search.has_fitted(looks // (_TRIES - seed)):
            return [search.owners.get(t, i) for t, i in enumerate(owners)]
        looks -= search.looks
    return Tree(weights, _MORE_VISITS).descend(start, left, owners) if len(room) <= _FEW else None
