"""The gradient of a bias: gradients of scores, tile by tile, are added up where the numbers are that were added."""

from typing import NamedTuple

import numpy as np
from numba import float32, int64, types, void

from cqs.kernels.compiled.reading import ROW, read, write
from cqs.kernels.compiled.vectors import ITEM, LANES, LIFT, VECTOR_BYTES, compiled, load, spread, store, transpose

__all__ = ["BiasSums", "add_to_bias"]

_ZERO, _LOWER = np.float32(0), np.float32(2.0**-LIFT)


class BiasSums(NamedTuple):
    """Sums for the rows of a block and some keys, of a bias that is the same for all heads of the block."""

    place: int  # address of those of the first row and key; 0 if there are none
    row: int  # bytes from row to row, 0 where one is for all
    item: int  # bytes from key to key, likewise


_SUMS_TYPE = types.NamedUniTuple(int64, 3, BiasSums)


@compiled(void(float32, int64))
def _add(number, place):
    write(read(place, _ZERO) + number * _LOWER, place)


@compiled(float32(int64))
def _sum_of_vector(place):
    total = _ZERO
    for i in range(LANES):
        total += read(place + i * ITEM, _ZERO)
    return total


@compiled(void(int64, int64, int64, _SUMS_TYPE, int64))
def _add_all(dtile, n_keys, n_lanes, sums, square):
    """Add each number to one of its own, whose neighbours are those of the next keys."""
    for lane in range(0, n_lanes, LANES):
        for key in range(0, n_keys, LANES):
            transpose(dtile + key * ROW + lane * ITEM, ROW, square, VECTOR_BYTES)
            for j in range(min(LANES, n_lanes - lane)):
                place, numbers = sums.place + (lane + j) * sums.row + key * ITEM, square + j * VECTOR_BYTES
                if key + LANES <= n_keys:
                    store(load(place) + load(numbers) * spread(_LOWER), place)
                else:
                    for i in range(n_keys - key):
                        _add(read(numbers + i * ITEM, _ZERO), place + i * ITEM)


@compiled(void(int64, int64, int64, _SUMS_TYPE, int64))
def add_to_bias(dtile, n_keys, n_lanes, sums, vector):
    """Add gradients of scores to sums, or where those of one row or key are for all, their own sum.

    Parameters
    ----------
    dtile : address
        Of gradients of scores times 2^32, key by key, those of the lanes side by side, of which each is a row.
    n_keys, n_lanes : int
        Of the tile.
    sums : BiasSums
        Those of the first lane and key.
    vector : address
        Of room for a square of numbers.
    """
    if sums.row != 0 and sums.item != 0:
        _add_all(dtile, n_keys, n_lanes, sums, vector)
        return
    if sums.row != 0:
        for lane in range(0, n_lanes, LANES):
            total = spread(_ZERO)
            for i in range(n_keys):
                total = total + load(dtile + i * ROW + lane * ITEM)
            store(total, vector)
            for j in range(min(LANES, n_lanes - lane)):
                _add(read(vector + j * ITEM, _ZERO), sums.place + (lane + j) * sums.row)
        return
    for i in range(n_keys):
        total = spread(_ZERO)
        for lane in range(0, n_lanes, LANES):  # more lanes, to a whole vector, have gradients of 0
            total = total + load(dtile + i * ROW + lane * ITEM)
        store(total, vector)
        _add(_sum_of_vector(vector), sums.place + i * sums.item)
