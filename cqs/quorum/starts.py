"""Where a search for difference covers starts: from Singer's sets and random residues, completed to a size greedily."""

from collections.abc import Iterator
from itertools import cycle
from math import gcd

import numpy as np

from cqs.quorum.constructions import singer
from cqs.quorum.cover import DifferenceCover
from cqs.quorum.finite_field import prime_power
from cqs.quorum.walks import Integers

__all__ = ["completed", "moved_at_random", "starts"]


def starts(W: int, size: int, rng: "np.random.Generator") -> Iterator[Integers]:
    """Yield sets to start from, in turn: a random half of the elements, and Singer's set of each q that may do.

    These are the q with q + 1 < size and W/2 < q^2 + q + 1 <= W. Their sets are moved at random, and taken as integers.
    """
    orders = (q for q in range(2, size - 1) if W < 2 * (q * q + q + 1) <= 2 * W and prime_power(q))
    planes = [singer(q) for q in orders]
    for plane in cycle([p for q in planes for p in (None, q)] or [None]):
        yield rng.permutation(W)[: size // 2] if plane is None else moved_at_random(plane, rng)


def moved_at_random(cover: DifferenceCover, rng: "np.random.Generator") -> Integers:
    """Multiply a cover by a random unit of its own modulus and shift it at random: another cover, if often the same."""
    v = cover.modulus
    unit = next(t for t in iter(lambda: int(rng.integers(v)), None) if gcd(t, v) == 1)
    return (unit * np.array(cover.base) + int(rng.integers(v))) % v


def completed(W: int, size: int, elements: Integers, rng: "np.random.Generator") -> Integers:
    """Return `size` residues of Z_W: elements, without those whose loss is least, or with those whose gain is most.

    One after the other leaves or comes, ties broken at random.
    """
    elements = np.unique(elements % W)
    while len(elements) > size:
        elements = np.delete(elements, (_losses(W, elements) + rng.random(len(elements))).argmin())
    while len(elements) < size:
        elements = np.append(elements, (_gains(W, elements) + rng.random(W)).argmax())
    return elements


def _n_pairs(W: int, elements: Integers) -> Integers:
    """Count the pairs of elements at each distance 0..W//2, by the Fourier transform. O(W log W)."""
    spectrum = np.fft.rfft(np.bincount(elements, minlength=W))
    n_pairs = np.rint(np.fft.irfft(np.abs(spectrum) ** 2, W)[: W // 2 + 1]).astype(np.int64)
    if W % 2 == 0:  # half way around, each pair is counted from both ends
        n_pairs[-1] //= 2
    return n_pairs


def _losses(W: int, elements: Integers) -> Integers:
    """Count the distances of which each element has the only pair."""
    is_in = np.bincount(elements, minlength=W) > 0
    d = np.flatnonzero(_n_pairs(W, elements) == 1)[:, None]
    losses: Integers = np.count_nonzero(is_in[(elements + d) % W] | is_in[(elements - d) % W], axis=0)
    return losses


def _gains(W: int, elements: Integers) -> Integers:
    """Count the pairs at uncovered distances that each residue makes; -1 if it is an element."""
    d = np.flatnonzero(_n_pairs(W, elements) == 0)[:, None]
    gains = np.bincount(np.concatenate([elements + d, elements - d + W]).ravel() % W, minlength=W)
    gains[elements] = -1
    return gains
