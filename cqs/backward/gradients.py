"""The gradients of queries, keys and values, and of a bias."""

from typing import NamedTuple

from cqs.types import Array

__all__ = ["Gradients", "GradientsWithBias"]


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


class GradientsWithBias(NamedTuple):
    """What a number that depends on the output of attention changes by, for each number of q, k, v and a bias.

    Parameters
    ----------
    dq, dk, dv, dbias : array
        Of the shapes and types of q, k, v and the bias.
    """

    dq: Array
    dk: Array
    dv: Array
    dbias: Array
