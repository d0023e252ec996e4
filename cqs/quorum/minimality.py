"""Minimality: whether a difference cover of Z_W may have fewer elements, and how that is known."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from math import isqrt
from typing import Any, Final, Literal, Self, get_args

from cqs.checks import whole_number
from cqs.errors import QuorumError
from cqs.quorum.bounds import size_lower_bound
from cqs.quorum.exhaustive import exhaustive_search
from cqs.quorum.obstruction import Obstruction, obstruction
from cqs.quorum.proof import Step, check_all

__all__ = ["Label", "Minimality", "minimality_of"]

Label = Literal["proved by counting", "proved by obstruction", "proved by search", "cited", "unknown"]

# Where, up to 131, the least size of a cover is one more than counting asks for, as ranges of W: starts and stops. At
# all others it is what counting asks for. Stated here, so that the table of covers does not vouch for itself.
_STARTS: Final = (20, 29, 38, 40, 52, 66, 80, 94, 96, 114, 118)
_STOPS: Final = (21, 31, 39, 44, 57, 73, 91, 95, 112, 117, 132)
_SETTLED: Final = 131
_SEARCHED: Final = 56  # the last modulus at which a proof by search is offered, which `verify` runs again

# The last modulus that a source settles, and the source
_SOURCES: Final = {
    127: "H. Haanpää, Minimum sum and difference covers of abelian groups, J. Integer Sequences 7 (2004) 04.2.6",
    131: "D. Wiedemann, Cyclic difference covers through 133, Congressus Numerantium 90 (1992) 181-185",
}


@dataclass(frozen=True, slots=True)
class Minimality:
    """The claim that no difference cover of Z_W has fewer than m elements, and how that is known.

    Parameters
    ----------
    label : str
        One of "proved by counting", "proved by obstruction", "proved by search", "cited" and "unknown".
    modulus : int
        W, at least 1.
    size : int
        m, at least 1. That there is a cover of m elements is not part of the claim: the cover itself shows it.
    reason : str
        The same for a person to read.
    reference : str
        Where a proof is published, if it rests on more than this library computes.

    Raises
    ------
    QuorumError
        If the label is none of these, or W or m is not a whole number of at least 1.

    Notes
    -----
    *Counting.* k >= 1 elements have at most k(k - 1) + 1 differences, 0 among them; fewer than W are too few.

    *Obstruction.* If W = n^2 + n + 1, n + 1 elements just suffice by counting, but only if no difference occurs
    twice; for some n there is no such set, see `Obstruction`.

    *Search.* No set of fewer elements is a cover: all have been tried, up to symmetry, see `exhaustive_search`.

    *Cited.* The same by somebody else, with the reference. *Unknown.* Nothing is claimed.

    Examples
    --------
    >>> print(minimality_of(31, 6))
    proved by counting: with 5 there are at most 21 differences, and 31 residues to reach
    >>> print(minimality_of(20, 6))
    proved by search: no set of 5 covers Z_20; all have been tried, up to symmetry
    >>> minimality_of(20, 6).verify()
    """

    label: Label
    modulus: int
    size: int
    reason: str
    reference: str = ""

    def __post_init__(self) -> None:
        if self.label not in get_args(Label):
            raise QuorumError.of("label", f"be one of {get_args(Label)}", repr(self.label), "see `minimality_of`")
        whole_number("modulus", self.modulus, 1, "see `minimality_of`", QuorumError)
        whole_number("size", self.size, 1, "see `minimality_of`", QuorumError)

    def __str__(self) -> str:
        return f"{self.label}: {self.reason}" + (f" [{self.reference}]" if self.reference else "")

    def steps(self) -> Iterator[Step]:
        """Yield the steps of the proof, each made when it is reached; none if the label is "cited" or "unknown"."""
        if not self.label.startswith("proved"):
            return
        W, m = self.modulus, self.size
        claim = f"no cover of Z_{W} has fewer than {m} elements: this is {self.label}, as {self.reason}"
        yield Step(claim, "", lambda: m >= size_lower_bound(W) and self == minimality_of(W, m))
        # counting leaves the sizes from `bound` on; the rest of the proof excludes those below m
        bound = m if self.label == "proved by counting" else size_lower_bound(W)
        yield Step(_too_few(W, bound - 1), f"{_reach(bound - 1)} < {W}", lambda: _reach(bound - 1) < W)
        if self.label == "proved by obstruction" and (obstructed := _obstructed(W)):
            yield from obstructed.steps()
        if self.label == "proved by search":
            for size in range(bound, m):
                yield Step(_not_found(W, size), f"m \\ne {size}", partial(_is_not_found, W, size))

    def verify(self) -> None:
        """Check every step of a proof: count, check the obstruction, or run the search again, in under a second.

        Where the label is "cited" or "unknown" there is nothing to check: it returns, and has shown nothing.

        Raises
        ------
        CertificateError
            Naming the first step that does not hold.
        """
        check_all(self.steps())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make it from what `to_dict` gave, without checking the claim.

        Raises
        ------
        QuorumError
            If a field is missing or unknown, or has a value that none can have.
        """
        if set(values) != {field.name for field in fields(cls)}:
            raise QuorumError.of("values", "have the keys of `to_dict`", list(values), "give what it returned")
        return cls(**values)


