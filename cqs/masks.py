"""What a query may see. A mask answers for whole rectangles, so that no T x S array is ever built."""

import operator
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from cqs.errors import OptionError
from cqs.types import Array

__all__ = ["Causal", "Coverage", "Mask", "NoMask", "mask_from_dict"]


class Coverage(Enum):
    """How much of a rectangle of the score matrix a mask lets through."""

    EMPTY = "empty"
    PARTIAL = "partial"
    FULL = "full"


class Mask(ABC):
    """A rule that says which keys each query sees; positions are token numbers, counted from 0.

    The methods agree with each other: `visible` is the definition, `classify` may say PARTIAL for anything but must be
    right when it says EMPTY or FULL, `reach` may be too long, and `count` is the exact number of True in `visible`.
    Where `hides_nothing` is True, so is `visible` everywhere.
    """

    @property
    def hides_nothing(self) -> bool:
        """Whether every query sees every key, however many there are of either."""
        return False

    @abstractmethod
    def classify(self, rows: range, cols: range) -> Coverage:
        """Return how much of queries `rows` against keys `cols` is visible, in O(1)."""

    @abstractmethod
    def reach(self, rows: range, cols: range) -> range:
        """Return a part of `cols` outside of which no query of `rows` sees a key, in O(1)."""

    @abstractmethod
    def visible(self, q_idx: Array, k_idx: Array) -> Array:
        """Return the boolean array, True where the query sees the key; the indices broadcast."""

    @abstractmethod
    def count(self, rows: range, cols: range) -> int:
        """Return the number of visible (query, key) pairs in the rectangle, exactly."""

    def to_dict(self) -> dict[str, Any]:
        """Return the mask as plain JSON values; `mask_from_dict` reads it back."""
        return {"kind": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class NoMask(Mask):
    """Every query sees every key."""

    @property
    def hides_nothing(self) -> bool:
        """True."""
        return True

    def classify(self, rows: range, cols: range) -> Coverage:
        """Return FULL, or EMPTY for a rectangle without area."""
        return Coverage.FULL if rows and cols else Coverage.EMPTY

    def reach(self, rows: range, cols: range) -> range:
        """Return `cols`."""
        return cols

    def visible(self, q_idx: Array, k_idx: Array) -> Array:
        """Return True everywhere."""
        return (q_idx == q_idx) & (k_idx == k_idx)

    def count(self, rows: range, cols: range) -> int:
        """Return the area of the rectangle."""
        return len(rows) * len(cols)


@dataclass(frozen=True, slots=True)
class Causal(Mask):
    """Query i sees the keys j <= i + offset.

    Parameters
    ----------
    offset : int
        0 aligns the top-left corners, as `is_causal=True` does here and in PyTorch. `S - T` aligns the
        bottom-right corners: the queries are the last T of S tokens, as in decoding with a cache. A query with no
        visible key (possible when `offset < 0`) has output 0 and log-sum-exp -inf.
    """

    offset: int = 0

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "offset", operator.index(self.offset))
        except TypeError:
            remedy = "0 aligns the top left, S - T the bottom right"
            raise OptionError.of("offset", "be a whole number", repr(self.offset), remedy) from None

    def classify(self, rows: range, cols: range) -> Coverage:
        """Compare the corners of the rectangle with the diagonal."""
        if not rows or not cols or cols.start > rows.stop - 1 + self.offset:
            return Coverage.EMPTY
        if cols.stop - 1 <= rows.start + self.offset:
            return Coverage.FULL
        return Coverage.PARTIAL

    def reach(self, rows: range, cols: range) -> range:
        """End with what the last query sees."""
        return range(cols.start, max(min(cols.stop, rows.stop + self.offset), cols.start))

    def visible(self, q_idx: Array, k_idx: Array) -> Array:
        """Return k <= q + offset."""
        return k_idx <= q_idx + self.offset

    def count(self, rows: range, cols: range) -> int:
        """Sum, over the queries, how many keys of `cols` lie on or before the diagonal; in closed form."""
        # query i sees min(max(i + offset + 1 - cols.start, 0), len(cols)) keys: zero, then a ramp, then all
        shift = self.offset + 1 - cols.start
        ramp_start = min(max(-shift, rows.start), rows.stop)
        ramp_stop = min(max(len(cols) - shift, ramp_start), rows.stop)
        n_ramp = ramp_stop - ramp_start
        ramp = n_ramp * (ramp_start + shift) + n_ramp * (n_ramp - 1) // 2
        return ramp + (rows.stop - ramp_stop) * len(cols)


_KINDS: dict[str, type[Mask]] = {"NoMask": NoMask, "Causal": Causal}


def mask_from_dict(values: dict[str, Any]) -> Mask:
    """Read what `Mask.to_dict` wrote."""
    fields = dict(values)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise OptionError.of("mask", f"be one of {', '.join(_KINDS)}", repr(kind), "was it written by a newer cqs?")
    return _KINDS[kind](**fields)
