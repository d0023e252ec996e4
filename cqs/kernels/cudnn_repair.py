"""Rows that cuDNN made NaN because of keys that they do not see, computed again by a kernel of our own."""

from collections.abc import Iterable

import numpy as np

from cqs.backend import import_cupy
from cqs.cuda import launch, scan_values, steps_of
from cqs.kernels.by_coverage import Shape
from cqs.kernels.contract import KeyChunk
from cqs.partial import Partial
from cqs.problem import dtype_name
from cqs.types import Array

__all__ = ["Repair"]

_THREADS, _MOST_BLOCKS = 128, 2048
_OPTIONS = {"float16": "-DEXPONENT_BITS=5", "bfloat16": "-DEXPONENT_BITS=8"}


class Repair:
    """Knows, on the device alone, whether some key or value of a call is infinite or NaN.

    cuDNN gives a key that a diagonal hides the weight 0, and 0 times infinity is NaN. So a result that is not finite,
    with such keys about, may be none of the row's own.

    Parameters
    ----------
    chunks : iterable of KeyChunk
        With arrays `(B, G, S, width)` of 16-bit numbers; all are looked at once.
    """

    def __init__(self, chunks: Iterable[KeyChunk]) -> None:
        self._facts = import_cupy().zeros(2, np.int32)
        for array in (array for chunk in chunks for array in chunk):
            scan_values(array, array.shape[-2], self._facts)

    def rows(self, q: Array, chunk: KeyChunk, found: Partial, scale: float, shape: Shape) -> None:
        """Compute those rows of a part's result again that are not finite, in place; nothing if all keys are.

        Parameters
        ----------
        q : CuPy array, `(B, H, n, D)`
            The queries of the part.
        chunk : KeyChunk
            Its keys and values, `(B, G, s, D)` and `(B, G, s, E)`.
        found : Partial
            What cuDNN made of them, `(B, H, n, E)` and `(B, H, n)` of float32, with adjacent elements in a row.
        scale : float
            What scores are multiplied by.
        shape : Shape
            Which keys the queries see.
        """
        B, H, n, D = q.shape
        G, s, E = chunk.v.shape[1:]
        is_left, is_right = shape.value
        launch(
            *("attend_rows.cu", _OPTIONS[dtype_name(q)], "attend_rows"),
            *(min(B * H * n, _MOST_BLOCKS), _THREADS),
            *(argument for array in (q, *chunk) for argument in (array, *steps_of(array, 4))),
            *(found.out, *steps_of(found.out, 3), found.lse, *steps_of(found.lse, 2)),
            *(B, H, H // G, n, s, D, E, np.float32(scale), is_left, is_right, self._facts),
        )
