"""Masks of any shape at all, which may differ between batch entries and heads: arrays and functions."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import is_array_api_obj

from cqs.checks import described, of_arrays, takes
from cqs.errors import BackendError, DTypeError, OptionError, ShapeError
from cqs.masks.mask import Booleans, Coverage, Integers, Mask

__all__ = ["Dense", "Predicate", "as_mask"]


@dataclass(frozen=True, slots=True, eq=False)
class Dense(Mask):
    """Any mask, as a boolean array: True where the query sees the key, as in PyTorch.

    Parameters
    ----------
    array : array of bool
        NumPy array or memory map, or array of another library in the machine's memory, of a shape that broadcasts to
        `(*B, H, T, S)`. Blocks of it are read where they are needed; axes of length 1 are never expanded.

    Raises
    ------
    DTypeError, ShapeError, BackendError
        If it is of another type, has no axes of queries and keys, or is on a device that NumPy cannot read.
    """

    array: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        array = self.array if isinstance(self.array, np.ndarray) else _read(self.array)
        object.__setattr__(self, "array", array)
        if array.dtype != bool:
            remedy = "scores to add are a `bias`, and numbers make a mask by a comparison such as `array > 0`"
            raise DTypeError.of("mask", "be of type bool", str(array.dtype), remedy)
        if array.ndim < 2:
            remedy = "for a mask of keys alone add an axis, `mask[None, :]`"
            raise ShapeError.of("mask", "have the form (..., queries, keys)", f"shape {array.shape}", remedy)

    @property
    def arrays(self) -> tuple[Booleans, ...]:
        """Its array."""
        return (self.array,)

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

    def classify(self, rows: range, cols: range) -> Coverage:
        """Read the rectangle of every head, block by block, until two pairs differ; whatever its size."""
        return self._evaluated(rows, cols, math.inf)

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
        `(m,)`; returns booleans that broadcast to `(n, m)`. Arrays are joined by `&`, `|` and `~`, not `and` and `or`.

    Notes
    -----
    It is evaluated block by block, for every head, and never for T x S pairs at once. A plan evaluates each tile that
    has at most 2^22 pairs, heads counted, until it knows that it is seen in part, so that tiles which are empty are
    dropped: in time at most half of what computing it takes. Larger tiles are taken to be seen in part.

    Examples
    --------
    >>> even = Predicate(lambda b, h, q_idx, k_idx: (q_idx - k_idx) % 2 == 0).bind((), 1, 6, 6)
    >>> even.classify(range(6), range(6)).name, even.count(range(6), range(6))
    ('PARTIAL', 18)
    """

    function: Callable[[int, int, Integers, Integers], Any]
    _full: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        remedy = "as in `Predicate(lambda b, h, q_idx, k_idx: k_idx <= q_idx)`"
        if not callable(self.function):
            raise OptionError.of("function", "be a function of (b, h, q_idx, k_idx)", repr(self.function), remedy)
        if not takes(self.function, 4):
            raise OptionError.of("function", "take (b, h, q_idx, k_idx)", described(self.function), remedy)

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

    def reach(self, rows: range, cols: range) -> tuple[range, ...]:
        """Return `cols`: what no head sees is not looked for."""
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
        with of_arrays("mask", "be a function of (b, h, q_idx, k_idx)"):
            seen = np.asarray(self.function(self.b, self.h, q_idx, k_idx))
        shape = np.broadcast_shapes(q_idx.shape, k_idx.shape)
        if seen.dtype != bool:
            rule, got = "return booleans", f"{seen.dtype} from {self.function!r}"
            raise OptionError.of("mask", rule, got, "compare, as in `k_idx <= q_idx`")
        try:
            return np.broadcast_to(seen, shape)
        except ValueError:
            rule, got = f"return what broadcasts to {shape}", f"shape {seen.shape} from {self.function!r}"
            raise ShapeError.of("mask", rule, got, "index by `q_idx` and `k_idx` alone") from None

    def edges(self, queries: Integers) -> Integers:
        """Raise; see `has_edges`."""
        raise AssertionError("it may change anywhere")


def as_mask(name: str, value: Any) -> Mask:
    """Return a mask as it is, and a boolean array as `Dense`; refuse what is neither, with an `OptionError`."""
    if isinstance(value, Mask):
        return value
    if isinstance(value, type) and issubclass(value, Mask):
        got, remedy = f"the class {value.__name__}", f"call it, as in `{_EXAMPLES.get(value.__name__, 'Causal()')}`"
    elif hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, type):
        return Dense(value)  # which checks it
    elif callable(value):
        got, remedy = repr(value), "wrap a function of (b, h, q_idx, k_idx) as `cqs.masks.Predicate(f)`"
    elif isinstance(value, (str, os.PathLike)):
        got, remedy = type(value).__name__, "for an array of bool on disk give `np.load(path, mmap_mode='r')`"
    else:
        got, remedy = type(value).__name__, "as in `Causal(offset)` or `SlidingWindow(left)`, or give an array of bool"
    raise OptionError.of(name, "be a mask from `cqs.masks`", got, remedy)


_EXAMPLES = {
    "Dense": "Dense(array)",
    "Documents": "Documents([700, 300])",
    "KeyLengths": "KeyLengths([400, 250])",
    "Predicate": "Predicate(lambda b, h, q_idx, k_idx: k_idx <= q_idx)",
    "PrefixLM": "PrefixLM(100)",
    "Sinks": "Sinks(4)",
    "SlidingWindow": "SlidingWindow(1024)",
}


def _read(array: Any) -> npt.NDArray[Any]:
    """View an array of another library as NumPy's; refuse one on disk, of which all would be read."""
    if hasattr(array, "shape") and not is_array_api_obj(array):
        rule = "be an array in memory, or a memory map"
        remedy = "of what is on disk write a `.npy` file, and give `np.load(path, mmap_mode='r')`"
        raise BackendError.of("mask", rule, type(array).__name__, remedy)
    try:
        return np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{type(array).__name__}, {error}"
        raise BackendError.of(
            "mask", "be an array that NumPy can read", got, "move it to the machine's memory"
        ) from None
