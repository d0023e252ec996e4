"""Exercises of notebook 03: the Scheduler."""

from checks.forms import whole_number
from checks.verdict import exercise
from cqs import CyclicQuorumSet

__all__ = ["check_causal_load", "check_owner"]

_QUORUMS = CyclicQuorumSet(7, (0, 1, 3))


@exercise(
    hint="whoever owns the tile holds groups 2 and 5. Which two elements of {0, 1, 3} differ by 3?",
    right="3 - 0 = 3, so worker 2 holds 0 + 2 = 2 and 3 + 2 = 5. Tile (2, 5), of the same pair, is its own, too.",
    form=whole_number("the number of a worker"),
)
def check_owner(worker: int) -> str | None:
    """Check who owns tile (5, 2) for W = 7 and D = {0, 1, 3}."""
    if not 0 <= worker < 7:
        return "Workers are numbered 0 to 6."
    held = _QUORUMS.quorum(worker)
    lacking = [g for g in (2, 5) if g not in held]
    if lacking:
        return f"Worker {worker} holds the groups {held}. Without group {lacking[0]} it cannot own that tile."
    return None if worker == _QUORUMS.owner(5, 2) else f"Worker {worker} holds both groups, but is not the owner."


@exercise(
    hint="a worker owns three pairs of groups and one diagonal tile. Of a pair, the causal mask leaves one tile.",
    right="3 tiles of 10 x 10, and a triangle of 10 x 11 / 2 = 55. All have this, and 7 x 355 = 70 x 71 / 2.",
    form=whole_number(),
)
def check_causal_load(n_pairs: int) -> str | None:
    """Check the visible pairs of one worker for W = 7, 70 tokens and a causal mask."""
    mistakes = {
        700: "That is all 7 tiles in full. Of the two tiles of a pair, one lies above the diagonal and is not visible.",
        400: "The diagonal tile is visible in part only: its query i sees i + 1 of its keys, not all ten.",
        350: "Nearly: a query also sees its own key. So a diagonal tile has 1 + 2 + ... + 10 pairs, not 100 / 2.",
        345: "The diagonal tile counts a query's own key, too: 1 + 2 + ... + 10, not 0 + 1 + ... + 9.",
        300: "Those are the three full tiles. The worker also owns a tile on the diagonal.",
        655: "That is both tiles of each pair. One of the two lies above the diagonal, and is empty.",
    }
    if n_pairs in mistakes:
        return mistakes[n_pairs]
    if n_pairs * 7 == 70 * 71 // 2:
        return None
    return f"Seven workers with {n_pairs} pairs make {7 * n_pairs}. Over 70 tokens there are 1 + 2 + ... + 70 = 2485."
