"""What the compiled kernel compiles: blocks of rows against the columns that they see, tile by tile.

A tile of scores is as large as a core's cache. BLAS writes it, its weights are made where it lies, and BLAS multiplies
them by the values, all without Python and without its lock. Imported only where Numba and SciPy are installed: Numba
compiles this file when it is first imported, in some seconds, and keeps the result beside it or in the user's cache.
"""

import llvmlite.binding
import numpy as np
from numba import boolean, float32, int32, int64, njit, types, uint8, uintp, void
from numba.extending import get_cython_function_address

from cqs.backend import notice_blas

__all__ = ["attend", "by_address"]

# SciPy gives the address of the BLAS that it was built with; the compiled code, which may come from a file, its name.
llvmlite.binding.add_symbol("cqs_sgemm", get_cython_function_address("scipy.linalg.cython_blas", "sgemm"))
_sgemm = types.ExternalFunction("cqs_sgemm", void(*[uintp] * 13))
notice_blas()

_LEAST = np.float32(-104.0)  # below, a weight is less than half of the smallest number
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693145751953125), np.float32(1.42860677e-6)  # a multiple of the first is exact
_ROUNDER = np.float32(1.5 * 2**23)  # a number that is added to it is rounded, and is in its last bits
# 2^n is made as 2^(n + 64), which is never a denormal number, from the bits of its exponent, and multiplied by 2^-64
_TO_EXPONENT, _LIFT_BACK = np.int32(64 + 127 - 0x4B400000), np.float32(2.0**-64)
# exp(t) = 1 + t + t^2 (1/2 + ...), for |t| <= ln(2) / 2: the coefficients of Cephes
_C2, _C3, _C4 = np.float32(5.0000001201e-1), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
_C5, _C6, _C7 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3), np.float32(1.9875691500e-4)
_ITEM = 4  # bytes
_SMALL_VALUES = 8192  # in a product that is cut
_ZERO, _ONE, _NOTHING = np.float32(0), np.float32(1), np.float32(-np.inf)
_MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits but the sign's


# What BLAS is given by address: letters, sizes and factors. They are the caller's, in Python, and so live until it is
# done: an array that is made here may be freed as soon as its address was taken.
_BY_ADDRESS = types.Tuple((uint8[::1], int32[::1], float32[::1]))


def by_address():
    """Return arrays for the arguments that BLAS is given by address; for one thread."""
    return np.frombuffer(b"NT", np.uint8).copy(), np.zeros(5, np.int32), np.zeros(2, np.float32)


def _compiled(signature, **fast):
    """Compile for one signature, with the liberties with floating-point numbers that are named."""
    return njit(signature, nogil=True, error_model="numpy", cache=True, fastmath=set(fast.get("liberties", ())))


@_compiled(float32(float32), liberties=["contract"])
def _exp(x):
    """Return e to the power of a number that is at most 0, to 1 unit in the last place; NaN for NaN."""
    is_gone = x < _LEAST
    x = _ZERO if is_gone else x
    rounded = x * _LOG2_E + _ROUNDER
    power = rounded - _ROUNDER
    t = x - power * _LN2_HIGH
    t = t - power * _LN2_LOW
    series = ((((_C7 * t + _C6) * t + _C5) * t + _C4) * t + _C3) * t + _C2
    series = series * (t * t) + t + _ONE
    exponent = np.int32(np.float32(rounded).view(np.int32) + _TO_EXPONENT)
    factor = np.int32(exponent << np.int32(23)).view(np.float32)
    return _ZERO if is_gone else series * factor * _LIFT_BACK


@_compiled(int32(int32))
def _ordered(bits):
    """Return an integer that grows with the number whose bits are given; of that integer, the bits."""
    sign = np.int32(bits >> np.int32(31))
    return np.int32(bits ^ np.int32(sign & _MAGNITUDE))


@_compiled(void(float32[:, ::1], float32[:, ::1], float32[::1], float32[::1]), liberties=["contract", "reassoc", "nsz"])
def _weigh_rows(scores, out, tops, totals):
    """Turn a tile of scores into weights, and add them to the sums; what was summed up before follows the maximum."""
    ordered = scores.view(np.int32)  # compilers vectorise a maximum of integers; NaN may count as anything
    for i in range(scores.shape[0]):
        greatest = np.int32(-(2**31))
        for j in range(scores.shape[1]):
            number = _ordered(ordered[i, j])
            greatest = number if number > greatest else greatest
        largest = np.int32(_ordered(greatest)).view(np.float32)
        if not largest <= tops[i]:
            if tops[i] != _NOTHING:
                factor = _exp(tops[i] - largest)
                totals[i] *= factor
                for e in range(out.shape[1]):
                    out[i, e] *= factor
            tops[i] = largest
        top, total = _ZERO if tops[i] == _NOTHING else tops[i], _ZERO
        for j in range(scores.shape[1]):
            weight = _exp(scores[i, j] - top)
            scores[i, j] = weight
            total += weight
        totals[i] += total


