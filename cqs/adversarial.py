"""Rows of an attention output where errors of a tile scheme are: at borders of groups, and where a mask changes."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from cqs.masks import Mask
from cqs.schedule import Plan, even_cuts

__all__ = ["border_rows", "edge_rows"]

_MOST_PLACES = 64  # of each kind
_MOST_TASKS = 500  # of a plan that are looked at
_AT_ONCE = 1 << 16  # queries that a mask is asked about
_MOST_QUERIES = 1 << 22
_MOST_PAIRS = 1 << 22  # of masks that are evaluated pair by pair

Numbers = npt.NDArray[np.int64]


def border_rows(T: int, workers: int | None = None, plan: Plan | None = None) -> Numbers:
    """Return the rows on both sides of the borders of W groups, or of the strips and kernel calls of a plan.

    >>> border_rows(10, workers=3)
    array([2, 3, 5, 6])
    """
    if plan is not None and plan.workers <= _MOST_TASKS:
        starts = set(_starts(plan))
    else:
        W = min(plan.workers if plan is not None else workers or 1, max(T, 1))
        places = np.arange(1, W) if W <= _MOST_PLACES else np.linspace(1, W - 1, _MOST_PLACES).astype(np.int64)
        starts = {int(g) * T // W for g in places}
    return _both_sides(starts, T)


def _starts(plan: Plan) -> Iterable[int]:
    for task in map(plan.task, range(plan.workers)):
        for strip in task.strips:
            most = plan.grain.rows or max(len(strip.query), 1)
            yield from (strip.query.start + cut.start for cut in even_cuts(len(strip.query), most))
            yield strip.query.stop


def edge_rows(mask: Mask, T: int, S: int) -> Numbers:
    """Return the rows around which what a query sees begins or ceases to grow, shrink or move, or jumps.

    Parameters
    ----------
    mask : Mask
        Of one head. Without edges it is evaluated, if there are at most four million pairs.
    T, S : int
        Queries, of which four million may be asked about, and keys.
    """
    if mask.hides_nothing or T < 3 or T > _MOST_QUERIES or not (mask.has_edges or T * S <= _MOST_PAIRS):
        return np.empty(0, np.int64)
    seen = np.concatenate([_seen(mask, range(i, min(i + _AT_ONCE, T)), S) for i in range(0, T, _AT_ONCE)])
    middles = _some(np.flatnonzero(np.diff(seen, 2, axis=0).any(axis=1)) + 1)
    return np.unique(np.concatenate([middles - 1, middles, middles + 1]))


def _seen(mask: Mask, queries: range, S: int) -> Numbers:
    """Return of some queries how many keys each sees, the first of them, and the one after the last: `(n, 3)`."""
    if mask.has_edges:
        numbers = np.arange(queries.start, queries.stop)
        cuts = np.clip(mask.edges(numbers), 0, S)
        ends = np.broadcast_to(np.array([0, S]), (len(numbers), 2))
        cuts = np.sort(np.concatenate([cuts, ends], axis=1), axis=1)
        starts, stops = cuts[:, :-1], cuts[:, 1:]
        is_seen = (starts < stops) & mask.visible(numbers[:, None], starts)
    else:
        is_seen = mask.block(queries, range(S))
        starts, stops = np.arange(S)[None], np.arange(1, S + 1)[None]
    n_seen = ((stops - starts) * is_seen).sum(axis=1)
    first = np.where(is_seen, starts, S).min(axis=1, initial=S)
    last = np.where(is_seen, stops, 0).max(axis=1, initial=0)
    return np.stack([n_seen, first, last], axis=1).astype(np.int64)


def _both_sides(starts: Iterable[int], T: int) -> Numbers:
    """Return the rows before and at those places that are inside."""
    places = _some(np.array(sorted({int(start) for start in starts if 0 < start < T}), np.int64))
    return np.union1d(places - 1, places)


def _some(places: Numbers) -> Numbers:
    """Return all places, or about 64 of them, spread evenly."""
    if len(places) <= _MOST_PLACES:
        return places
    return places[np.linspace(0, len(places) - 1, _MOST_PLACES).astype(np.int64)]
