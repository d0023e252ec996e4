"""Reading inputs of any type and strides: as float32 where they are, or copied; and queries put side by side."""

import numpy as np
from numba import boolean, float32, int64, types, void
from numba.extending import intrinsic, register_jitable

from cqs.kernels.compiled.vectors import (
    ITEM,
    LANES,
    compiled,
    load,
    load_bfloat16,
    load_float16,
    pointer,
    spread,
    store,
    transpose,
)
from cqs.kernels.numba_tables import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from cqs.schedule import PANEL

__all__ = ["ROW", "copy_queries", "copy_row", "copy_rows", "pack_queries", "padded", "read", "readable", "write"]

ROW = ITEM * PANEL  # bytes of what belongs to one key, or to one number of each query
_HALF_LIFT = np.float32(2.0**112)  # from the exponents of float16 to those of float32
_HALF_UNIT = np.float32(2.0**-24)  # the smallest number of float16
_ZERO, _ONE = np.float32(0), np.float32(1)


@register_jitable
def padded(width):
    """Return a number of columns rounded up to whole vectors."""
    return -(-width // LANES) * LANES


@intrinsic
def read(typing, address, like):
    """Return the number of the type of `like` that is at an address, which need not be a multiple of its size."""

    def generate(context, builder, signature, args):
        kind = context.get_value_type(signature.args[1])
        return builder.load(pointer(builder, args[0], kind), align=1)

    return like(int64, like), generate


@intrinsic
def write(typing, number, address):
    """Write a number to an address."""

    def generate(context, builder, signature, args):
        builder.store(args[0], pointer(builder, args[1], args[0].type), align=1)
        return context.get_dummy_value()

    return types.void(number, int64), generate


@compiled(float32(int64, int64))
def _number(address, kind):
    """Return the number at an address as float32."""
    if kind == FLOAT32:
        return read(address, _ZERO)
    if kind == FLOAT64:
        return np.float32(read(address, np.float64(0)))
    bits = read(address, np.uint16(0))
    if kind != FLOAT16:
        return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)
    units = np.uint32(bits & np.uint16(0x7FFF))
    magnitude = np.uint32(units << np.uint32(13))
    if units < np.uint32(0x400):  # the shifted one is too small to have all digits, which takes long
        number = np.float32(units) * _HALF_UNIT
    elif units < np.uint32(0x7C00):
        number = magnitude.view(np.float32) * _HALF_LIFT
    else:
        number = np.uint32(magnitude | np.uint32(0x7F800000)).view(np.float32)
    return -number if bits & np.uint16(0x8000) else number


@compiled(void(int64, int64, int64, int64, float32, int64, int64))
def copy_row(row, item_bytes, kind, width, factor, target, target_width):
    """Write the numbers of a row, times a factor, to a row that may be longer; of what is beyond, zeros."""
    n = width // LANES * LANES if item_bytes == (ITEM if kind == FLOAT32 else ITEM // 2) and kind != FLOAT64 else 0
    factors = spread(factor)
    if kind == FLOAT32:
        for d in range(0, n, LANES):
            store(load(row + d * item_bytes) * factors, target + d * ITEM)
    elif kind == FLOAT16:
        for d in range(0, n, LANES):
            store(load_float16(row + d * item_bytes) * factors, target + d * ITEM)
    else:
        for d in range(0, n, LANES):
            store(load_bfloat16(row + d * item_bytes) * factors, target + d * ITEM)
    for d in range(n, width):
        write(_number(row + d * item_bytes, kind) * factor, target + d * ITEM)
    for d in range(width, target_width):
        write(_ZERO, target + d * ITEM)


@compiled(void(int64, int64, int64, int64, int64))
def copy_rows(rows, row_bytes, n_rows, width, target):
    """Write rows of float32 numbers, a multiple of those of a vector, one after the other."""
    for i in range(n_rows):
        for e in range(0, width * ITEM, LANES * ITEM):
            store(load(rows + i * row_bytes + e), target + i * width * ITEM + e)


@compiled(
    types.UniTuple(int64, 3)(int64[:, :, :, ::1], int64, int64, int64, int64, int64, int64, int64, int64, boolean)
)
def readable(chunks, batch, chunk, which, head, first, n_rows, room, room_width, takes_halves):
    """Return where some keys (`which` is 0) or values (1) of a head are, bytes from row to row, and their type.

    They are copied to `room` if they are not float32 where they are, or not as wide as that; but those of 16 bits are
    taken as they are by whoever `takes_halves`.
    """
    address = chunks[batch, chunk, which, 0] + head * chunks[batch, chunk, which, 1]
    row_bytes, item_bytes = chunks[batch, chunk, which, 2], chunks[batch, chunk, which, 3]
    kind, width = chunks[batch, chunk, which, 4], chunks[batch, chunk, which, 5]
    address += first * row_bytes
    if width == room_width and kind == FLOAT32 and item_bytes == ITEM:
        return address, row_bytes, FLOAT32
    if width == room_width and takes_halves and kind in (FLOAT16, BFLOAT16) and item_bytes == ITEM // 2:
        return address, row_bytes, kind
    for i in range(n_rows):
        copy_row(address + i * row_bytes, item_bytes, kind, width, _ONE, room + i * room_width * ITEM, room_width)
    return room, room_width * ITEM, FLOAT32


@compiled(void(int64[:, ::1], int64, int64, int64, int64, int64, int64, float32, int64))
def copy_queries(queries, batch, head, first, n_rows, lane, n_lanes, factor, rows):
    """Write the queries of some lanes below each other, times a factor, and zeros up to a whole vector of lanes.

    Lanes are counted row by row, head by head. Rows are as wide as whole vectors.
    """
    address, head_bytes, row_bytes = queries[batch, 0], queries[batch, 1], queries[batch, 2]
    item_bytes, kind, width = queries[batch, 3], queries[batch, 4], queries[batch, 5]
    stride = padded(width) * ITEM
    r, i = divmod(lane, n_rows)
    for own in range(padded(n_lanes)):
        row = address + (head + r) * head_bytes + (first + i) * row_bytes
        copy_row(row, item_bytes, kind, width if own < n_lanes else 0, factor, rows + own * stride, padded(width))
        r, i = (r, i + 1) if i + 1 < n_rows else (r + 1, 0)


@compiled(void(int64[:, ::1], int64, int64, int64, int64, int64, int64, float32, int64, int64))
def pack_queries(queries, batch, head, first, n_rows, lane, n_lanes, factor, rows, panel):
    """Put the queries of some lanes, as of `copy_queries`, side by side in a panel; `rows` is room to copy them to."""
    copy_queries(queries, batch, head, first, n_rows, lane, n_lanes, factor, rows)
    width = queries[batch, 5]
    stride = padded(width) * ITEM
    for own in range(0, n_lanes, LANES):
        for d in range(0, width, LANES):
            transpose(rows + own * stride + d * ITEM, stride, panel + d * ROW + own * ITEM, ROW)
