"""What the threads of the compiled kernel go through together, round by round: items, and what these see."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from cqs.backend import raise_if_stopped
from cqs.kernels.numba_tables import Tables
from cqs.masks.mask import Integers
from cqs.schedule import MOST_ITEMS

__all__ = ["Alone", "Round", "Rounds", "rounds_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """Items that one table says all about: any number of threads take them one by one.

    Parameters
    ----------
    items : int64, `(n, 5)`
        Heads that are computed together, as of `heads_together`, and which of the table's blocks.
    table : Tables
        What the blocks see.
    turn : int64, `(1,)`
        The item that is taken next, or n and more when all are taken.
    """

    items: Integers
    table: Tables
    turn: Integers = field(default_factory=lambda: np.zeros(1, np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Alone:
    """A block that sees too much for one table, of heads that are computed together: `(1, 4)`. One thread takes it."""

    heads: Integers
    rows: range


class Rounds:
    """Rounds that threads ask for one after the other. A thread that has to make the next one lets others wait."""

    def __init__(self, rounds: Iterator[Round | Alone]) -> None:
        self._rounds = rounds
        self._lock = threading.Lock()
        self._now: Round | None = None
        self.is_closed = False

    def after(self, last: Round | Alone | None) -> Round | Alone | None:
        """Return what a thread is to do after what it did last, of which nothing is left; None if that was all."""
        with self._lock:
            if self._now is not None and self._now is not last:
                return self._now
            self._now = None
            raise_if_stopped()
            found = next(self._rounds, None)
            if isinstance(found, Round):
                self._now = found
            return found

    def close(self) -> None:
        """Have all threads end soon, with the item that each has begun, or the table of one that has several."""
        with self._lock:
            self._rounds, self.is_closed = iter(()), True
            if self._now is not None:
                self._now.turn[0] = len(self._now.items)
            self._now = None


def rounds_of(heads: Integers, table: Tables) -> Iterator[Round]:
    """Cut the items of a table into rounds: each block of all heads that are computed together, `(n, 4)`."""
    n_blocks = len(table.blocks)
    most = max(MOST_ITEMS // n_blocks, 1)
    for first in range(0, len(heads), most):
        own = heads[first : first + most]
        items = np.empty((len(own), n_blocks, 5), np.int64)
        items[:, :, :4], items[:, :, 4] = own[:, None], np.arange(n_blocks)
        yield Round(items.reshape(-1, 5), table)
