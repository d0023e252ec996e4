"""Results in the order of their tasks, whichever thread they come from."""

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence

from cqs.worker import TaskResult

__all__ = ["Accept", "Turns"]

# Takes one result; a `Tiler.add`, say
Accept = Callable[[TaskResult], object]


class Turns:
    """Passes results on in the order of their tasks, and holds up a thread that is too far ahead of the others.

    Parameters
    ----------
    accept : function
        Takes one result.
    tasks : sequence of int
        The tasks whose results will come, in increasing order.
    most_ahead : int
        How many results may wait, counted from the one whose turn it is.
    """

    def __init__(self, accept: Accept, tasks: Sequence[int], most_ahead: int) -> None:
        self._accept = accept
        self._tasks = tasks
        self._most_ahead = most_ahead
        self._waiting: dict[int, TaskResult] = {}
        self._next = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def add(self, result: TaskResult) -> None:
        """Take a result, and pass on all whose turn it is; drop it if nothing is passed on any more."""
        i = bisect_left(self._tasks, result.task.index)
        with self._changed:
            if self._is_closed:
                return
            self._waiting[i] = result
            while self._next in self._waiting:
                self._accept(self._waiting.pop(self._next))
                self._next += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_closed or i < self._next + self._most_ahead)

    def close(self) -> None:
        """Let every thread go on: nothing is passed on any more."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()
