"""What a query may see. A mask answers for whole rectangles, so that no T x S array is ever built."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from cqs.errors import OptionError

if TYPE_CHECKING:
    from cqs.masks.algebra import And, Not, Or

__all__ = ["Booleans", "Coverage", "Integers", "Mask", "merged"]

Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

_AREA = 1 << 16  # pairs that are looked at together, which plans count for each thread
_SEGMENTS = 1 << 13  # rows by segments that are, which takes a handful of 64 KiB
_AT_FIRST = 1 << 12  # pairs that are evaluated first: most rectangles that are seen in part show it early
_EVALUATED = 1 << 22  # pairs of all heads that a rectangle may have, to be evaluated before it is computed


class Coverage(Enum):
    """How much of a rectangle of the score matrix a mask lets through."""

    EMPTY = "empty"
    PARTIAL = "partial"
    FULL = "full"


class Mask(ABC):
    """A rule that says which keys each query sees; positions are token numbers, counted from 0.

    `visible` is the definition, and `edges` says where along the keys it may change; what is asked of rectangles
    follows from these two, in O(rows), or in closed form where a mask has one. Masks are combined by `&`, `|` and `~`,
    also with boolean arrays, which become `Dense`; `and`, `or` and `not` are refused.
    They are evaluated by NumPy, whatever the library of the inputs: only rectangles that are visible in part ever are.

    The methods agree: `classify` says EMPTY or FULL exactly where the rectangle is, `reach` may be too long, and
    `count` is the exact number of True in `visible`. Where `hides_nothing` is True, so is `visible` everywhere.
    Of a mask without edges, `classify` may say PARTIAL of any rectangle with more than 2^22 pairs, heads counted.
    """

    __array_ufunc__ = None  # so that `array & mask` asks the mask

    @property
    def hides_nothing(self) -> bool:
        """Whether every query sees every key, however many there are of either."""
        return False

    @property
    def arrays(self) -> tuple[Booleans, ...]:
        """The arrays that it looks pairs up in."""
        return ()

    @property
    def lead(self) -> tuple[int, ...]:
        """Shape of the batch entries and heads that it differs between, which broadcasts to `(*B, H)`."""
        return ()

    @property
    def is_shared(self) -> bool:
        """Whether all batch entries and heads see the same."""
        return math.prod(self.lead) == 1

    @property
    def has_edges(self) -> bool:
        """Whether `edges` can say where the mask changes; if not, it is evaluated pair by pair."""
        return True

    def at(self, index: tuple[int, ...]) -> "Mask":
        """Return the mask of one batch entry and head, an index into `(*B, H)`: one that all share."""
        return self

    def bind(self, batch: tuple[int, ...], n_heads: int, n_queries: int, n_keys: int) -> "Mask":
        """Return the mask for a problem of these sizes, or refuse it with a `ShapeError`."""
        return self

    @abstractmethod
    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Return True where the query sees the key; the indices broadcast."""

    @abstractmethod
    def edges(self, queries: Integers) -> Integers:
        """Return, for queries `(n,)`, the keys `(n, e)` from which on each may see other than before, in any order."""

    def block(self, rows: range, cols: range) -> Booleans:
        """Return `visible` for a rectangle, `(rows, cols)`."""
        return self.visible(np.arange(rows.start, rows.stop)[:, None], np.arange(cols.start, cols.stop))

    def classify(self, rows: range, cols: range) -> Coverage:
        """Return how much of queries `rows` against keys `cols` is visible, for all heads together."""
        if not self.has_edges:
            return self._evaluated(rows, cols, _EVALUATED)
        if not self.is_shared:
            return _common(mask.classify(rows, cols) for mask in self._heads())
        n_visible = self.count(rows, cols)
        if n_visible == 0:
            return Coverage.EMPTY
        return Coverage.FULL if n_visible == len(rows) * len(cols) else Coverage.PARTIAL

    def reach(self, rows: range, cols: range) -> tuple[range, ...]:
        """Return parts of `cols`, in increasing order and apart, outside of which no query of `rows` sees a key."""
        parts: tuple[range, ...] = ()
        if not self.is_shared:
            return merged([part for mask in self._heads() for part in mask.reach(rows, cols)])
        if not self.has_edges:
            return self._columns_seen(rows, cols)
        for starts, stops, is_seen in self.segments(rows, cols):
            pairs = np.unique(np.stack([starts[is_seen], stops[is_seen]], axis=-1), axis=0)
            parts = merged([*parts, *(range(start, stop) for start, stop in pairs.tolist())])
        return parts

    def count(self, rows: range, cols: range) -> int:
        """Return the number of visible (query, key) pairs in the rectangle, exactly; of all of `lead` together."""
        if not self.is_shared:
            return sum(mask.count(rows, cols) for mask in self._heads())
        if not self.has_edges:
            return sum(int(np.count_nonzero(self.block(*block))) for block in _blocks(rows, cols))
        return sum(int((stops - starts)[is_seen].sum()) for starts, stops, is_seen in self.segments(rows, cols))

    def counts_before(self, rows: range, cols: range, cuts: Integers) -> Integers:
        """Return for each cut, a key of `cols` or the one after the last, `count` of the keys before it.

        Only for a mask with edges. All of them take little more time than one.
        """
        if not self.is_shared:
            return sum((mask.counts_before(rows, cols, cuts) for mask in self._heads()), np.zeros(len(cuts), np.int64))
        counts = np.zeros(len(cuts), np.int64)
        for starts, stops, is_seen in self.segments(rows, cols):
            counts += _summed_up_to(stops[is_seen], cuts) - _summed_up_to(starts[is_seen], cuts)
        return counts

    def segments(self, rows: range, cols: range) -> Iterator[tuple[Integers, Integers, Booleans]]:
        """Yield, for some rows at a time, where the segments of `cols` start and stop, and whether the row sees them.

        Only for a mask with edges whose heads see the same.

        Yields
        ------
        starts, stops : NumPy array of int, `(n, s)`
            Of each of the n rows, in increasing order: segments that follow each other, of which some are empty, and
            within which a row sees all keys or none. There is one more of them than the mask has edges.
        is_seen : NumPy array of bool, `(n, s)`
            Whether the row sees the segment; not of empty ones.
        """
        if not rows or not cols:
            return
        step = max(_SEGMENTS // (self.edges(np.array([rows.start])).shape[1] + 1), 1)
        for first in range(rows.start, rows.stop, step):
            queries = np.arange(first, min(first + step, rows.stop))
            cuts = np.clip(self.edges(queries), cols.start, cols.stop)
            ends = np.broadcast_to(np.array([cols.start, cols.stop]), (len(queries), 2))
            cuts = np.sort(np.concatenate([cuts, ends], axis=1), axis=1)
            starts, stops = cuts[:, :-1], cuts[:, 1:]
            yield starts, stops, (starts < stops) & self.visible(queries[:, None], starts)

    def _heads(self) -> Iterator["Mask"]:
        return (self.at(index) for index in np.ndindex(*self.lead))

    def _evaluated(self, rows: range, cols: range, most: float) -> Coverage:
        """Classify by evaluating block by block until two pairs differ; PARTIAL if there are more than `most` pairs.

        The least that a head counts for is its first block, as a call costs about as much as that.
        """
        area = len(rows) * len(cols)
        if area and math.prod(self.lead) * max(area, _AT_FIRST) > most:
            return Coverage.PARTIAL
        found: set[bool] = set()
        for mask in self._heads():
            for block in _blocks(rows, cols):
                seen = mask.block(*block)
                found |= {bool(seen.any()), bool(seen.all())}
                if len(found) > 1:
                    return Coverage.PARTIAL
        return Coverage.FULL if True in found else Coverage.EMPTY

    def _columns_seen(self, rows: range, cols: range) -> tuple[range, ...]:
        """Return `reach` exactly, by evaluation."""
        seen = np.zeros(len(cols), dtype=bool)
        for part_rows, part in _blocks(rows, cols):
            seen[part.start - cols.start : part.stop - cols.start] |= self.block(part_rows, part).any(axis=0)
        cuts = (np.flatnonzero(np.diff(seen, prepend=False, append=False)) + cols.start).tolist()
        return tuple(range(start, stop) for start, stop in zip(cuts[::2], cuts[1::2], strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return the mask as plain JSON values; `mask_from_dict` reads it back."""
        values: dict[str, Any] = {"kind": type(self).__name__}
        for field in fields(self):  # type: ignore[arg-type]  # each mask is a dataclass
            value = getattr(self, field.name)
            values[field.name] = value.to_dict() if isinstance(value, Mask) else value
        return values

    def __and__(self, other: Any) -> "And":
        from cqs.masks.algebra import And

        return And(self, other)

    def __rand__(self, other: Any) -> "And":
        from cqs.masks.algebra import And

        return And(other, self)

    def __or__(self, other: Any) -> "Or":
        from cqs.masks.algebra import Or

        return Or(self, other)

    def __ror__(self, other: Any) -> "Or":
        from cqs.masks.algebra import Or

        return Or(other, self)

    def __invert__(self) -> "Not":
        from cqs.masks.algebra import Not

        return Not(self)

    def __bool__(self) -> NoReturn:
        rule = "not be taken for true or false, as `and`, `or`, `not` and `if` do"
        raise OptionError.of("mask", rule, str(self), "combine masks by &, | and ~")


def merged(parts: list[range]) -> tuple[range, ...]:
    """Return the union of ranges as few ranges, in increasing order and apart."""
    union: list[range] = []
    for part in sorted(parts, key=lambda part: part.start):
        if not part:
            continue
        if union and part.start <= union[-1].stop:
            union[-1] = range(union[-1].start, max(union[-1].stop, part.stop))
        else:
            union.append(part)
    return tuple(union)


def _blocks(rows: range, cols: range) -> Iterator[tuple[range, range]]:
    """Yield the parts of a rectangle that are evaluated one after the other: a small one, and then larger ones."""
    size = _AT_FIRST
    for left in range(cols.start, cols.stop, _AREA):
        part, top = range(left, min(left + _AREA, cols.stop)), rows.start
        while top < rows.stop:
            bottom = min(top + max(size // len(part), 1), rows.stop)
            yield range(top, bottom), part
            top, size = bottom, min(2 * size, _AREA)


def _summed_up_to(numbers: Integers, most: Integers) -> Integers:
    """Return for each of `most` the sum of all numbers, those counted as it that are larger."""
    numbers = np.sort(numbers)
    n_smaller, sums = np.searchsorted(numbers, most), np.concatenate([[0], np.cumsum(numbers)])
    total: Integers = sums[n_smaller] + most * (len(numbers) - n_smaller)
    return total


def _common(coverages: Iterable[Coverage]) -> Coverage:
    """Return what all of them are, or PARTIAL; EMPTY if there are none."""
    first = None
    for coverage in coverages:
        first = coverage if first is None else first
        if coverage is Coverage.PARTIAL or coverage is not first:
            return Coverage.PARTIAL
    return first or Coverage.EMPTY
