"""What the compiled kernel compiles: blocks of query rows against the keys that they see, tile by tile.

The queries of a block stand side by side in panels of 64, and a tile is what at most 96 keys score with one of them: it
stays in a core's nearest cache, and what is done to the scores of one query is done to those of 16 at once. Python is
not needed meanwhile, nor its lock. Imported only where Numba is installed: Numba compiles this file when it is first
imported, in some seconds, and keeps the result beside it or in the user's cache.
"""

import numpy as np
from numba import boolean, float32, int32, int64, njit, types, void
from numba.extending import intrinsic

from cqs.kernels.compiled.products import multiply
from cqs.kernels.compiled.vectors import (
    LANES,
    VECTOR_BYTES,
    all_less,
    any_less,
    exp2,
    load,
    load_bfloat16,
    load_float16,
    pointer,
    spread,
    store,
    transpose,
    where_less,
)

__all__ = ["PANEL", "attend", "pack_queries", "padded", "readable", "room_sizes", "weigh"]

PANEL, TILE_KEYS = 64, 96
_FOLD_KEYS = 3072  # after which sums are put aside: a sum of few numbers, and of few such sums, is more exact
_ITEM = 4  # bytes
_ROW = _ITEM * PANEL  # bytes of a tile's row, one key
_ZERO, _ONE, _NOTHING = np.float32(0), np.float32(1), np.float32(-np.inf)
_LOWEST = np.finfo(np.float32).min
_LN2 = 0.6931471805599453
_HALF_LIFT = np.float32(2.0**112)  # from the exponents of float16 to those of float32
ALL_SEEN, BOUNDED, FLAGGED = 0, 1, 2  # what rows see of a run of keys
FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2  # types of inputs


