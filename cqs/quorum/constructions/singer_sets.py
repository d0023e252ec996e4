"""Singer's perfect difference sets: the lines of a projective plane."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from cqs.errors import QuorumError
from cqs.quorum.construction import registered
from cqs.quorum.constructions.field_steps import field_steps, frobenius_map, power_of_x
from cqs.quorum.cover import DifferenceCover
from cqs.quorum.finite_field import frobenius, powers_of_x, prime_power, primitive_polynomial
from cqs.quorum.proof import Step

__all__ = ["Singer", "singer", "singer_moduli"]


@registered
@dataclass(frozen=True, slots=True)
class Singer:
    r"""The exponents of a plane in GF(q^3) seen as a line of points.

    Parameters
    ----------
    p, e : int
        q = p^e, with p prime.
    polynomial : tuple of int
        Monic, of degree 3e over GF(p), the highest coefficient first. Its root x generates all non-zero elements.

    Notes
    -----
    *Theorem* (Singer 1938). For a prime power q let :math:`\alpha` generate the multiplicative group of
    :math:`\mathrm{GF}(q^3)` and let :math:`W = q^2 + q + 1`. Then

    .. math:: D = \{\, 0 \le i < W : \mathrm{Tr}(\alpha^i) = \alpha^i + \alpha^{iq} + \alpha^{iq^2} = 0 \,\}

    has q + 1 elements, and every non-zero residue modulo W is a difference of two of them in exactly one way.

    *Proof.* :math:`\alpha^W` generates GF(q)*, so the points of the projective plane over GF(q) are
    :math:`\alpha^0, \dots, \alpha^{W-1}` up to factors in GF(q). Tr = 0 is a plane through the origin, a line of
    :math:`(q^2 - 1)/(q - 1) = q + 1` points. For :math:`d \ne 0` multiplying by :math:`\alpha^d` moves it to another
    line, and two lines meet in one point: :math:`i = j + d` for exactly one pair (i, j) of D.

    References
    ----------
    J. Singer, *A theorem in finite projective geometry and some applications to number theory*, Transactions of the
    AMS 43 (1938) 377-385.
    """

    kind: ClassVar[str] = "singer"

    p: int
    e: int
    polynomial: tuple[int, ...]

    @property
    def q(self) -> int:
        """The order of the plane."""
        q: int = self.p**self.e
        return q

    @property
    def modulus(self) -> int:
        """q^2 + q + 1, the number of points of the plane."""
        return self.q**2 + self.q + 1

    def elements(self) -> tuple[int, ...]:
        """Return the exponents i < W with Tr(x^i) = 0. O(W)."""
        to_q = frobenius(self.polynomial, self.p, self.q)
        trace = np.eye(len(to_q), dtype=np.int64) + to_q + to_q @ to_q
        # floats, for BLAS; entries are below 3 e p^2, which is exact
        traces = np.mod((trace % self.p).astype(float) @ powers_of_x(self.polynomial, self.p, self.modulus), self.p)
        return tuple(np.flatnonzero(~traces.any(axis=0)).tolist())

    def steps(self) -> Iterator[Step]:
        """Yield: a field, a generator, the trace of each element, and the theorem."""
        q, W = self.q, self.modulus
        yield from field_steps(self.p, self.e, 3, self.polynomial)
        base = self.elements()
        yield Step(
            f"Tr(x^i) = x^i + x^(iq) + x^(iq^2) is 0 for each i of the {len(base)} elements",
            r"\mathrm{Tr}(x^i) = x^i + x^{iq} + x^{iq^2} = 0 \quad (i \in D)",
            lambda: all(self._has_trace_zero(i) for i in base),
        )
        yield Step(
            f"they are all q + 1 = {q + 1} points of the line Tr = 0 in the plane of W = {W} points",
            rf"|D| = \frac{{q^2 - 1}}{{q - 1}} = q + 1 = {q + 1}, \quad W = q^2 + q + 1 = {W}",
            lambda: len({i % W for i in base}) == q + 1,
        )
        yield Step(
            "two lines meet in one point, so every non-zero residue is a difference in exactly one way (Singer)",
            r"|D \cap (D + d)| = 1 \quad (d \ne 0)",
            lambda: len({(i - j) % W for i in base for j in base}) == W,
        )

    def _has_trace_zero(self, i: int) -> bool:
        from sympy import ZZ
        from sympy.polys.galoistools import gf_add

        y = power_of_x(i, self.polynomial, self.p)
        y_q = frobenius_map(y, self.e, self.polynomial, self.p)
        y_qq = frobenius_map(y_q, self.e, self.polynomial, self.p)
        return not gf_add(gf_add(y, y_q, self.p, ZZ), y_qq, self.p, ZZ)

    def __str__(self) -> str:
        return f"Singer, q = {self.q}"


@lru_cache(maxsize=256)
def singer(q: int) -> DifferenceCover:
    """Return Singer's perfect difference set of q + 1 elements modulo q^2 + q + 1; see `Singer`.

    Parameters
    ----------
    q : int
        A prime power.

    Returns
    -------
    DifferenceCover
        Perfect. O(q^2); q = 997, so W = 995,007, takes about a second.

    Raises
    ------
    QuorumError
        If q is no prime power.

    Examples
    --------
    >>> singer(2)
    DifferenceCover(modulus=7, base=(1, 2, 4))
    """
    found = prime_power(q) if isinstance(q, int) and q > 1 else None
    if found is None:
        raise QuorumError.of("q", "be a prime power", repr(q), "see `singer_moduli` for the moduli that have one")
    p, e = found
    return DifferenceCover.by(Singer(p, e, primitive_polynomial(p, 3 * e)))


def singer_moduli(up_to: int) -> tuple[int, ...]:
    """Return every W = q^2 + q + 1 <= `up_to` with a prime power q: those have a perfect cover.

    >>> singer_moduli(100)
    (7, 13, 21, 31, 57, 73, 91)
    """
    moduli, q = [], 2
    while q * q + q + 1 <= up_to:
        if prime_power(q):
            moduli.append(q * q + q + 1)
        q += 1
    return tuple(moduli)
