"""Masks whose edges run along diagonals or columns: everything, causal, windows, prefixes, sinks. All in O(1)."""

import operator
from dataclasses import dataclass

import numpy as np

from cqs.checks import whole_number
from cqs.errors import OptionError
from cqs.masks.entries import Aligned, Entries, entries
from cqs.masks.mask import Booleans, Coverage, Integers, Mask, merged

__all__ = ["Causal", "NoMask", "PrefixLM", "Sinks", "SlidingWindow"]

_FARTHEST = 2**60  # what is larger counts as this: farther than any token, and sums of a few fit 64 bits


@dataclass(frozen=True, slots=True)
class NoMask(Mask):
    """Every query sees every key."""

    @property
    def hides_nothing(self) -> bool:
        """True."""
        return True

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Return True everywhere."""
        return np.ones(np.broadcast_shapes(q_idx.shape, k_idx.shape), dtype=bool)

    def edges(self, queries: Integers) -> Integers:
        """Return none."""
        return queries[:, None][:, :0]

    def classify(self, rows: range, cols: range) -> Coverage:
        """Return FULL, or EMPTY for a rectangle without area."""
        return Coverage.FULL if rows and cols else Coverage.EMPTY

    def reach(self, rows: range, cols: range) -> tuple[range, ...]:
        """Return `cols`."""
        return (cols,) if rows and cols else ()

    def count(self, rows: range, cols: range) -> int:
        """Return the area of the rectangle."""
        return len(rows) * len(cols)


@dataclass(frozen=True, slots=True)
class Causal(Aligned):
    """Query i sees the keys j <= i + offset.

    Parameters
    ----------
    offset : int, or nested sequence or array of int
        0 aligns the top-left corners, as `is_causal=True` does here and in PyTorch. `S - T` aligns the
        bottom-right corners: the queries are the last T of S tokens, as in decoding with a cache. A query with no
        visible key (possible when `offset < 0`) has output 0 and log-sum-exp -inf. Where batch entries differ, as in
        decoding with pasts of several lengths, offsets have a shape that broadcasts to the batch dimensions `*B`.

    Examples
    --------
    >>> Causal([3, 5]).at((1, 0))
    Causal(offset=5)
    """

    offset: Entries = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "offset", entries("offset", self.offset, _whole))

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Return k <= q + offset."""
        return k_idx <= q_idx + self.own

    def edges(self, queries: Integers) -> Integers:
        """Return the first key beyond the diagonal."""
        return queries[:, None] + (self.own + 1)

    def classify(self, rows: range, cols: range) -> Coverage:
        """Compare the corners of the rectangle with the diagonal."""
        if not isinstance(self.offset, int):
            return Mask.classify(self, rows, cols)
        if not rows or not cols or cols.start > rows.stop - 1 + self.offset:
            return Coverage.EMPTY
        if cols.stop - 1 <= rows.start + self.offset:
            return Coverage.FULL
        return Coverage.PARTIAL

    def reach(self, rows: range, cols: range) -> tuple[range, ...]:
        """End with what the last query sees."""
        if not isinstance(self.offset, int):
            return Mask.reach(self, rows, cols)
        part = range(cols.start, min(cols.stop, rows.stop + self.offset))
        return (part,) if rows and part else ()

    def count(self, rows: range, cols: range) -> int:
        """Sum, over the queries, how many keys of `cols` lie on or before the diagonal; in closed form."""
        if not isinstance(self.offset, int):
            return Mask.count(self, rows, cols)
        # query i sees min(max(i + offset + 1 - cols.start, 0), len(cols)) keys: zero, then a ramp, then all
        shift = self.offset + 1 - cols.start
        ramp_start = min(max(-shift, rows.start), rows.stop)
        ramp_stop = min(max(len(cols) - shift, ramp_start), rows.stop)
        n_ramp = ramp_stop - ramp_start
        ramp = n_ramp * (ramp_start + shift) + n_ramp * (n_ramp - 1) // 2
        return ramp + (rows.stop - ramp_stop) * len(cols)


