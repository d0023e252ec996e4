"""Vectors of float32 numbers, as long as the processor's registers, for functions that Numba compiles.

Numba turns loops into vector instructions where it sees that it may, and where it does not, they take thirty times as
long. So what is done to every score is written with vectors: a type that compiled functions can keep in variables, add,
subtract, multiply and divide.
"""

import operator

import numpy as np
from llvmlite import ir
from numba import boolean, float32, int64, njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, overload, register_model

from cqs.kernels.numba_tables import BFLOAT16, FLOAT16, FLOAT32

__all__ = [
    "FEATURES",
    "FLOAT",
    "HAS_32_REGISTERS",
    "ITEM",
    "LANES",
    "LIFT",
    "VECTOR",
    "VECTOR_BYTES",
    "VECTOR_TYPE",
    "all_less",
    "any_less",
    "compiled",
    "exp",
    "inlined",
    "interleaved",
    "lifted_exp2",
    "load",
    "load_bfloat16",
    "load_float16",
    "load_vector",
    "log1p",
    "pointer",
    "spread",
    "spread_value",
    "store",
    "tanh",
    "transpose",
    "where_less",
]

FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")  # what Numba compiles for
_HAS_512_BITS, _HAS_256_BITS = "+avx512f" in FEATURES, "+avx2" in FEATURES
_READS_FLOAT16 = "+f16c" in FEATURES
HAS_32_REGISTERS = _HAS_512_BITS or "+neon" in FEATURES
LANES = 16 if _HAS_512_BITS else 8 if _HAS_256_BITS else 4  # numbers of a vector
ITEM = 4  # bytes of a number
VECTOR_BYTES = ITEM * LANES
FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)


def compiled(signature):
    """Compile a function for one signature, and keep the result."""
    return njit(signature, nogil=True, error_model="numpy", cache=True)


def inlined(function):
    """Make a function part of those that call it: for one that is large, or calls what is, and has one or two callers.

    What is compiled for a signature is compiled again within each caller, and each of theirs. Numba cannot do so with
    calls that have `*arguments`.
    """
    return njit(nogil=True, inline="always")(function)


class _VectorType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"vector_of_{LANES}")


VECTOR_TYPE = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, VECTOR)


def pointer(builder, address, kind):
    """Return an address as a pointer to a vector or number."""
    return builder.inttoptr(address, kind.as_pointer())


def spread_value(builder, number):
    """Return a vector of which each number is the one that is given."""
    nothing = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_INTEGERS, None))


@intrinsic
def store(typing, vector, address):
    """Write a vector to an address."""

    def generate(context, builder, _, args):
        builder.store(args[0], pointer(builder, args[1], VECTOR), align=1)
        return context.get_dummy_value()

    return types.void(VECTOR_TYPE, int64), generate


@intrinsic
def spread(typing, number):
    """Return a vector of which each number is the one that is given."""
    return VECTOR_TYPE(float32), lambda _, builder, __, args: spread_value(builder, args[0])


@intrinsic
def where_less(typing, a, b, this, that):
    """Return the numbers of `this` where a is less than b, and those of `that` elsewhere, or where either is NaN."""

    def generate(_, builder, __, args):
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return VECTOR_TYPE(VECTOR_TYPE, VECTOR_TYPE, VECTOR_TYPE, VECTOR_TYPE), generate


def _compared(is_enough):
    """Return a function for compiled code that compares numbers, and is true where the bits of the answers say so."""

    @intrinsic
    def compare(typing, a, b):
        def generate(_, builder, __, args):
            bits = builder.bitcast(builder.fcmp_ordered("<", *args), ir.IntType(LANES))
            return is_enough(builder, bits)

        return boolean(VECTOR_TYPE, VECTOR_TYPE), generate

    return compare


# whether any number of one vector is less than that of another, and whether all are; NaN is less than nothing
any_less = _compared(lambda builder, bits: builder.icmp_unsigned("!=", bits, bits.type(0)))
all_less = _compared(lambda builder, bits: builder.icmp_unsigned("==", bits, bits.type(2**LANES - 1)))


