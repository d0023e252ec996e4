"""The smallest difference cover of Z_W that is known here, for any W, and which W to take where it is free."""

from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from math import isqrt, sqrt
from typing import NamedTuple

from cqs.checks import whole_number
from cqs.errors import QuorumError
from cqs.quorum.bounds import size_lower_bound
from cqs.quorum.constructions import (
    bose,
    drop_redundant,
    moved_onto,
    partial_lift,
    product,
    singer,
    singer_moduli,
    wichmann,
)
from cqs.quorum.cover import DifferenceCover
from cqs.quorum.finite_field import prime_power
from cqs.quorum.rulers import MOST_DROPPED, likely_size, rulers
from cqs.quorum.tables import completed_lift, listed_cover

__all__ = ["MOST_MODULUS", "choose_workers", "difference_cover"]

MOST_MODULUS = 10_000_000
_MOST_COMPARED = 256  # moduli whose covers `choose_workers` makes


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
        smallest of `wichmann`, `bose`, `product` and `partial_lift` by many rulers, without redundant elements;
        `construction` says which. The same every time, and kept. Some tens of milliseconds at W = 10^4 or 10^5.

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
    if W > MOST_MODULUS:
        remedy = "make one by `lift` or `product`, in O(W) memory"
        raise QuorumError.of("W", f"be at most {MOST_MODULUS}, beyond which nothing was tried", W, remedy)
    listed, q = listed_cover(W), isqrt(W)
    if q * q + q + 1 == W and prime_power(q):
        perfect = singer(q)
        return (moved_onto(perfect, listed.base) if listed else None) or perfect
    if known := listed or completed_lift(W):
        return known
    best = drop_redundant(wichmann(W))
    for candidate in sorted(_candidates(W, best.size), key=lambda candidate: candidate.least_size):
        if candidate.least_size < best.size and (cover := candidate.make(best.size)):
            best = min(best, drop_redundant(cover), key=lambda c: c.size)
    assert best.modulus == W
    return best


class _Candidate(NamedTuple):
    """A cover that is not made yet."""

    least_size: float  # about the fewest elements that it may have
    make: Callable[[int], DifferenceCover | None]  # told how many are too many, it may give up


def _candidates(W: int, most: int) -> Iterator[_Candidate]:
    """Yield everything that may be worth making if fewer than `most` elements are wanted."""
    q = isqrt(W + 1)
    if q * q == W + 1 and prime_power(q):
        yield _Candidate(q + size_lower_bound(q - 1) - 1, partial(_completed, q))
    for q in _prime_powers(isqrt(W)):
        v = q * q + q + 1
        if W % v == 0 and v < W:
            yield _Candidate((q + 1) * size_lower_bound(W // v), partial(_multiplied, q, W // v))
        for ruler in (ruler for n_marks, those in rulers().items() if W / v <= n_marks**2 for ruler in those):
            if len(ruler) * (q + 1) - MOST_DROPPED < most:
                yield _Candidate(likely_size(W, q, ruler, most), partial(_lifted, q, ruler, W))


def _completed(q: int, _: int) -> DifferenceCover:
    return bose(q)


def _multiplied(q: int, k: int, _: int) -> DifferenceCover:
    return product(singer(q), difference_cover(k))


def _lifted(q: int, ruler: tuple[int, ...], W: int, most: int) -> DifferenceCover | None:
    most_added = max(most - len(ruler) * (q + 1) + MOST_DROPPED, 0)
    return partial_lift(singer(q), ruler, W, most_added)


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
