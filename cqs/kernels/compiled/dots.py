"""Scores of few queries, as where a model writes token by token: a dot product for each, with its key in registers.

A tile computes what 16 queries score in the time of one. Where there are few, reading the keys is most of the work:
here each is read once, from its first number to its last, and meets all queries meanwhile.
"""

import numpy as np
from llvmlite import ir
from numba import int64, types, void
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from cqs.kernels.compiled.vectors import (
    ITEM,
    LANES,
    VECTOR,
    VECTOR_TYPE,
    compiled,
    interleaved,
    load_vector,
    pointer,
    spread,
    store,
)
from cqs.kernels.numba_tables import BFLOAT16, FLOAT16, FLOAT32
from cqs.schedule import PANEL

__all__ = ["are_few", "score_few"]

_FEW = 6  # queries; with more of them a tile takes less time
_INTEGER = ir.IntType(64)


@register_jitable
def are_few(n_queries, width):
    """Return whether scores are computed by `score_few`."""
    return n_queries <= _FEW and width % LANES == 0


def _dots_of(kind):
    """Return a function for compiled code: the dot products of a query with rows of a type, a vector of them.

    Rows and query are `width` numbers, whole vectors of them. If there are fewer rows, the last one stands for more.
    """

    @intrinsic
    def dots(typing, rows, row_bytes, n_rows, query, width):
        return VECTOR_TYPE(*[int64] * 5), lambda _, builder, __, args: _generate_dots(builder, kind, *args)

    return dots


def _generate_dots(builder, kind, rows, row_bytes, n_rows, query, width):
    last, item_bytes = builder.sub(n_rows, _INTEGER(1)), ITEM if kind == FLOAT32 else ITEM // 2
    numbers = [_INTEGER(n) for n in range(LANES)]
    own = [builder.select(builder.icmp_signed("<", n, last), n, last) for n in numbers]
    starts = [builder.add(rows, builder.mul(n, row_bytes)) for n in own]
    of_vectors = ir.FunctionType(VECTOR, [VECTOR] * 3)
    multiply_add = cgutils.get_or_insert_function(builder.module, of_vectors, f"llvm.fmuladd.v{LANES}f32")
    before, loop, after = builder.block, *(builder.append_basic_block(name) for name in ("width", "reduce"))
    builder.branch(loop)

    builder.position_at_end(loop)
    d, sums = builder.phi(_INTEGER), [builder.phi(VECTOR) for _ in starts]

    def vector(start, item_bytes, kind):
        return load_vector(builder, builder.add(start, builder.mul(d, _INTEGER(item_bytes))), kind)

    of_query, of_rows = vector(query, ITEM, FLOAT32), (vector(start, item_bytes, kind) for start in starts)
    grown = [builder.call(multiply_add, [of_row, of_query, x]) for of_row, x in zip(of_rows, sums, strict=True)]
    next_d = builder.add(d, _INTEGER(LANES))
    d.add_incoming(_INTEGER(0), before)
    d.add_incoming(next_d, loop)
    for phi, later in zip(sums, grown, strict=True):
        phi.add_incoming(ir.Constant(VECTOR, None), before)
        phi.add_incoming(later, loop)
    builder.cbranch(builder.icmp_signed("<", next_d, width), loop, after)

    builder.position_at_end(after)
    while len(grown) > 1:  # halves of two vectors are added at a time, until one has the sum of each
        pairs = zip(grown[: len(grown) // 2], grown[len(grown) // 2 :], strict=True)
        grown = [builder.fadd(*interleaved(builder, a, b)) for a, b in pairs]
    return grown[0]


_dots, _dots_of_float16, _dots_of_bfloat16 = (_dots_of(kind) for kind in (FLOAT32, FLOAT16, BFLOAT16))


@intrinsic
def _store_below(typing, vector, address, row_bytes, n):
    """Write the first n numbers of a vector below each other."""

    def generate(context, builder, _, args):
        vector, address, row_bytes, n = args
        for i in range(LANES):
            with builder.if_then(builder.icmp_signed("<", _INTEGER(i), n), likely=True):
                number = builder.extract_element(vector, ir.IntType(32)(i))
                place = builder.add(address, builder.mul(row_bytes, _INTEGER(i)))
                builder.store(number, pointer(builder, place, number.type), align=1)
        return context.get_dummy_value()

    return types.void(VECTOR_TYPE, int64, int64, int64), generate


@compiled(void(*[int64] * 8))
def score_few(k, k_row, kind, n_keys, queries, n_queries, width, tile):
    """Write a tile of scores, `(n_keys, 64)`, of which the first vector counts; 0 beyond the queries.

    Parameters
    ----------
    k, queries : address of arrays `(n_keys, width)` and `(n_queries, width)`
        Rows of adjacent numbers: of keys of a type, `k_row` bytes from one to the next, and of queries of float32.
    kind : int
        The type of the keys' numbers.
    n_keys, n_queries, width : int
        Sizes; the last is one of whole vectors.
    tile : address
        Of the scores.
    """
    row, zero = PANEL * ITEM, spread(np.float32(0))
    for i in range(0, n_keys, LANES):
        n, place = min(LANES, n_keys - i), tile + i * row
        for j in range(n):
            store(zero, place + j * row)
        for r in range(n_queries):
            keys, query = k + i * k_row, queries + r * width * ITEM
            if kind == FLOAT32:
                scores = _dots(keys, k_row, n, query, width)
            elif kind == FLOAT16:
                scores = _dots_of_float16(keys, k_row, n, query, width)
            else:
                scores = _dots_of_bfloat16(keys, k_row, n, query, width)
            _store_below(scores, place + r * ITEM, row, n)
