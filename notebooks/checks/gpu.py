"""Exercises of notebook 08: the GPU."""

import cqs
from checks.forms import number
from checks.verdict import exercise

__all__ = ["check_break_even", "check_two_slots"]

_FLOPS, _BYTES, _WORKERS = 30e12, 25e9, 13
_BREAK_EVEN = 14_400
_IN, _COMPUTE, _BACK, _N_TASKS = 4, 3, 1, 7


@exercise(
    hint="the intensity 4N/(3ms) has to be F/B, which is 30e12 / 25e9 = 1200 operations a byte.",
    right="3 x 4 x 4 / 4 x 1200 = 14,400: groups of 1108 tokens. H and D do not matter.",
    form=number("a number of tokens"),
)
def check_break_even(n_tokens: float) -> str | None:
    """Check from how many tokens on a task of 13 takes longer to compute than to copy, at 30 TFLOP/s and 25 GB/s."""
    mistakes = {
        1200: "That is F/B, the operations that there must be for a byte. With N tokens there are 4N/(3ms).",
        1108: "That is n, the length of a group. The sequence has W of them.",
        7200: "That is right for 2 bytes a number. float32 has 4.",
        10_800: "That is right for m = 3. With W = 13 a task holds 4 groups.",
        4800: "Queries, keys and values are copied: 3mn rows.",
        3600: "A number has 4 bytes.",
        57_600: "A pair takes 4D operations: 2D for its score, and 2D for its value.",
    }
    mistake = next((text for n, text in mistakes.items() if abs(n_tokens - n) < 1), None)
    if mistake is not None:
        return mistake
    if abs(n_tokens - _BREAK_EVEN) <= 1:
        return None
    if not 1 <= n_tokens < 1e9:
        return "That is no length of a sequence. What is 4N/(3ms) to be?"
    plan = cqs.plan(*[(1, round(n_tokens), 64)] * 3, workers=_WORKERS, strategy="cqs")
    task = plan.task(0)
    copying, computing = plan.held_bytes(task) / _BYTES, plan.problem.flops(plan.load(task)) / _FLOPS
    how = "longer than" if computing > copying else "not as long as"
    return (
        f"With N = {n_tokens:g} a task takes {1e6 * copying:.4g} µs to copy, for each head of width 64, and "
        f"{1e6 * computing:.4g} µs to compute: {how} copying. Both should take the same."
    )


@exercise(
    hint="which of copying in and computing sets the pace? The other is paid for once.",
    right="7 x 4 + 3 + 1: the link is always busy, and the last task is computed and copied back after it.",
    form=number("a number of ms"),
)
def check_two_slots(milliseconds: float) -> str | None:
    """Check how long seven tasks take with three queues and two slots, if copying is slower than computing."""
    mistakes = {
        56: "That is with one queue, where nothing overlaps: 7 x (4 + 3 + 1).",
        50: "That is with one slot: 7 x (4 + 3) + 1. With two, a slot is filled while the other is read.",
        26: "That would be so if computing set the pace. But 7 copies alone take 28 ms.",
        28: "Then everything has come. The last task has to be computed, and its result copied back.",
        31: "Then everything is computed. The last result has to be copied back.",
        29: "The last task is computed after it has come, too.",
        38: "Results go back by a queue of their own. Only the last of them is waited for.",
    }
    if milliseconds in mistakes:
        return mistakes[int(milliseconds)]
    least = _N_TASKS * _IN + _COMPUTE + _BACK
    if milliseconds == least:
        return None
    if milliseconds < least:
        return f"That is too little: the link alone is busy for 28 ms, and {_COMPUTE} + {_BACK} ms come after it."
    return "That is too much. What waits for what? Draw three lanes, as in the picture."
