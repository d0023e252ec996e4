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

__all__ = ["Threads", "Workspace", "compute_threads"]

Item = TypeVar("Item")


class Workspace:
    """Named buffers for one thread: each is allocated when first asked for, and again only to grow."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], npt.NDArray[Any]] = {}

    def buffer(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return the buffer `name` in a shape, holding whatever it held before."""
        size, key = prod(shape), (name, dtype.str)
        flat = self._buffers.get(key)
        if flat is None or flat.size < size:
            self._buffers[key] = flat = np.empty(size, dtype)
        return flat[:size].reshape(shape)


class Threads:
    """A pool of threads, started when first needed, and workspaces that pass from one piece of work to the next."""

    def __init__(self, n_threads: int) -> None:
        self._n_threads = n_threads
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="cqs-compute")
        self._spare: list[Workspace] = []
        self.n_users = 0

    def share(self, items: Sequence[Item], work: Callable[[Item, Workspace], None], at_most: int) -> None:
        """Call `work` on every item, on up to `at_most` threads at once, each with a workspace of its own.

        The first exception ends the sharing and is raised.
        """
        queue = _Queue(items)
        n_loops = min(self._n_threads, at_most, len(items))
        if n_loops <= 1:
            self._loop(queue, work)
            return
        running = [self._pool.submit(self._loop, queue, work) for _ in range(n_loops)]
        try:
            for future in running:
                future.result()
        finally:  # interrupted, perhaps
            queue.close()

    def shutdown(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _loop(self, queue: "_Queue[Item]", work: Callable[[Item, Workspace], None]) -> None:
        try:
            space = self._spare.pop()
        except IndexError:
            space = Workspace()
        try:
            with limited_in_this_thread():
                for item in queue:
                    work(item, space)
        except BaseException:
            queue.close()
            raise
        finally:
            self._spare.append(space)


class _Queue(Iterator[Item], Generic[Item]):
    """An iterator that several threads may draw from."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()

    def __next__(self) -> Item:
        with self._lock:
            return next(self._items)

    def close(self) -> None:
        with self._lock:
            self._items = iter(())


_lock = threading.Lock()
_active: dict[int, Threads] = {}


@contextmanager
def compute_threads(n_threads: int) -> Iterator[Threads]:
    """Give threads to compute on, with BLAS limited to one thread each.

    Everybody who asks for the same number meanwhile gets the same threads, so that an engine that holds them around a
    run saves its kernels starting threads and allocating buffers. The last to leave ends them and frees the buffers.
    """
    with _lock:
        threads = _active.get(n_threads) or _active.setdefault(n_threads, Threads(n_threads))
        threads.n_users += 1
    try:
        with single_threaded_blas():
            yield threads
    finally:
        with _lock:
            threads.n_users -= 1
            is_last = threads.n_users == 0
            if is_last:
                del _active[n_threads]
        if is_last:
            threads.shutdown()


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    _active.clear()


if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads
    os.register_at_fork(after_in_child=_forget)
