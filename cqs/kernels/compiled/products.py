"""Matrix products that stay in a core's registers, written as LLVM's vector instructions and compiled by Numba.

A product of two small matrices is a sum of outer products, one for each step of `depth`: some numbers of a column of
`a`, times a row of `b` as long as a few vectors. The sums fill the registers until they are complete; all that is read
meanwhile are the vectors of `b`, and numbers of `a`, each of which is spread over a vector.
"""

from itertools import product

from llvmlite import ir
from numba import boolean, int64, types, void
from numba.core import cgutils
from numba.extending import intrinsic

from cqs.kernels.compiled.vectors import (
    FLOAT,
    HAS_32_REGISTERS,
    LANES,
    VECTOR,
    VECTOR_BYTES,
    compiled,
    pointer,
    spread_value,
)

__all__ = ["multiply"]

_MOST_VECTORS = 4 if HAS_32_REGISTERS else 2  # side by side
_MOST_SUMS = 24 if HAS_32_REGISTERS else 12  # vectors, which leaves registers for those of b, and for one of a
_ROWS = (12, 8, 6, 4, 3, 2, 1)  # of what is computed at a time: the most of these that fit
_INTEGER = ir.IntType(64)


@intrinsic
def _multiply_in_registers(typing, n_rows, n_vectors, a, a_row, a_depth, b, b_depth, c, c_row, depth, adds):
    """Do `multiply` for one of `_ROWS`, and for at most `_MOST_VECTORS`."""

    def generate(context, builder, _, values):
        n_rows, n_vectors, *operands, adds = values
        done = builder.append_basic_block("done")
        cases = builder.switch(builder.add(builder.mul(n_rows, _INTEGER(16)), n_vectors), done)
        for rows, vectors in product(_ROWS, range(1, _MOST_VECTORS + 1)):
            if rows * vectors <= _MOST_SUMS:
                case = builder.append_basic_block(f"product_{rows}_{vectors}")
                cases.add_case(_INTEGER(16 * rows + vectors), case)
                builder.position_at_end(case)
                _generate_product(builder, rows, vectors, *operands, adds)
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*[int64] * 10, boolean), generate


def _generate_product(builder, rows, vectors, a, a_row, a_depth, b, b_depth, c, c_row, depth, adds):
    """Generate the loop over `depth`, with its sums in registers, and what writes them."""
    places = list(product(range(rows), range(vectors)))
    of_vectors = ir.FunctionType(VECTOR, [VECTOR] * 3)
    multiply_add = cgutils.get_or_insert_function(builder.module, of_vectors, f"llvm.fmuladd.v{LANES}f32")
    before, loop, after = builder.block, *(builder.append_basic_block(name) for name in ("depth", "write"))
    builder.branch(loop)

    builder.position_at_end(loop)
    step, sums = builder.phi(_INTEGER), {place: builder.phi(VECTOR) for place in places}
    from_a, from_b = (builder.add(x, builder.mul(step, stride)) for x, stride in ((a, a_depth), (b, b_depth)))
    beside = [_load(builder, from_b, VECTOR, n, _INTEGER(VECTOR_BYTES)) for n in range(vectors)]
    below = [spread_value(builder, _load(builder, from_a, FLOAT, n, a_row)) for n in range(rows)]
    grown = {(i, j): builder.call(multiply_add, [below[i], beside[j], sums[i, j]]) for i, j in places}
    next_step, zeros = builder.add(step, _INTEGER(1)), ir.Constant(VECTOR, None)
    for phi, first, later in [(step, _INTEGER(0), next_step)] + [
        (sums[place], zeros, grown[place]) for place in places
    ]:
        phi.add_incoming(first, before)
        phi.add_incoming(later, loop)
    builder.cbranch(builder.icmp_signed("<", next_step, depth), loop, after)

    builder.position_at_end(after)
    rows_of_c = [builder.add(c, builder.mul(c_row, _INTEGER(n))) for n in range(rows)]
    targets = {(i, j): builder.add(rows_of_c[i], _INTEGER(j * VECTOR_BYTES)) for i, j in places}
    with builder.if_else(adds) as (then, otherwise):
        for branch, is_added in ((then, True), (otherwise, False)):
            with branch:
                for place, target in targets.items():
                    there = pointer(builder, target, VECTOR)
                    before = builder.load(there, align=1) if is_added else zeros
                    builder.store(builder.fadd(before, grown[place]) if is_added else grown[place], there, align=1)


def _load(builder, address, kind, n, size):
    """Load a vector or number that is n times `size` bytes from an address."""
    return builder.load(pointer(builder, builder.add(address, builder.mul(size, _INTEGER(n))), kind), align=1)


@compiled(void(*[int64] * 10, boolean))
def multiply(a, a_row, a_depth, b, b_depth, c, c_row, n_rows, n_vectors, depth, adds):
    """Write the product of two matrices of float32 numbers, or add it to what is there.

    Each number is summed up in the order of `depth`, so its bits do not depend on how long vectors are.

    Parameters
    ----------
    a : address of an array `(n_rows, depth)`
        Numbers `a_row` bytes from row to row and `a_depth` bytes from column to column.
    b : address of an array `(depth, n_vectors * LANES)`
        Rows of adjacent numbers, `b_depth` bytes from one to the next.
    c : address of an array `(n_rows, n_vectors * LANES)`
        Rows of adjacent numbers, `c_row` bytes from one to the next.
    n_rows, n_vectors, depth : int
        Sizes; depth is at least 1.
    adds : bool
        Whether the product is added.
    """
    for vector in range(0, n_vectors, _MOST_VECTORS):
        n_beside, row, before = min(_MOST_VECTORS, n_vectors - vector), 0, vector * VECTOR_BYTES
        for n in _ROWS:
            while n_rows - row >= n and n * n_beside <= _MOST_SUMS:
                _multiply_in_registers(
                    n, n_beside, a + row * a_row, a_row, a_depth, b + before, b_depth,
                    c + row * c_row + before, c_row, depth, adds,
                )  # fmt: skip
                row += n
