"""Obstructions: why there is no perfect difference cover of Z_W for W = n^2 + n + 1 and some orders n."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from math import gcd, isqrt
from typing import Final, Literal

from cqs.checks import whole_number
from cqs.errors import QuorumError
from cqs.quorum.proof import Step, check_all

__all__ = ["Obstruction", "obstruction"]

_LARGEST: Final = 200  # the last order whose orbits are tried: listing them takes O(n^2)
_SOURCES: Final = {
    "Bruck-Ryser": "R. H. Bruck and H. J. Ryser, The nonexistence of certain finite projective planes, "
    "Canadian J. Math. 1 (1949) 88-93",
    "multipliers": "M. Hall, Cyclic projective planes, Duke Math. J. 14 (1947) 1079-1090",
}


@dataclass(frozen=True, slots=True)
class Obstruction:
    """The claim that no cover of Z_W, W = n^2 + n + 1, has n + 1 elements, and the theorem that it follows from.

    Parameters
    ----------
    order : int
        n, at least 2.
    theorem : "Bruck-Ryser" or "multipliers"
        What the proof rests on.

    Notes
    -----
    Such a cover would reach each residue other than 0 exactly once: a *planar difference set*, and its translates
    the lines of a projective plane of order n with a cyclic group of symmetries.

    *Theorem (Bruck and Ryser).* If n = 1 or 2 modulo 4, and there is a projective plane of order n, cyclic or not,
    then n is a sum of two squares.

    *Theorem (Hall).* If D is a planar difference set of order n in Z_W, every prime p that divides n is a multiplier:
    p D is a translate of D. Since gcd(n + 1, W) = 1, exactly one translate of D has elements of sum 0. Multiplying by
    p keeps the sum 0, so it takes this translate to itself, for every p at once. It is thus a union of orbits of the
    maps x -> p x, and these are long: so few unions have n + 1 elements that all can be tried.

    Examples
    --------
    >>> for step in obstruction(10).steps():
    ...     print("-", step)
    - 11 elements have 11 * 10 = 110 differences, one for each residue other than 0 modulo 111
    - each prime that divides 10 is a multiplier (Hall): 2, 5
    - gcd(11, 111) = 1, so one translate has elements of sum 0, and the multipliers keep it
    - it is a union of orbits of x -> 2x, 5x; there are 5, which make up Z_111
    - no union of them has 11 elements and each difference once
    """

    order: int
    theorem: Literal["Bruck-Ryser", "multipliers"]

    @property
    def modulus(self) -> int:
        """W = n^2 + n + 1."""
        return self.order**2 + self.order + 1

    @property
    def reference(self) -> str:
        """Where the theorem is proved."""
        return _SOURCES[self.theorem]

    def steps(self) -> Iterator[Step]:
        """Yield the steps of the proof."""
        n, W = self.order, self.modulus
        yield Step(
            f"{n + 1} elements have {n + 1} * {n} = {W - 1} differences, one for each residue other than 0 modulo {W}",
            f"{n + 1} \\cdot {n} = {W} - 1",
            lambda: n >= 2 and (n + 1) * n == W - 1,
        )
        yield from self._by_squares() if self.theorem == "Bruck-Ryser" else self._by_multipliers()

    def verify(self) -> None:
        """Check every step.

        Raises
        ------
        CertificateError
            Naming the first that does not hold.
        """
        check_all(self.steps())

    def _by_squares(self) -> Iterator[Step]:
        n = self.order
        yield Step(f"{n} = {n % 4} modulo 4", f"{n} \\equiv {n % 4} \\pmod 4", lambda: n % 4 in (1, 2))
        yield Step(
            f"{n} is not a sum of two squares, so no projective plane has this order (Bruck and Ryser)",
            f"{n} \\ne a^2 + b^2",
            lambda: not _is_sum_of_two_squares(n),
        )

    def _by_multipliers(self) -> Iterator[Step]:
        n, W, primes = self.order, self.modulus, _primes_dividing(self.order)
        listed = ", ".join(map(str, primes))
        yield Step(
            f"each prime that divides {n} is a multiplier (Hall): {listed}",
            rf"p \mid {n}, \quad p = {listed}",
            lambda: all(_is_prime(p) and n % p == 0 and gcd(p, W) == 1 for p in primes),
        )
        yield Step(
            f"gcd({n + 1}, {W}) = 1, so one translate has elements of sum 0, and the multipliers keep it",
            rf"\gcd({n + 1}, {W}) = 1",
            lambda: gcd(n + 1, W) == 1,
        )
        orbits = _orbits(W, primes)
        maps = ", ".join(f"{p}x" for p in primes)
        yield Step(
            f"it is a union of orbits of x -> {maps}; there are {len(orbits)}, which make up Z_{W}",
            f"p D = D, \\quad p = {listed}",
            lambda: _are_orbits(orbits, W, primes),
        )
        yield Step(
            f"no union of them has {n + 1} elements and each difference once",
            f"|D| = {n + 1}, \\quad |D - D| = {W}",
            lambda: _planar_union(orbits, W, n + 1) is None,
        )


@cache
def obstruction(n: int) -> Obstruction | None:
    """Prove that no cover of Z_W, W = n^2 + n + 1, has n + 1 elements.

    Parameters
    ----------
    n : int
        The order, at least 2.

    Returns
    -------
    Obstruction or None
        None if n is a prime power (then there is such a cover, Singer's), or if the order is not decided here.

    Raises
    ------
    QuorumError
        If n is not a whole number of at least 2.

    Notes
    -----
    Every n <= 200 is decided, each in half a second at most: there is a planar difference set of order n for the
    prime powers alone. Larger orders are left to Bruck and Ryser. L. D. Baumert and D. M. Gordon (On the existence of
    cyclic difference sets with small parameters, 2004) come to the same for n < 2 * 10^9, by faster tests.

    Examples
    --------
    >>> obstruction(6)
    Obstruction(order=6, theorem='Bruck-Ryser')
    >>> obstruction(8) is None
    True
    """
    n = whole_number("n", n, 2, "it is the order of a plane", QuorumError)
    primes = _primes_dividing(n)
    if len(primes) == 1:
        return None
    if n % 4 in (1, 2) and not _is_sum_of_two_squares(n):
        return Obstruction(n, "Bruck-Ryser")
    W = n * n + n + 1
    if n <= _LARGEST and _planar_union(_orbits(W, primes), W, n + 1) is None:
        return Obstruction(n, "multipliers")
    return None


def _is_sum_of_two_squares(n: int) -> bool:
    return any(isqrt(n - a * a) ** 2 == n - a * a for a in range(isqrt(n) + 1))


def _is_prime(p: int) -> bool:
    return p > 1 and all(p % d for d in range(2, isqrt(p) + 1))


def _primes_dividing(n: int) -> tuple[int, ...]:
    return tuple(p for p in range(2, n + 1) if n % p == 0 and _is_prime(p))


def _orbits(W: int, multipliers: tuple[int, ...]) -> list[tuple[int, ...]]:
    """List the orbits of x -> t x on Z_W for some units t, each in increasing order."""
    seen: set[int] = set()
    orbits = []
    for start in range(W):
        if start in seen:
            continue
        orbit, newest = {start}, {start}
        while newest:
            newest = {x * t % W for x in newest for t in multipliers} - orbit
            orbit |= newest
        seen |= orbit
        orbits.append(tuple(sorted(orbit)))
    return orbits


def _are_orbits(orbits: list[tuple[int, ...]], W: int, multipliers: tuple[int, ...]) -> bool:
    """Whether the orbits are Z_W in parts that every multiplier maps to themselves."""
    closed = all({x * t % W for x in orbit} == set(orbit) for orbit in orbits for t in multipliers)
    return closed and sorted(x for orbit in orbits for x in orbit) == list(range(W))


def _planar_union(orbits: list[tuple[int, ...]], W: int, size: int) -> tuple[int, ...] | None:
    """Find a union of orbits of a given size that has no difference other than 0 twice."""

    def grow(union: tuple[int, ...], first: int) -> tuple[int, ...] | None:
        if len(union) == size:
            return union
        for i in range(first, len(short)):
            wider = union + short[i]
            if len(wider) <= size and _is_planar(wider, W) and (found := grow(wider, i + 1)):
                return found
        return None

    short = [orbit for orbit in orbits if len(orbit) <= size and _is_planar(orbit, W)]
    return grow((), 0)


def _is_planar(elements: tuple[int, ...], W: int) -> bool:
    """Whether no difference other than 0 occurs twice."""
    differences = [(a - b) % W for a, b in permutations(elements, 2)]
    return len(set(differences)) == len(differences)
