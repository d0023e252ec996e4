"""Scores that become weights two by two vectors, between other work: what is left to do is noted in memory."""

import numpy as np
from numba import float32, int64, njit, void

from cqs.kernels.compiled.pieces import TILE_BYTES, in_steps, split_pair
from cqs.kernels.compiled.reading import ROW, read, write
from cqs.kernels.compiled.vectors import LANES, VECTOR_BYTES, compiled, lifted_exp2, load, spread, store

__all__ = ["WORK_BYTES", "begin_weighing", "weigh_next", "weigh_rest"]

WORK_BYTES = 128
# where in it is noted: how many pairs of vectors are left, where the next row of scores is, and where its pieces go;
# the bytes between pieces; the next vector of the row, how many rows of its step are done, and the bytes of a row; what
# scores are compared with, where weights are added up, and the factor
_LEFT, _SCORES, _TARGET, _PIECE, _HERE, _DONE, _END, _SHIFTS, _PARTS, _FACTOR = range(0, 80, 8)
_WHOLE, _FLOAT = np.int64(0), np.float32(0)


@compiled(void(int64, int64, int64, int64, int64, int64, int64, float32))
def begin_weighing(work, scores, n_keys, n_vectors, target, shifts, parts, factor):
    """Note at `work` that the scores of some keys, up to a whole step, are to become weights.

    Their pieces go to `target`, as `multiply_pieces` takes `b`. Scores are compared with `shifts`, one for each lane,
    and weights are added to `parts`.
    """
    steps = in_steps(n_keys)
    write(np.int64(steps * LANES * n_vectors), work + _LEFT)
    write(np.int64(scores), work + _SCORES)
    write(np.int64(target), work + _TARGET)
    write(np.int64(steps * 4 * TILE_BYTES), work + _PIECE)
    write(np.int64(0), work + _HERE)
    write(np.int64(0), work + _DONE)
    write(np.int64(n_vectors * VECTOR_BYTES), work + _END)
    write(np.int64(shifts), work + _SHIFTS)
    write(np.int64(parts), work + _PARTS)
    write(factor, work + _FACTOR)


def weigh_next(work):
    """Compute the weights of the next two vectors, if any are left."""
    left = read(work + _LEFT, _WHOLE)
    if left > 0:
        write(left - 1, work + _LEFT)
        place, target, here = read(work + _SCORES, _WHOLE), read(work + _TARGET, _WHOLE), read(work + _HERE, _WHOLE)
        shift, times = load(read(work + _SHIFTS, _WHOLE) + here), spread(read(work + _FACTOR, _FLOAT))
        even = lifted_exp2((load(place + here) - shift) * times)
        odd = lifted_exp2((load(place + LANES * ROW + here) - shift) * times)
        part = read(work + _PARTS, _WHOLE) + here
        store(load(part) + (even + odd), part)
        split_pair(even, odd, target + here * LANES, read(work + _PIECE, _WHOLE), 3)
        here += VECTOR_BYTES
        if here == read(work + _END, _WHOLE):
            here = 0
            row = read(work + _DONE, _WHOLE) + 1
            place, target = place + ROW, target + VECTOR_BYTES
            if row == LANES:
                row, place, target = 0, place + LANES * ROW, target + 3 * TILE_BYTES
            write(row, work + _DONE)
            write(place, work + _SCORES)
            write(target, work + _TARGET)
        write(np.int64(here), work + _HERE)


_weigh_next = njit(nogil=True)(weigh_next)


@compiled(void(int64))
def weigh_rest(work):
    """Compute what is left."""
    while read(work + _LEFT, _WHOLE) > 0:
        _weigh_next(work)
