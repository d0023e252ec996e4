"""Scores that become weights two by two vectors, between other work: what is left to do is noted in memory."""

import numpy as np
from numba import float32, int64, njit, void

from cqs.kernels.compiled.pieces import TILE_BYTES, in_steps, split_pair
from cqs.kernels.compiled.reading import ROW, read, write
from cqs.kernels.compiled.vectors import LANES, VECTOR_BYTES, compiled, lifted_exp2, load, spread, store

__all__ = ["WORK_BYTES", "begin_weighing", "weigh_next", "weigh_rest"]

WORK_BYTES = 128
_WHOLE, _FLOAT = np.int64(0), np.float32(0)


@compiled(void(int64, int64, int64, int64, int64, int64, int64, float32))
def begin_weighing(work, scores, n_keys, n_vectors, target, shifts, parts, factor):
    """Note at `work` that the scores of some keys, up to a whole step, are to become weights.

    Their pieces go to `target`, as `multiply_pieces` takes `b`. Scores are compared with `shifts`, one for each lane,
    and weights are added to `parts`.
    """
    steps = in_steps(n_keys)
    write(np.int64(steps * LANES * n_vectors), work)
    write(np.int64(scores), work + 8)
    write(np.int64(target), work + 16)
    write(np.int64(steps * 4 * TILE_BYTES), work + 24)
    write(np.int64(0), work + 32)
    write(np.int64(0), work + 40)
    write(np.int64(n_vectors * VECTOR_BYTES), work + 48)
    write(np.int64(shifts), work + 56)
    write(np.int64(parts), work + 64)
    write(factor, work + 72)


def weigh_next(work):
    """Compute the weights of the next two vectors, if any are left."""
    left = read(work, _WHOLE)
    if left > 0:
        write(left - 1, work)
        place, target, here = read(work + 8, _WHOLE), read(work + 16, _WHOLE), read(work + 32, _WHOLE)
        shift, times = load(read(work + 56, _WHOLE) + here), spread(read(work + 72, _FLOAT))
        even = lifted_exp2((load(place + here) - shift) * times)
        odd = lifted_exp2((load(place + LANES * ROW + here) - shift) * times)
        part = read(work + 64, _WHOLE) + here
        store(load(part) + (even + odd), part)
        split_pair(even, odd, target + here * LANES, read(work + 24, _WHOLE), 3)
        here += VECTOR_BYTES
        if here == read(work + 48, _WHOLE):
            here = 0
            row = read(work + 40, _WHOLE) + 1
            place, target = place + ROW, target + VECTOR_BYTES
            if row == LANES:
                row, place, target = 0, place + LANES * ROW, target + 3 * TILE_BYTES
            write(row, work + 40)
            write(place, work + 8)
            write(target, work + 16)
        write(np.int64(here), work + 32)


_weigh_next = njit(nogil=True)(weigh_next)


@compiled(void(int64))
def weigh_rest(work):
    """Compute what is left."""
    while read(work, _WHOLE) > 0:
        _weigh_next(work)
