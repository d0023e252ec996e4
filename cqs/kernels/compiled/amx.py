"""Matrix products by Intel's AMX: registers that hold tiles of 16 rows of 64 bytes, and multiply them in 16 cycles.

They multiply numbers of 16 bits (bfloat16) and sum up in float32, sixteen times as many in a cycle as vectors of
float32 numbers. A float32 number is the sum of three of 16 bits, its *pieces*, so a product of float32 numbers is the
sum of products of pieces: of those that matter there are six. The last bits are then as good as those of a product
that is computed in float32, in less than half of the time.

Numbers whose pieces would be too small to have all digits are not for this: AMX takes them for 0. So
`cqs.kernels.compiled.pieces` says whether there are any.
"""

import ctypes
import platform
import sys

from llvmlite import ir
from numba import int64, types, void
from numba.core import cgutils
from numba.extending import intrinsic

from cqs.kernels.compiled.pieces import TILE_BYTES
from cqs.kernels.compiled.reading import ROW
from cqs.kernels.compiled.vectors import FEATURES, compiled
from cqs.kernels.compiled.weighing import weigh_next

__all__ = ["HAS_TILES", "begin", "end", "has_amx", "multiply_pieces"]

HAS_TILES = {"+amx-tile", "+amx-bf16", "+avx512f", "+avx512bw"} <= set(FEATURES) and platform.system() == "Linux"
_ASK_FOR_TILES, _TILE_DATA = 0x1023, 18  # of arch_prctl: a process asks for the registers before it uses them
_ARCH_PRCTL = 158
_INTEGER = ir.IntType(64)
_BYTE = ir.IntType(8)
# by how many pieces numbers of a and of b have, which pieces are multiplied: those that are small come first
_PRODUCTS = {
    (3, 3): ((0, 2), (0, 1), (1, 1), (1, 0), (2, 0), (0, 0)),
    (2, 3): ((0, 2), (0, 1), (1, 1), (1, 0), (0, 0)),
    (1, 3): ((0, 2), (0, 1), (0, 0)),
    (2, 2): ((0, 1), (1, 1), (1, 0), (0, 0)),
    (1, 1): ((0, 0),),
}
_APART = {6: 3, 5: 2, 4: 2, 3: 1, 1: 1}  # products of two tiles, by how many of pieces there are, to each `weigh_next`


def has_amx() -> bool:
    """Return whether this process may use AMX; ask Linux for it."""
    if not HAS_TILES or sys.maxsize < 2**32:
        return False
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    return syscall(*map(ctypes.c_long, (_ARCH_PRCTL, _ASK_FOR_TILES, _TILE_DATA))) == 0


def _emit(builder, name, registers=(), place=None, row_bytes=None):
    """Emit an instruction that is given registers, and the address of a tile in memory and the distance of its rows."""
    if not HAS_TILES:  # and nobody calls it
        return
    operands = [ir.Constant(_BYTE, n) for n in registers]
    if place is not None:
        operands.append(builder.inttoptr(place, _BYTE.as_pointer()))
    if row_bytes is not None:
        operands.append(_INTEGER(row_bytes))
    kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), operands)


@intrinsic
def begin(typing):
    """Have this thread's registers be tiles of 16 rows of 64 bytes."""

    def generate(context, builder, _, args):
        palette, rows, row_bytes = [1] + [0] * 15, [16] * 8 + [0] * 8, [64, 0] * 8 + [0] * 16
        setting = ir.Constant(ir.ArrayType(_BYTE, 64), palette + row_bytes + rows)
        with builder.goto_entry_block():
            place = builder.alloca(setting.type)
        builder.store(setting, place)
        _emit(builder, "ldtilecfg", place=builder.ptrtoint(place, _INTEGER))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def end(typing):
    """Let go of this thread's registers."""

    def generate(context, builder, _, args):
        _emit(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _multiply_tiles(typing, a, a_tile, a_piece, b, b_piece, c, steps, n_beside, a_pieces, b_pieces, work):
    """Do `multiply_pieces` for two tiles below each other, and `n_beside` of 1 or 2 beside each other."""

    def generate(context, builder, _, args):
        *operands, n_beside, a_pieces, b_pieces, work = args
        of_address = types.void(int64)
        weigh = context.compile_subroutine(builder, weigh_next, of_address)

        def between() -> None:
            context.call_internal_no_propagate(builder, weigh.fndesc, of_address, [work])

        done = builder.append_basic_block("done")
        which = builder.add(
            builder.add(builder.mul(a_pieces, _INTEGER(16)), builder.mul(b_pieces, _INTEGER(4))), n_beside
        )
        cases = builder.switch(which, done)
        for (of_a, of_b), products in _PRODUCTS.items():
            for n in (1, 2):
                case = builder.append_basic_block(f"product_{of_a}_{of_b}_{n}")
                cases.add_case(_INTEGER(16 * of_a + 4 * of_b + n), case)
                builder.position_at_end(case)
                _generate_tiles(builder, *operands, n, products, between)
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*[int64] * 11), generate


