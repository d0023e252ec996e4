"""Owners that repeat where the work of tiles does: only the tiles of one period need to be fitted. Integers only."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.schedule.fitting import fitted

__all__ = ["fitted_in_period", "period"]


def period(weights: npt.NDArray[np.integer[Any]]) -> int:
    """Return the least p by which both groups of every tile can be moved, modulo W, without any change of work.

    p divides W, and is W where nothing repeats. Documents of one length repeat, where they end with a group.

    >>> period(np.kron(np.eye(3, dtype=int), [[1, 0], [2, 3]]))
    2
    """
    W = len(weights)
    divisors = (p for p in range(1, W) if W % p == 0)
    return next((p for p in divisors if np.array_equal(np.roll(weights, (p, p), axis=(0, 1)), weights)), W)


def fitted_in_period(
    p: int,
    tiles: Sequence[tuple[int, int]],
    weights: Sequence[int],
    holders: Sequence[Sequence[int]],
    room: Sequence[int],
) -> list[int] | None:
    """Give each tile to one of its holders so that worker i + p owns what i owns, moved by p; None if not found.

    Parameters
    ----------
    p : int
        A period of weights, holders and room.
    tiles : sequence of (int, int)
        The groups of each tile.
    weights, holders, room
        As for `cqs.schedule.fitting.fitted`, whose search is the faster the smaller p is: it is that for p workers.

    Notes
    -----
    Quorums are cyclic: whoever holds (g, h), the p-th after holds (g + p, h + p). So what fits into workers 0 .. p - 1
    modulo p, repeated, fits everywhere. The converse does not hold: there may be owners that do not repeat.
    """
    W = len(room)
    ours = [t for t, (g, _) in enumerate(tiles) if g < p]
    choices = [{i % p: i for i in reversed(holders[t])} for t in ours]
    found = fitted([weights[t] for t in ours], [sorted(choice) for choice in choices], room[:p])
    if found is None:
        return None
    owners = {tiles[t]: choice[i] for t, choice, i in zip(ours, choices, found, strict=True)}
    shifts = (g - g % p for g, _ in tiles)
    return [(owners[g - s, (h - s) % W] + s) % W for (g, h), s in zip(tiles, shifts, strict=True)]
