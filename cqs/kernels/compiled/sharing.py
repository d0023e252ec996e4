"""How threads share out numbered items without Python: each adds 1 to a number that all of them can reach."""

from llvmlite import ir
from numba import int64
from numba.extending import intrinsic

__all__ = ["next_item"]

_INTEGER = ir.IntType(64)


@intrinsic
def next_item(typing, address):
    """Add 1 to an integer at an address, which other threads may do at the same time; return what it was before."""

    def generate(_, builder, __, args):
        place = builder.inttoptr(args[0], _INTEGER.as_pointer())
        return builder.atomic_rmw("add", place, _INTEGER(1), "monotonic")

    return int64(int64), generate
