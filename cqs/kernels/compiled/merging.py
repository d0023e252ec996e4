"""Merging partial results of the compiled kernel: compiled, too, since small tasks have many."""

import numpy as np
from numba import float32, int64, njit, types, void

from cqs.kernels.compiled.vectors import LANES, VECTOR_BYTES, compiled, exp, load, spread, store, where_less

__all__ = ["merge_rows"]

_ZERO, _ONE, _NOTHING = np.float32(0), np.float32(1), np.float32(-np.inf)
_LOWEST = np.finfo(np.float32).min
_N_VECTORS = 6  # of log-sum-exps of both sides, what rounding took from each, the larger of them, and its rest


@compiled(void(int64))
def _make_weights(room):
    """Turn vectors of log-sum-exps into weights, as `cqs.partial.merge_weights` does; keep what their sum is made of.

    The first two become the sides' weights, the third that of the smaller side; the last two are written.
    """
    total, part = load(room), load(room + VECTOR_BYTES)
    rest_total, rest_part = load(room + 2 * VECTOR_BYTES), load(room + 3 * VECTOR_BYTES)
    one, lowest = spread(_ONE), spread(_LOWEST)
    top = where_less(total, part, part, total)
    rest = where_less(rest_total, rest_part, rest_part, rest_total)  # where both are alike
    rest = where_less(total, part, rest_part, where_less(part, total, rest_total, rest))
    shift = where_less(top, lowest, lowest, top)  # -inf - -inf would be NaN
    weight_total, weight_part = exp((total - shift) + (rest_total - rest)), exp((part - shift) + (rest_part - rest))
    both = weight_total + weight_part  # in [1, 2], or 0 where no key was seen, or NaN
    divisor = where_less(both, one, one, both)
    store(weight_total / divisor, room)
    store(weight_part / divisor, room + VECTOR_BYTES)
    store(where_less(weight_total, weight_part, weight_total, weight_part), room + 2 * VECTOR_BYTES)
    store(top, room + 4 * VECTOR_BYTES)
    store(rest, room + 5 * VECTOR_BYTES)


@njit(nogil=True, forceinline=True)
def _two_sum(a, b):
    """Return a sum, and what rounding took from it."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


@compiled(void(int64))
def _add_growth(room):
    """Write the merged log-sum-exps and their rests, as `cqs.partial.log_sum` does, given logarithms in the third."""
    growth, top, rest = load(room + 2 * VECTOR_BYTES), load(room + 4 * VECTOR_BYTES), load(room + 5 * VECTOR_BYTES)
    lowest, zero = spread(_LOWEST), spread(_ZERO)
    total, lost = _two_sum(where_less(top, lowest, lowest, top), growth)
    lse, lost = _two_sum(total, lost + rest)
    lse = where_less(top, lowest, top, lse)
    store(lse, room + 4 * VECTOR_BYTES)
    store(where_less(lse - lse, spread(_ONE), lost, zero), room + 5 * VECTOR_BYTES)  # inf - inf is NaN


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
        Log-sum-exps, and what rounding took from them.
    """
    n_heads, n_rows, width = out.shape
    lanes = np.empty((_N_VECTORS, LANES), np.float32)
    room, whole = lanes.ctypes.data, width // LANES
    for h in range(n_heads):
        to_row, from_row = (
            out.ctypes.data + h * out.strides[0], part_out.ctypes.data + h * part_out.strides[0],
        )  # fmt: skip
        for first in range(0, n_rows, LANES):
            n = min(LANES, n_rows - first)
            lanes[:2], lanes[2:4] = _NOTHING, _ZERO
            for i in range(n):
                lanes[0, i], lanes[1, i] = lse[h, first + i], part_lse[h, first + i]
                lanes[2, i], lanes[3, i] = rest[h, first + i], part_rest[h, first + i]
            _make_weights(room)
            for i in range(n):
                lanes[2, i] = np.log1p(lanes[2, i])
            _add_growth(room)
            for i in range(n):
                row = first + i
                weight_total, weight_part = lanes[0, i], lanes[1, i]
                to, source = to_row + row * out.strides[1], from_row + row * part_out.strides[1]
                _add_row(to, source, whole, weight_total, weight_part)
                for e in range(whole * LANES, width):
                    out[h, row, e] = out[h, row, e] * weight_total + part_out[h, row, e] * weight_part
                lse[h, row], rest[h, row] = lanes[4, i], lanes[5, i]
