"""What the compiled kernel compiles: blocks of query rows against the keys that they see, tile by tile.

The queries of a block stand side by side in panels of 64, and a tile is what at most 96 keys score with one of them: it
stays in a core's nearest cache, and what is done to the scores of one query is done to those of 16 at once. Python is
not needed meanwhile, nor its lock. Imported only where Numba is installed: Numba compiles this file when it is first
imported, in some seconds, and keeps the result beside it or in the user's cache.
"""

import numpy as np
from numba import boolean, float32, int32, int64, njit, types, void
from numba.extending import intrinsic

from cqs.kernels.numba_products import multiply
from cqs.kernels.numba_vectors import (
    LANES,
    VECTOR_BYTES,
    any_less,
    exp2,
    load,
    pointer,
    spread,
    store,
    where_less,
)  # fmt: skip

__all__ = ["PANEL", "TILE_KEYS", "attend", "padded"]

PANEL, TILE_KEYS = 64, 96
_ITEM = 4  # bytes
_ROW = _ITEM * PANEL  # bytes of a tile's row, one key
_ZERO, _ONE, _NOTHING = np.float32(0), np.float32(1), np.float32(-np.inf)
_LOWEST = np.finfo(np.float32).min
_LN2 = 0.6931471805599453
_HALF_LIFT = np.float32(2.0**112)  # from the exponents of float16 to those of float32
ALL_SEEN, BOUNDED, FLAGGED = 0, 1, 2  # what rows see of a run of keys
FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2  # types of inputs


def padded(width):
    """Return a number of columns rounded up to whole vectors."""
    return -(-width // LANES) * LANES


def _compiled(signature, *liberties):
    """Compile for one signature, with the liberties with floating-point numbers that are named."""
    return njit(signature, nogil=True, error_model="numpy", cache=True, fastmath=set(liberties))


@intrinsic
def _read(typing, address, like):
    """Return the number of the type of `like` that is at an address, which need not be a multiple of its size."""

    def generate(context, builder, signature, args):
        kind = context.get_value_type(signature.args[1])
        return builder.load(pointer(builder, args[0], kind), align=1)

    return like(int64, like), generate


@_compiled(float32(int64, int64))
def _number(address, kind):
    """Return the number at an address as float32."""
    if kind == FLOAT32:
        return _read(address, _ZERO)
    bits = _read(address, np.uint16(0))
    if kind == BFLOAT16:
        return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)
    magnitude = np.uint32(np.uint32(bits & np.uint16(0x7FFF)) << np.uint32(13))
    if magnitude < np.uint32(0x7C00 << 13):
        number = magnitude.view(np.float32) * _HALF_LIFT
    else:
        number = np.uint32(magnitude | np.uint32(0x7F800000)).view(np.float32)
    return -number if bits & np.uint16(0x8000) else number


@_compiled(void(int64[::1], int64, int64, int64, float32[:, ::1]))
def _copy_rows(place, head, first, n_rows, target):
    """Write some rows of a head to an array whose rows may be longer; of what is beyond, zeros."""
    address, head_bytes, row_bytes, item_bytes, kind, width = place
    for i in range(n_rows):
        row = address + head * head_bytes + (first + i) * row_bytes
        for d in range(width):
            target[i, d] = _number(row + d * item_bytes, kind)
        for d in range(width, target.shape[1]):
            target[i, d] = _ZERO