def minimality_of(W: int, size: int) -> Minimality:
    """Say whether a cover of Z_W with `size` elements is one of the smallest, and how that is known.

    Parameters
    ----------
    W : int
        The modulus, at least 1.
    size : int
        The number of elements of a cover.

    Returns
    -------
    Minimality
        At once: no search is run. `Minimality.verify` runs it.

    Raises
    ------
    QuorumError
        If `size` is less than counting allows, so that there is no such cover.

    Examples
    --------
    >>> minimality_of(111, 12).label, minimality_of(110, 12).label, minimality_of(132, 14).label
    ('proved by obstruction', 'cited', 'unknown')
    """
    W = whole_number("W", W, 1, "it is the modulus", QuorumError)
    bound = size_lower_bound(W)
    size = whole_number("size", size, bound, f"no smaller set has {W} differences", QuorumError)
    if size == bound:
        return Minimality("proved by counting", W, size, _too_few(W, size - 1))
    least = bound + any(start <= W < stop for start, stop in zip(_STARTS, _STOPS, strict=True))
    if W <= _SETTLED and size > least:
        return Minimality(
            "unknown", W, size, f"it is not the least, as a cover of Z_{W} with {least} elements is known"
        )
    if size == bound + 1 and (obstructed := _obstructed(W)):
        n, reference = obstructed.order, obstructed.reference
        reason = f"{bound} elements would be a planar difference set of order {n}, and there is none"
        return Minimality("proved by obstruction", W, size, reason, reference)
    if W <= _SEARCHED:
        return Minimality("proved by search", W, size, _not_found(W, size - 1))
    if W <= _SETTLED:
        reference = next(source for last, source in _SOURCES.items() if last >= W)
        return Minimality("cited", W, size, f"{size} is the least size for Z_{W} in the literature", reference)
    return Minimality("unknown", W, size, f"counting excludes fewer than {bound} elements, and no more is known here")


def _reach(size: int) -> int:
    """Return the most differences that a set can have, 0 among them."""
    return size * (size - 1) + 1 if size else 0


def _too_few(W: int, size: int) -> str:
    return f"with {size} there are at most {_reach(size)} differences, and {W} residues to reach"


def _not_found(W: int, size: int) -> str:
    return f"no set of {size} covers Z_{W}; all have been tried, up to symmetry"


def _is_not_found(W: int, size: int) -> bool:
    return exhaustive_search(W, size) is None


def _obstructed(W: int) -> Obstruction | None:
    """Return what excludes a perfect cover of Z_W, if W = n^2 + n + 1 and something does."""
    n = isqrt(W)
    return obstruction(n) if n >= 2 and n * n + n + 1 == W else None
