"""Exercises of notebook 06: masks."""

import numpy as np

from checks.forms import anything, whole_number
from checks.verdict import exercise
from cqs.masks import Mask

__all__ = ["check_chat", "check_window_pairs"]

_N, _FIRST, _LAST = 256, 4, 32


@exercise(
    hint="query i sees min(i + 1, 100) keys: a ramp of 1, 2, ..., 99, and then 100 for each of the others.",
    right="1 + ... + 99 = 4950, and 901 x 100. A tenth of the 1,000,000 pairs, and cost follows.",
    form=whole_number(),
)
def check_window_pairs(n_pairs: int) -> str | None:
    """Check the visible pairs of `SlidingWindow(99)` over 1000 tokens."""
    mistakes = {
        100_000: "That gives each query 100 keys. The first 99 queries have fewer keys before them.",
        99_000: "The window has 99 keys to the left, and the query's own: 100. And the first queries have fewer.",
        94_149: "That window has 99 keys. It has 100: 99 to the left, and the query's own.",
        94_050: "Nearly: a query sees its own key, too. That is one pair more for each of the 1000 queries.",
        500_500: "That is a causal mask without a window: 1 + 2 + ... + 1000.",
        95_150: "Nearly: the ramp is 1 + ... + 99, and 901 queries see 100 keys, the first of them number 99.",
    }
    if n_pairs in mistakes:
        return mistakes[n_pairs]
    if n_pairs == 95_050:
        return None
    return (
        f"{n_pairs} pairs are {n_pairs / 1000:.2f} a query on average. Most queries see 100 keys, and none sees more."
    )


@exercise(
    hint=f"`Sinks({_FIRST})` is the first keys; `SlidingWindow` counts keys left of a query's own. Nobody looks ahead.",
    right="Streaming language models run for ever with such a mask: memory for keys stays bounded.",
    form=anything("a mask, made of those in `cqs.masks` by `&`, `|` and `~`"),
)
def check_chat(mask: Mask) -> str | None:
    """Check a mask by which a query sees the first 4 keys and the last 32, its own among them, and no later key."""
    if not isinstance(mask, Mask):
        kind = type(mask).__name__
        return f"That is of the type {kind}. Make a mask of those in `cqs.masks`, such as `Sinks({_FIRST})`."
    q, k = np.arange(_N)[:, None], np.arange(_N)
    due = (k <= q) & ((k < _FIRST) | (k > q - _LAST))
    wrong = np.argwhere(mask.visible(q, k) != due)
    if not len(wrong):
        return None
    row, column = (int(x) for x in wrong[0])
    back = f"{row - column + 1} keys back, its own counted, and the last {_LAST} are meant"
    if not due[row, column]:
        subject = f"Query {row} must not see key {column}"
        if column > row:
            return f"{subject}: it comes later. A part of your mask looks ahead; `& Causal()` ends that."
        return f"{subject}: it is {back}."
    if column < _FIRST:
        return (
            f"Query {row} must see key {column}, one of the first {_FIRST}. Is `Sinks` joined by `|`, and not by `&`?"
        )
    return f"Query {row} must see key {column}: it is {back}."
