"""Exhaustive search: whether any set of a given size is a difference cover at all."""

from collections.abc import Iterator
from itertools import permutations
from math import gcd
from typing import NamedTuple

from cqs.checks import whole_number
from cqs.errors import QuorumError
from cqs.quorum.bounds import size_lower_bound

__all__ = ["exhaustive_search"]


def exhaustive_search(W: int, size: int) -> tuple[int, ...] | None:
    """Find a difference cover of Z_W with `size` elements, or prove that there is none.

    Parameters
    ----------
    W : int
        The modulus, at least 1.
    size : int
        The number of elements, at least 1.

    Returns
    -------
    tuple of int or None
        The elements of a cover in increasing order; None if no set of that size is a cover.

    Raises
    ------
    QuorumError
        If W or `size` is not a whole number of at least 1.

    Notes
    -----
    Depth first, one element at a time. What is left out, and why nothing is lost:

    *Counting.* m elements have m(m - 1) ordered differences other than 0, and W - 1 residues have to be reached, so
    at most m(m - 1) - (W - 1) of the differences may *repeat* another: the spare. An element that repeats more than
    is spare is dropped for the whole branch, since in a larger set it repeats no less, and no more is spare. When all
    elements are placed within the spare, every residue is reached.

    *Translation.* D + c has the differences of D. Some pair of a cover differs by 1, and the translate that
    takes it to 0 and 1 is as good, so 0 and 1 are elements.

    *Multipliers and reflection.* For a unit u of Z_W, uD + c has the differences of D times u: again all residues, and
    again as many elements (u = -1 reflects). If two of three elements differ by a unit, such a map takes them to 0
    and 1, and the third to some t. So let the third element be t = 2, 3, ... in turn: once all covers that contain
    {0, 1, t} have been tried, any set that contains an image of {0, 1, t} is an image of one that has been tried,
    and is left out from then on.

    *Order.* The elements after the third come in increasing order, so no set is tried twice.

    Cost: milliseconds for each W <= 43 below the least size, 0.1 s at W = 52, 2 to 4 s at W = 66, minutes near 130.
    Made for sizes up to the least that has a cover: far above it, other searches are better.

    Examples
    --------
    >>> exhaustive_search(13, 4)
    (0, 1, 3, 9)
    >>> exhaustive_search(20, 5) is None  # although counting allows 5
    True
    """
    W = whole_number("W", W, 1, "it is the modulus", QuorumError)
    size = whole_number("size", size, 1, "it is a number of elements", QuorumError)
    if size > W or size < size_lower_bound(W):
        return None
    found = (0,) if size == 1 else _Search(W, size).run()
    return tuple(sorted(found)) if found else None


class _Part(NamedTuple):
    """Some elements of a cover. Sets of residues are the bits of an int: `plus` the elements a, `minus` all -a."""

    elements: tuple[int, ...]
    plus: int
    minus: int
    reached: int
    spare: int


class _Search:
    """The search for W >= 2 and size >= 2."""

    def __init__(self, W: int, size: int) -> None:
        self.W, self.size, self.all = W, size, (1 << W) - 1
        self.inverse = {u: pow(u, -1, W) for u in range(1, W) if gcd(u, W) == 1}
        self.tried = 0  # the t for which all covers that contain {0, 1, t} have been tried
        self.multiples: dict[int, int] = {}  # u -> all u t of those t

    def run(self) -> tuple[int, ...] | None:
        """Try each third element in turn, after 0 and 1."""
        nothing_but_zero = _Part((0,), 1, 1, 1, self.size * (self.size - 1) - (self.W - 1))
        pair = self.widened(nothing_but_zero, 1)
        if self.size == 2:
            return pair.elements
        for t in _members(self.fitting(pair, self.all & ~pair.plus)):
            if self.tried >> t & 1:
                continue
            triple = self.widened(pair, t)
            others = self.all & ~triple.plus & ~self.excluded((0,), 1) & ~self.excluded((0, 1), t)
            if found := self.grow(triple, others):
                return found
            self.tried |= self.thirds((0, 1, t))
            self.multiples.clear()
        return None

    def grow(self, part: _Part, candidates: int) -> tuple[int, ...] | None:
        """Complete a part with candidates, in increasing order."""
        missing = self.size - len(part.elements)
        if missing == 0:
            return part.elements
        fitting = self.fitting(part, candidates)
        while fitting.bit_count() >= missing:
            x = _lowest(fitting)
            fitting &= fitting - 1
            if found := self.grow(self.widened(part, x), fitting & ~self.excluded(part.elements, x)):
                return found
        return None

    def fitting(self, part: _Part, candidates: int) -> int:
        """Return the candidates that do not repeat more than is spare."""
        new_at_least = 2 * len(part.elements) - part.spare
        unreached = self.all & ~part.reached
        fitting = 0
        for x in _members(candidates):
            if (self.differences(part, x) & unreached).bit_count() >= new_at_least:
                fitting |= 1 << x
        return fitting

    def widened(self, part: _Part, x: int) -> _Part:
        """Return the part with one element more."""
        new = self.differences(part, x) & ~part.reached
        spare = part.spare - (2 * len(part.elements) - new.bit_count())
        plus, minus = part.plus | 1 << x, part.minus | 1 << (-x % self.W)
        return _Part((*part.elements, x), plus, minus, part.reached | new, spare)

    def differences(self, part: _Part, x: int) -> int:
        """Return all x - a and a - x for the elements a."""
        return self.turned(part.minus, x) | self.turned(part.plus, self.W - x)

    def turned(self, residues: int, by: int) -> int:
        """Return the residues r + by."""
        return (residues << by | residues >> (self.W - by)) & self.all

    def excluded(self, elements: tuple[int, ...], b: int) -> int:
        """Return the c for which some {a, b, c} is an image of a {0, 1, t} with t tried: c = a + (b - a) t."""
        excluded = 0
        for a in elements:
            u = (b - a) % self.W
            if u in self.inverse:
                if u not in self.multiples:
                    self.multiples[u] = sum(1 << (u * t % self.W) for t in _members(self.tried))
                excluded |= self.turned(self.multiples[u], a)
        return excluded

    def thirds(self, triple: tuple[int, int, int]) -> int:
        """Return all t for which {0, 1, t} is an image of the triple."""
        thirds = 0
        for a, b, c in permutations(triple):
            if inverse := self.inverse.get((b - a) % self.W):
                thirds |= 1 << ((c - a) * inverse % self.W)
        return thirds


def _lowest(residues: int) -> int:
    return (residues & -residues).bit_length() - 1


def _members(residues: int) -> Iterator[int]:
    while residues:
        yield _lowest(residues)
        residues &= residues - 1
