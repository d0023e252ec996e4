"""What is done to the scores of a tile before the mask: a soft cap, and what is added to them."""

import numpy as np
from numba import boolean, float32, int64, types, void

from cqs.kernels.compiled.reading import ROW, copy_row, padded, read, write
from cqs.kernels.compiled.vectors import (
    ITEM,
    LANES,
    VECTOR_BYTES,
    compiled,
    load,
    spread,
    store,
    tanh,
    transpose,
    where_less,
)
from cqs.kernels.numba_scores import Change
from cqs.schedule import PANEL, TILE_KEYS

__all__ = ["CHANGE_ITEMS", "CHANGE_TYPE", "PLAIN_CHANGE_TYPE", "change_scores"]

_ZERO, _ONE = np.float32(0), np.float32(1)
_TOKEN_BYTES = 8  # of a token number
_KEYS_BYTES = TILE_KEYS * ITEM
CHANGE_ITEMS = PANEL * (1 + TILE_KEYS) + LANES * LANES  # numbers that `change_scores` needs room for


_FIELDS = (boolean, float32, float32, float32, *[int64] * 5)
CHANGE_TYPE = types.NamedTuple(_FIELDS, Change)
PLAIN_CHANGE_TYPE = types.Tuple(_FIELDS)  # which Python may hand over: to tell the type of the other takes it long


@compiled(void(int64, int64, int64, float32, float32))
def _scale(tile, n_keys, n_vectors, factor, cap):
    """Multiply products by the scale, and bend them to stay within the cap."""
    times, most, inverse = spread(factor), spread(cap), spread(_ONE / cap if cap != _ZERO else _ONE)
    for n in range(n_vectors):
        for i in range(n_keys):
            place = tile + i * ROW + n * VECTOR_BYTES
            score = load(place) * times
            if cap != _ZERO:
                score = tanh(score * inverse) * most
            store(score, place)


@compiled(void(int64, int64, int64, float32, int64))
def _subtract_distances(tile, n_keys, n_vectors, slope, distances):
    """Subtract the slope times the distance of a lane from each key; given is that from the first."""
    zero, times = spread(_ZERO), spread(slope)
    for n in range(n_vectors):
        from_first = load(distances + n * VECTOR_BYTES)
        for i in range(n_keys):
            place, distance = tile + i * ROW + n * VECTOR_BYTES, from_first - spread(np.float32(i))
            distance = where_less(distance, zero, zero - distance, distance)
            store(load(place) - times * distance, place)


@compiled(void(int64, int64, int64, int64, int64))
def _add_rows(tile, n_keys, n_vectors, rows, square):
    """Add rows of numbers, one for each lane, to the columns of a tile."""
    for n in range(n_vectors):
        for first in range(0, n_keys, LANES):
            transpose(rows + n * LANES * _KEYS_BYTES + first * ITEM, _KEYS_BYTES, square, VECTOR_BYTES)
            for i in range(min(LANES, n_keys - first)):
                place = tile + (first + i) * ROW + n * VECTOR_BYTES
                store(load(place) + load(square + i * VECTOR_BYTES), place)


@compiled(void(CHANGE_TYPE, int64, int64, int64, int64, int64, int64, int64, int64))
def change_scores(change, tile, n_keys, key_token, tokens, n_rows, lane, n_lanes, room):
    """Turn a tile of products into scores, in place.

    Parameters
    ----------
    change : Change
        What is done to them.
    tile : address of float32 numbers
        Key by key, those of the lanes side by side.
    n_keys, key_token : int
        Its keys, and the token number of the first.
    tokens : address of int64 numbers
        The token numbers of the block's rows.
    n_rows, lane, n_lanes : int
        The block's rows, of which lanes are counted row by row; the first lane of the tile, and how many it has.
    room : address
        Of room for `CHANGE_ITEMS` numbers.
    """
    n_vectors, rows = -(-n_lanes // LANES), room + PANEL * ITEM
    _scale(tile, n_keys, n_vectors, change.factor, change.cap)
    row = lane % n_rows
    for j in range(padded(n_lanes)):
        token = read(tokens + row * _TOKEN_BYTES, np.int64(0))
        if change.slope != _ZERO:
            write(np.float32(token + change.offset - key_token), room + j * ITEM)
        if change.bias != 0:
            place = change.bias + token * change.bias_row + key_token * change.bias_item
            n_here = n_keys if j < n_lanes else 0
            copy_row(place, change.bias_item, change.bias_kind, n_here, _ONE, rows + j * _KEYS_BYTES, padded(n_keys))
        row = row + 1 if row + 1 < n_rows else 0
    if change.slope != _ZERO:
        _subtract_distances(tile, n_keys, n_vectors, change.slope, room)
    if change.bias != 0:
        _add_rows(tile, n_keys, n_vectors, rows, rows + PANEL * _KEYS_BYTES)
