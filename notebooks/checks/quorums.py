"""Exercises of notebook 02: quorums."""

from checks.forms import whole_number, whole_numbers
from checks.verdict import exercise
from cqs import CyclicQuorumSet

__all__ = ["check_cover", "check_meeting"]

_W, _SIZE = 13, 4
_QUORUMS, _PAIR = CyclicQuorumSet(13, (0, 1, 3, 9)), (5, 11)
_SHOWN = [_QUORUMS.quorum(i) for i in range(_W)]


@exercise(
    hint="begin with 0 and 1. Each new element brings two differences with each that is there; none may come twice.",
    right="4 elements have 12 differences, and there are 12 residues to reach: each once. The cover is perfect.",
    form=whole_numbers("a set of four whole numbers, such as {0, 1, 2, 5}"),
)
def check_cover(given: list[int]) -> str | None:
    """Check a difference cover of Z_13 with four elements."""
    given = sorted(given)
    elements = sorted({a % _W for a in given})
    if len(elements) < len(given):
        return f"Two of {given} are the same residue modulo {_W}."
    pairs: dict[int, list[tuple[int, int]]] = {}
    for a in elements:
        for b in elements:
            pairs.setdefault((a - b) % _W, []).append((a, b))
    missing = [d for d in range(_W) if d not in pairs]
    if len(elements) < _SIZE:
        m = len(elements)
        return (
            f"{m} elements have {m * (m - 1)} differences other than 0, and 12 residues have to be reached. Take four."
        )
    if missing:
        d, twice = next(((d, p) for d, p in pairs.items() if d and len(p) > 1), (0, []))
        because = f" One reason: {d} is reached twice, as {twice[0]} and as {twice[1]}." if twice else ""
        return f"No two elements of {elements} differ by {', '.join(map(str, missing))} modulo {_W}.{because}"
    if len(elements) > _SIZE:
        return f"It is a cover, of {len(elements)} elements. Four are enough: some residues are reached more than once."
    if tuple(elements) in _SHOWN:
        moved = _SHOWN.index(tuple(elements))
        which = f"That is {{0, 1, 3, 9}}, moved on by {moved}" if moved else "That is {0, 1, 3, 9}"
        return f"{which}. It is a cover, and exercise 2 gives it away. There are 39 others: which do you find?"
    return None


@exercise(
    hint="worker i holds D + i. Which two elements of D differ by 11 - 5 = 6? Move them to 5 and 11.",
    right="9 - 3 = 6, so worker 2 holds 3 + 2 = 5 and 9 + 2 = 11. The cover is perfect, so nobody else holds both.",
    form=whole_number("the number of a worker"),
)
def check_meeting(worker: int) -> str | None:
    """Check which worker holds groups 5 and 11, for W = 13 and D = {0, 1, 3, 9}."""
    if not 0 <= worker < _W:
        return f"Workers are numbered 0 to {_W - 1}."
    held = _QUORUMS.quorum(worker)
    lacking = [g for g in _PAIR if g not in held]
    if lacking:
        return f"Worker {worker} holds the groups {held}, without {' and '.join(map(str, lacking))}."
    return None
