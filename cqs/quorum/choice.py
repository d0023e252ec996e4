"""The smallest difference cover of Z_W that is known here, for any W, and which W to take where it is free."""

import json
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from math import isqrt, sqrt
from typing import NamedTuple

from cqs.checks import whole_number
from cqs.errors import QuorumError
from cqs.quorum.bounds import size_lower_bound
from cqs.quorum.constructions import (
    RULERS,
    bose,
    drop_redundant,
    moved_onto,
    partial_lift,
    product,
    reach_of_ruler,
    singer,
    singer_moduli,
    wichmann,
    wichmann_ruler,
)
from cqs.quorum.cover import DifferenceCover
from cqs.quorum.finite_field import prime_power

__all__ = ["choose_workers", "difference_cover", "known_moduli"]

_MOST_MODULUS = 10_000_000
_MOST_MARKS = 24  # of rulers that lift
_N_NEARLY = 2  # planes that are tried for each ruler beyond what they reach
_MOST_COMPARED = 256  # moduli whose covers `choose_workers` makes
_MOST_DROPPED = 2  # elements of a lift that often turn out redundant


@cache
def _table() -> dict[int, tuple[int, ...]]:
    from importlib import resources  # slow to import, and not needed to import cqs

    text = resources.files("cqs.quorum").joinpath("data/difference_covers.json").read_text()
    return {int(W): tuple(base) for W, base in json.loads(text).items()}


def known_moduli() -> tuple[int, ...]:
    """Return every W with a shipped cover, in increasing order."""
    return tuple(sorted(_table()))


@lru_cache(maxsize=4096)
def difference_cover(W: int) -> DifferenceCover:
    """Return the smallest difference cover of Z_W that is known here.

    Parameters
    ----------
    W : int
        The modulus, at least 1.

    Returns
    -------
    DifferenceCover
        The shipped one (every W to 200, and some beyond), a perfect one if there is one by `singer`, or else the
        smallest of `wichmann`, `bose`, `product` and `partial_lift`, without redundant elements; `construction` says
        which. The same every time, and kept. O(W + m^2), some tens of milliseconds at W = 10^4 or 10^5.

    Raises
    ------
    QuorumError
        If W is no whole number of at least 1, or over ten million.

    Examples
    --------
    >>> difference_cover(13)
    DifferenceCover(modulus=13, base=(0, 1, 3, 9))
    >>> cover = difference_cover(10_000)
    >>> cover.size, cover.lower_bound
    (119, 101)
    """
    W = whole_number("W", W, 1, "W is the number of workers", QuorumError)
    if W > _MOST_MODULUS:
        remedy = "make one by `lift` or `product`, in O(W) memory"
        raise QuorumError.of("W", f"be at most {_MOST_MODULUS}, beyond which nothing was tried", W, remedy)
    listed = DifferenceCover(W, _table()[W]) if W in _table() else None
    q = isqrt(W)
    if q * q + q + 1 == W and prime_power(q):
        perfect = singer(q)
        return (moved_onto(perfect, listed.base) if listed else None) or perfect
    if listed:
        return listed
    best = drop_redundant(wichmann(W))
    for candidate in sorted(_candidates(W), key=lambda candidate: candidate.least_size):
        if candidate.least_size < best.size and (cover := candidate.make(best.size)):
            best = min(best, drop_redundant(cover), key=lambda c: c.size)
    assert best.modulus == W
    return best


class _Candidate(NamedTuple):
    """A cover that is not made yet."""

    least_size: float  # about the fewest elements that it may have
    make: Callable[[int], DifferenceCover | None]  # told how many are too many, it may give up


def _candidates(W: int) -> Iterator[_Candidate]:
    """Yield everything that may be worth making."""
    q = isqrt(W + 1)
    if q * q == W + 1 and prime_power(q):
        yield _Candidate(q + size_lower_bound(q - 1) - 1, partial(_completed, q))
    orders = _prime_powers(isqrt(W))
    for q in orders:
        v = q * q + q + 1
        if W % v == 0 and v < W:
            yield _Candidate((q + 1) * size_lower_bound(W // v), partial(_multiplied, q, W // v))
    for ruler, L in _rulers():
        reaching = bisect_left(orders, W, key=lambda q: 2 * L * (q * q + q + 1) + 1)
        for q in orders[max(reaching - _N_NEARLY, 0) : reaching + 1]:
            v, size = q * q + q + 1, len(ruler) * (q + 1)
            beyond = (W - 1) / v - 2 * L  # of what is beyond reach, in units of v, half is reached all the same
            least = size + (beyond - 0.5) ** 2 * v / 75 if beyond > 0.5 else size - _MOST_DROPPED
            yield _Candidate(least, partial(_lifted, q, ruler, W))


def _completed(q: int, _: int) -> DifferenceCover:
    return bose(q)


def _multiplied(q: int, k: int, _: int) -> DifferenceCover:
    return product(singer(q), difference_cover(k))


def _lifted(q: int, ruler: tuple[int, ...], W: int, most: int) -> DifferenceCover | None:
    most_added = max(most - len(ruler) * (q + 1) + _MOST_DROPPED, 0)
    return partial_lift(singer(q), ruler, W, most_added)


@cache
def _rulers() -> tuple[tuple[tuple[int, ...], int], ...]:
    """Return rulers with what they reach: for each number of marks the one that reaches farthest."""
    best: dict[int, tuple[int, tuple[int, ...]]] = {len(ruler): (reach_of_ruler(ruler), ruler) for ruler in RULERS}
    for r in range(1, _MOST_MARKS // 4 + 1):
        for s in range(_MOST_MARKS - 4 * r - 2):
            ruler = wichmann_ruler(r, s)
            best[len(ruler)] = max(best.get(len(ruler), (0, ruler)), (ruler[-1], ruler))
    return tuple((ruler, reach) for reach, ruler in best.values())


@cache
def _prime_powers(up_to: int) -> list[int]:
    return [q for q in range(2, up_to + 1) if prime_power(q)]


def choose_workers(least: int, most: int) -> int:
    """Return the number of workers to take where any from `least` to `most` would do.

    A worker holds the share m / W of the sequence, at least 1 / sqrt(W); so m / sqrt(W) is what W wastes, and the W
    with the least is best: the largest perfect one, and where the range has none, the best of its 256 largest numbers.

    Parameters
    ----------
    least, most : int
        1 <= least <= most.

    Raises
    ------
    QuorumError
        If there is no whole number from `least` to `most`, or they are less than 1.

    Examples
    --------
    >>> choose_workers(20, 40), choose_workers(100, 200)
    (31, 183)
    """
    least = whole_number("least", least, 1, "W is the number of workers", QuorumError)
    most = whole_number("most", most, least, "it is the other end of the range from `least`", QuorumError)
    perfect = [W for W in (1, 3, *singer_moduli(most)) if least <= W <= most]
    if perfect:
        return perfect[-1]
    covers = map(difference_cover, range(max(least, most - _MOST_COMPARED + 1), most + 1))
    return min(covers, key=lambda cover: (cover.size / sqrt(cover.modulus), -cover.modulus)).modulus