@dataclass(frozen=True, slots=True)
class SlidingWindow(Aligned):
    """Query i sees the keys i + offset - left <= j <= i + offset + right.

    Parameters
    ----------
    left, right : int
        How many keys are seen on either side of its own, at least 0. `right=0`, the default, is a causal window of
        `left + 1` keys, as `window_size=(left, 0)` of FlashAttention.
    offset : int, or nested sequence or array of int
        As of `Causal`.
    """

    left: int
    right: int = 0
    offset: Entries = 0

    def __post_init__(self) -> None:
        for name in ("left", "right"):
            remedy = "it counts the keys that are seen on that side; leave the window out to see all"
            object.__setattr__(self, name, min(whole_number(name, getattr(self, name), 0, remedy), _FARTHEST))
        object.__setattr__(self, "offset", entries("offset", self.offset, _whole))

    @property
    def _upper(self) -> Causal:
        return Causal(self.own + self.right)

    @property
    def _below(self) -> Causal:
        """What is too far back."""
        return Causal(self.own - self.left - 1)

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Return whether k lies in the window of q."""
        own = q_idx + self.own
        return (k_idx >= own - self.left) & (k_idx <= own + self.right)

    def edges(self, queries: Integers) -> Integers:
        """Return where the window begins, and the first key after it."""
        own: Integers = queries[:, None] + self.own
        return np.concatenate([own - self.left, own + self.right + 1], axis=1)

    def reach(self, rows: range, cols: range) -> tuple[range, ...]:
        """Return from the first query's first key to the last query's last."""
        if not isinstance(self.offset, int):
            return Mask.reach(self, rows, cols)
        start = max(cols.start, rows.start + self.offset - self.left)
        part = range(start, min(cols.stop, rows.stop + self.offset + self.right))
        return (part,) if rows and part else ()

    def count(self, rows: range, cols: range) -> int:
        """Count what is up to the window's end, less what is before its start."""
        if not self.is_shared:
            return Mask.count(self, rows, cols)
        return self._upper.count(rows, cols) - self._below.count(rows, cols)


@dataclass(frozen=True, slots=True)
class Sinks(Mask):
    """Every query sees the first n keys, and no other: attention sinks, to be joined with a window by `|`.

    Parameters
    ----------
    n : int
        At least 0.
    """

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "n", min(whole_number("n", self.n, 0, "it is the number of first keys that all see"), _FARTHEST)
        )

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Return k < n."""
        return np.broadcast_to(k_idx < self.n, np.broadcast_shapes(q_idx.shape, k_idx.shape))

    def edges(self, queries: Integers) -> Integers:
        """Return n."""
        return np.full((len(queries), 1), self.n)

    def reach(self, rows: range, cols: range) -> tuple[range, ...]:
        """Return the part before n."""
        part = range(cols.start, min(cols.stop, self.n))
        return (part,) if rows and part else ()

    def count(self, rows: range, cols: range) -> int:
        """Return the area of the part before n."""
        return len(rows) * len(range(cols.start, min(cols.stop, self.n)))


@dataclass(frozen=True, slots=True)
class PrefixLM(Mask):
    """Query i sees the first n keys, and the keys j <= i: a prompt that sees itself both ways, and what follows it.

    Parameters
    ----------
    n : int
        Length of the prefix, at least 0.
    """

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", min(whole_number("n", self.n, 0, "it is the length of the prefix"), _FARTHEST))

    def visible(self, q_idx: Integers, k_idx: Integers) -> Booleans:
        """Return k < n or k <= q."""
        return (k_idx < self.n) | (k_idx <= q_idx)

    def edges(self, queries: Integers) -> Integers:
        """Return where the prefix and the past end; the later of the two is the edge."""
        return np.maximum(queries + 1, self.n)[:, None]

    def reach(self, rows: range, cols: range) -> tuple[range, ...]:
        """Return what either part reaches."""
        return merged([*Sinks(self.n).reach(rows, cols), *Causal().reach(rows, cols)])

    def count(self, rows: range, cols: range) -> int:
        """Count the prefix, and the past in what is after it."""
        after = range(min(max(cols.start, self.n), cols.stop), cols.stop)
        return Sinks(self.n).count(rows, cols) + Causal().count(rows, after)


def _whole(name: str, value: object) -> int:
    try:
        return max(min(operator.index(value), _FARTHEST), -_FARTHEST)  # type: ignore[arg-type]
    except TypeError:
        remedy = "0 aligns the top left, S - T the bottom right"
        raise OptionError.of(name, "be a whole number", repr(value), remedy) from None
