"""Exercises of notebook 07: memory."""

from checks.forms import number, whole_number
from checks.verdict import exercise
from cqs import difference_cover

__all__ = ["check_moved", "check_ring"]

_ROW = 64 * 4
_N, _FAST = 2**20, 32 * 2**20 // _ROW  # rows
_PASSES = 2 * _N // _FAST
_MOVED = (2 * _N + 2 * _N * _PASSES) * _ROW / 2**30


@exercise(
    hint="a row has 64 x 4 = 256 bytes, so N rows are 0.25 GiB. Each resident query takes two rows. How many passes?",
    right="65,536 queries stay at a time, so there are 16 passes of 0.5 GiB, and 0.5 GiB of queries and outputs.",
    form=number("a number of GiB"),
)
def check_moved(gib: float) -> str | None:
    """Check what resident-query tiles move for a million tokens of width 64, with 32 MiB for queries and sums."""
    mistakes = {
        4.5: "That is half of the passes, or half of what passes by. Sums need room, too; values pass by as keys do.",
        8.25: "That leaves out the outputs, or the queries: each is read or written once, 0.25 GiB.",
        8.0: "Those are the keys and values of 16 passes. Queries are read, too, and outputs written.",
        4.25: "Mind that sums need as much room as queries, and that outputs are written.",
        34.0: "Those are quarters of a GiB: N rows are 2^20 x 256 bytes = 0.25 GiB.",
        16.0: "That is the number of passes. Each reads the keys and values of all tokens: 0.5 GiB.",
        1.0: "That is each row once. But 32 MiB do not hold all queries, so keys and values pass by several times.",
    }
    if gib in mistakes:
        return mistakes[gib]
    if gib == _MOVED:
        return None
    if abs(gib - _MOVED * 2**30 / 1e9) < 0.01:
        return "That is in GB, of 10^9 bytes. The question is about GiB, of 2^30."
    passes = f"{gib:g} GiB would be {2 * gib - 1:.4g} passes of 0.5 GiB, besides 0.5 GiB of queries and outputs"
    return f"{passes}. How many queries, with their sums, fit into 32 MiB?"


@exercise(
    hint="it takes 2(W - 1) > 4m, where m is the size of the smallest cover: 3 for W = 7, 4 for W = 8 to 13.",
    right="2 x 9 = 18 > 16 = 4 x 4. From then on the ring passes ever more: W against the square root of W.",
    form=whole_number(least=1),
)
def check_ring(n_workers: int) -> str | None:
    """Check the fewest workers with which a ring passes more rows than quorums read and return."""
    ring, quorums = _rows(n_workers)
    said = f"With W = {n_workers} the ring passes {ring} N rows, and quorums move {quorums} N"
    if ring == quorums:
        return f"{said}: as much, and not more."
    if ring < quorums:
        return f"{said}. So the ring still moves less."
    fewer = next((W for W in range(1, n_workers) if _rows(W)[0] > _rows(W)[1]), None)
    if fewer is not None:
        return f"{said}. That is more, but the ring passes more with fewer workers, too."
    return None


def _rows(W: int) -> tuple[int, int]:
    """Return the rows, in units of N, that a ring of W workers passes and that quorums move."""
    return 2 * (W - 1), 4 * difference_cover(W).size