def interleaved(builder, a, b):
    """Return the first halves of two vectors, number by number, and their second halves."""
    halves = [[n // 2 + (n % 2) * LANES + half * LANES // 2 for n in range(LANES)] for half in range(2)]
    return [builder.shuffle_vector(a, b, ir.Constant(_INTEGERS, places)) for places in halves]


@intrinsic
def transpose(typing, source, source_row, target, target_row):
    """Write a square of numbers, as wide as a vector, with rows and columns exchanged; rows are so many bytes apart."""

    def generate(context, builder, _, args):
        def place(address, row, n):
            return pointer(builder, builder.add(address, builder.mul(row, row.type(n))), VECTOR)

        source, source_row, target, target_row = args
        rows = [builder.load(place(source, source_row, n), align=1) for n in range(LANES)]
        for _ in range(LANES.bit_length() - 1):
            pairs = zip(rows[: LANES // 2], rows[LANES // 2 :], strict=True)
            rows = [row for a, b in pairs for row in interleaved(builder, a, b)]
        for n, row in enumerate(rows):
            builder.store(row, place(target, target_row, n), align=1)
        return context.get_dummy_value()

    return types.void(int64, int64, int64, int64), generate


def load_vector(builder, address, kind):
    """Return numbers of a type, as many as a vector has, at an address, as float32."""
    if kind == FLOAT32:
        return builder.load(pointer(builder, address, VECTOR), align=1)
    if kind == FLOAT16 and _READS_FLOAT16:
        halves = ir.VectorType(ir.HalfType(), LANES)
        return builder.fpext(builder.load(pointer(builder, address, halves), align=1), VECTOR)
    halves = ir.VectorType(ir.IntType(16), LANES)
    bits = builder.zext(builder.load(pointer(builder, address, halves), align=1), _INTEGERS)
    if kind == FLOAT16:
        return _from_float16(builder, bits)
    return builder.bitcast(builder.shl(bits, _integers(16)), VECTOR)  # of bfloat16


def _loads(kind):
    """Return a function for compiled code that loads a vector of a type, as `load_vector` does, from any address."""

    @intrinsic
    def load_numbers(typing, address):
        return VECTOR_TYPE(int64), lambda _, builder, __, args: load_vector(builder, args[0], kind)

    return load_numbers


def _from_float16(builder, bits):
    units = builder.and_(bits, _integers(0x7FFF))
    magnitudes = builder.shl(units, _integers(13))
    numbers = builder.fmul(builder.bitcast(magnitudes, VECTOR), ir.Constant(VECTOR, [2.0**112] * LANES))
    small = builder.fmul(builder.sitofp(units, VECTOR), ir.Constant(VECTOR, [2.0**-24] * LANES))
    is_small = builder.icmp_unsigned("<", units, _integers(0x400))  # the shifted one would take long
    special = builder.or_(magnitudes, _integers(0x7F800000))  # infinite, or NaN
    is_special = builder.icmp_unsigned(">=", units, _integers(0x7C00))
    found = builder.bitcast(builder.select(is_small, small, numbers), _INTEGERS)
    found = builder.select(is_special, special, found)
    signs = builder.shl(builder.and_(bits, _integers(0x8000)), _integers(16))
    return builder.bitcast(builder.or_(found, signs), VECTOR)


def _integers(number):
    return ir.Constant(_INTEGERS, [number] * LANES)


load, load_float16, load_bfloat16 = _loads(FLOAT32), _loads(FLOAT16), _loads(BFLOAT16)


def _arithmetic(instruction):
    """Return a function of two vectors for compiled code; a product may be rounded together with a sum."""

    @intrinsic
    def compute(typing, a, b):
        return VECTOR_TYPE(VECTOR_TYPE, VECTOR_TYPE), lambda _, builder, __, args: getattr(builder, instruction)(
            *args, flags=("contract",)
        )

    def of_vectors(a, b):
        return (lambda a, b: compute(a, b)) if a is b is VECTOR_TYPE else None

    return of_vectors


_INSTRUCTIONS = {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul", operator.truediv: "fdiv"}
for _operator, _instruction in _INSTRUCTIONS.items():
    overload(_operator)(_arithmetic(_instruction))


def _times_power_of_2(lift):
    """Return a function for compiled code that multiplies numbers by powers of 2, and all of them by 2^lift."""

    @intrinsic
    def multiply(typing, series, rounded):
        """Return numbers in [1/2, 2] times 2^(n + lift), for n >= -190 to which `_ROUNDER` was added; rounded once."""

        def by_exponents(_, builder, __, args):
            exponents = builder.add(builder.bitcast(args[1], _INTEGERS), _integers(64 + 127 - 0x4B400000))
            power = builder.bitcast(builder.shl(exponents, _integers(23)), VECTOR)  # 2^(n + 64), which has all digits
            return builder.fmul(builder.fmul(args[0], power), ir.Constant(VECTOR, [2.0 ** (lift - 64)] * LANES))

        def by_instruction(_, builder, __, args):
            mask, rounding = ir.IntType(16), ir.IntType(32)
            kind = ir.FunctionType(VECTOR, [VECTOR, VECTOR, VECTOR, mask, rounding])
            scale = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.mask.scalef.ps.512")
            powers = builder.fsub(args[1], ir.Constant(VECTOR, [float(_ROUNDER) - lift] * LANES))
            return builder.call(scale, [args[0], powers, args[0], mask(-1), rounding(4)])  # rounded as everywhere

        return VECTOR_TYPE(VECTOR_TYPE, VECTOR_TYPE), by_instruction if _HAS_512_BITS else by_exponents

    return multiply


LIFT = 32  # of weights, as a power of 2
_LEAST_2, _LEAST_E = np.float32(-190), np.float32(-104)  # of these, and below, powers are rounded to 0
_ROUNDER = np.float32(1.5 * 2**23)  # a number that is added to it is rounded, and is in its last bits
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693145751953125), np.float32(1.42860677e-6)  # a multiple of the first is exact
# 2^t for |t| <= 1/2: of the polynomials of degree 6 that are 1 at 0, the nearest, to 2e-9
_C1, _C2, _C3 = np.float32(6.9314720286e-1), np.float32(2.4022647914e-1), np.float32(5.5503324712e-2)
_C4, _C5, _C6 = np.float32(9.6184373574e-3), np.float32(1.3398874404e-3), np.float32(1.5353361945e-4)


@njit(nogil=True, forceinline=True)
def _power(t):
    """Return 2^t of numbers with |t| <= 1/2."""
    series = spread(_C6) * t + spread(_C5)
    series = series * t + spread(_C4)
    series = series * t + spread(_C3)
    series = series * t + spread(_C2)
    series = series * t + spread(_C1)
    return series * t + spread(np.float32(1))


_times_power, _times_lifted_power = _times_power_of_2(0), _times_power_of_2(LIFT)


@njit(nogil=True, forceinline=True)
def lifted_exp2(x):
    """Return 2^32 times 2 to the power of numbers that are at most 0, to 1 unit in the last place; NaN for NaN."""
    least, rounder = spread(_LEAST_2), spread(_ROUNDER)
    powers = where_less(x, least, least, x)
    rounded = powers + rounder
    return _times_lifted_power(_power(powers - (rounded - rounder)), rounded)


@njit(nogil=True, forceinline=True)
def exp(x):
    """Return e to the power of numbers that are at most 0, to 1 unit in the last place or little more; NaN for NaN."""
    least, rounder = spread(_LEAST_E), spread(_ROUNDER)
    powers = where_less(x, least, least, x)
    rounded = powers * spread(_LOG2_E) + rounder
    whole = rounded - rounder
    t = powers - whole * spread(_LN2_HIGH) - whole * spread(_LN2_LOW)
    return _times_power(_power(t * spread(_LOG2_E)), rounded)


# atanh(s) / s for |s| <= 1/3: of the polynomials of degree 4 in s^2 that are 1 at 0, the nearest, to 5e-9
_L1, _L2 = np.float32(3.3333206582e-1), np.float32(2.0010848467e-1)
_L3, _L4 = np.float32(1.3999589783e-1), np.float32(1.4012126772e-1)


@njit(nogil=True, forceinline=True)
def log1p(x):
    """Return the logarithm of 1 more than numbers in [0, 1], to 2 units in the last place; NaN for NaN."""
    s = x / (x + spread(np.float32(2)))  # of which log(1 + x) is twice the inverse hyperbolic tangent
    square = s * s
    series = spread(_L4) * square + spread(_L3)
    series = series * square + spread(_L2)
    series = series * square + spread(_L1)
    return (s + s) + (s + s) * (square * series)


_SMALL = np.float32(0.65)
# tanh(x) / x for |x| <= 0.65: of the polynomials of degree 5 in x^2 that are 1 at 0, the nearest, to 7e-9
_T1, _T2, _T3 = np.float32(-3.3333259848e-1), np.float32(1.3330830342e-1), np.float32(-5.3688022860e-2)
_T4, _T5 = np.float32(2.0469419214e-2), np.float32(-5.5151632438e-3)


@njit(nogil=True, forceinline=True)
def tanh(x):
    """Return the hyperbolic tangent of numbers, to 2 units in the last place; NaN for NaN."""
    zero, one = spread(np.float32(0)), spread(np.float32(1))
    size, square = where_less(x, zero, zero - x, x), x * x
    series = spread(_T5) * square + spread(_T4)
    series = series * square + spread(_T3)
    series = series * square + spread(_T2)
    series = series * square + spread(_T1)
    power = exp(zero - (size + size))
    large = (one - power) / (one + power)
    return where_less(size, spread(_SMALL), x + x * (square * series), where_less(x, zero, zero - large, large))
