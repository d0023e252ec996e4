"""The counting bound on the size of a difference cover."""

from math import isqrt

__all__ = ["size_lower_bound"]


def size_lower_bound(W: int) -> int:
    """Return the smallest m with m(m - 1) >= W - 1, which no cover of Z_W can undercut.

    m residues have m(m - 1) ordered differences other than zero, and W - 1 residues have to be reached.

    >>> size_lower_bound(7), size_lower_bound(8)
    (3, 4)
    """
    m = (1 + isqrt(max(4 * W - 3, 0))) // 2
    return m if m * (m - 1) >= W - 1 else m + 1
