"""Exercises of notebook 05: the Tiler."""

import math
from collections.abc import Callable

import numpy as np

from checks.forms import function, whole_number
from checks.verdict import exercise

__all__ = ["check_depth", "check_merge"]

Pair = tuple[float, float]
_INF = math.inf


@exercise(
    hint="each level of the tree halves the number of results, rounding up: 57, 29, 15, ...",
    right="57, 29, 15, 8, 4, 2, 1: six levels, where a chain takes 56 merges in a row. Both do 56 in all.",
    form=whole_number(),
)
def check_depth(n_levels: int) -> str | None:
    """Check how many merges one after the other a balanced tree needs for 57 partial results."""
    mistakes = {
        56: "That is the number of merges, and the depth of a chain. In a tree many of them happen at the same time.",
        57: "57 results take 56 merges, since each merge leaves one less. And in a tree many happen at the same time.",
        5: "Five levels merge at most 2^5 = 32 results.",
        7: "Seven levels are enough for 128 results. 57 need fewer.",
    }
    if n_levels in mistakes:
        return mistakes[n_levels]
    if n_levels == math.ceil(math.log2(57)):
        return None
    return f"{n_levels} levels merge up to 2^{n_levels} results. What is the least power of 2 that is at least 57?"


@exercise(
    hint="o = o_a exp(l_a - l) + o_b exp(l_b - l) with l = log(exp(l_a) + exp(l_b)); then think of l_a = l_b = -inf.",
    right="It is a commutative monoid, as far as rounding allows: with (0, -inf) as identity, any order, any tree.",
    form=function("a function of two pairs (out, lse) that returns such a pair"),
)
def check_merge(merge: Callable[[Pair, Pair], Pair]) -> str | None:
    """Check a function that merges two partial results (out, lse), both floats."""
    log = math.log
    cases: list[tuple[Pair, Pair, Pair, str]] = [
        ((16, log(5)), (30, log(5)), (23, log(10)), "equal weights: the mean of 16 and 30."),
        ((10, log(3)), (20, log(1)), (12.5, log(4)), "the weights are 3/4 and 1/4: an lse is the log of a weight."),
        ((1, 1000.0), (3, 1000.0), (2, 1000 + log(2)), "exp(1000) overflows: subtract the larger lse before exp."),
        ((1, -1000.0), (3, -1000.0), (2, -1000 + log(2)), "exp(-1000) is 0: subtract the larger lse before exp."),
        ((7, 2.0), (0, -_INF), (7, 2.0), "(0, -inf) has seen no key, and must change nothing."),
        ((0, -_INF), (7, 2.0), (7, 2.0), "(0, -inf) has seen no key, and must change nothing, on the left as well."),
        ((0, -_INF), (0, -_INF), (0, -_INF), "neither side has seen a key: -inf - (-inf) is NaN. Treat it apart."),
    ]
    for a, b, due, why in cases:
        with np.errstate(all="ignore"):
            came = _merged(merge, a, b)
        if isinstance(came, str):
            return f"Merging {a} and {b}: {came} About this case: {why}"
        if not all(x == y or abs(x - y) < 1e-9 for x, y in zip(came, due, strict=True)):
            return f"Of {a} and {b} it made {came}, and not ({due[0]:g}, {due[1]:.6g}). About this case: {why}"
    return None


def _merged(merge: Callable[[Pair, Pair], Pair], a: Pair, b: Pair) -> Pair | str:
    try:
        came = merge(a, b)
    except (ArithmeticError, ValueError) as error:
        return f"it raised {type(error).__name__}: {error}."
    if came is None:
        return "your function returns nothing; end it with `return out, lse`."
    out, lse = came
    return float(out), float(lse)
