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
    VECTOR_BYTES,
    VECTOR_TYPE,
    compiled,
    interleaved,
    pointer,
    spread,
    store,
)
from cqs.schedule import PANEL

__all__ = ["are_few", "score_few"]

_FEW = 6  # queries; with more of them a tile takes less time
_INTEGER = ir.IntType(64)


@register_jitable
def are_few(n_queries, width):
    """Return whether scores are computed by `score_few`."""
    return n_queries <= _FEW and width % LANES == 0


@intrinsic
def _dots(typing, rows, row_bytes, n_rows, query, width):
    """Return the dot products of a query with as many rows as a vector has numbers; the last row stands for more.

    Rows and query are `width` numbers, whole vectors of them.
    """

    def generate(context, builder, _, args):
        rows, row_bytes, n_rows, query, width = args
        last = builder.sub(n_rows, _INTEGER(1))
        numbers = [_INTEGER(n) for n in range(LANES)]
        own = [builder.select(builder.icmp_signed("<", n, last), n, last) for n in numbers]
        starts = [builder.add(rows, builder.mul(n, row_bytes)) for n in own]
        kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
        multiply_add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
        before, loop, after = builder.block, *(builder.append_basic_block(name) for name in ("width", "reduce"))
        builder.branch(loop)

        builder.position_at_end(loop)
        step, sums = builder.phi(_INTEGER), [builder.phi(VECTOR) for _ in starts]

        def vector(start):
            return builder.load(pointer(builder, builder.add(start, step), VECTOR), align=1)

        of_query = vector(query)
        grown = [
            builder.call(multiply_add, [vector(start), of_query, x]) for start, x in zip(starts, sums, strict=True)
        ]
        next_step = builder.add(step, _INTEGER(VECTOR_BYTES))
        step.add_incoming(_INTEGER(0), before)
        step.add_incoming(next_step, loop)
        for phi, later in zip(sums, grown, strict=True):
            phi.add_incoming(ir.Constant(VECTOR, None), before)
            phi.add_incoming(later, loop)
        end = builder.mul(width, _INTEGER(ITEM))
        builder.cbranch(builder.icmp_signed("<", next_step, end), loop, after)

        builder.position_at_end(after)
        while len(grown) > 1:  # halves of two vectors are added at a time, until one has the sum of each
            pairs = zip(grown[: len(grown) // 2], grown[len(grown) // 2 :], strict=True)
            grown = [builder.fadd(*interleaved(builder, a, b)) for a, b in pairs]
        return grown[0]

    return VECTOR_TYPE(*[int64] * 5), generate


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
def score_few(k, k_row, n_keys, queries, query_row, n_queries, width, tile):
    """Write a tile of scores, `(n_keys, 64)`, of which the first vector counts; 0 beyond the queries.

    Parameters
    ----------
    k, queries : address of arrays `(n_keys, width)` and `(n_queries, width)`
        Rows of adjacent numbers, `k_row` and `query_row` bytes from one to the next.
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
            scores = _dots(k + i * k_row, k_row, n, queries + r * query_row, width)
            _store_below(scores, place + r * ITEM, row, n)