@njit(nogil=True)
def padded(width):
    """Return a number of columns rounded up to whole vectors."""
    return -(-width // LANES) * LANES


def room_sizes(n_lanes, n_keys, width, value_width):
    """Return how many numbers `attend` needs room for, to compute some lanes together, and copy some keys at a time.

    That is for panels of queries, a panel's queries as they are, a tile of scores, keys, values, sums and totals (of
    recent keys, and of those before), maxima, and what else belongs to the lanes of a panel.
    """
    in_panels, wide, value_wide = -(-n_lanes // PANEL) * PANEL, padded(width), padded(value_width)
    of_keys = n_keys * width, n_keys * value_wide
    return (
        in_panels * wide,
        PANEL * wide,
        TILE_KEYS * PANEL,
        *of_keys,
        2 * in_panels * (value_wide + 1),
        in_panels,
        3 * PANEL,
    )


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


@intrinsic
def _write(typing, number, address):
    """Write a number to an address."""

    def generate(context, builder, signature, args):
        builder.store(args[0], pointer(builder, args[1], args[0].type), align=1)
        return context.get_dummy_value()

    return types.void(number, int64), generate


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


@_compiled(void(int64, int64, int64, int64, float32, int64, int64))
def _copy_row(row, item_bytes, kind, width, factor, target, target_width):
    """Write the numbers of a row, times a factor, to a row that may be longer; of what is beyond, zeros."""
    n = width // LANES * LANES if item_bytes == (_ITEM if kind == FLOAT32 else _ITEM // 2) else 0
    factors = spread(factor)
    if kind == FLOAT32:
        for d in range(0, n, LANES):
            store(load(row + d * item_bytes) * factors, target + d * _ITEM)
    elif kind == FLOAT16:
        for d in range(0, n, LANES):
            store(load_float16(row + d * item_bytes) * factors, target + d * _ITEM)
    else:
        for d in range(0, n, LANES):
            store(load_bfloat16(row + d * item_bytes) * factors, target + d * _ITEM)
    for d in range(n, width):
        _write(_number(row + d * item_bytes, kind) * factor, target + d * _ITEM)
    for d in range(width, target_width):
        _write(_ZERO, target + d * _ITEM)


@_compiled(types.UniTuple(int64, 2)(int64[:, :, :, ::1], int64, int64, int64, int64, int64, int64, int64, int64))
def readable(chunks, batch, chunk, which, head, first, n_rows, room, room_width):
    """Return where some keys (`which` is 0) or values (1) of a head are as float32, and bytes from row to row.

    They are copied to `room` if they are not so where they are, or not as wide as that.
    """
    address = chunks[batch, chunk, which, 0] + head * chunks[batch, chunk, which, 1]
    row_bytes, item_bytes = chunks[batch, chunk, which, 2], chunks[batch, chunk, which, 3]
    kind, width = chunks[batch, chunk, which, 4], chunks[batch, chunk, which, 5]
    address += first * row_bytes
    if kind == FLOAT32 and item_bytes == _ITEM and width == room_width:
        return address, row_bytes
    for i in range(n_rows):
        _copy_row(address + i * row_bytes, item_bytes, kind, width, _ONE, room + i * room_width * _ITEM, room_width)
    return room, room_width * _ITEM


@_compiled(void(int64[:, ::1], int64, int64, int64, int64, int64, int64, float32, int64, int64))
def pack_queries(queries, batch, head, first, n_rows, lane, n_lanes, factor, rows, panel):
    """Put the queries of some lanes side by side in a panel, times a factor; zeros up to a whole vector.

    Lanes are counted row by row, head by head. `rows` is room for the queries as they are.
    """
    address, head_bytes, row_bytes = queries[batch, 0], queries[batch, 1], queries[batch, 2]
    item_bytes, kind, width = queries[batch, 3], queries[batch, 4], queries[batch, 5]
    stride = padded(width) * _ITEM
    r, i = divmod(lane, n_rows)
    for own in range(padded(n_lanes)):
        row = address + (head + r) * head_bytes + (first + i) * row_bytes
        _copy_row(row, item_bytes, kind, width if own < n_lanes else 0, factor, rows + own * stride, padded(width))
        r, i = (r, i + 1) if i + 1 < n_rows else (r + 1, 0)
    for own in range(0, n_lanes, LANES):
        for d in range(0, width, LANES):
            transpose(rows + own * stride + d * _ITEM, stride, panel + d * _ROW + own * _ITEM, _ROW)


@_compiled(types.UniTuple(int64, 4)(int64, int64, int64, int64, int64))
def _spread_bounds(bounds, n_rows, lane, n_lanes, between):
    """Write which keys some lanes see, as the bounds of rows say; return the least and most of both ends."""
    least_first, least_end, most_first, most_end = np.int64(2**31), np.int64(2**31), np.int64(0), np.int64(0)
    row = lane % n_rows
    for j in range(n_lanes):
        place = bounds + row * _ITEM
        first, end = np.int64(_read(place, np.int32(0))), np.int64(_read(place + n_rows * _ITEM, np.int32(0)))
        _write(np.float32(first), between + j * _ITEM)
        _write(np.float32(end), between + _ROW + j * _ITEM)
        least_first, most_first = min(least_first, first), max(most_first, first)
        least_end, most_end = min(least_end, end), max(most_end, end)
        row = row + 1 if row + 1 < n_rows else 0
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


@_compiled(void(int64, int64, int64, int64, int64, int64))
def _hide_flagged(scores, n_keys, hidden, n_rows, lane, n_lanes):
    """Set scores of a tile to -inf where `hidden`, a byte for each key and row, says so."""
    for i in range(n_keys):
        row = lane % n_rows
        for j in range(n_lanes):
            if _read(hidden + i * n_rows + row, np.uint8(0)):
                _write(_NOTHING, scores + i * _ROW + j * _ITEM)
            row = row + 1 if row + 1 < n_rows else 0


@_compiled(boolean(int64, int64, int64, float32, int64, int64, int64))
def weigh(scores, n_keys, n_vectors, factor, tops, totals, factors):
    """Turn a tile of scores into weights, and add them to the totals.

    A weight is 2 to the power of `factor` times what a score is less than the maximum: so it is as exact for large
    scores as for small ones. Return whether any maximum grew. What was summed up before then has to be multiplied by
    `factors`.
    """
    grew, zero, one, times = False, spread(_ZERO), spread(_ONE), spread(factor)
    for n in range(n_vectors):
        here = n * VECTOR_BYTES
        before, total, growth = load(tops + here), load(totals + here), one
        top = before
        for i in range(n_keys):
            score = load(scores + i * _ROW + here)
            top = where_less(top, score, score, top)
        if any_less(before, top):
            grew, growth = True, where_less(before, top, exp2((before - top) * times), one)
            total = total * growth
            store(top, tops + here)
        store(growth, factors + here)
        shift = where_less(top, spread(_LOWEST), zero, top)  # -inf - -inf would be NaN
        part = zero  # summed up by itself, so that small weights are not lost beside what came before
        for i in range(n_keys):
            place = scores + i * _ROW + here
            weight = exp2((load(place) - shift) * times)
            store(weight, place)
            part = part + weight
        store(total + part, totals + here)
    return grew


@_compiled(void(int64, int64, float32))
def _fill(address, n, number):
    """Write a number n times, a multiple of the numbers of a vector."""
    for place in range(address, address + n * _ITEM, VECTOR_BYTES):
        store(spread(number), place)


@_compiled(void(int64, int64, int64, int64))
def _rescale(sums, width, factors, n_lanes):
    """Multiply the sums of each lane by its factor."""
    for j in range(n_lanes):
        factor = _read(factors + j * _ITEM, _ZERO)
        if factor != _ONE:
            row = sums + j * width * _ITEM
            for e in range(0, width, LANES):
                store(load(row + e * _ITEM) * spread(factor), row + e * _ITEM)


@_compiled(void(int64, int64, int64, boolean))
def _fold(sums, kept, n, adds):
    """Move sums to where they are kept, or add them to what is there, and begin anew."""
    for place in range(0, n * _ITEM, VECTOR_BYTES):
        recent = load(sums + place)
        if adds:
            recent = recent + load(kept + place)
        store(recent, kept + place)
        store(spread(_ZERO), sums + place)


@_compiled(void(*[int64] * 19, float32, boolean))
def _add_keys(
    queries, depth, n_rows, lane, n_lanes, k, k_row, v, v_row, key, n_keys, kind, said,
    tile, sums, width, tops, lanes, kept, factor, is_kept,
):  # fmt: skip
    """Add some keys to the sums of a panel; the first of them has the number `key` in its piece."""
    n_vectors, end = -(-n_lanes // LANES), key + n_keys
    between, factors, totals = lanes, lanes + 2 * _ROW, width * _ROW  # the last follow sums
    least_first, most_first, least_end, most_end = key, key, end, end
    if kind == BOUNDED:
        least_first, most_first, least_end, most_end = _spread_bounds(said, n_rows, lane, n_lanes, between)
    for here in range(key, end, TILE_KEYS):
        n = min(TILE_KEYS, end - here)
        if most_end <= here or least_first >= here + n:
            continue
        own_k, own_v = k + (here - key) * k_row, v + (here - key) * v_row
        multiply(own_k, k_row, _ITEM, queries, _ROW, tile, _ROW, n, n_vectors, depth, False)
        if kind == FLAGGED:
            _hide_flagged(tile, n, said + here * n_rows, n_rows, lane, n_lanes)
        elif most_first > here or least_end < here + n:
            _hide_outside(tile, here, n, n_vectors, between)
        if weigh(tile, n, n_vectors, factor, tops, sums + totals, factors):
            _rescale(sums, width, factors, n_lanes)
            if is_kept:
                _rescale(kept, width, factors, n_lanes)
                for place in range(0, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
                    own = kept + totals + place
                    store(load(own) * load(factors + place), own)
        multiply(tile, _ITEM, _ROW, own_v, v_row, sums, width * _ITEM, n_lanes, width // LANES, n, True)


@_compiled(boolean(int64, int64, int64, float32))
def _divide(sums, out, width, total):
    """Write the sums of a row divided by that of its weights; return whether they are all finite."""
    divisor, zero = spread(total), spread(_ZERO)
    for e in range(0, width, LANES):
        numbers = load(sums + e * _ITEM)
        zero = zero + numbers * spread(_ZERO)
        if e + LANES <= width:
            store(numbers / divisor, out + e * _ITEM)
        else:
            store(numbers / divisor, sums + e * _ITEM)
    for e in range(width // LANES * LANES, width):
        _write(_read(sums + e * _ITEM, _ZERO), out + e * _ITEM)
    return all_less(zero, spread(_ONE))


@_compiled(boolean(*[int64] * 8, float32, float32[:, :, ::1], float32[:, ::1]))
def _write_rows(head, first_row, n_rows, lane, n_lanes, sums, tops, totals, factor, out, lse):
    """Write the result of a panel's lanes; return whether all that they sum up is finite."""
    is_finite, width, stride = True, out.shape[2], padded(out.shape[2]) * _ITEM
    r, i = divmod(lane, n_rows)
    for own in range(n_lanes):
        top, total = _read(tops + own * _ITEM, _ZERO), _read(totals + own * _ITEM, _ZERO)
        there, row = head + r, first_row + i
        if total == 0:
            out[there, row], lse[there, row] = _ZERO, _NOTHING
        else:
            place = out.ctypes.data + (there * out.shape[1] + row) * width * _ITEM
            is_finite &= _divide(sums + own * stride, place, width, total)
            lse[there, row] = (np.float64(top) * factor + np.log2(np.float64(total))) * _LN2
        r, i = (r, i + 1) if i + 1 < n_rows else (r + 1, 0)
    return is_finite


@_compiled(
    void(
        int64[:, ::1], int64[:, :, :, ::1], float32, int64[:, ::1], int64[:, ::1], int64[:, ::1], int32[::1],
        boolean[::1], types.UniTuple(float32[::1], 8), int64, float32[:, :, ::1], float32[:, ::1], boolean, boolean,
        boolean[::1],
    )
)  # fmt: skip
def attend(
    queries, chunks, factor, items, blocks, pieces, bounds, hidden, room, most_keys, out, lse, begins, ends, is_finite
):
    """Attend item by item: with the query heads of a key head, in one block of rows.

    Parameters
    ----------
    queries : int64, `(batch, 6)`
        Where queries are: address, bytes from head to head, row to row, number to number; type; width.
    chunks : int64, `(batch, n, 2, 6)`
        Likewise for keys and values.
    factor : float32
        What scores are multiplied by before weights are powers of 2 of them; not 0.
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
    room : tuple of float32 arrays
        As large as `room_sizes` says.
    most_keys : int
        Keys that are read for one panel after the other.
    out, lse : float32, `(heads, T, E)` and `(heads, T)`
        Where the result goes, for the heads of all batch entries.
    begins, ends : bool
        Whether these are the blocks' first pieces, and the last, with which the result is written.
    is_finite : bool, `(i,)`
        Where it is said whose sums are not finite, so that their result does not count.

    Notes
    -----
    Within it all is done by address: handing on parts of arrays would count who uses them, for each tile.
    """
    panels, rows, tile, keys, values, sums, tops, lanes = (
        room[0].ctypes.data, room[1].ctypes.data, room[2].ctypes.data, room[3].ctypes.data, room[4].ctypes.data,
        room[5].ctypes.data, room[6].ctypes.data, room[7].ctypes.data,
    )  # fmt: skip
    sign, factor = np.copysign(_ONE, factor), abs(factor)
    depth, width, n_heads = queries[0, 5], padded(out.shape[2]), out.shape[0] // queries.shape[0]
    panel_bytes, n_sums, kept = padded(depth) * _ROW, (width + 1) * PANEL, sums + room[5].size // 2 * _ITEM
    for item in range(items.shape[0]):
        batch, kv_head, head, block = items[item, 0], items[item, 1], items[item, 2], items[item, 4]
        first_row, n_rows = blocks[block, 0], blocks[block, 1] - blocks[block, 0]
        n_lanes = items[item, 3] * n_rows
        n_panels = -(-n_lanes // PANEL)
        n_wide = padded(-(-n_lanes // n_panels))  # lanes of all panels but the last
        for panel in range(n_panels if begins else 0):
            lane = panel * n_wide
            own = min(n_wide, n_lanes - lane)
            own_panel = panels + panel * panel_bytes
            pack_queries(queries, batch, head, first_row, n_rows, lane, own, sign, rows, own_panel)
            _fill(sums + panel * n_sums * _ITEM, n_sums, _ZERO)
            _fill(tops + panel * _ROW, PANEL, _NOTHING)
        n_recent, is_kept = 0, not begins  # keys since sums were folded
        for p in range(blocks[block, 2], blocks[block, 3]):
            chunk, first, n_keys, kind = pieces[p, 0], pieces[p, 1], pieces[p, 2], pieces[p, 3]
            said = bounds.ctypes.data + pieces[p, 4] * _ITEM if kind == BOUNDED else hidden.ctypes.data + pieces[p, 4]
            for key in range(0, n_keys, most_keys):
                n = min(most_keys, n_keys - key)
                k, k_row = readable(chunks, batch, chunk, 0, kv_head, first + key, n, keys, depth)
                v, v_row = readable(chunks, batch, chunk, 1, kv_head, first + key, n, values, width)
                n_recent += n
                for panel in range(n_panels):
                    lane, own_sums = panel * n_wide, panel * n_sums * _ITEM
                    _add_keys(
                        panels + panel * panel_bytes, depth, n_rows, lane, min(n_wide, n_lanes - lane),
                        k, k_row, v, v_row, key, n, kind, said, tile, sums + own_sums, width, tops + panel * _ROW,
                        lanes, kept + own_sums, factor, is_kept,
                    )  # fmt: skip
                if n_recent >= _FOLD_KEYS:
                    _fold(sums, kept, n_panels * n_sums, is_kept)
                    n_recent, is_kept = 0, True
        if is_kept or not ends:
            _fold(sums, kept, n_panels * n_sums, is_kept)
        for panel in range(n_panels if ends else 0):
            lane, own_sums = panel * n_wide, (kept if is_kept else sums) + panel * n_sums * _ITEM
            is_finite[item] &= _write_rows(
                batch * n_heads + head, first_row, n_rows, lane, min(n_wide, n_lanes - lane),
                own_sums, tops + panel * _ROW, own_sums + width * _ROW, factor, out, lse,
            )  # fmt: skip
