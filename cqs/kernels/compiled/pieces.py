"""Queries, keys and values as AMX multiplies them: the pieces of their numbers, in tiles.

Tiles are summed up over 16 pairs of numbers, and which numbers are a pair does not matter if it is the same in both
arrays: here those that are 16 apart, so that the pieces of two vectors are put together number by number.
"""

import numpy as np
from llvmlite import ir
from numba import boolean, int64, types
from numba.extending import intrinsic, register_jitable

from cqs.kernels.compiled.reading import ROW, copy_rows
from cqs.kernels.compiled.vectors import (
    ITEM,
    LANES,
    VECTOR,
    VECTOR_BYTES,
    VECTOR_TYPE,
    any_less,
    compiled,
    load,
    pointer,
    spread,
    store,
    transpose,
)
from cqs.schedule import TILE_WIDTH

__all__ = [
    "STEP",
    "TILE_BYTES",
    "in_steps",
    "split_keys",
    "split_last_values",
    "split_pair",
    "split_panel",
    "split_values",
]

STEP = TILE_WIDTH  # numbers that are summed up by one tile
TILE_BYTES = 1024  # 16 rows of 32 numbers of 16 bits, or of 16 of 32 bits
_ZERO, _LARGEST = np.float32(0), np.finfo(np.float32).max
_LEAST = np.float32(2.0**-100)  # of what is not 0: the pieces have all digits
_INTEGER = ir.IntType(64)
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)


def _split(is_rounded):
    """Return a function for compiled code that writes the pieces of two vectors."""

    @intrinsic
    def split(typing, even, odd, target, piece_bytes, n_pieces):
        def constant(number):
            return ir.Constant(_INTEGERS, [number] * LANES)

        def generate(context, builder, signature, args):
            *rests, target, piece_bytes, n_pieces = args
            done = builder.append_basic_block("split")
            for n in range(3):
                pieces = []
                for which, rest in enumerate(rests):
                    bits = builder.bitcast(rest, _INTEGERS)
                    if is_rounded and n < 2:  # but for the last, which is exact, so that NaN stays NaN
                        is_last = builder.icmp_signed("==", n_pieces, _INTEGER(n + 1))
                        bits = builder.add(bits, builder.select(is_last, constant(0), constant(0x8000)))
                    pieces.append(builder.and_(bits, constant(0xFFFF0000)))
                    rests[which] = builder.fsub(rest, builder.bitcast(pieces[-1], VECTOR))
                pair = builder.or_(builder.lshr(pieces[0], constant(16)), pieces[1])
                place = builder.add(target, builder.mul(piece_bytes, _INTEGER(n)))
                builder.store(pair, pointer(builder, place, _INTEGERS), align=4)
                if n < 2:
                    more = builder.append_basic_block(f"piece_{n + 1}")
                    builder.cbranch(builder.icmp_signed(">", n_pieces, _INTEGER(n + 1)), more, done)
                    builder.position_at_end(more)
            builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.void(even, odd, int64, int64, int64), generate

    return split


# Write a row of a tile for each piece of the numbers of two vectors, in pairs. Pieces are `piece_bytes` apart. Each is
# the first 8 digits of a number, or of what the pieces before it leave; if rounded, to the nearest such number, so that
# what products that are left out would add is as often too much as too little.
split_pair, split_rounded_pair = _split(False), _split(True)


