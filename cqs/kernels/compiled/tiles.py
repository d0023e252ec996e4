"""One panel of queries against some keys: tiles of scores become weights, and are summed up with the values."""

import numpy as np
from numba import boolean, float32, int64, njit, void
from numba.extending import register_jitable

from cqs.kernels.compiled.dots import are_few, score_few
from cqs.kernels.compiled.hiding import hide, seen_by_lanes
from cqs.kernels.compiled.panels import PANEL_TYPE
from cqs.kernels.compiled.products import multiply, multiply_halves
from cqs.kernels.compiled.reading import ROW, read
from cqs.kernels.compiled.scores import change_scores
from cqs.kernels.compiled.vectors import (
    ITEM,
    LANES,
    LIFT,
    VECTOR_BYTES,
    any_less,
    compiled,
    inlined,
    lifted_exp2,
    load,
    spread,
    store,
    where_less,
)
from cqs.kernels.numba_tables import FLOAT32
from cqs.schedule import PANEL, TILE_KEYS

__all__ = ["add_keys", "compared", "fill", "fold", "raise_tops", "rescale", "weigh"]

_ZERO, _NOTHING = np.float32(0), np.float32(-np.inf)
_LIFTED, _LOWER = np.float32(2.0**LIFT), np.float32(2.0**-LIFT)
_LOWEST = np.finfo(np.float32).min
_ENOUGH = np.float32(8)  # powers of 2 that a weight may be more than 1, before what it is compared with is raised


@njit(nogil=True, forceinline=True)
def _largest(scores, n_keys, top):
    """Return the maxima of a vector of lanes; of four maxima in turn, so that none waits for the one before."""
    a, b, c, d = top, top, top, top
    whole = n_keys // 4 * 4
    for i in range(0, whole, 4):
        place = scores + i * ROW
        one, two, three, four = load(place), load(place + ROW), load(place + 2 * ROW), load(place + 3 * ROW)
        a, b = where_less(a, one, one, a), where_less(b, two, two, b)
        c, d = where_less(c, three, three, c), where_less(d, four, four, d)
    for i in range(whole, n_keys):
        score = load(scores + i * ROW)
        a = where_less(a, score, score, a)
    a, c = where_less(a, b, b, a), where_less(c, d, d, c)
    return where_less(a, c, c, a)


@njit(nogil=True, forceinline=True)
def raise_tops(scores, n_keys, times, top, total, factor):
    """Raise what the scores of a vector of lanes are compared with, where that is much less than the largest of them.

    The totals of weights are multiplied by what they are less now, and that is written to `factor`, lifted as weights
    are. Return whether anything was raised.
    """
    one, grew = spread(_LIFTED), False
    before, growth = load(top), one
    largest = _largest(scores, n_keys, before)
    largest = where_less((largest - before) * times, spread(_ENOUGH), before, largest)
    if any_less(before, largest):
        grew, growth = True, where_less(before, largest, lifted_exp2((before - largest) * times), one)
        store(load(total) * spread(_LOWER) * growth, total)
        store(largest, top)
    store(growth, factor)
    return grew


@njit(nogil=True, forceinline=True)
def compared(tops):
    """Return what scores are compared with: the largest, or where that is -inf 0, since -inf - -inf would be NaN."""
    return where_less(tops, spread(_LOWEST), spread(_ZERO), tops)


@compiled(int64(int64, int64, int64, float32, int64, int64, int64))
def weigh(scores, n_keys, n_vectors, factor, tops, totals, factors):
    """Turn a tile of scores into weights, and add them to the totals.

    A weight is 2 to the power of `factor` times what a score is less than the top, which is the largest score before,
    but for some: so it is as exact for large scores as for small ones. Weights, sums of them and factors are 2^32 times
    that, so that those of keys that matter little, and what they are multiplied with, have all their digits. Return in
    which vectors of lanes a top was raised, a bit for each: what was summed up has to be multiplied by `factors`.
    """
    grew, times = 0, spread(factor)
    for n in range(n_vectors):
        here = n * VECTOR_BYTES
        if raise_tops(scores + here, n_keys, times, tops + here, totals + here, factors + here):
            grew |= 1 << n
        shift = compared(load(tops + here))
        part = spread(_ZERO)  # summed up by itself, so that small weights are not lost beside what came before
        for i in range(n_keys):
            place = scores + i * ROW + here
            weight = lifted_exp2((load(place) - shift) * times)
            store(weight, place)
            part = part + weight
        store(load(totals + here) + part, totals + here)
    return grew


