"""The gradients of queries, keys and values."""

from typing import NamedTuple

from cqs.types import Array

__all__ = ["Gradients"]


class Gradients(NamedTuple):
    """What a number that depends on the output of attention changes by, for each number of q, k and v.

    Parameters
    ----------
    dq, dk, dv : array
        Of the shapes and the type of q, k and v.
    """

    dq: Array
    dk: Array
    dv: Array