def _generate_tiles(builder, a, a_tile, a_piece, b, b_piece, c, steps, n_beside, products, between):
    """Generate the loop over steps, with four sums in registers 0 to 3, a in 4 and 5, b in 6 and 7."""

    def address(start, *offsets):
        for distance, n in offsets:
            start = builder.add(start, builder.mul(distance, _INTEGER(n)))
        return start

    before, loop, after = builder.block, *(builder.append_basic_block(name) for name in ("step", "write"))
    for n in range(4):
        _emit(builder, "tilezero", [n])
    builder.branch(loop)

    builder.position_at_end(loop)
    step = builder.phi(_INTEGER)
    from_a = builder.add(a, builder.mul(step, _INTEGER(TILE_BYTES)))
    from_b = builder.add(b, builder.mul(step, _INTEGER(ROW // 64 * TILE_BYTES)))
    held_a = held_b = None
    n_multiplied, most = 0, _APART[len(products)]
    for i, j in products:
        if i != held_a:
            for n in range(2):
                place = address(from_a, (a_piece, i), (a_tile, n))
                _emit(builder, "tileloadd64", [4 + n], place, 64)
        if j != held_b:
            for n in range(n_beside):
                place = address(from_b, (b_piece, j), (_INTEGER(TILE_BYTES), n))
                _emit(builder, "tileloadd64", [6 + n], place, 64)
        held_a, held_b = i, j
        for n in range(2):
            for m in range(n_beside):
                _emit(builder, "tdpbf16ps", [2 * n + m, 4 + n, 6 + m])
                n_multiplied += 1
                if n_multiplied % most == 0:
                    between()
    next_step = builder.add(step, _INTEGER(1))
    step.add_incoming(_INTEGER(0), before)
    step.add_incoming(next_step, loop)
    builder.cbranch(builder.icmp_signed("<", next_step, steps), loop, after)

    builder.position_at_end(after)
    for n in range(2):
        for m in range(n_beside):
            place = builder.add(c, _INTEGER(16 * ROW * n + 64 * m))
            _emit(builder, "tilestored64", [2 * n + m], place, ROW)


@compiled(void(*[int64] * 12))
def multiply_pieces(a, a_tile, a_piece, b, b_piece, c, n_below, n_beside, steps, a_pieces, b_pieces, work):
    """Write the product of two matrices of which the pieces are given, as `cqs.kernels.compiled.pieces` arranges them.

    Parameters
    ----------
    a : address of pieces of an array `(16 * n_below, 32 * steps)`
        Of each piece, `a_piece` bytes apart, and of each 16 rows, `a_tile` bytes apart, `steps` tiles one after the
        other, each of 16 rows of 16 pairs of numbers.
    b : address of pieces of an array `(32 * steps, 16 * n_beside)`
        Of each piece, `b_piece` bytes apart, and each step, 4 tiles one after the other, each of 16 rows of pairs, side
        by side: the numbers of a pair are 16 apart, in both arrays.
    c : address of a float32 array `(16 * n_below, 64)`
        Where the product goes, in the first columns.
    n_below, n_beside, steps : int
        Sizes; `n_below` is even, `n_beside` at most 4.
    a_pieces, b_pieces : int
        Pieces of each number: 3 and 3, 2 and 3, 1 and 3, 2 and 2, or 1 and 1.
    work : address
        Of what `weigh_next` is to do meanwhile.
    """
    for n in range(0, n_below, 2):
        for m in range(0, n_beside, 2):
            _multiply_tiles(
                a + n * a_tile, a_tile, a_piece, b + m * TILE_BYTES, b_piece, c + n * 16 * ROW + m * 64, steps,
                min(n_beside - m, 2), a_pieces, b_pieces, work,
            )  # fmt: skip
