"""Cyclic difference covers: small sets whose differences reach every residue."""

import json
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import isqrt
from typing import Self

import numpy as np

from cqs.checks import whole_number
from cqs.errors import QuorumError

__all__ = ["DifferenceCover", "difference_cover", "known_moduli", "size_lower_bound"]


def size_lower_bound(W: int) -> int:
    """Return the smallest m with m(m - 1) >= W - 1, which no cover of Z_W can undercut.

    m residues have m(m - 1) ordered differences other than zero, and W - 1 residues have to be reached.

    >>> size_lower_bound(7), size_lower_bound(8)
    (3, 4)
    """
    m = (1 + isqrt(max(4 * W - 3, 0))) // 2
    return m if m * (m - 1) >= W - 1 else m + 1


@dataclass(frozen=True, slots=True)
class DifferenceCover:
    """A set D of residues modulo W such that every residue is a difference a - b of two of its elements.

    Parameters
    ----------
    modulus : int
        W, at least 1.
    base : tuple of int
        The elements of D in increasing order, each in `range(W)`.

    Raises
    ------
    QuorumError
        If `base` is not a cover; the message names a residue that it does not reach. Every instance has
        been checked when it was made, in O(m^2).

    Notes
    -----
    The translates D + i are a *cyclic quorum set*: any two of them, and any two residues within some one of
    them, meet. The paper this comes from calls D an interest set (Bian and Somani, IEEE Access 13, 2025).

    Examples
    --------
    >>> cover = DifferenceCover(7, (0, 1, 3))
    >>> cover.size, cover.is_perfect, cover.witness(5)
    (3, True, (1, 3))
    """

    modulus: int
    base: tuple[int, ...]

    def __post_init__(self) -> None:
        base = self.base
        W = whole_number("modulus", self.modulus, 1, "W is the number of workers", QuorumError)
        object.__setattr__(self, "modulus", W)
        if not all(type(a) is int and 0 <= a < W for a in base) or list(base) != sorted(set(base)):
            rule = f"be distinct residues of Z_{W} in increasing order"
            raise QuorumError.of("base", rule, base, f"use `DifferenceCover.of({W}, ...)` to have them put so")
        elements = np.asarray(base, dtype=np.int64)
        reached = np.zeros(W, dtype=bool)
        reached[(elements[:, None] - elements[None, :]) % W] = True
        if not reached.all():
            missing = int(np.flatnonzero(~reached)[0])
            raise QuorumError.of(
                "base",
                f"reach every residue of Z_{W} as a difference",
                f"{base}, which does not reach {missing}",
                f"add two elements that differ by {missing}, or use `difference_cover({W})`",
            )

    @classmethod
    def of(cls, modulus: int, base: Iterable[int]) -> Self:
        """Make a cover from elements in any order; any integers, reduced modulo W."""
        modulus = whole_number("modulus", modulus, 1, "W is the number of workers", QuorumError)
        try:
            elements = {operator.index(a) % modulus for a in base}
        except TypeError:
            raise QuorumError.of("base", "be whole numbers", repr(base), f"see `difference_cover({modulus})`") from None
        return cls(modulus, tuple(sorted(elements)))

    @property
    def size(self) -> int:
        """The number m of elements: how many groups a worker holds."""
        return len(self.base)

    @property
    def lower_bound(self) -> int:
        """The least size that any cover of Z_W can have, by counting differences."""
        return size_lower_bound(self.modulus)

    @property
    def is_perfect(self) -> bool:
        """Whether each non-zero residue is a difference in exactly one way, as in a projective plane."""
        return self.size * (self.size - 1) == self.modulus - 1

    def witness(self, d: int) -> tuple[int, int]:
        """Return the first pair (a, b) of elements with a - b = d modulo W."""
        return next((a, b) for a, b in product(self.base, repeat=2) if (a - b - d) % self.modulus == 0)


@cache
def _table() -> dict[int, tuple[int, ...]]:
    from importlib import resources  # slow to import, and not needed to import cqs

    text = resources.files("cqs.quorum").joinpath("data/difference_covers.json").read_text()
    return {int(W): tuple(base) for W, base in json.loads(text).items()}


def known_moduli() -> tuple[int, ...]:
    """Return every W that `difference_cover` answers, in increasing order."""
    return tuple(sorted(_table()))


def difference_cover(W: int) -> DifferenceCover:
    """Return the smallest known difference cover of Z_W.

    Parameters
    ----------
    W : int
        The modulus, one of `known_moduli()`: 1 to 200, and 210, 220, 230, 240, 256, 280, 300.

    Returns
    -------
    DifferenceCover
        From the table that is shipped with the library, verified as it is read, in O(m^2).

    Raises
    ------
    QuorumError
        If W is less than 1 or not in the table.

    Examples
    --------
    >>> difference_cover(13)
    DifferenceCover(modulus=13, base=(0, 1, 3, 9))
    """
    W = whole_number("W", W, 1, "W is the number of workers", QuorumError)
    if W not in _table():
        nearest = min(known_moduli(), key=lambda known: abs(known - W))
        rule = f"be one of the {len(_table())} moduli with a shipped cover (1..200 and some to 300)"
        raise QuorumError.of("W", rule, W, f"the nearest is {nearest}; or give a cover of your own as `base`")
    return _verified(W)


@cache
def _verified(W: int) -> DifferenceCover:
    return DifferenceCover(W, _table()[W])
