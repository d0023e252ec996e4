"""Cyclic difference covers: small sets whose differences reach every residue."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Final, Self

import numpy as np

from cqs.checks import whole_number
from cqs.errors import QuorumError
from cqs.quorum.bounds import size_lower_bound
from cqs.quorum.certificate import Certificate
from cqs.quorum.construction import Construction, Listed
from cqs.quorum.minimality import Minimality, minimality_of

__all__ = ["DifferenceCover"]

UNSTATED: Final = Listed(1, (0,))  # the construction of a cover that was made without one
_MOST_SHOWN: Final = 24  # elements that a notebook shows one by one


@dataclass(frozen=True, slots=True)
class DifferenceCover:
    """A set D of residues modulo W such that every residue is a difference a - b of two of its elements.

    Parameters
    ----------
    modulus : int
        W, at least 1.
    base : tuple of int
        The elements of D in increasing order, each in `range(W)`.
    construction : Construction
        What the elements follow from; by default they are stated as they are. Equal covers may have different ones.

    Raises
    ------
    QuorumError
        If `base` is not a cover; the message names a residue that it does not reach. Every instance has
        been checked when it was made, in O(W + m^2).

    Notes
    -----
    The translates D + i are a *cyclic quorum set*: any two of them, and any two residues within some one of
    them, meet. The paper this comes from calls D an interest set.

    References
    ----------
    C. J. Colbourn and A. C. H. Ling, *Quorums from difference covers*, Information Processing Letters 75 (2000) 9-12.

    Y. Bian and A. K. Somani, *CQS-Attention: Scaling up the standard attention computation for infinitely long
    sequences*, IEEE Access 13 (2025).

    Examples
    --------
    >>> cover = DifferenceCover(7, (0, 1, 3))
    >>> cover.size, cover.is_perfect, cover.witness(5)
    (3, True, (1, 3))
    """

    modulus: int
    base: tuple[int, ...]
    construction: Construction = field(default=UNSTATED, compare=False, repr=False)

    def __post_init__(self) -> None:
        base = self.base
        W = whole_number("modulus", self.modulus, 1, "W is the number of workers", QuorumError)
        object.__setattr__(self, "modulus", W)
        if self.construction is UNSTATED:
            object.__setattr__(self, "construction", Listed(W, base))
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

    @classmethod
    def by(cls, construction: Construction) -> Self:
        """Make the cover that a construction gives, verified like any other."""
        return cls(construction.modulus, construction.elements(), construction)

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

    @property
    def certificate(self) -> Certificate:
        """What proves the cover: its construction, step by step, and the Hall identity."""
        return Certificate(self.modulus, self.base, self.construction)

    @property
    def minimality(self) -> Minimality:
        """Whether a smaller cover of Z_W can exist, and why not."""
        return minimality_of(self.modulus, self.size)

    def _repr_latex_(self) -> str:
        shown = self.base if self.size <= _MOST_SHOWN else (*self.base[:5], r"\dots", *self.base[-2:])
        modulus = self.modulus if self.modulus < 10 else f"{{{self.modulus}}}"
        cover = rf"\{{{', '.join(map(str, shown))}\}} \subset \mathbb{{Z}}_{modulus}"
        perfect = r",\quad \text{perfect}" if self.is_perfect else ""
        return rf"${cover},\quad m = {self.size} \ge {self.lower_bound}{perfect}$"
