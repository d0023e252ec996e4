"""Padding: batch entries that have fewer tokens than the arrays have room for."""

from dataclasses import dataclass

import numpy as np

from cqs.checks import whole_number
from cqs.errors import ShapeError
from cqs.masks.bands import Sinks
from cqs.masks.entries import Entries, check_broadcast, entries, entry, most, shape_of
from cqs.masks.mask import Booleans, Integers, Mask

__all__ = ["KeyLengths"]


@dataclass(frozen=True, slots=True)
class KeyLengths(Mask):
    """Padding: the queries of each batch entry see as many keys as it has, the first ones.

    Parameters
    ----------
    lengths : int, or nested sequence or array of int
        Keys of each batch entry, at most S, of a shape that broadcasts to the batch dimensions `*B`.
    query_lengths : likewise, optional
        Queries of each entry, at most T; those after them see nothing. By default all see.

    Examples
    --------
    >>> KeyLengths([[3, 0], [2, 5]]).at((1, 0, 0))
    Sinks(n=2)
    """

    lengths: Entries
    query_lengths: Entries | None = None

    def __post_init__(self) -> None:
        for name in ("lengths", "query_lengths"):
            if getattr(self, name) is not None or name == "lengths":
                object.__setattr__(self, name, entries(name, getattr(self, name), _length))
        if self.query_lengths is not None:
            shapes = shape_of(self.lengths), shape_of(self.query_lengths)
            if any(1 not in pair and pair[0] != pair[1] for pair in zip(*(s[::-1] for s in shapes), strict=False)):
                rule, got = f"broadcast with `lengths`, of shape {shapes[0]}", f"shape {shapes[1]}"
                raise ShapeError.of("query_lengths", rule, got, "give one number for each batch entry")

    @property
    def _batch(self) -> tuple[int, ...]:
        queries = () if self.query_lengths is None else shape_of(self.query_lengths)
        return np.broadcast_shapes(shape_of(self.lengths), queries)

    @property
    def lead(self) -> tuple[int, ...]:
        """One mask for each batch entry, for all its heads."""
        return (*self._batch, 1)

    @property
    def is_shared(self) -> bool:
        """False."""
        return False

    def at(self, index: tuple[int, ...]) -> Mask:
        """Return the mask of one batch entry."""
        keys = Sinks(entry(self.lengths, index[:-1]))
        return keys if self.query_lengths is None else keys & _FirstQueries(entry(self.query_lengths, index[:-1]))

    def bind(self, batch: tuple[int, ...], n_heads: int, n_queries: int, n_keys: int) -> Mask:
        """Refuse lengths that do not broadcast to the batch dimensions, or of more tokens than there are."""
        of_both = ("lengths", self.lengths, n_keys, "keys"), ("query_lengths", self.query_lengths, n_queries, "queries")
        for name, lengths, n, what in of_both:
            if lengths is None:
                continue
            check_broadcast(name, lengths, batch)
            if (longest := most(lengths)) > n:
                rule, remedy = f"be at most {n}, the number of {what}", "lengths count the tokens without padding"
                raise ShapeError.of(name, rule, longest, remedy)
        return self

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Raise: there is no one answer for all batch entries."""
        raise AssertionError("ask the mask `at` a batch entry")

    def edges(self, queries: Integers) -> Integers:
        """Raise, likewise."""
        raise AssertionError("ask the mask `at` a batch entry")


@dataclass(frozen=True, slots=True)
class _FirstQueries(Mask):
    """The first n queries see every key, the others none."""

    n: int

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Return q < n."""
        return np.broadcast_to(q_idx < self.n, np.broadcast_shapes(q_idx.shape, k_idx.shape))

    def edges(self, queries: Integers) -> Integers:
        """Return none."""
        return queries[:, None][:, :0]


def _length(name: str, value: object) -> int:
    return whole_number(name, value, 0, "lengths count tokens")
