"""Masks that may differ between batch entries and heads, and masks of any shape at all."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.checks import whole_number
from cqs.errors import DTypeError, OptionError, ShapeError
from cqs.masks.bands import Sinks
from cqs.masks.mask import Booleans, Coverage, Integers, Mask

__all__ = ["Dense", "KeyLengths", "Predicate"]


@dataclass(frozen=True, slots=True)
class KeyLengths(Mask):
    """Padding: the queries of each batch entry see as many keys as it has, the first ones.

    Parameters
    ----------
    lengths : sequence of int
        Keys of each entry of the one batch dimension.
    query_lengths : sequence of int, optional
        Queries of each entry; those after them see nothing. By default all see.
    """

    lengths: tuple[int, ...]
    query_lengths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("lengths", "query_lengths"):
            values = getattr(self, name)
            if values is not None:
                numbers = (whole_number(f"{name}[{i}]", n, 0, "lengths count tokens") for i, n in enumerate(values))
                object.__setattr__(self, name, tuple(numbers))
        if self.query_lengths is not None and len(self.query_lengths) != len(self.lengths):
            rule, got = f"be as many as `lengths`, {len(self.lengths)}", len(self.query_lengths)
            raise OptionError.of("query_lengths", rule, got, "give one for each batch entry")

    @property
    def lead(self) -> tuple[int, ...]:
        """One mask for each batch entry, for all its heads."""
        return (len(self.lengths), 1)

    @property
    def is_shared(self) -> bool:
        """False."""
        return False

    def at(self, index: tuple[int, ...]) -> Mask:
        """Return the mask of one batch entry."""
        keys, b = Sinks(self.lengths[index[-2]]), index[-2]
        return keys if self.query_lengths is None else keys & _FirstQueries(self.query_lengths[b])

    def bind(self, batch: tuple[int, ...], n_heads: int, n_queries: int, n_keys: int) -> Mask:
        """Refuse another number of lengths than of batch entries."""
        if batch != (len(self.lengths),):
            rule = f"have a length for each entry of the one batch dimension, {batch}"
            raise ShapeError.of("mask", rule, f"{len(self.lengths)} lengths", "make one of several batch dimensions")
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


@dataclass(frozen=True, slots=True, eq=False)
class Dense(Mask):
    """Any mask, as a boolean array: True where the query sees the key, as in PyTorch.

    Parameters
    ----------
    array : array of bool
        NumPy array or memory map of a shape that broadcasts to `(*B, H, T, S)`. Blocks of it are read where they are
        needed; axes of length 1 are never expanded.
    """

    array: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        array = self.array if isinstance(self.array, np.ndarray) else np.asarray(self.array)
        object.__setattr__(self, "array", array)
        if array.dtype != bool:
            remedy = "scores to add are a `bias`, and numbers make a mask by a comparison such as `array > 0`"
            raise DTypeError.of("mask", "be of type bool", str(array.dtype), remedy)
        if array.ndim < 2:
            remedy = "for a mask of keys alone add an axis, `mask[None, :]`"
            raise ShapeError.of("mask", "have the form (..., queries, keys)", f"shape {array.shape}", remedy)

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes before queries and keys."""
        return self.array.shape[:-2]

    @property
    def has_edges(self) -> bool:
        """False: it may change anywhere."""
        return False

    def at(self, index: tuple[int, ...]) -> Mask:
        """Return the mask of one head, a view."""
        own = index[len(index) - len(self.lead) :]
        return Dense(self.array[tuple(i if n > 1 else 0 for i, n in zip(own, self.lead, strict=True))])

    def bind(self, batch: tuple[int, ...], n_heads: int, n_queries: int, n_keys: int) -> Mask:
        """Refuse a shape that does not broadcast; give queries and keys their length, without a copy."""
        full, shape = (*batch, n_heads, n_queries, n_keys), self.array.shape
        if len(shape) > len(full) or any(n not in (1, m) for n, m in zip(shape[::-1], full[::-1], strict=False)):
            remedy = "axes of length 1 stand for all"
            raise ShapeError.of("mask", f"broadcast to (*B, H, T, S) = {full}", f"shape {shape}", remedy)
        return Dense(np.broadcast_to(self.array, (*self.lead, n_queries, n_keys)))

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Look the pairs up; the array has queries and keys alone."""
        seen: Booleans = self.array.reshape(self.array.shape[-2:])[q_idx, k_idx]
        return seen

    def block(self, rows: range, cols: range) -> Booleans:
        """Return a view of the rectangle."""
        seen = self.array.reshape(self.array.shape[-2:])
        return np.asarray(seen[rows.start : rows.stop, cols.start : cols.stop])

    def edges(self, queries: Integers) -> Integers:
        """Raise; see `has_edges`."""
        raise AssertionError("it may change anywhere")

    def to_dict(self) -> dict[str, Any]:
        """Raise: an array is kept in a file of its own."""
        rule = "be made of numbers to be written as JSON"
        raise OptionError.of("mask", rule, str(self), "pickle the plan, or build the mask of other masks")

    def __repr__(self) -> str:
        return f"Dense(<bool array of shape {self.array.shape}>)"


@dataclass(frozen=True, slots=True)
class Predicate(Mask):
    """Any mask, as a function that says which keys a query sees, as the `mask_mod` of PyTorch's FlexAttention.

    Parameters
    ----------
    function : function of (b, h, q_idx, k_idx)
        Of a batch entry, counted in C order, and a query head, both int, and token numbers, NumPy arrays `(n, 1)` and
        `(m,)`; returns booleans that broadcast to `(n, m)`. It is evaluated block by block, and for every head.
    """

    function: Callable[[int, int, Integers, Integers], Any]
    _full: tuple[int, ...] = ()

    @property
    def lead(self) -> tuple[int, ...]:
        """All batch entries and heads."""
        return self._full

    @property
    def is_shared(self) -> bool:
        """False."""
        return False

    @property
    def has_edges(self) -> bool:
        """False: it may change anywhere."""
        return False

    def bind(self, batch: tuple[int, ...], n_heads: int, n_queries: int, n_keys: int) -> Mask:
        """Learn which batch entries and heads there are."""
        return replace(self, _full=(*batch, n_heads))

    def at(self, index: tuple[int, ...]) -> Mask:
        """Return the mask of one head."""
        *batch, h = index
        b = int(np.ravel_multi_index(batch, self._full[:-1])) if batch else 0
        return _Rule(self.function, b, h)

    def classify(self, rows: range, cols: range) -> Coverage:
        """Say PARTIAL, for all heads: what is empty is found head by head, when it is computed."""
        return Coverage.PARTIAL if rows and cols and math.prod(self._full) else Coverage.EMPTY

    def reach(self, rows: range, cols: range) -> tuple[range, ...]:
        """Return `cols`, likewise."""
        return (cols,) if rows and cols else ()

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Raise: there is no one answer for all heads."""
        raise AssertionError("ask the mask `at` a head")

    def edges(self, queries: Integers) -> Integers:
        """Raise, likewise."""
        raise AssertionError("ask the mask `at` a head")

    def to_dict(self) -> dict[str, Any]:
        """Raise: a function is no JSON."""
        rule = "be made of numbers to be written as JSON"
        raise OptionError.of("mask", rule, repr(self), "pickle the plan, or build the mask of other masks")


@dataclass(frozen=True, slots=True)
class _Rule(Mask):
    """A `Predicate` for one head."""

    function: Callable[[int, int, Integers, Integers], Any]
    b: int
    h: int

    @property
    def has_edges(self) -> bool:
        """False: it may change anywhere."""
        return False

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Call the function."""
        seen = np.asarray(self.function(self.b, self.h, q_idx, k_idx))
        shape = np.broadcast_shapes(q_idx.shape, k_idx.shape)
        if seen.dtype != bool:
            rule, got = "return booleans", f"{seen.dtype} from {self.function!r}"
            raise OptionError.of("mask", rule, got, "compare, as in `k_idx <= q_idx`")
        if np.broadcast_shapes(seen.shape, shape) != shape:
            rule, got = f"return what broadcasts to {shape}", f"shape {seen.shape} from {self.function!r}"
            raise ShapeError.of("mask", rule, got, "index by `q_idx` and `k_idx` alone")
        return np.broadcast_to(seen, shape)

    def edges(self, queries: Integers) -> Integers:
        """Raise; see `has_edges`."""
        raise AssertionError("it may change anywhere")
