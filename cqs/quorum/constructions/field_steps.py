"""The steps that every construction from a finite field begins with, checked by SymPy."""

from collections.abc import Iterator

from cqs.quorum.proof import Step

__all__ = ["field_steps", "frobenius_map", "polynomial_text", "power_of_x"]

Element = list[int]  # coefficients, the highest first, as SymPy's `galoistools` has them


def field_steps(p: int, e: int, degree: int, polynomial: tuple[int, ...]) -> Iterator[Step]:
    """Yield: q is a prime power, f is irreducible, and x generates the non-zero elements of GF(q^degree)."""
    d = degree * e
    text, field = polynomial_text(polynomial), f"GF({p})[x]/f"
    yield Step(f"p = {p} is prime; q = p^{e} = {p**e}", rf"q = {p}^{{{e}}}", lambda: e >= 1 and _is_prime(p))
    yield Step(
        f"f = {text} is monic of degree {degree}e = {d} and irreducible over GF({p}), so {field} is a field of "
        f"{p}^{d} elements",
        rf"f = {polynomial_text(polynomial, is_latex=True)}",
        lambda: _is_monic(polynomial, d, p) and _is_irreducible(polynomial, p),
    )
    yield Step(
        f"x has order {p}^{d} - 1 in {field}: it generates all non-zero elements",
        rf"\mathrm{{ord}}(x) = {p}^{{{d}}} - 1",
        lambda: _is_generator(polynomial, p),
    )


def power_of_x(n: int, polynomial: tuple[int, ...], p: int) -> Element:
    """Return x^n modulo f."""
    from sympy import ZZ
    from sympy.polys.galoistools import gf_pow_mod

    power: Element = gf_pow_mod([1, 0], n, list(polynomial), p, ZZ)
    return power


def frobenius_map(element: Element, e: int, polynomial: tuple[int, ...], p: int) -> Element:
    """Return the p^e-th power of an element, by e times y -> y^p."""
    from sympy import ZZ
    from sympy.polys.galoistools import gf_frobenius_map, gf_frobenius_monomial_base

    f = list(polynomial)
    base = gf_frobenius_monomial_base(f, p, ZZ)
    for _ in range(e):
        element = gf_frobenius_map(element, f, base, p, ZZ)
    return element


def polynomial_text(polynomial: tuple[int, ...], is_latex: bool = False) -> str:
    """Write a polynomial for a person to read.

    >>> polynomial_text((1, 0, 2, 1))
    'x^3 + 2x + 1'
    """
    terms = []
    for exponent, c in zip(range(len(polynomial) - 1, -1, -1), polynomial, strict=True):
        if c:
            power = f"^{{{exponent}}}" if is_latex else f"^{exponent}"
            x = "" if exponent == 0 else "x" if exponent == 1 else "x" + power
            terms.append(x if c == 1 and x else f"{c}{x}")
    return " + ".join(terms) or "0"


def _is_prime(p: int) -> bool:
    from sympy import isprime

    return bool(isprime(p))


def _is_monic(polynomial: tuple[int, ...], d: int, p: int) -> bool:
    return len(polynomial) == d + 1 and polynomial[0] == 1 and all(0 <= c < p for c in polynomial)


def _is_irreducible(polynomial: tuple[int, ...], p: int) -> bool:
    from sympy import ZZ
    from sympy.polys.galoistools import gf_irreducible_p

    return bool(gf_irreducible_p(list(polynomial), p, ZZ))


def _is_generator(polynomial: tuple[int, ...], p: int) -> bool:
    from sympy import primefactors

    order = p ** (len(polynomial) - 1) - 1
    return power_of_x(order, polynomial, p) == [1] and all(
        power_of_x(order // prime, polynomial, p) != [1] for prime in primefactors(order)
    )
