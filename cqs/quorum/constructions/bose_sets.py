"""Bose's difference sets, completed to covers."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from cqs.errors import QuorumError
from cqs.quorum.construction import Construction, registered
from cqs.quorum.constructions.field_steps import field_steps, frobenius_map, power_of_x
from cqs.quorum.cover import DifferenceCover
from cqs.quorum.finite_field import frobenius, powers_of_x, prime_power, primitive_polynomial
from cqs.quorum.hall import cover_steps
from cqs.quorum.proof import Step

__all__ = ["Bose", "bose"]


@registered
@dataclass(frozen=True, slots=True)
class Bose:
    r"""A line of the affine plane over GF(q) without its origin, and a cover of the subgroup that it misses.

    Parameters
    ----------
    p, e : int
        q = p^e, with p prime.
    polynomial : tuple of int
        Monic, of degree 2e over GF(p), the highest coefficient first. Its root x generates all non-zero elements.
    subgroup : Construction
        Of a cover C of Z_(q-1).
    shift : int
        Where the copy of C lies: its elements are shift + (q + 1) c.

    Notes
    -----
    *Theorem* (Bose 1942). For a prime power q let :math:`\theta` generate the multiplicative group of
    :math:`\mathrm{GF}(q^2)` and let :math:`W = q^2 - 1`. Then

    .. math:: B = \{\, 0 \le i < W : \theta^i - \theta \in \mathrm{GF}(q) \,\}

    has q elements, and every residue modulo W that is no multiple of q + 1 is a difference of two of them in exactly
    one way, a multiple other than 0 in none.

    *Proof.* :math:`\{\theta + a\}` is a line that misses the origin. Multiplying by :math:`\theta^d` moves it to
    another one; these two are parallel, so disjoint, if :math:`\theta^d \in \mathrm{GF}(q)`, which is when q + 1
    divides d, and else meet in one point.

    *Completion.* The multiples of q + 1 are a subgroup like Z_(q-1): with a cover C of that,
    :math:`B \cup (s + (q + 1) C)` covers Z_W. The shift s is chosen such that the two share an element.

    References
    ----------
    R. C. Bose, *An affine analogue of Singer's theorem*, Journal of the Indian Mathematical Society 6 (1942) 1-15.
    """

    kind: ClassVar[str] = "bose"

    p: int
    e: int
    polynomial: tuple[int, ...]
    subgroup: Construction
    shift: int

    @property
    def q(self) -> int:
        """The order of the affine plane."""
        q: int = self.p**self.e
        return q

    @property
    def modulus(self) -> int:
        """q^2 - 1, the number of points of the plane but the origin."""
        return self.q**2 - 1

    def line(self) -> tuple[int, ...]:
        """Return the exponents i < W with x^i - x in GF(q). O(W)."""
        y = powers_of_x(self.polynomial, self.p, self.modulus)
        y[1, :] -= 1
        fixed = frobenius(self.polynomial, self.p, self.q) - np.eye(len(y), dtype=np.int64)  # y^q = y only in GF(q)
        rest = np.mod((fixed % self.p).astype(float) @ y, self.p)
        return tuple(np.flatnonzero(~rest.any(axis=0)).tolist())

    def elements(self) -> tuple[int, ...]:
        """Return the line and the shifted subgroup cover. O(W)."""
        copy = {(self.shift + (self.q + 1) * c) % self.modulus for c in self.subgroup.elements()}
        return tuple(sorted(copy.union(self.line())))

    def steps(self) -> Iterator[Step]:
        """Yield: a field, a generator, the line, the theorem, and the cover of the subgroup."""
        q, W = self.q, self.modulus
        yield from field_steps(self.p, self.e, 2, self.polynomial)
        line = self.line()
        yield Step(
            f"x^i - x lies in GF({q}), so is its own q-th power, for each i of the {len(line)} elements of B",
            r"(x^i - x)^q = x^i - x \quad (i \in B)",
            lambda: all(self._is_on_line(i) for i in line),
        )
        yield Step(
            f"they are all q = {q} points of a line, of the W = q^2 - 1 = {W} points but the origin",
            rf"|B| = q = {q}, \quad W = q^2 - 1 = {W}",
            lambda: len({i % W for i in line}) == q,
        )
        yield Step(
            "two lines that are not parallel meet in one point, so every residue that is no multiple of q + 1 is a "
            "difference of B in exactly one way (Bose)",
            r"|B \cap (B + d)| = 1 \quad (q + 1 \nmid d)",
            lambda: len({(i - j) % W for i in line for j in line if i != j}) == q * (q - 1),
        )
        yield Step(
            f"the multiples of q + 1 = {q + 1} are a subgroup like Z_{q - 1}, of which C is a cover",
            rf"(q + 1)\,\mathbb{{Z}}_W \cong \mathbb{{Z}}_{{{q - 1}}}",
            lambda: self.subgroup.modulus == q - 1,
        )
        yield from cover_steps(self.subgroup)

    def _is_on_line(self, i: int) -> bool:
        from sympy import ZZ
        from sympy.polys.galoistools import gf_sub

        y = gf_sub(power_of_x(i, self.polynomial, self.p), [1, 0], self.p, ZZ)
        return bool(frobenius_map(y, self.e, self.polynomial, self.p) == y)

    def __str__(self) -> str:
        return f"Bose, q = {self.q}, with a cover of Z_{self.q - 1} ({self.subgroup})"


@lru_cache(maxsize=256)
def bose(q: int, subgroup: DifferenceCover | None = None) -> DifferenceCover:
    """Return a cover of Z_(q^2 - 1) from Bose's difference set; see `Bose`.

    Parameters
    ----------
    q : int
        A prime power.
    subgroup : DifferenceCover, optional
        A cover of Z_(q - 1), by default `difference_cover(q - 1)`.

    Returns
    -------
    DifferenceCover
        Of q + subgroup.size - 1 elements: about sqrt(W) + 1.1 W^(1/4). O(W).

    Raises
    ------
    QuorumError
        If q is no prime power, or `subgroup` has another modulus.

    Examples
    --------
    >>> bose(4).modulus, bose(4).size
    (15, 5)
    """
    found = prime_power(q) if isinstance(q, int) and q > 1 else None
    if found is None:
        raise QuorumError.of("q", "be a prime power", repr(q), "other moduli have other constructions")
    if subgroup is None:
        from cqs.quorum.choice import difference_cover  # which chooses among all constructions, this one as well

        subgroup = difference_cover(q - 1)
    if subgroup.modulus != q - 1:
        raise QuorumError.of("subgroup", f"be a cover of Z_{q - 1}", f"one of Z_{subgroup.modulus}", "leave it out")
    p, e = found
    polynomial = primitive_polynomial(p, 2 * e)
    line = Bose(p, e, polynomial, subgroup.construction, 0).line()
    shift = (line[0] - (q + 1) * subgroup.base[0]) % (q * q - 1)
    return DifferenceCover.by(Bose(p, e, polynomial, subgroup.construction, shift))
