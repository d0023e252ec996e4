"""Numbers too small to have all digits: with them some processors take a hundred times as long, so none are made.

Weights of keys that matter little would be such numbers, in the thousands where scores differ much, as by ALiBi.
"""

import platform

from llvmlite import ir
from numba import int64, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["round_as_before", "round_small_to_zero"]

_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")  # others do not take longer, or not much
_SMALL_ARE_ZERO = 0x8000  # of the control register: results, not what is read
_STATE = ir.IntType(32)


def _call(builder, name, place):
    """Call the instruction that reads or writes the control register."""
    address = ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [address]), name)
    builder.call(function, [builder.bitcast(place, address)])


@intrinsic
def round_small_to_zero(typing):
    """Have this thread round what is less than 2^-126 to 0; return what `round_as_before` is to be given."""

    def generate(context, builder, _, args):
        if not _IS_X86:
            return ir.Constant(ir.IntType(64), 0)
        place = cgutils.alloca_once(builder, _STATE)
        _call(builder, "llvm.x86.sse.stmxcsr", place)
        before = builder.load(place)
        builder.store(builder.or_(before, _STATE(_SMALL_ARE_ZERO)), place)
        _call(builder, "llvm.x86.sse.ldmxcsr", place)
        return builder.zext(before, ir.IntType(64))

    return int64(), generate


@intrinsic
def round_as_before(typing, state):
    """Have this thread round as it did before `round_small_to_zero`."""

    def generate(context, builder, _, args):
        if _IS_X86:
            place = cgutils.alloca_once(builder, _STATE)
            builder.store(builder.trunc(args[0], _STATE), place)
            _call(builder, "llvm.x86.sse.ldmxcsr", place)
        return context.get_dummy_value()

    return types.void(int64), generate
