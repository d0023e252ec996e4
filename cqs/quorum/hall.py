r"""The identity that proves any cover, whatever it came from: the Hall polynomial.

.. math:: \theta(x) = \sum_{a \in D} x^a, \qquad \theta(x)\,\theta(x^{-1}) \equiv \sum_{d} a_d\, x^d \pmod{x^W - 1}

where :math:`a_d` counts the pairs (a, b) of D with :math:`a - b = d`. D is a cover if every :math:`a_d \ge 1`, and
perfect if the sum is :math:`(m - 1) + (1 + x + \dots + x^{W-1})`.

References
----------
M. Hall, *Cyclic projective planes*, Duke Mathematical Journal 14 (1947) 1079-1090.
"""

from collections.abc import Iterator

from cqs.quorum.construction import Construction
from cqs.quorum.proof import Step

__all__ = ["cover_steps", "covers", "hall_coefficients", "hall_steps"]


def cover_steps(construction: Construction) -> Iterator[Step]:
    """Yield the steps of a construction, and the Hall identity of what it gives."""
    yield from construction.steps()
    yield from hall_steps(construction.modulus, construction.elements())


def covers(construction: Construction) -> bool:
    """Whether every residue is a difference of two elements that a construction gives. O(m^2)."""
    W, elements = construction.modulus, construction.elements()
    return len({(a - b) % W for a in elements for b in elements}) == W


def hall_steps(W: int, base: tuple[int, ...]) -> Iterator[Step]:
    """Yield the one step that the Hall polynomial of a base takes."""
    m = len(base)
    is_perfect = m * (m - 1) == W - 1
    if is_perfect:
        claim = f"theta(x) theta(1/x) = {m - 1} + (1 + x + ... + x^{W - 1}) modulo x^{W} - 1: a perfect cover of Z_{W}"
        right = rf"{m - 1} + \sum_{{d=0}}^{{{W - 1}}} x^d"
    else:
        claim = f"theta(x) theta(1/x) modulo x^{W} - 1 has no coefficient 0: its {m} exponents are a cover of Z_{W}"
        right = r"\sum_d a_d x^d,\ a_d \ge 1"
    latex = rf"\theta(x)\,\theta(x^{{-1}}) \equiv {right} \pmod{{x^{{{W}}} - 1}}"
    yield Step(claim, latex, lambda: _holds(W, base, is_perfect))


def hall_coefficients(W: int, base: tuple[int, ...]) -> dict[int, int]:
    """Return {d: a_d} without zeros, by SymPy's sparse polynomials. O(m^2); W = 10^5 takes a fraction of a second."""
    from sympy import ZZ, ring

    R, _ = ring("x", ZZ)
    theta = R.from_dict({(a,): 1 for a in base})
    reversed_theta = R.from_dict({((W - a) % W,): 1 for a in base})  # x^-a is x^(W - a)
    coefficients: dict[int, int] = {}
    for (exponent,), count in (theta * reversed_theta).items():
        coefficients[exponent % W] = coefficients.get(exponent % W, 0) + int(count)
    return coefficients


def _holds(W: int, base: tuple[int, ...], is_perfect: bool) -> bool:
    if len(set(base)) < len(base) or not all(0 <= a < W for a in base):
        return False
    coefficients = hall_coefficients(W, base)
    if is_perfect:
        return coefficients == {d: len(base) if d == 0 else 1 for d in range(W)}
    return len(coefficients) == W
