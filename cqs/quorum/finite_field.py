r"""Arithmetic in GF(p^d), as the constructions of difference sets need it.

An element of :math:`\mathrm{GF}(p^d) = \mathrm{GF}(p)[x]/f` is its column of d coefficients, the constant first.
Multiplication by x is then the *companion matrix* of f, so powers of x are powers of a small matrix of integers
modulo p, and NumPy multiplies a whole row of them at a time. A polynomial is a tuple of coefficients with the highest
first, as in SymPy's `galoistools`, which the proofs use in place of this file.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

__all__ = ["companion", "frobenius", "powers_of_x", "prime_factors", "prime_power", "primitive_polynomial"]

Matrix = npt.NDArray[np.int64]


def prime_factors(n: int) -> tuple[int, ...]:
    """Return the primes that divide n, in increasing order, by trial division. O(sqrt(n)).

    >>> prime_factors(7**3 - 1)
    (2, 3, 19)
    """
    found, d = [], 2
    while d * d <= n:
        if n % d == 0:
            found.append(d)
            while n % d == 0:
                n //= d
        d += 1
    return (*found, n) if n > 1 else tuple(found)


def prime_power(q: int) -> tuple[int, int] | None:
    """Return (p, e) with q = p^e and p prime, or None if q is no prime power.

    >>> prime_power(27), prime_power(12)
    ((3, 3), None)
    """
    primes = prime_factors(q)
    if len(primes) != 1:
        return None
    p, e = primes[0], 0
    while q > 1:
        q //= p
        e += 1
    return p, e


def companion(polynomial: tuple[int, ...], p: int) -> Matrix:
    """Return the matrix of multiplication by x modulo a monic polynomial over GF(p)."""
    d = len(polynomial) - 1
    matrix = np.zeros((d, d), dtype=np.int64)
    matrix[1:, :-1] = np.eye(d - 1, dtype=np.int64)  # x times x^j is x^(j+1)
    matrix[:, -1] = [-c % p for c in reversed(polynomial[1:])]  # x times x^(d-1) is -(f - x^d)
    return matrix


@lru_cache(maxsize=1024)
def primitive_polynomial(p: int, d: int) -> tuple[int, ...]:
    r"""Return a monic polynomial of degree d over GF(p) whose root generates the non-zero elements of GF(p^d).

    The first with the fewest terms: the same one every time.

    Notes
    -----
    *Theorem.* If x has order :math:`p^d - 1` modulo f of degree d, then f is irreducible: the ring GF(p)[x]/f has
    :math:`p^d` elements, and each but 0 is then a power of x, thus invertible.

    References
    ----------
    Lidl and Niederreiter, *Finite Fields*, Cambridge University Press 1997, Theorem 3.16.
    """
    order = p**d - 1
    cofactors = [order // prime for prime in prime_factors(order)]
    one = np.eye(d, dtype=np.int64)
    for polynomial in _by_terms(p, d):
        x = companion(polynomial, p)
        if np.array_equal(_power(x, order, p), one) and not any(
            np.array_equal(_power(x, n, p), one) for n in cofactors
        ):
            return polynomial
    raise AssertionError(f"GF({p}^{d}) has a primitive element")


def powers_of_x(polynomial: tuple[int, ...], p: int, n: int) -> Matrix:
    """Return 1, x, ..., x^(n-1) as the columns of a `(d, n)` matrix, by doubling. O(d^2 n)."""
    step = companion(polynomial, p).astype(np.float64)  # BLAS multiplies floats; these stay far below 2^53
    powers = np.eye(len(step), 1)
    while powers.shape[1] < n:
        powers = np.concatenate([powers, np.mod(step @ powers[:, : n - powers.shape[1]], p)], axis=1)
        step = np.mod(step @ step, p)
    return powers.astype(np.int64)


def frobenius(polynomial: tuple[int, ...], p: int, q: int) -> Matrix:
    """Return the matrix of the map y -> y^q for a power q of p, which is linear over GF(p)."""
    x = companion(polynomial, p)
    return np.stack([_power(x, j * q, p)[:, 0] for j in range(len(x))], axis=1)


def _by_terms(p: int, d: int) -> Iterator[tuple[int, ...]]:
    """Yield the monic polynomials of degree d with a constant term, those with fewer terms first."""
    for n_terms in range(1, d + 1):
        for middle in combinations(range(1, d), n_terms - 1):
            for values in product(range(1, p), repeat=n_terms):
                polynomial = [1] + [0] * d
                for exponent, value in zip((0, *middle), values, strict=True):
                    polynomial[d - exponent] = value
                yield tuple(polynomial)


def _power(matrix: Matrix, n: int, p: int) -> Matrix:
    result = np.eye(len(matrix), dtype=np.int64)
    while n:
        if n & 1:
            result = result @ matrix % p
        matrix = matrix @ matrix % p
        n >>= 1
    return result
