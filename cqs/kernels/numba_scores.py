"""What the compiled kernel is told of changes of scores: numbers, and where a bias is."""

from math import prod
from typing import Any

import numpy as np

from cqs.kernels.numba_tables import FLOAT64, KINDS
from cqs.problem import dtype_name
from cqs.scores import ALiBi, Scores

__all__ = ["Change", "change_of", "is_compiled"]

_KINDS = KINDS | {"float64": FLOAT64}  # types of a bias
_MOST_CAP = 2.0**60  # beyond, a quotient of scores and the cap may leave the range of float32; its inverse likewise
Change = tuple[bool, np.float32, np.float32, np.float32, int, int, int, int, int]


def is_compiled(scores: Scores | None) -> bool:
    """Return whether compiled loops can do what is done to scores, which all heads of the call have in common."""
    if scores is None:
        return True
    if scores.score_mod is not None or prod(scores.lead) != 1:
        return False
    if scores.softcap is not None and not 1 / _MOST_CAP <= scores.softcap <= _MOST_CAP:
        return False
    return scores.bias is None or isinstance(scores.bias, ALiBi | np.ndarray)


def change_of(scores: Scores | None, factor: np.float32) -> Change:
    """Return the parts of a `cqs.kernels.compiled.scores.Change`.

    Parameters
    ----------
    scores : Scores or None
        As `is_compiled` allows.
    factor : float32
        What products are multiplied by, to be scores.
    """
    if scores is None:
        return False, factor, np.float32(0), np.float32(0), 0, 0, 0, 0, 0
    cap = np.float32(scores.softcap or 0)
    if isinstance(scores.bias, ALiBi):
        return True, factor, cap, np.float32(scores.bias.slopes[0]), int(scores.bias.offset), 0, 0, 0, 0
    return True, factor, cap, np.float32(0), 0, *_place(scores.bias)


def _place(bias: Any) -> tuple[int, int, int, int]:
    """Return where a bias `(..., T or 1, S or 1)` of one head is: address, bytes between rows and numbers, type."""
    if bias is None:
        return 0, 0, 0, 0
    row, item = (stride if n > 1 else 0 for n, stride in zip(bias.shape[-2:], bias.strides[-2:], strict=True))
    return bias.__array_interface__["data"][0], row, item, _KINDS[dtype_name(bias)]
