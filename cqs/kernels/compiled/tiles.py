"""One panel of queries against some keys: tiles of scores become weights, and are summed up with the values."""

import numpy as np
from numba import boolean, float32, int64, types, void

from cqs.kernels.compiled.products import multiply
from cqs.kernels.compiled.reading import ROW, read, write
from cqs.kernels.compiled.vectors import (
    ITEM,
    LANES,
    VECTOR_BYTES,
    any_less,
    compiled,
    exp2,
    load,
    spread,
    store,
    where_less,
)
from cqs.kernels.numba_tables import BOUNDED, FLAGGED
from cqs.schedule import TILE_KEYS

__all__ = ["add_keys", "fill", "fold", "weigh"]

_ZERO, _ONE, _NOTHING = np.float32(0), np.float32(1), np.float32(-np.inf)
_LOWEST = np.finfo(np.float32).min


@compiled(types.UniTuple(int64, 4)(int64, int64, int64, int64, int64))
def _spread_bounds(bounds, n_rows, lane, n_lanes, between):
    """Write which keys some lanes see, as the bounds of rows say; return the least and most of both ends."""
    least_first, least_end, most_first, most_end = np.int64(2**31), np.int64(2**31), np.int64(0), np.int64(0)
    row = lane % n_rows
    for j in range(n_lanes):
        place = bounds + row * ITEM
        first, end = np.int64(read(place, np.int32(0))), np.int64(read(place + n_rows * ITEM, np.int32(0)))
        write(np.float32(first), between + j * ITEM)
        write(np.float32(end), between + ROW + j * ITEM)
        least_first, most_first = min(least_first, first), max(most_first, first)
        least_end, most_end = min(least_end, end), max(most_end, end)
        row = row + 1 if row + 1 < n_rows else 0
    return least_first, most_first, least_end, most_end


@compiled(void(int64, int64, int64, int64, int64))
def _hide_outside(scores, key, n_keys, n_vectors, between):
    """Set scores of a tile, whose first key has the number `key`, to -inf where lanes do not see them."""
    nothing = spread(_NOTHING)
    for n in range(n_vectors):
        here = n * VECTOR_BYTES
        first, end = load(between + here), load(between + ROW + here)
        for i in range(n_keys):
            number, place = spread(np.float32(key + i)), scores + i * ROW + here
            score = where_less(number, end, load(place), nothing)
            store(where_less(number, first, nothing, score), place)


@compiled(void(int64, int64, int64, int64, int64, int64))
def _hide_flagged(scores, n_keys, hidden, n_rows, lane, n_lanes):
    """Set scores of a tile to -inf where `hidden`, a byte for each key and row, says so."""
    for i in range(n_keys):
        row = lane % n_rows
        for j in range(n_lanes):
            if read(hidden + i * n_rows + row, np.uint8(0)):
                write(_NOTHING, scores + i * ROW + j * ITEM)
            row = row + 1 if row + 1 < n_rows else 0


@compiled(boolean(int64, int64, int64, float32, int64, int64, int64))
def weigh(scores, n_keys, n_vectors, factor, tops, totals, factors):
    """Turn a tile of scores into weights, and add them to the totals.

    A weight is 2 to the power of `factor` times what a score is less than the maximum: so it is as exact for large
    scores as for small ones. Return whether any maximum grew. What was summed up before then has to be multiplied by
    `factors`.
    """
    grew, zero, one, times = False, spread(_ZERO), spread(_ONE), spread(factor)
    for n in range(n_vectors):
        here = n * VECTOR_BYTES
        before, total, growth = load(tops + here), load(totals + here), one
        top = before
        for i in range(n_keys):
            score = load(scores + i * ROW + here)
            top = where_less(top, score, score, top)
        if any_less(before, top):
            grew, growth = True, where_less(before, top, exp2((before - top) * times), one)
            total = total * growth
            store(top, tops + here)
        store(growth, factors + here)
        shift = where_less(top, spread(_LOWEST), zero, top)  # -inf - -inf would be NaN
        part = zero  # summed up by itself, so that small weights are not lost beside what came before
        for i in range(n_keys):
            place = scores + i * ROW + here
            weight = exp2((load(place) - shift) * times)
            store(weight, place)
            part = part + weight
        store(total + part, totals + here)
    return grew


@compiled(void(int64, int64, float32))
def fill(address, n, number):
    """Write a number n times, a multiple of the numbers of a vector."""
    for place in range(address, address + n * ITEM, VECTOR_BYTES):
        store(spread(number), place)


@compiled(void(int64, int64, int64, int64))
def _rescale(sums, width, factors, n_lanes):
    """Multiply the sums of each lane by its factor."""
    for j in range(n_lanes):
        factor = read(factors + j * ITEM, _ZERO)
        if factor != _ONE:
            row = sums + j * width * ITEM
            for e in range(0, width, LANES):
                store(load(row + e * ITEM) * spread(factor), row + e * ITEM)


@compiled(void(int64, int64, int64, boolean))
def fold(sums, kept, n, adds):
    """Move sums to where they are kept, or add them to what is there, and begin anew."""
    for place in range(0, n * ITEM, VECTOR_BYTES):
        recent = load(sums + place)
        if adds:
            recent = recent + load(kept + place)
        store(recent, kept + place)
        store(spread(_ZERO), sums + place)


@compiled(void(*[int64] * 19, float32, boolean))
def add_keys(
    queries, depth, n_rows, lane, n_lanes, k, k_row, v, v_row, key, n_keys, kind, said,
    tile, sums, width, tops, lanes, kept, factor, is_kept,
):  # fmt: skip
    """Add some keys to the sums of a panel; the first of them has the number `key` in its piece."""
    n_vectors, end = -(-n_lanes // LANES), key + n_keys
    between, factors, totals = lanes, lanes + 2 * ROW, width * ROW  # the last follow sums
    least_first, most_first, least_end, most_end = key, key, end, end
    if kind == BOUNDED:
        least_first, most_first, least_end, most_end = _spread_bounds(said, n_rows, lane, n_lanes, between)
    for here in range(key, end, TILE_KEYS):
        n = min(TILE_KEYS, end - here)
        if most_end <= here or least_first >= here + n:
            continue
        own_k, own_v = k + (here - key) * k_row, v + (here - key) * v_row
        multiply(own_k, k_row, ITEM, queries, ROW, tile, ROW, n, n_vectors, depth, False)
        if kind == FLAGGED:
            _hide_flagged(tile, n, said + here * n_rows, n_rows, lane, n_lanes)
        elif most_first > here or least_end < here + n:
            _hide_outside(tile, here, n, n_vectors, between)
        if weigh(tile, n, n_vectors, factor, tops, sums + totals, factors):
            _rescale(sums, width, factors, n_lanes)
            if is_kept:
                _rescale(kept, width, factors, n_lanes)
                for place in range(0, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
                    own = kept + totals + place
                    store(load(own) * load(factors + place), own)
        multiply(tile, ITEM, ROW, own_v, v_row, sums, width * ITEM, n_lanes, width // LANES, n, True)
