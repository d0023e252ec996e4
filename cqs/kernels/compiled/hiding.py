"""Keys that are read for some queries, and what of their scores is hidden from which."""

from typing import NamedTuple

import numpy as np
from numba import int64, types, void
from numba.extending import register_jitable

from cqs.kernels.compiled.reading import ROW, read, write
from cqs.kernels.compiled.vectors import ITEM, LANES, VECTOR_BYTES, compiled, load, spread, store, where_less
from cqs.kernels.numba_tables import BOUNDED, FLAGGED

__all__ = ["Keys", "hide", "seen_by_lanes", "seen_where"]

_NOTHING = np.float32(-np.inf)


class Keys(NamedTuple):
    """Keys and their values, and what is said of them."""

    k: int  # address
    k_row: int  # bytes from key to key
    k_type: int  # of their numbers
    v: int
    v_row: int
    v_type: int
    first: int  # number of the first in its piece
    n: int
    kind: int  # ALL_SEEN, BOUNDED or FLAGGED
    seen_at: int  # address of the piece's bounds or flags
    token: int  # number of the token that the piece's first key is


_KEYS_TYPE, _SEEN_TYPE = types.NamedUniTuple(int64, len(Keys._fields), Keys), types.UniTuple(int64, 4)


@register_jitable
def seen_where(kind, place, bounds, hidden):
    """Return the address of what is said of a run of keys, by that of all bounds and all flags."""
    return bounds + place * ITEM if kind == BOUNDED else hidden + place


@compiled(_SEEN_TYPE(int64, int64, int64, int64, int64))
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


@compiled(_SEEN_TYPE(_KEYS_TYPE, int64, int64, int64, int64))
def seen_by_lanes(keys, n_rows, lane, n_lanes, between):
    """Return the least and the most of the first key that a lane sees, and of the one after the last.

    For BOUNDED keys those of each lane are written `between`, for `hide`. Of others all may be seen.
    """
    if keys.kind == BOUNDED:
        return _spread_bounds(keys.seen_at, n_rows, lane, n_lanes, between)
    end = keys.first + keys.n
    return keys.first, keys.first, end, end


@compiled(void(int64, int64, int64, _KEYS_TYPE, _SEEN_TYPE, int64, int64, int64, int64))
def hide(tile, here, n, keys, seen, n_rows, lane, n_lanes, between):
    """Set scores of a tile of n keys, whose first has the number `here`, to -inf where they do not count."""
    _, most_first, least_end, _ = seen
    if keys.kind == FLAGGED:
        _hide_flagged(tile, n, keys.seen_at + here * n_rows, n_rows, lane, n_lanes)
    elif most_first > here or least_end < here + n:
        _hide_outside(tile, here, n, -(-n_lanes // LANES), between)
