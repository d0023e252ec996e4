"""Exercises of notebook 10: gradients."""

from collections.abc import Callable, Sequence

from checks.forms import function, number
from checks.verdict import exercise

__all__ = ["check_ratio", "check_score_gradients"]

Numbers = Sequence[float]


@exercise(
    hint="five products: scores D, dout with v E, dv E, dq D, dk D. Then divide by D + E.",
    right="(3 D + 2 E) / (D + E) = 5/2. With a causal mask both are half as many, and the ratio is the same.",
    form=number(),
)
def check_ratio(ratio: float) -> str | None:
    """Check how many times the multiplications of attention its gradients take, for D = E."""
    mistakes = {
        2.0: "Four products of width D are twice as many. Weights are not kept: what has to be made again first?",
        1.5: "Those are the three sums alone. What are ds and p made of?",
        5.0: "There are five products, each D a pair. But attention itself has two.",
        3.0: "Six products? A score, dout with v, and the sums for v, q and k are five.",
    }
    if ratio in mistakes:
        return mistakes[ratio]
    if abs(ratio - 2.5) < 1e-9:
        return None
    return f"{ratio:g} would be {2 * ratio:g} products of width D. Count those on the right sides of the formulas."


@exercise(
    hint="p_j (x_j - mean), where the mean of the x_j is weighted by p.",
    right="They add up to 0: what one key gains the others lose.",
    form=function("a function of two lists, weights and numbers, that returns a list"),
)
def check_score_gradients(score_gradients: Callable[[Numbers, Numbers], Numbers]) -> str | None:
    """Check a function of the weights p of a row, and of its numbers dout · v, that returns ds."""
    cases: list[tuple[Numbers, Numbers, Numbers, str]] = [
        ([0.25, 0.75], [0.0, 8.0], [-1.5, 1.5], "the example by hand: the weighted mean is 6."),
        ([0.5, 0.25, 0.25], [4.0, 4.0, 4.0], [0.0, 0.0, 0.0], "all values are alike, so no weight matters."),
        ([1.0, 0.0], [3.0, 50.0], [0.0, 0.0], "a weight of 1 cannot grow, and a key of weight 0 has no part in it."),
        ([0.1, 0.2, 0.7], [1.0, 2.0, -1.0], [0.12, 0.44, -0.56], "the mean -0.2 is weighted by p."),
    ]
    for weights, numbers, due, why in cases:
        came = score_gradients(list(weights), list(numbers))
        if came is None:
            return "your function returns nothing; end it with `return`."
        found = [float(x) for x in came]
        if len(found) != len(due):
            return f"Of {len(due)} keys it made {len(found)} numbers; each key has one."
        if any(abs(x - y) > 1e-9 for x, y in zip(found, due, strict=True)):
            shown = ", ".join(f"{x:g}" for x in due)
            return f"Of p = {weights} and {numbers} it made {found}, and not [{shown}]. About this case: {why}"
    return None
