"""Sparse rulers, which cover any modulus."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import ClassVar

from cqs.checks import whole_number
from cqs.errors import QuorumError
from cqs.quorum.construction import registered
from cqs.quorum.cover import DifferenceCover
from cqs.quorum.proof import Step

__all__ = ["RULERS", "Wichmann", "reach_of_ruler", "wichmann", "wichmann_ruler"]

# Marks of rulers that measure every length up to their reach, more with so few marks than Wichmann's
RULERS = (
    (0, 1),
    (0, 1, 3),
    (0, 1, 4, 6),
    (0, 1, 2, 6, 9),
    (0, 1, 2, 6, 10, 13),
    (0, 6, 9, 10, 17, 22, 24),
    (0, 8, 18, 19, 22, 24, 31, 39),
)


def reach_of_ruler(marks: tuple[int, ...]) -> int:
    """Return the largest L such that each of 1..L is a difference of two marks.

    >>> reach_of_ruler((0, 1, 4, 6))
    6
    """
    measured = {b - a for a in marks for b in marks}
    reach = 0
    while reach + 1 in measured:
        reach += 1
    return reach


def wichmann_ruler(r: int, s: int) -> tuple[int, ...]:
    """Return the 4r + s + 3 marks of Wichmann's ruler W(r, s), of length 4r(r + s + 2) + 3(s + 1).

    >>> wichmann_ruler(1, 1)
    (0, 1, 3, 6, 13, 17, 21, 22)
    """
    gaps = [1] * r + [r + 1] + [2 * r + 1] * r + [4 * r + 3] * s + [2 * r + 2] * (r + 1) + [1] * r
    return tuple(accumulate(gaps, initial=0))


@registered
@dataclass(frozen=True, slots=True)
class Wichmann:
    r"""The marks of a ruler that measures half of the way around.

    Parameters
    ----------
    r, s : int
        Of the ruler W(r, s), at least 0.
    modulus : int
        W, at most twice the ruler's length and 1.

    Notes
    -----
    *Theorem* (Wichmann 1963). The ruler whose marks stand at gaps :math:`1^r, r+1, (2r+1)^r, (4r+3)^s, (2r+2)^{r+1},
    1^r` measures every length up to its own, :math:`L = 4r(r+s+2) + 3(s+1)`, with :math:`4r + s + 3` marks. A ruler
    that measures 1..L covers Z_W for every :math:`W \le 2L + 1`: each residue is x or -x for some :math:`x \le L`.

    With :math:`s \approx 2r` there are :math:`m < \sqrt{1.5\,W} + 1` elements.

    References
    ----------
    B. Wichmann, *A note on restricted difference bases*, Journal of the London Mathematical Society 38 (1963) 465-466.
    """

    kind: ClassVar[str] = "wichmann"

    r: int
    s: int
    modulus: int

    def elements(self) -> tuple[int, ...]:
        """Return the marks modulo W. O(m)."""
        return tuple(sorted({mark % self.modulus for mark in wichmann_ruler(self.r, self.s)}))

    def steps(self) -> Iterator[Step]:
        """Yield: the ruler's length, that it measures everything, and that this suffices."""
        r, s, W = self.r, self.s, self.modulus
        length = 4 * r * (r + s + 2) + 3 * (s + 1)
        marks = wichmann_ruler(r, s)
        yield Step(
            f"Wichmann's ruler W({r}, {s}) has {4 * r + s + 3} marks and the length {length}",
            rf"L = 4r(r+s+2) + 3(s+1) = {length}",
            lambda: r >= 0 and s >= 0 and len(marks) == 4 * r + s + 3 and marks[-1] == length,
        )
        yield Step(
            f"it measures every length from 1 to {length}",
            rf"\{{1, \dots, {length}\}} \subseteq R - R",
            lambda: reach_of_ruler(marks) == length,
        )
        yield Step(
            f"each residue modulo {W} is x or -x for some x <= {length}",
            rf"W = {W} \le 2L + 1 = {2 * length + 1}",
            lambda: 1 <= W <= 2 * length + 1,
        )

    def __str__(self) -> str:
        return f"Wichmann's ruler W({self.r}, {self.s})"


@lru_cache(maxsize=1024)
def wichmann(W: int) -> DifferenceCover:
    """Return the cover of Z_W by the Wichmann ruler with the fewest marks that is long enough.

    Parameters
    ----------
    W : int
        Any modulus, at least 1.

    Returns
    -------
    DifferenceCover
        Of fewer than sqrt(1.5 W) + 2 elements; see `Wichmann`. O(W).

    Raises
    ------
    QuorumError
        If W is no whole number of at least 1.

    Examples
    --------
    >>> wichmann(45).base
    (0, 1, 3, 6, 13, 17, 21, 22)
    """
    W = whole_number("W", W, 1, "W is the number of workers", QuorumError)
    return DifferenceCover.by(Wichmann(*_parameters(W), W))


def _parameters(W: int) -> tuple[int, int]:
    """Return (r, s) of the fewest marks with 2L + 1 >= W."""
    best = (W, 0, W)  # marks, r, s
    r = 0
    while 4 * r + 3 <= best[0]:
        # the least s with 4r(r + s + 2) + 3(s + 1) >= W // 2
        s = max(-((3 + 4 * r * (r + 2) - W // 2) // (4 * r + 3)), 0)
        best = min(best, (4 * r + s + 3, r, s))
        r += 1
    return best[1:]