@_compiled(void(int64[::1], int64, int64, int64, int64, float32, float32[:, :, ::1]))
def _pack_queries(place, head, n_heads, first, n_rows, factor, panels):
    """Put the queries of some heads side by side, one after the other, times a factor; zeros where none are left."""
    address, head_bytes, row_bytes, item_bytes, kind, _ = place
    for panel in range(-(-n_heads * n_rows // PANEL)):
        for d in range(panels.shape[1]):
            r, i = divmod(panel * PANEL, n_rows)
            for lane in range(PANEL):
                if r == n_heads:
                    panels[panel, d, lane] = _ZERO
                    continue
                row = address + (head + r) * head_bytes + (first + i) * row_bytes
                panels[panel, d, lane] = _number(row + d * item_bytes, kind) * factor
                i += 1
                if i == n_rows:
                    r, i = r + 1, 0


@_compiled(types.UniTuple(int64, 4)(int32[:, ::1], int64, int64, float32[:, ::1]))
def _spread_bounds(bounds, lane, n_lanes, between):
    """Write which keys some lanes see, as rows of `bounds` say; return the least and most of both ends."""
    n_rows = bounds.shape[1]
    least_first, most_first, least_end, most_end = bounds[0, 0], bounds[0, 0], bounds[1, 0], bounds[1, 0]
    least_first, least_end, most_first, most_end = np.int64(2**31), np.int64(2**31), np.int64(0), np.int64(0)
    for j in range(n_lanes):
        row = (lane + j) % n_rows
        first, end = np.int64(bounds[0, row]), np.int64(bounds[1, row])
        between[0, j], between[1, j] = first, end
        least_first, most_first = min(least_first, first), max(most_first, first)
        least_end, most_end = min(least_end, end), max(most_end, end)
    return least_first, most_first, least_end, most_end


@_compiled(void(int64, int64, int64, int64, int64))
def _hide_outside(scores, key, n_keys, n_vectors, between):
    """Set scores of a tile, whose first key has the number `key`, to -inf where lanes do not see them."""
    nothing = spread(_NOTHING)
    for n in range(n_vectors):
        here = n * VECTOR_BYTES
        first, end = load(between + here), load(between + _ROW + here)
        for i in range(n_keys):
            number, place = spread(np.float32(key + i)), scores + i * _ROW + here
            score = where_less(number, end, load(place), nothing)
            store(where_less(number, first, nothing, score), place)


@_compiled(void(float32[:, ::1], int64, int64, int64, int64, boolean[:, ::1]))
def _hide_flagged(scores, key, n_keys, lane, n_lanes, hidden):
    """Set scores of a tile to -inf where `hidden`, keys by rows, says so."""
    n_rows = hidden.shape[1]
    for i in range(n_keys):
        row = lane % n_rows
        for j in range(n_lanes):
            if hidden[key + i, row]:
                scores[i, j] = _NOTHING
            row = row + 1 if row + 1 < n_rows else 0


@_compiled(boolean(int64, int64, int64, int64, int64, int64), "contract")
def _weigh(scores, n_keys, n_vectors, tops, totals, factors):
    """Turn a tile of scores into weights, and add them to the totals.

    Return whether any maximum grew. What was summed up before then has to be multiplied by `factors`.
    """
    grew, zero, one = False, spread(_ZERO), spread(_ONE)
    for n in range(n_vectors):
        here = n * VECTOR_BYTES
        before, total, factor = load(tops + here), load(totals + here), one
        top = before
        for i in range(n_keys):
            score = load(scores + i * _ROW + here)
            top = where_less(top, score, score, top)
        if any_less(before, top):
            grew, factor = True, where_less(before, top, exp2(before - top), one)
            total = total * factor
            store(top, tops + here)
        store(factor, factors + here)
        shift = where_less(top, spread(_LOWEST), zero, top)  # -inf - -inf would be NaN
        for i in range(n_keys):
            place = scores + i * _ROW + here
            weight = exp2(load(place) - shift)
            store(weight, place)
            total = total + weight
        store(total, totals + here)
    return grew


@_compiled(void(float32[:, ::1], float32[::1], int64))
def _rescale(sums, factors, n_lanes):
    """Multiply the sums of each lane by its factor."""
    for j in range(n_lanes):
        if factors[j] != _ONE:
            for e in range(sums.shape[1]):
                sums[j, e] *= factors[j]


@_compiled(
    void(
        float32[:, ::1], int64, int64, int64, int64, int64, int64, int64, int64, int64,
        int32[:, ::1], boolean[:, ::1], float32[:, ::1], float32[:, ::1], float32[::1], float32[::1], float32[:, ::1],
    )
)  # fmt: skip
def _add_keys(
    queries, lane, n_lanes, k, k_row, v, v_row, key, n_keys, kind,
    bounds, hidden, tile, sums, tops, totals, lanes,
):  # fmt: skip
    """Add some keys to the sums of a panel; the first of them has the number `key` in its run."""
    n_vectors, start, end = -(-n_lanes // LANES), key, key + n_keys
    least_first, most_first, least_end, most_end = start, start, end, end
    if kind == BOUNDED:
        least_first, most_first, least_end, most_end = _spread_bounds(bounds, lane, n_lanes, lanes)
    scores, between, factors = tile.ctypes.data, lanes.ctypes.data, lanes[2].ctypes.data
    for here in range(key, end, TILE_KEYS):
        n = min(TILE_KEYS, end - here)
        if most_end <= here or least_first >= here + n:
            continue
        own_k, own_v = k + (here - key) * k_row, v + (here - key) * v_row
        multiply(own_k, k_row, _ITEM, queries.ctypes.data, _ROW, scores, _ROW, n, n_vectors, queries.shape[0], False)
        if kind == FLAGGED:
            _hide_flagged(tile, here, n, lane, n_lanes, hidden)
        elif most_first > here or least_end < here + n:
            _hide_outside(scores, here, n, n_vectors, between)
        if _weigh(scores, n, n_vectors, tops.ctypes.data, totals.ctypes.data, factors):
            _rescale(sums, lanes[2], n_lanes)
        width = sums.shape[1]
        multiply(scores, _ITEM, _ROW, own_v, v_row, sums.ctypes.data, _ITEM * width, n_lanes, width // LANES, n, True)


@_compiled(boolean(float32[:, ::1], float32[::1], float32[::1], float32[:, ::1], float32[::1], int64), "reassoc", "nsz")
def _divide(sums, tops, totals, out, lse, n_rows):
    """Write the output and log-sum-exp of some rows; return whether all that they sum up is finite."""
    is_finite = True
    for i in range(n_rows):
        if totals[i] == 0:
            out[i], lse[i] = 0, _NOTHING
            continue
        zero = _ZERO
        for e in range(out.shape[1]):
            zero += sums[i, e] * _ZERO
            out[i, e] = sums[i, e] / totals[i]
        lse[i] = (tops[i] + np.log2(np.float64(totals[i]))) * _LN2
        is_finite = is_finite and zero == 0
    return is_finite


@_compiled(
    void(
        int64[:, ::1], int64[:, :, :, ::1], float32, int64[:, ::1], int64[:, ::1], int64[:, ::1], int32[::1],
        boolean[::1], float32[:, :, ::1], float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[:, :, ::1],
        float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[:, :, ::1], float32[:, ::1], boolean, boolean,
        boolean[::1],
    )
)  # fmt: skip
def attend(
    queries, chunks, factor, items, blocks, pieces, bounds, hidden, panels, tile, keys, values, sums, tops, totals,
    lanes, out, lse, begins, ends, is_finite,
):  # fmt: skip
    """Attend item by item: with the query heads of a key head, in one block of rows.

    Parameters
    ----------
    queries : int64, `(batch, 6)`
        Where queries are: address, bytes from head to head, row to row, number to number; type; width.
    chunks : int64, `(batch, n, 2, 6)`
        Likewise for keys and values.
    factor : float32
        What queries are multiplied by, so that powers of 2 of scores are weights.
    items : int64, `(i, 5)`
        Batch entry, key head, first query head and how many, block.
    blocks : int64, `(m, 4)`
        First row and the one after the last; first piece and the one after the last.
    pieces : int64, `(p, 5)`
        Runs of keys: chunk, first key in it, number of keys; what rows see of them, and where that is said.
    bounds : int32
        For BOUNDED pieces the first key that each row sees, and the one after the last, counted from the first key.
    hidden : bool
        For FLAGGED pieces which keys are hidden from which rows, `(keys, rows)`.
    panels, tile, sums, tops, totals, lanes : float32, `(n, D, 64)`, `(96, 64)`, `(n, 64, E')`, `(n, 64)`, `(3, 64)`
        Room for queries, scores, sums and what belongs to lanes; E' is E rounded up to whole vectors.
    keys, values : float32, `(s, D)` and `(s, E')`
        Room for keys that cannot be read where they are, at most so many at a time.
    out, lse : float32, `(heads, T, E)` and `(heads, T)`
        Where the result goes, for the heads of all batch entries.
    begins, ends : bool
        Whether these are the blocks' first pieces, and the last, with which the result is written.
    is_finite : bool, `(i,)`
        Where it is said whose sums are not finite, so that their result does not count.
    """
    n_heads = out.shape[0] // queries.shape[0]
    for item in range(items.shape[0]):
        batch, kv_head, head, n_own, block = items[item]
        row, row_end, piece, piece_end = blocks[block]
        n_rows = row_end - row
        n_lanes = n_own * n_rows
        n_panels = -(-n_lanes // PANEL)
        if begins:
            _pack_queries(queries[batch], head, n_own, row, n_rows, factor, panels)
            sums[:n_panels], tops[:n_panels], totals[:n_panels] = _ZERO, _NOTHING, _ZERO
        for p in range(piece, piece_end):
            chunk, first, n_keys, kind, place = pieces[p]
            of_keys, of_values = chunks[batch, chunk, 0], chunks[batch, chunk, 1]
            own_bounds = (
                bounds[place : place + 2 * n_rows].reshape(2, n_rows) if kind == BOUNDED else bounds[:0].reshape(2, 0)
            )
            own_hidden = (
                hidden[place : place + n_keys * n_rows].reshape(n_keys, n_rows)
                if kind == FLAGGED
                else hidden[:0].reshape(0, n_rows)
            )
            k, k_row = of_keys[0] + kv_head * of_keys[1] + first * of_keys[2], of_keys[2]
            v, v_row = of_values[0] + kv_head * of_values[1] + first * of_values[2], of_values[2]
            is_k_read = of_keys[4] == FLOAT32 and of_keys[3] == _ITEM
            is_v_read = of_values[4] == FLOAT32 and of_values[3] == _ITEM and of_values[5] == sums.shape[2]
            for start in range(0, n_keys, keys.shape[0]):
                n = min(keys.shape[0], n_keys - start)
                if not is_k_read:
                    _copy_rows(of_keys, kv_head, first + start, n, keys)
                    k, k_row = keys.ctypes.data - start * _ITEM * keys.shape[1], _ITEM * keys.shape[1]
                if not is_v_read:
                    _copy_rows(of_values, kv_head, first + start, n, values)
                    v, v_row = values.ctypes.data - start * _ITEM * values.shape[1], _ITEM * values.shape[1]
                for panel in range(n_panels):
                    lane = panel * PANEL
                    _add_keys(
                        panels[panel], lane, min(PANEL, n_lanes - lane), k + start * k_row, k_row, v + start * v_row, v_row,
                        start, n, kind, own_bounds, own_hidden, tile, sums[panel], tops[panel], totals[panel], lanes,
                    )  # fmt: skip
        if ends:
            all_sums, all_tops, all_totals = sums.reshape(-1, sums.shape[2]), tops.reshape(-1), totals.reshape(-1)
            for r in range(n_own):
                rows, there = slice(r * n_rows, (r + 1) * n_rows), batch * n_heads + head + r
                is_right = _divide(
                    all_sums[rows],
                    all_tops[rows],
                    all_totals[rows],
                    out[there, row:row_end],
                    lse[there, row:row_end],
                    n_rows,
                )
                is_finite[item] = is_finite[item] and is_right
