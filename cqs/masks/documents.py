"""Packed sequences: tokens see only the tokens of their own document."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Self

import numpy as np

from cqs.checks import whole_number
from cqs.errors import OptionError, ShapeError
from cqs.masks.mask import Booleans, Integers, Mask

__all__ = ["Documents"]


@dataclass(frozen=True, slots=True)
class Documents(Mask):
    """A query sees the keys of its own document; join it with `Causal()` by `&` for language models.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each document, one after the other, as queries: T in all, or fewer where padding follows.
    key_lengths : sequence of int, optional
        The same as keys, as many documents; by default the same lengths. S in all, or fewer.

    Notes
    -----
    Tokens after the last document are padding, and belong to none: they see nothing and are seen by no one, so their
    output is 0 and their log-sum-exp -inf. Lengths that come to *more* tokens than there are cannot be meant: the
    problem is refused, with a `ShapeError`.

    Examples
    --------
    >>> import numpy as np
    >>> Documents([2, 1]).visible(np.arange(4)[:, None], np.arange(4)).astype(int)
    array([[1, 1, 0, 0],
           [1, 1, 0, 0],
           [0, 0, 1, 0],
           [0, 0, 0, 0]])
    """

    lengths: Sequence[int]  # a tuple, once it is made
    key_lengths: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("lengths", "key_lengths"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _checked(name, value))
        if self.key_lengths is not None and len(self.key_lengths) != len(self.lengths):
            rule, got = f"name as many documents as `lengths`, {len(self.lengths)}", len(self.key_lengths)
            raise OptionError.of("key_lengths", rule, got, "a document without keys has length 0")

    @classmethod
    def from_segments(cls, ids: Iterable[int]) -> Self:
        """Make the mask from the document number of each token, those of a document standing together."""
        numbers = np.asarray(list(ids) if not hasattr(ids, "__array__") else ids)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            rule, got = "be whole numbers, one for each token", f"{numbers.dtype} of shape {numbers.shape}"
            raise OptionError.of("ids", rule, got, "give one row of segment numbers")
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
        if len(np.unique(numbers)) != len(starts):
            rule, got = "keep the tokens of a document together", f"{len(starts)} runs of {len(np.unique(numbers))}"
            raise OptionError.of("ids", rule, got, "sort the tokens by document")
        return cls(tuple(np.diff(starts, append=len(numbers)).tolist()))

    def bind(self, batch: tuple[int, ...], n_heads: int, n_queries: int, n_keys: int) -> Mask:
        """Refuse documents that have more tokens than there are."""
        keys = ("lengths", self.lengths) if self.key_lengths is None else ("key_lengths", self.key_lengths)
        for (name, lengths), what, n in ((("lengths", self.lengths), "queries", n_queries), (keys, "keys", n_keys)):
            if sum(lengths) > n:
                rule = f"come to at most {n} {what}, as there are no more"
                remedy = "count the tokens of each document that are there"
                if what == "keys" and self.key_lengths is None:
                    remedy = "give `key_lengths` as well, where documents have other keys than queries"
                raise ShapeError.of(name, rule, f"{sum(lengths)} in {len(lengths)} documents", remedy)
        return self

    @property
    def _ends(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The first position after each document, among queries and among keys."""
        return _ends(self.lengths), _ends(self.lengths if self.key_lengths is None else self.key_lengths)

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Return whether both are of one document."""
        q_ends, k_ends = self._ends
        if not q_ends:
            return np.zeros(np.broadcast_shapes(q_idx.shape, k_idx.shape), dtype=bool)
        of_q = np.searchsorted(np.array(q_ends), q_idx, side="right")
        of_k = np.searchsorted(np.array(k_ends), k_idx, side="right")
        visible: Booleans = (of_q == of_k) & (of_q < len(q_ends))
        return visible

    def edges(self, queries: Integers) -> Integers:
        """Return where the keys of a query's document begin and end."""
        q_ends, k_ends = self._ends
        bounds = np.array([0, *k_ends, k_ends[-1] if k_ends else 0])
        document = np.searchsorted(np.array(q_ends), queries, side="right")
        return np.stack([bounds[document], bounds[np.minimum(document + 1, len(bounds) - 1)]], axis=-1)

    def reach(self, rows: range, cols: range) -> tuple[range, ...]:
        """Return the keys of the documents that the queries are of. O(log n)."""
        q_ends, k_ends = self._ends
        first, last = (bisect_right(q_ends, row) for row in (rows.start, rows.stop - 1))
        if not rows or first == len(q_ends):
            return ()
        start = max(cols.start, k_ends[first - 1] if first else 0)
        part = range(start, min(cols.stop, k_ends[min(last, len(k_ends) - 1)]))
        return (part,) if part else ()

    def count(self, rows: range, cols: range) -> int:
        """Sum the areas of the documents' squares in the rectangle. O(documents that the queries are of)."""
        q_ends, k_ends = self._ends
        total = 0
        first = bisect_right(q_ends, rows.start)
        last = bisect_right(q_ends, rows.stop - 1)
        for d in range(first, min(last + 1, len(q_ends)) if rows else first):
            n_rows = min(rows.stop, q_ends[d]) - max(rows.start, q_ends[d - 1] if d else 0)
            n_cols = min(cols.stop, k_ends[d]) - max(cols.start, k_ends[d - 1] if d else 0)
            total += max(n_rows, 0) * max(n_cols, 0)
        return total


@lru_cache(maxsize=64)
def _ends(lengths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(accumulate(lengths))


def _checked(name: str, lengths: Iterable[int]) -> tuple[int, ...]:
    try:
        values = tuple(lengths)
    except TypeError:
        raise OptionError.of(
            name, "be the lengths of documents", repr(lengths), "as in Documents([700, 300])"
        ) from None
    return tuple(whole_number(f"{name}[{i}]", n, 0, "lengths count tokens") for i, n in enumerate(values))
