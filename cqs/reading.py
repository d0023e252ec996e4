"""How a worker comes by what it reads: at once when it asks, or ahead of it in a thread, within a limit of bytes."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Protocol

from cqs.events import BytesRead, Emit
from cqs.kernels import KeyChunk
from cqs.problem import bytes_of
from cqs.schedule import Read
from cqs.sources import Source
from cqs.types import Array

__all__ = ["Direct", "Feed", "ReadAhead"]

Groups = Array | KeyChunk


class Feed(Protocol):
    """Gives a worker the groups of its task, in the order of `cqs.schedule.reads`."""

    def take(self, read: Read, task: int) -> Groups:
        """Return queries, or a `KeyChunk`."""

    def release(self, groups: Iterable[Groups]) -> None:
        """Be told that groups are not used any more."""

    def skip(self, task: int) -> None:
        """Be told that nothing more will be taken for a task."""


def n_bytes_of(groups: Groups) -> int:
    """Return the bytes of queries, or of keys and values."""
    arrays = groups if isinstance(groups, KeyChunk) else (groups,)
    return sum(map(bytes_of, arrays))


class Direct:
    """Reads when asked.

    Parameters
    ----------
    source : Source
        What is read from.
    emit : function, optional
        Told of each read.
    """

    def __init__(self, source: Source, emit: Emit = None) -> None:
        self._source = source
        self._emit = emit

    def take(self, read: Read, task: int) -> Groups:
        """Read a group."""
        start = perf_counter()
        ask = self._source.queries if read.what == "queries" else self._source.keys
        groups: Groups = ask(read.group) if read.heads is None else ask(read.group, read.heads)
        if self._emit is not None:
            self._emit(BytesRead(task=task, start=start, what=read.what, n_bytes=n_bytes_of(groups)))
        return groups

    def release(self, groups: Iterable[Groups]) -> None:
        """Do nothing: groups are let go when nobody holds them."""

    def skip(self, task: int) -> None:
        """Do nothing: nothing is read that nobody asks for."""


class ReadAhead:
    """Reads in a thread, in the order in which it will be asked.

    Parameters
    ----------
    source : Source
        What is read from.
    order : iterator of (int, Read, int)
        Task, what is read for it, and its bytes, in the order of `take`.
    limit : int
        Bytes that may be read and not released. Only a read that somebody waits for may exceed it.
    emit : function, optional
        Told of each read.
    """

    def __init__(self, source: Source, order: Iterator[tuple[int, Read, int]], limit: int, emit: Emit = None) -> None:
        self._direct = Direct(source, emit)
        self._order = order
        self._limit = limit
        self._changed = threading.Condition()
        self._ready: deque[tuple[int, Read, Groups | BaseException]] = deque()
        self._held = 0
        self._is_waited_for = False
        self._is_closed = False
        self._skipped: set[int] = set()
        self._failure: BaseException | None = None

    @contextmanager
    def running(self) -> Iterator["ReadAhead"]:
        """Read while inside."""
        thread = threading.Thread(target=self._run, name="cqs-read", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()
            thread.join()
            self._ready.clear()

    def take(self, read: Read, task: int) -> Groups:
        """Return what was read, as soon as it is there, or raise the error that reading it ended with."""
        with self._changed:
            self._is_waited_for = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ready or self._failure is not None)
            self._is_waited_for = False
            if not self._ready:
                assert self._failure is not None
                raise self._failure
            owner, what, groups = self._ready.popleft()
        assert (owner, what) == (task, read), "a worker reads in the order of its plan"
        if isinstance(groups, BaseException):
            raise groups
        return groups

    def release(self, groups: Iterable[Groups]) -> None:
        """Make room for more."""
        with self._changed:
            self._held -= sum(map(n_bytes_of, groups))
            self._changed.notify_all()

    def skip(self, task: int) -> None:
        """Let go of what was read for a task, and read no more for it."""
        with self._changed:
            self._skipped.add(task)
            dropped = [x for owner, _, x in self._ready if owner == task and not isinstance(x, BaseException)]
            self._ready = deque(entry for entry in self._ready if entry[0] != task)
            self._held -= sum(map(n_bytes_of, dropped))
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            for task, read, size in self._order:
                if self._may_read(task, size):
                    self._read(task, read, size)
                elif self._is_closed:
                    return
        except BaseException as error:  # of the plan itself; whoever waits is told
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _may_read(self, task: int, size: int) -> bool:
        """Wait until so many bytes may be read, and count them; return False if they are not wanted any more."""

        def is_decided() -> bool:
            is_needed = self._is_waited_for and not self._ready
            return self._is_closed or task in self._skipped or is_needed or self._held + size <= self._limit

        with self._changed:
            self._changed.wait_for(is_decided)
            if self._is_closed or task in self._skipped:
                return False
            self._held += size
            return True

    def _read(self, task: int, read: Read, size: int) -> None:
        """Read a group, and hold it or the error ready."""
        try:
            groups: Groups | BaseException = self._direct.take(read, task)
        except BaseException as error:
            groups = error
        with self._changed:
            if task in self._skipped or isinstance(groups, BaseException):
                self._held -= size
            if task not in self._skipped:
                self._ready.append((task, read, groups))
            self._changed.notify_all()
