"""Moving a cover: multiplied by a unit and shifted it is a cover still, with its elements elsewhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import ClassVar

from cqs.errors import QuorumError
from cqs.quorum.construction import Construction, registered
from cqs.quorum.cover import DifferenceCover
from cqs.quorum.proof import Step

__all__ = ["Moved", "move", "moved_onto"]


@registered
@dataclass(frozen=True, slots=True)
class Moved:
    r"""A cover, each element multiplied and shifted.

    Parameters
    ----------
    construction : Construction
        Of a cover D of Z_W.
    factor, shift : int
        t, prime to W, and s.

    Notes
    -----
    *Theorem.* If D covers Z_W and gcd(t, W) = 1, then t D + s covers Z_W: its differences are t times those of D, and
    multiplying by t permutes Z_W.
    """

    kind: ClassVar[str] = "moved"

    construction: Construction
    factor: int
    shift: int

    @property
    def modulus(self) -> int:
        """W."""
        return self.construction.modulus

    def elements(self) -> tuple[int, ...]:
        """Return t a + s for every a. O(m)."""
        return tuple(sorted((self.factor * a + self.shift) % self.modulus for a in self.construction.elements()))

    def steps(self) -> Iterator[Step]:
        """Yield the steps of the construction, and that moving keeps a cover a cover."""
        yield from self.construction.steps()
        t, s, W = self.factor, self.shift, self.modulus
        yield Step(
            f"each element a becomes {t} a + {s}; {t} is prime to {W}, so this keeps a cover a cover",
            rf"a \mapsto {t}\,a + {s}, \quad \gcd({t}, {W}) = 1",
            lambda: 0 < t < W and 0 <= s < W and gcd(t, W) == 1,
        )

    def __str__(self) -> str:
        return f"{self.construction}, times {self.factor} plus {self.shift}"


def move(cover: DifferenceCover, factor: int = 1, shift: int = 0) -> DifferenceCover:
    """Return the cover t D + s; see `Moved`. O(W + m^2) to verify.

    Raises
    ------
    QuorumError
        If `factor` is not prime to the modulus.

    Examples
    --------
    >>> move(DifferenceCover(7, (0, 1, 3)), factor=3, shift=2).base
    (2, 4, 5)
    """
    W = cover.modulus
    if gcd(factor, W) != 1:
        raise QuorumError.of("factor", f"be prime to {W}", factor, "1 leaves the elements as they are")
    return DifferenceCover.by(Moved(cover.construction, factor % W, shift % W)) if W > 1 else cover


def moved_onto(cover: DifferenceCover, base: tuple[int, ...]) -> DifferenceCover | None:
    """Return a perfect cover moved onto `base`, or None where no factor and shift do that. O(W m)."""
    W = cover.modulus
    if set(cover.base) == set(base):
        return cover
    first, second = DifferenceCover(W, base).witness(1)  # in a perfect cover the only such pair
    for factor in (t for t in range(1, W) if gcd(t, W) == 1):
        elements = {factor * a % W for a in cover.base}
        shift = next((first - a) % W for a in elements if (a - first + second) % W in elements)
        if {(a + shift) % W for a in elements} == set(base):
            return move(cover, factor, shift)
    return None
