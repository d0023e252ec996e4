"""Threads that share a list of independent pieces of work, and the buffers that they work in."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from cqs.backend.blas import limited_in_this_thread, single_threaded_blas

__all__ = ["Stopped", "Threads", "Workspace", "compute_threads", "raise_if_stopped", "stopped_by"]

Item = TypeVar("Item")


class Stopped(BaseException):
    """Work was called off; raised where it was going on, for nobody to handle."""


_own = threading.local()  # what stops the work of each thread


@contextmanager
def stopped_by(event: threading.Event) -> Iterator[None]:
    """Have all that this thread shares out while inside end soon after the event is set."""
    before = getattr(_own, "stop", None)
    _own.stop = event
    try:
        yield
    finally:
        _own.stop = before


def raise_if_stopped() -> None:
    """Raise `Stopped` if what this thread works on was called off; to be called where much is left to do."""
    queue: _Queue[Any] | None = getattr(_own, "queue", None)
    if queue is not None and queue.is_off:
        raise Stopped


class Workspace:
    """Named buffers for one thread: each is allocated when first asked for, and again only to grow."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], npt.NDArray[Any]] = {}

    def buffer(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], most: int = 0) -> npt.NDArray[Any]:
        """Return the buffer `name` in a shape, holding whatever it held before; `most` elements will be asked for."""
        size, key = prod(shape), (name, dtype.str)
        if key not in self._buffers or self._buffers[key].size < size:
            self._buffers.pop(key, None)  # before the larger one is allocated
            self._buffers[key] = np.empty(max(size, most), dtype)
        return self._buffers[key][:size].reshape(shape)

    def clear(self) -> None:
        """Let go of all buffers, to make room for others."""
        self._buffers.clear()


class Threads:
    """Pools of threads, started when first needed, and workspaces that pass from one piece of work to the next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self._spare: list[Workspace] = []
        self.n_users = 0

    def share(self, items: Sequence[Item], work: Callable[[Item, Workspace], None], n_threads: int) -> None:
        """Call `work` on every item, on up to `n_threads` threads at once, each with a workspace of its own.

        The first exception ends the sharing and is raised. This thread is one of them: where others are all taken, as
        by work that itself shares some out, it does everything. It waits only for threads that have begun, so that
        nobody waits for somebody who waits for him.
        """
        queue = _Queue(items)
        n_others = min(n_threads, len(items)) - 1
        pool = self._pool(n_threads) if n_others > 0 else None
        others = [pool.submit(self._loop, queue, work) for _ in range(n_others)] if pool is not None else []
        try:
            self._loop(queue, work)
            for other in others:
                if not other.cancel():
                    other.result()
        except BaseException:  # interrupted, perhaps
            queue.call_off()
            raise

    def shutdown(self) -> None:
        """End the threads."""
        for pool in self._pools.values():
            pool.shutdown()

    def _pool(self, n_threads: int) -> ThreadPoolExecutor:
        with self._lock:
            if n_threads not in self._pools:
                self._pools[n_threads] = ThreadPoolExecutor(n_threads, thread_name_prefix="cqs-compute")
            return self._pools[n_threads]

    def _loop(self, queue: "_Queue[Item]", work: Callable[[Item, Workspace], None]) -> None:
        try:
            space = self._spare.pop()
        except IndexError:
            space = Workspace()
        before, _own.queue = getattr(_own, "queue", None), queue
        try:
            with limited_in_this_thread():
                for item in queue:
                    work(item, space)
        except BaseException:
            queue.close()
            raise
        finally:
            _own.queue = before
            self._spare.append(space)


class _Queue(Iterator[Item], Generic[Item]):
    """An iterator that several threads may draw from."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()
        self._stop: threading.Event | None = getattr(_own, "stop", None)
        self._outer: _Queue[Any] | None = getattr(_own, "queue", None)  # of which this is part of an item
        self._is_off = False

    @property
    def is_off(self) -> bool:
        """Whether what is going on is to end soon, and not only nothing more to begin."""
        is_stopped = self._stop is not None and self._stop.is_set()
        return self._is_off or is_stopped or (self._outer is not None and self._outer.is_off)

    def __next__(self) -> Item:
        if self.is_off:
            raise Stopped
        with self._lock:
            return next(self._items)

    def close(self) -> None:
        with self._lock:
            self._items = iter(())

    def call_off(self) -> None:
        """Have those who draw from it end at the next chance."""
        self._is_off = True


_lock = threading.Lock()
_active: Threads | None = None


@contextmanager
def compute_threads() -> Iterator[Threads]:
    """Give threads to compute on, with BLAS limited to one thread each.

    Everybody who asks meanwhile gets the same ones, so that an engine that holds them around a run saves its kernels
    starting threads and allocating buffers. The last to leave ends the threads and frees the buffers.
    """
    global _active
    with _lock:
        threads = _active = _active or Threads()
        threads.n_users += 1
    try:
        with single_threaded_blas():
            yield threads
    finally:
        with _lock:
            threads.n_users -= 1
            is_last = threads.n_users == 0
            if is_last:
                _active = None
        if is_last:
            threads.shutdown()


def _forget() -> None:
    global _lock, _active
    _lock, _active = threading.Lock(), None


if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads
    os.register_at_fork(after_in_child=_forget)
