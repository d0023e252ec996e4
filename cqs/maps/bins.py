"""Bins: runs of consecutive tokens, of which a map shows each as one row or column."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np

from cqs.errors import OptionError
from cqs.masks.mask import Integers

__all__ = ["Bins"]


@dataclass(frozen=True, slots=True)
class Bins:
    """Where bins begin.

    Parameters
    ----------
    starts : tuple of int
        The first token of each, in increasing order, and 0 first.
    n_tokens : int
        Of all together.
    """

    starts: tuple[int, ...]
    n_tokens: int

    @classmethod
    def of(cls, name: str, wanted: Any, n_tokens: int) -> Self:
        """Read an argument: how many bins, of sizes that differ by at most 1, or where each begins.

        Of more bins than tokens there are as many as tokens.

        Raises
        ------
        OptionError
            If it is neither, or bins are empty.

        Examples
        --------
        >>> Bins.of("rows", 3, 10)
        Bins(starts=(0, 3, 6), n_tokens=10)
        """
        remedy = "give a number of bins, as in 256, or where each begins, as in [0, 100, 150]"
        try:
            n = _whole(wanted)
        except (TypeError, ValueError):
            n = None
        if n is not None:
            if n < 1:
                raise OptionError.of(name, "be at least 1", n, remedy)
            n = min(n, n_tokens)
            return cls(tuple(i * n_tokens // n for i in range(n)), n_tokens)
        try:
            is_many = isinstance(wanted, Iterable) and not isinstance(wanted, str | bytes)
            starts = tuple(map(_whole, wanted)) if is_many else ()
        except (TypeError, ValueError):
            starts = ()
        is_increasing = all(a < b for a, b in pairwise((*starts, n_tokens)))
        if starts[:1] != (0,) or not is_increasing:
            rule = f"be a whole number, or whole numbers that increase from 0 to less than {n_tokens}"
            raise OptionError.of(name, rule, repr(wanted), remedy)
        return cls(starts, n_tokens)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def sizes(self) -> Integers:
        """How many tokens each has."""
        ends = (*self.starts[1:], self.n_tokens)
        return np.array(ends, np.int64)[: len(self)] - np.array(self.starts, np.int64)

    def numbers(self, tokens: Integers) -> Integers:
        """Return which bin each token is in."""
        found: Integers = np.searchsorted(np.array(self.starts, np.int64), tokens, side="right") - 1
        return found


def _whole(n: Any) -> int:
    """Return a whole number, which True is not."""
    if isinstance(n, bool | np.bool_):
        raise TypeError
    return operator.index(n)