@register_jitable
def in_steps(n):
    """Return how many tiles so many numbers take."""
    return -(-n // STEP)


@intrinsic
def _least_size(typing, least, numbers):
    """Return the least sizes of numbers and of those before, but for zeros."""

    def generate(_, builder, __, args):
        least, bits = (builder.bitcast(x, _INTEGERS) for x in args)
        one = ir.Constant(_INTEGERS, [1] * LANES)
        size = builder.lshr(builder.sub(builder.add(bits, bits), one), one)  # without the sign; 0 becomes the largest
        return builder.bitcast(builder.select(builder.icmp_unsigned("<", size, least), size, least), VECTOR)

    return VECTOR_TYPE(VECTOR_TYPE, VECTOR_TYPE), generate


@compiled(boolean(int64, int64, int64, int64, int64, int64, int64, int64))
def split_keys(k, k_row, n_keys, before, width, n_pieces, piece, target):
    """Write the pieces of keys, as `multiply_pieces` takes `a`; return whether some number is too small for it.

    Rows are as wide as whole steps. Other keys may be there already, as many as `before` says. What is beyond the last
    key is left as it is.
    """
    steps, least = width // STEP, spread(_LARGEST)
    for i in range(before, before + n_keys):
        row, place = k + (i - before) * k_row, target + i // LANES * steps * TILE_BYTES + i % LANES * VECTOR_BYTES
        for step in range(steps):
            even, odd = load(row + 2 * step * VECTOR_BYTES), load(row + (2 * step + 1) * VECTOR_BYTES)
            least = _least_size(_least_size(least, even), odd)
            split_rounded_pair(even, odd, place + step * TILE_BYTES, piece, n_pieces)
    return any_less(least, spread(_LEAST))


@compiled(VECTOR_TYPE(int64, int64, int64, int64, int64, int64, int64, VECTOR_TYPE, int64))
def _split_step(v, v_row, width, n_pieces, piece, tile_row, target, least, squares):
    """Write the pieces of as many values as a step has."""
    for n in range(width // LANES):
        source, place = v + n * VECTOR_BYTES, target + n * tile_row
        transpose(source, v_row, squares, VECTOR_BYTES)
        transpose(source + LANES * v_row, v_row, squares + TILE_BYTES, VECTOR_BYTES)
        for e in range(0, TILE_BYTES, VECTOR_BYTES):
            even, odd = load(squares + e), load(squares + TILE_BYTES + e)
            least = _least_size(_least_size(least, even), odd)
            split_rounded_pair(even, odd, place + e, piece, n_pieces)
    return least


@compiled(boolean(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64))
def split_values(v, v_row, n_keys, before, width, n_pieces, piece, target, kept, squares):
    """Write the pieces of values, numbers below each other, as `split_keys` does, whenever a step has all its values.

    Until then they are kept. There is room for those of a step, and for two tiles.
    """
    tile_row, least, done = piece * LANES // width, spread(_LARGEST), 0
    while done < n_keys:
        step, within = divmod(before + done, STEP)
        n, source, row = min(STEP - within, n_keys - done), v + done * v_row, v_row
        if n < STEP:
            copy_rows(source, row, n, width, kept + within * width * ITEM)
            source, row = kept, width * ITEM
        if within + n == STEP:
            place = target + step * TILE_BYTES
            least = _split_step(source, row, width, n_pieces, piece, tile_row, place, least, squares)
        done += n
    return any_less(least, spread(_LEAST))


@compiled(boolean(int64, int64, int64, int64, int64, int64, int64))
def split_last_values(n_keys, width, n_pieces, piece, target, kept, squares):
    """Write the pieces of values that `split_values` has kept, of n keys in all, and zeros beside them."""
    step, within = divmod(n_keys, STEP)
    if within == 0:
        return False
    for place in range(kept + within * width * ITEM, kept + STEP * width * ITEM, VECTOR_BYTES):
        store(spread(_ZERO), place)
    place, row = target + step * TILE_BYTES, width * ITEM
    tile_row, least = piece * LANES // width, spread(_LARGEST)
    least = _split_step(kept, row, width, n_pieces, piece, tile_row, place, least, squares)
    return any_less(least, spread(_LEAST))


@compiled(boolean(int64, int64, int64, int64, int64))
def split_panel(numbers, n_vectors, steps, n_pieces, target):
    """Write the pieces of queries that are side by side, as `multiply_pieces` takes `b`; return what `split_keys` does.

    There are as many numbers of each query as whole steps have.
    """
    piece, least = steps * 4 * TILE_BYTES, spread(_LARGEST)
    for step in range(steps):
        for i in range(LANES):
            here, place = numbers + (step * STEP + i) * ROW, target + step * 4 * TILE_BYTES + i * VECTOR_BYTES
            for n in range(n_vectors):
                even, odd = load(here + n * VECTOR_BYTES), load(here + LANES * ROW + n * VECTOR_BYTES)
                least = _least_size(_least_size(least, even), odd)
                split_rounded_pair(even, odd, place + n * TILE_BYTES, piece, n_pieces)
    return any_less(least, spread(_LEAST))
