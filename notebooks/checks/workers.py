"""Exercises of notebook 04: the Workers."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from checks.forms import function, whole_number
from checks.verdict import exercise

__all__ = ["check_lse", "check_overflow"]


@exercise(
    hint="exp(x) overflows beyond the logarithm of the largest number, which is `np.finfo(np.float32).max`.",
    right="log(3.4e38) = 88.7. A trained model without the scale 1/sqrt(D) comes near it: see notebook 09.",
    form=whole_number(),
)
def check_overflow(score: int) -> str | None:
    """Check the smallest whole score whose exponential is infinite in float32."""
    mistakes = {
        88: "exp(88) = 1.65e38 is still a float32, if barely. One more.",
        710: "That is where float64 ends. The question is about float32, with 8 bits for the exponent.",
        12: "That is where float16 ends. float32 reaches further.",
        128: "2^128 is where float32 ends, but the base here is e, and e^128 = 2^185.",
        1000: "At 1000 it is infinite, but long before that, too.",
    }
    if score in mistakes:
        return mistakes[score]
    with np.errstate(over="ignore"):
        is_over, was_over = (bool(np.isinf(np.exp(np.float32(x)))) for x in (score, score - 1))
    if not is_over:
        return f"exp({score}) is {math.exp(score):.2e}, which float32 has."
    return f"exp({score}) is infinite, and exp({score - 1}), too." if was_over else None


@exercise(
    hint="with t the largest score, it is t + log(sum of exp(s - t)). What if t is -inf, or there is no t?",
    right="No exponent is above 0, so nothing overflows; the largest term is 1, so the sum cannot vanish.",
    form=function("a function of a list of floats that returns a float"),
)
def check_lse(lse: Callable[[Sequence[float]], float]) -> str | None:
    """Check a function that computes the log-sum-exp of a list of scores, which may be large, -inf, or none."""
    cases = [
        ([math.log(2), math.log(3)], math.log(5), "the exponentials are 2 and 3, and their sum is 5."),
        ([1000.0, 1000.0], 1000 + math.log(2), "exp(1000) overflows. Subtract the largest score before exp."),
        ([-1000.0, -1001.0], -1000 + math.log1p(math.exp(-1)), "exp(-1000) is 0. Subtract the largest score."),
        ([1000.0, 0.0], 1000.0, "take the largest score for t, not the first, the last or the mean."),
        ([0.0, 1000.0], 1000.0, "take the largest score for t, not the first, the last or the mean."),
        ([2.0, -math.inf], 2.0, "a hidden key has score -inf and adds exp(-inf) = 0."),
        ([-math.inf, -math.inf], -math.inf, "a query that sees no key: -inf - (-inf) is NaN. Treat this t apart."),
        ([], -math.inf, "an empty sum is 0, and log 0 = -inf: this is the identity of merging."),
    ]
    for scores, due, why in cases:
        try:
            with np.errstate(all="ignore"):
                came = lse(scores)
        except (ArithmeticError, ValueError) as error:
            return f"On the scores {scores} it raised {type(error).__name__}: {error}. About this case: {why}"
        if came is None:
            return "Your function returns nothing: end it with `return`."
        if not (came == due or abs(came - due) < 1e-9):
            return f"Of the scores {scores} it made {came}, and not {due:.6g}. About this case: {why}"
    return None
