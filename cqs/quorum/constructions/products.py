"""The product of two covers."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from cqs.quorum.construction import Construction, registered
from cqs.quorum.cover import DifferenceCover
from cqs.quorum.hall import cover_steps, covers
from cqs.quorum.proof import Step

__all__ = ["Product", "product"]


@registered
@dataclass(frozen=True, slots=True)
class Product:
    r"""Copies of one cover, side by side where another says.

    Parameters
    ----------
    inner, outer : Construction
        Of covers A of Z_v and B of Z_k.

    Notes
    -----
    *Theorem.* If A covers Z_v and B covers Z_k, then :math:`D = \{a + v b : a \in A, b \in B\}` covers Z_(v k).

    *Proof.* Given x, take a, a' in A with :math:`a - a' \equiv x \pmod v`. Then :math:`x - (a - a') = v t`, and B has
    b, b' with :math:`b - b' \equiv t \pmod k`. So :math:`x \equiv (a + v b) - (a' + v b') \pmod{v k}`.

    References
    ----------
    C. J. Colbourn and A. C. H. Ling, *Quorums from difference covers*, Information Processing Letters 75 (2000) 9-12.
    """

    kind: ClassVar[str] = "product"

    inner: Construction
    outer: Construction

    @property
    def modulus(self) -> int:
        """V k."""
        return self.inner.modulus * self.outer.modulus

    def elements(self) -> tuple[int, ...]:
        """Return a + v b for all a and b. O(m)."""
        return tuple(sorted(a + self.inner.modulus * b for a in self.inner.elements() for b in self.outer.elements()))

    def steps(self) -> Iterator[Step]:
        """Yield: the first is a cover, the second is one, so the product is."""
        v, k = self.inner.modulus, self.outer.modulus
        for name, factor in (("A", self.inner), ("B", self.outer)):
            yield Step(f"{name} is a cover of Z_{factor.modulus}: {factor}", check=partial(covers, factor))
            yield from cover_steps(factor)
        yield Step(
            f"so the a + {v} b cover Z_{v * k}: a - a' reaches x modulo {v}, and {v} (b - b') the rest",
            rf"x = (a - a') + {v}\,(b - b') \pmod{{{v} \cdot {k}}}",
            lambda: {x % v for x in self.elements()} == set(self.inner.elements()) and self.modulus == v * k,
        )

    def __str__(self) -> str:
        return f"product of Z_{self.inner.modulus} ({self.inner}) and Z_{self.outer.modulus} ({self.outer})"


def product(inner: DifferenceCover, outer: DifferenceCover) -> DifferenceCover:
    """Return the product of covers of Z_v and Z_k, a cover of Z_(v k) with as many elements as both multiplied.

    See `Product`. O(m^2) to verify.

    Examples
    --------
    >>> from cqs.quorum import difference_cover
    >>> product(difference_cover(7), difference_cover(3)).base
    (0, 1, 3, 7, 8, 10)
    """
    return DifferenceCover.by(Product(inner.construction, outer.construction))