@_compiled(void(float32[:, ::1], boolean[:, ::1], int64, int64))
def _hide(scores, hidden, column, first):
    """Set scores of a tile, which begins at `column`, to -inf; `hidden` begins at `first`, its rows for each head."""
    start, stop = max(first, column), min(first + hidden.shape[1], column + scores.shape[1])
    for i in range(scores.shape[0] if start < stop else 0):
        flags, own = (
            hidden[i % hidden.shape[0], start - first : stop - first],
            scores[i, start - column : stop - column],
        )
        for j in range(own.shape[0]):
            own[j] = _NOTHING if flags[j] else own[j]


@_compiled(void(float32[:, ::1], float32, int64[:, ::1], int64[:, ::1], int64, int64, float32[:, ::1], _BY_ADDRESS))
def _multiply_keys(q, scale, chunks, pieces, g, start, scores, blas):
    """Write the scores of a tile whose first column is `start`: `scale * q @ k.T`, piece by piece."""
    letters, sizes, reals = blas
    (sizes[0], sizes[1]), sizes[2] = q.shape, scores.shape[1]  # rows, D, all columns; then columns here, and stride
    reals[0], reals[1] = scale, 0
    plain, size, real = letters.ctypes.data, sizes.ctypes.data, reals.ctypes.data
    transposed = plain + 1
    before = 0  # columns of earlier pieces
    for p in range(pieces.shape[0]):
        chunk, first_key, n = pieces[p]
        first, last = max(start, before), min(start + scores.shape[1], before + n)
        if first < last:
            address, stride, head, _, _, _ = chunks[chunk]
            sizes[3], sizes[4] = last - first, stride
            k = address + g * head + _ITEM * (first_key + first - before) * stride
            here = scores.ctypes.data + _ITEM * (first - start)
            # in the order of Fortran: (columns, rows) = (D, columns)^T (D, rows)
            _sgemm(
                transposed, plain, size + 12, size, size + 4,
                real, k, size + 16, q.ctypes.data, size + 4, real + _ITEM, here, size + 8,
            )  # fmt: skip
        before += n


