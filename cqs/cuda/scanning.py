"""Whether some number of an array is infinite, NaN or large: found out on the device, where kernels ask for it."""

import numpy as np

from cqs.cuda.compiling import launch
from cqs.cuda.strides import stacks, steps_of
from cqs.problem import dtype_name
from cqs.types import Array

__all__ = ["scan_values"]

_THREADS = 256  # of a block of threads
_MOST_BLOCKS = 2048  # of threads, where each takes more than 16 bytes

# type -> bits of its exponent, and how many bits are below them
_EXPONENTS = {
    "float16": (0x1F, 10),
    "bfloat16": (0xFF, 7),
    "float32": (0xFF, 23),
    "float64": (0x7FF, 52),
}


def scan_values(array: Array, n_keys: int, facts: Array) -> None:
    """Look at all numbers of an array once, on the current stream; nothing is waited for.

    Parameters
    ----------
    array : CuPy array, `(*L, rows, width)`
    n_keys : int
        How many of its numbers may be summed up, with weights of at most 1.
    facts : CuPy array of int32, (2,)
        The first is set to 1 if a number is infinite or NaN, the second if one is so large that a sum may overflow.
    """
    name = dtype_name(array)
    ones, shift = _EXPONENTS[name]
    # below 2^-(n + 1) of the largest number, for 2^n keys; a sum of float16 values cannot overflow float32
    large = ones if name == "float16" else ones - 1 - n_keys.bit_length() - 1
    limits = np.uint64(ones << shift), np.uint64(large << shift)
    for (part,) in stacks(array) if array.size else ():
        n_blocks = min(-(-part.size * part.itemsize // (16 * _THREADS)), _MOST_BLOCKS)
        kernel = "scan_values.cu", f"-DWORD_BYTES={part.itemsize}", "scan_values"
        launch(*kernel, n_blocks, _THREADS, part, *part.shape, *steps_of(part, 3), *limits, facts)