@compiled(void(int64, int64, float32))
def fill(address, n, number):
    """Write a number n times, a multiple of the numbers of a vector."""
    for place in range(address, address + n * ITEM, VECTOR_BYTES):
        store(spread(number), place)


@compiled(void(int64, int64, int64, boolean))
def fold(sums, kept, n, adds):
    """Move sums to where they are kept, or add them to what is there, and begin anew."""
    for place in range(0, n * ITEM, VECTOR_BYTES):
        recent = load(sums + place)
        if adds:
            recent = recent + load(kept + place)
        store(recent, kept + place)
        store(spread(_ZERO), sums + place)


@register_jitable
def _rescale_sums(sums, panel, factors, grew):
    lower, width = spread(_LOWER), panel.width
    for n in range(PANEL // LANES):
        if grew >> n & 1 == 0:
            continue
        if panel.pieces > 0:
            times = load(factors + n * VECTOR_BYTES)
            for place in range(sums + n * VECTOR_BYTES, sums + width * ROW, ROW):
                store(load(place) * lower * times, place)
            continue
        for j in range(n * LANES, (n + 1) * LANES):
            factor, row = spread(read(factors + j * ITEM, _ZERO)), sums + j * width * ITEM
            for e in range(0, width, LANES):
                store(load(row + e * ITEM) * lower * factor, row + e * ITEM)


@compiled(void(PANEL_TYPE, int64, int64, boolean))
def rescale(panel, factors, grew, is_kept):
    """Multiply the sums of each lane by its factor, which is lifted, in the vectors that have a bit in `grew`.

    Those that are kept are multiplied, too, and their totals; those of recent keys `weigh` has multiplied.
    """
    _rescale_sums(panel.sums, panel, factors, grew)
    if is_kept:
        _rescale_sums(panel.kept, panel, factors, grew)
        for place in range(0, -(-panel.n_lanes // LANES) * VECTOR_BYTES, VECTOR_BYTES):
            total = panel.kept + panel.width * ROW + place
            store(load(total) * spread(_LOWER) * load(factors + place), total)


@inlined
def add_keys(panel, keys, change, tile, between, room, factor, is_kept):
    """Add some keys to the sums of a panel.

    There is room for a tile of scores, for three numbers of each lane, and for what changes scores.
    """
    n_vectors, end = -(-panel.n_lanes // LANES), keys.first + keys.n
    factors, totals = between + 2 * ROW, panel.sums + panel.width * ROW
    seen = seen_by_lanes(keys, panel.n_rows, panel.lane, panel.n_lanes, between)
    for here in range(keys.first, end, TILE_KEYS):
        n = min(TILE_KEYS, end - here)
        if seen[3] <= here or seen[0] >= here + n:
            continue
        k, v = keys.k + (here - keys.first) * keys.k_row, keys.v + (here - keys.first) * keys.v_row
        if are_few(panel.n_lanes, panel.depth):
            score_few(k, keys.k_row, keys.k_type, n, panel.queries, panel.n_lanes, panel.depth, tile)
        else:
            multiply(k, keys.k_row, ITEM, panel.queries, ROW, tile, ROW, n, n_vectors, panel.depth, False)
        if change.is_made:
            token, lane, n_lanes = keys.token + here, panel.lane, panel.n_lanes
            change_scores(change, tile, n, token, panel.tokens, panel.n_rows, lane, n_lanes, room)
        hide(tile, here, n, keys, seen, panel.n_rows, panel.lane, panel.n_lanes, between)
        grew = weigh(tile, n, n_vectors, factor, panel.tops, totals, factors)
        if grew != 0:
            rescale(panel, factors, grew, is_kept)
        row, n_wide = panel.width * ITEM, panel.width // LANES
        if keys.v_type == FLOAT32:
            multiply(tile, ITEM, ROW, v, keys.v_row, panel.sums, row, panel.n_lanes, n_wide, n, True)
        else:
            multiply_halves(keys.v_type, tile, ITEM, ROW, v, keys.v_row, panel.sums, row, panel.n_lanes, n_wide, n)
