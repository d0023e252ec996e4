"""Merging partial results of the compiled kernel: compiled, too, since small tasks have many."""

import numpy as np
from numba import float32, int64, njit, types, void

from cqs.kernels.compiled.reading import read, write
from cqs.kernels.compiled.vectors import (
    ITEM,
    LANES,
    VECTOR_BYTES,
    compiled,
    exp,
    load,
    log1p,
    spread,
    store,
    where_less,
)

__all__ = ["merge_rows"]

_ZERO, _ONE, _LOWEST = np.float32(0), np.float32(1), np.finfo(np.float32).min
_LEAST_REST = _LOWEST * np.float32(2.0**-25)
_N_VECTORS = 6  # of both sides: log-sum-exps and what rounding took from them, then weights


@njit(nogil=True, forceinline=True)
def _two_sum(a, b):
    """Return a sum, and what rounding took from it."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


@compiled(void(int64))
def _merge_sums(room):
    """Merge vectors of log-sum-exps, as `cqs.partial.merge_weights` does, and write the weights of both sides.

    Six vectors stand below each other: log-sum-exps of the total and their rests, which are replaced; those of the
    part; and the weights of total and part, which are written.
    """
    total, rest_total = load(room), load(room + VECTOR_BYTES)
    part, rest_part = load(room + 2 * VECTOR_BYTES), load(room + 3 * VECTOR_BYTES)
    one, lowest, least_rest = spread(_ONE), spread(_LOWEST), spread(_LEAST_REST)
    top = where_less(total, part, part, total)
    shift = where_less(top, lowest, lowest, top)  # -inf - -inf would be NaN
    above_total, above_part = (total - shift) + rest_total, (part - shift) + rest_part
    rest = where_less(above_total, above_part, above_part, above_total)
    rest = where_less(rest, least_rest, least_rest, rest)
    weight_total, weight_part = exp(above_total - rest), exp(above_part - rest)
    both = weight_total + weight_part  # in [1, 2], or 0 where no key was seen, or NaN
    divisor = where_less(both, one, one, both)
    store(weight_total / divisor, room + 4 * VECTOR_BYTES)
    store(weight_part / divisor, room + 5 * VECTOR_BYTES)
    merged, lost = _two_sum(shift, log1p(where_less(weight_total, weight_part, weight_total, weight_part)))
    merged, lost = _two_sum(merged, lost + rest)
    merged = where_less(top, lowest, where_less(both, one, top, merged), merged)  # no key was seen, and no NaN
    store(merged, room)
    store(where_less(merged - merged, one, lost, spread(_ZERO)), room + VECTOR_BYTES)  # inf - inf is NaN


@njit(nogil=True, forceinline=True)
def _copy(source, target, n):
    """Copy numbers, no more than a vector of them."""
    if n == LANES:
        store(load(source), target)
    else:
        for place in range(0, n * ITEM, ITEM):
            write(read(source + place, _ZERO), target + place)


@compiled(void(int64, int64, int64, float32, float32))
def _add_row(total, part, n_vectors, weight_total, weight_part):
    """Write the weighted sum of two rows to the first."""
    of_total, of_part = spread(weight_total), spread(weight_part)
    for place in range(0, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
        store(load(total + place) * of_total + load(part + place) * of_part, total + place)


_READ_ONLY = tuple(types.Array(float32, ndim, "A", readonly=True) for ndim in (3, 2, 2))


@compiled(void(float32[:, :, :], float32[:, :], float32[:, :], *_READ_ONLY))
def merge_rows(out, lse, rest, part_out, part_lse, part_rest):
    """Merge a partial result into another of the same rows, in place, as `cqs.partial.merge_into` does.

    Parameters
    ----------
    out, part_out : float32, `(H, T, E)`
        With rows of adjacent numbers.
    lse, rest, part_lse, part_rest : float32, `(H, T)`
        Log-sum-exps, and what rounding took from them; of each head adjacent.
    """
    n_heads, n_rows, width = out.shape
    lanes = np.empty((_N_VECTORS, LANES), np.float32)
    room, whole = lanes.ctypes.data, width // LANES
    lanes[...] = _ZERO
    for h in range(n_heads):
        to_row, from_row = (
            out.ctypes.data + h * out.strides[0], part_out.ctypes.data + h * part_out.strides[0],
        )  # fmt: skip
        sums, rests = lse.ctypes.data + h * lse.strides[0], rest.ctypes.data + h * rest.strides[0]
        others = part_lse.ctypes.data + h * part_lse.strides[0]
        other_rests = part_rest.ctypes.data + h * part_rest.strides[0]
        for first in range(0, n_rows, LANES):
            n, here = min(LANES, n_rows - first), first * ITEM
            _copy(sums + here, room, n)
            _copy(rests + here, room + VECTOR_BYTES, n)
            _copy(others + here, room + 2 * VECTOR_BYTES, n)
            _copy(other_rests + here, room + 3 * VECTOR_BYTES, n)
            _merge_sums(room)
            _copy(room, sums + here, n)
            _copy(room + VECTOR_BYTES, rests + here, n)
            for i in range(n):
                row = first + i
                weight_total, weight_part = lanes[4, i], lanes[5, i]
                to, source = to_row + row * out.strides[1], from_row + row * part_out.strides[1]
                _add_row(to, source, whole, weight_total, weight_part)
                for e in range(whole * LANES, width):
                    out[h, row, e] = out[h, row, e] * weight_total + part_out[h, row, e] * weight_part
