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
    load_vector,
    pointer,
    spread_value,
)
from cqs.kernels.numba_tables import BFLOAT16, FLOAT16, FLOAT32

__all__ = ["multiply", "multiply_halves"]

_MOST_VECTORS = 4 if HAS_32_REGISTERS else 2  # side by side
_MOST_SUMS = 24 if HAS_32_REGISTERS else 12  # vectors, which leaves registers for those of b, and for one of a
_ROWS = (12, 8, 6, 4, 3, 2, 1)  # of what is computed at a time: the most of these that fit
_FEW_ROWS = _ROWS[2:]
_INTEGER = ir.IntType(64)


def _in_registers(kind, heights):
    """Return what does `multiply` for `n_rows` among some heights, and at most `_MOST_VECTORS`; b is of a type."""

    @intrinsic
    def multiply_in_registers(typing, n_rows, n_vectors, a, a_row, a_depth, b, b_depth, c, c_row, depth, adds):
        def generate(context, builder, _, values):
            n_rows, n_vectors, *operands, adds = values
            done = builder.append_basic_block("done")
            cases = builder.switch(builder.add(builder.mul(n_rows, _INTEGER(16)), n_vectors), done)
            for rows, vectors in product(heights, range(1, _MOST_VECTORS + 1)):
                if rows * vectors <= _MOST_SUMS:
                    case = builder.append_basic_block(f"product_{rows}_{vectors}")
                    cases.add_case(_INTEGER(16 * rows + vectors), case)
                    builder.position_at_end(case)
                    _generate_product(builder, kind, rows, vectors, *operands, adds)
                    builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.void(*[int64] * 10, boolean), generate

    return multiply_in_registers


_multiply_in_registers = _in_registers(FLOAT32, _ROWS)
_multiply_float16, _multiply_bfloat16 = _in_registers(FLOAT16, _FEW_ROWS), _in_registers(BFLOAT16, _FEW_ROWS)


def _generate_product(builder, kind, rows, vectors, a, a_row, a_depth, b, b_depth, c, c_row, depth, adds):
    """Generate the loop over `depth`, with its sums in registers, and what writes them."""
    places = list(product(range(rows), range(vectors)))
    of_vectors = ir.FunctionType(VECTOR, [VECTOR] * 3)
    multiply_add = cgutils.get_or_insert_function(builder.module, of_vectors, f"llvm.fmuladd.v{LANES}f32")
    before, loop, after = builder.block, *(builder.append_basic_block(name) for name in ("depth", "write"))
    builder.branch(loop)

    builder.position_at_end(loop)
    step, sums = builder.phi(_INTEGER), {place: builder.phi(VECTOR) for place in places}
    from_a, from_b = (builder.add(x, builder.mul(step, stride)) for x, stride in ((a, a_depth), (b, b_depth)))
    n_bytes = VECTOR_BYTES if kind == FLOAT32 else VECTOR_BYTES // 2
    beside = [load_vector(builder, builder.add(from_b, _INTEGER(n * n_bytes)), kind) for n in range(vectors)]
    below = [spread_value(builder, _number(builder, from_a, n, a_row)) for n in range(rows)]
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


def _number(builder, address, n, row_bytes):
    """Load the number n rows below an address."""
    return builder.load(pointer(builder, builder.add(address, builder.mul(row_bytes, _INTEGER(n))), FLOAT), align=1)


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


@compiled(void(int64, *[int64] * 10))
def multiply_halves(kind, a, a_row, a_depth, b, b_depth, c, c_row, n_rows, n_vectors, depth):
    """Add the product of two matrices to what is there, as `multiply` does, where b is of 16 bits and rows are few.

    What is said there about a and c holds here, too.

    Parameters
    ----------
    kind : int
        The type of the numbers of b: FLOAT16 or BFLOAT16.
    """
    for vector in range(0, n_vectors, _MOST_VECTORS):
        n_beside, row = min(_MOST_VECTORS, n_vectors - vector), 0
        from_b, to_c = b + vector * VECTOR_BYTES // 2, c + vector * VECTOR_BYTES
        for n in _FEW_ROWS:
            while n_rows - row >= n and n * n_beside <= _MOST_SUMS:
                from_a, target = a + row * a_row, to_c + row * c_row
                if kind == FLOAT16:
                    _multiply_float16(n, n_beside, from_a, a_row, a_depth, from_b, b_depth, target, c_row, depth, True)
                else:
                    _multiply_bfloat16(n, n_beside, from_a, a_row, a_depth, from_b, b_depth, target, c_row, depth, True)
                row += n
