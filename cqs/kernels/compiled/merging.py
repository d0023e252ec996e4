"""Merging partial results of the compiled kernel: compiled, too, since small tasks have many."""

import numpy as np
from numba import float32, int64, types, void

from cqs.kernels.compiled.vectors import LANES, VECTOR_BYTES, compiled, exp, load, spread, store, where_less

__all__ = ["merge_rows"]

_LOWEST, _NOTHING = np.finfo(np.float32).min, np.float32(-np.inf)


@compiled(void(int64, int64, int64))
def _make_weights(totals, parts, divisors):
    """Turn a vector of log-sum-exps of each side into its weights; and say what the sum was that they have without."""
    total, part, one = load(totals), load(parts), spread(np.float32(1))
    top = where_less(total, part, part, total)
    shift = where_less(top, spread(_LOWEST), spread(_LOWEST), top)  # -inf - -inf would be NaN
    weight_total, weight_part = exp(total - shift), exp(part - shift)
    both = weight_total + weight_part  # in [1, 2], or 0 where no key was seen, or NaN
    divisor = where_less(both, one, one, both)
    store(weight_total / divisor, totals)
    store(weight_part / divisor, parts)
    store(divisor, divisors)


@compiled(void(int64, int64, int64, float32, float32))
def _add_row(total, part, n_vectors, weight_total, weight_part):
    """Write the weighted sum of two rows to the first."""
    of_total, of_part = spread(weight_total), spread(weight_part)
    for place in range(0, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
        store(load(total + place) * of_total + load(part + place) * of_part, total + place)


_READ_ONLY = (types.Array(float32, ndim, "A", readonly=True) for ndim in (3, 2))


@compiled(void(float32[:, :, :], float32[:, :], *_READ_ONLY))
def merge_rows(out, lse, part_out, part_lse):
    """Merge a partial result into another of the same rows, in place, as `cqs.partial.merge_into` does.

    Parameters
    ----------
    out, part_out : float32, `(H, T, E)`
        With rows of adjacent numbers.
    lse, part_lse : float32, `(H, T)`
        Log-sum-exps.
    """
    n_heads, n_rows, width = out.shape
    lanes = np.empty((3, LANES), np.float32)
    totals, parts, divisors = lanes[0].ctypes.data, lanes[1].ctypes.data, lanes[2].ctypes.data
    whole = width // LANES
    for h in range(n_heads):
        to_row, from_row = (
            out.ctypes.data + h * out.strides[0], part_out.ctypes.data + h * part_out.strides[0],
        )  # fmt: skip
        for first in range(0, n_rows, LANES):
            n = min(LANES, n_rows - first)
            lanes[:2] = _NOTHING
            for i in range(n):
                lanes[0, i], lanes[1, i] = lse[h, first + i], part_lse[h, first + i]
            _make_weights(totals, parts, divisors)
            for i in range(n):
                row = first + i
                weight_total, weight_part = lanes[0, i], lanes[1, i]
                to, source = to_row + row * out.strides[1], from_row + row * part_out.strides[1]
                _add_row(to, source, whole, weight_total, weight_part)
                for e in range(whole * LANES, width):
                    out[h, row, e] = out[h, row, e] * weight_total + part_out[h, row, e] * weight_part
                top = max(lse[h, row], part_lse[h, row])
                lse[h, row] = top + np.log(lanes[2, i])