@_compiled(
    void(float32[:, ::1], int64[:, ::1], int64[:, ::1], int64, int64, float32[:, ::1], boolean, int64, _BY_ADDRESS)
)
def _multiply_values(weights, chunks, pieces, g, start, out, is_first, largest_product, blas):
    """Add `weights @ v` of a tile whose first column is `start`, piece by piece, or write it."""
    letters, sizes, reals = blas
    (n_rows, width), row_bytes = out.shape, _ITEM * weights.shape[1]
    sizes[1], sizes[2] = width, weights.shape[1]  # E, all columns; beside rows, columns here, and stride
    reals[0] = 1
    plain, size, real = letters.ctypes.data, sizes.ctypes.data, reals.ctypes.data
    most_columns = max(_SMALL_VALUES // width, 1) if largest_product else weights.shape[1]
    most_rows = max(largest_product // (most_columns * width), 1) if largest_product else n_rows
    before = 0
    for p in range(pieces.shape[0]):
        chunk, first_key, n = pieces[p]
        _, _, _, address, stride, head = chunks[chunk]
        first, last = max(start, before), min(start + weights.shape[1], before + n)
        sizes[4] = stride
        for row in range(0, n_rows if first < last else 0, most_rows):
            sizes[0] = min(most_rows, n_rows - row)
            for column in range(first, last, most_columns):
                sizes[3] = min(most_columns, last - column)
                reals[1] = 0 if is_first and column == 0 else 1
                v = address + g * head + _ITEM * (first_key + column - before) * stride
                here = weights.ctypes.data + row * row_bytes + _ITEM * (column - start)
                # in the order of Fortran: (E, rows) = (E, columns) (columns, rows)
                _sgemm(
                    plain, plain, size + 4, size, size + 12,
                    real, v, size + 16, here, size + 8, real + _ITEM, out[row].ctypes.data, size + 4,
                )  # fmt: skip
        before += n


@_compiled(
    void(
        float32[:, ::1], float32, int64[:, ::1], int64[:, ::1], int64, boolean[:, ::1], int64,
        float32[::1], float32[:, ::1], float32[::1], float32[::1], boolean, int64, _BY_ADDRESS,
    )
)  # fmt: skip
def _add_columns(
    q, scale, chunks, pieces, g, hidden, first_hidden, tile, out, tops, totals, is_first, largest_product, blas
):
    """Add what some rows of one head sum up over some columns, a tile at a time."""
    n_rows, n_columns = q.shape[0], pieces[:, 2].sum()
    n_tiles = -(-n_columns // (tile.size // n_rows))
    for n in range(n_tiles):
        start, stop = n * n_columns // n_tiles, (n + 1) * n_columns // n_tiles
        scores = tile[: n_rows * (stop - start)].reshape(n_rows, stop - start)
        _multiply_keys(q, scale, chunks, pieces, g, start, scores, blas)
        _hide(scores, hidden, start, first_hidden)
        _weigh_rows(scores, out, tops, totals)
        _multiply_values(scores, chunks, pieces, g, start, out, is_first, largest_product, blas)


@_compiled(
    boolean(float32[:, ::1], float32[::1], float32[::1], float32[:, ::1], float32[::1]), liberties=["reassoc", "nsz"]
)
def _divide(sums, tops, totals, out, lse):
    """Write the output and log-sum-exp of a head's rows; return whether all that they sum up is finite."""
    is_finite = True
    for i in range(sums.shape[0]):
        if totals[i] == 0:
            out[i], lse[i] = 0, _NOTHING
            continue
        zero = _ZERO
        for e in range(sums.shape[1]):
            zero += sums[i, e] * _ZERO
            out[i, e] = sums[i, e] / totals[i]
        lse[i] = tops[i] + np.log(totals[i])
        is_finite = is_finite and zero == 0
    return is_finite


@_compiled(
    void(
        float32[:, :, :, ::1], float32, int64[:, ::1], int64[:, ::1], int64[:, ::1], boolean[::1],
        float32[::1], float32[::1], float32[:, :, ::1], float32[:, ::1], float32[:, ::1],
        float32[:, :, ::1], float32[:, ::1], int64[::1], boolean, boolean, boolean[::1], int64,
        _BY_ADDRESS,
    )
)  # fmt: skip
def attend(
    q, scale, chunks, blocks, pieces, hidden, tile, stack, sums, tops, totals,
    out, lse, place, begins, ends, is_finite, largest_product, blas,
):  # fmt: skip
    """Attend with the query heads of some key heads, block of rows by block of rows.

    Parameters
    ----------
    q : float32, `(g, r, t, D)`
        Queries.
    scale : float32
        What scores are multiplied by.
    chunks : int64, `(n, 6)`
        Where keys are: address, elements from key to key, bytes from head to head; and values likewise.
    blocks : int64, `(m, 7)`
        First row and the one after the last; first piece and the one after the last; where in `hidden` its flags begin,
        at which of its columns, and how many columns they are for, of all its rows.
    pieces : int64, `(p, 3)`
        Runs of columns of a block, side by side: chunk, first key in it, number of keys.
    hidden : bool
        Which scores count for nothing.
    tile, stack : float32
        Room for scores, and for the queries of a block.
    sums : float32, `(g, r t, E)`
        Weighted sums of values.
    tops, totals : float32, `(g, r t)`
        Largest scores so far, and the sums of weights relative to them.
    out, lse : float32, `(heads, T, E)` and `(heads, T)`
        Where the result goes.
    place : int64, `(3,)`
        There: the first query head, from key head to key head how many, and the first row.
    begins, ends : bool
        Whether these are a block's first columns, and its last: then the result is written.
    is_finite : bool, `(m,)`
        Where it is said which blocks have sums that are infinite or NaN, so that their result does not count.
    largest_product : int
        To how many multiplications products of weights and values are cut; 0 if they are not.
    blas : tuple of array
        As of `by_address`.
    """
    n_shared, width = q.shape[1], q.shape[3]
    for g in range(q.shape[0]):
        for b in range(blocks.shape[0]):
            row, row_end, piece, piece_end, first_flag, first_hidden, n_hidden = blocks[b]
            n = row_end - row
            queries = stack[: n_shared * n * width].reshape(n_shared * n, width)
            for r in range(n_shared):
                queries[r * n : (r + 1) * n] = q[g, r, row:row_end]
            flags = hidden[first_flag : first_flag + n * n_hidden].reshape(n, n_hidden)
            rows = slice(n_shared * row, n_shared * row_end)
            own_tops, own_totals, own_sums = tops[g, rows], totals[g, rows], sums[g, rows]
            if begins:
                own_tops[:], own_totals[:] = _NOTHING, _ZERO
            _add_columns(
                queries, scale, chunks, pieces[piece:piece_end], g, flags, first_hidden,
                tile, own_sums, own_tops, own_totals, begins, largest_product, blas,
            )  # fmt: skip
            for r in range(n_shared if ends else 0):
                head, there, these = place[0] + g * place[1] + r, place[2] + row, slice(r * n, (r + 1) * n)
                is_right = _divide(
                    own_sums[these], own_tops[these], own_totals[these],
                    out[head, there : there + n], lse[head, there : there + n],
                )  # fmt: skip
                is_finite[b] = is_finite[b] and is_right
