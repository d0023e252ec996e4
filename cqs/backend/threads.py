"""Threads that share a list of independent pieces of work."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

__all__ = ["available_cpus", "share"]

Item = TypeVar("Item")


def available_cpus() -> int:
    """Return how many CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(items: Sequence[Item], loop: Callable[[Iterator[Item]], None], threads: int) -> None:
    """Run `loop` over the items on several threads at once; each item goes to exactly one of them.

    `loop` is called once on each thread, so that what it prepares before its first item is prepared once a thread, and
    takes its next item when it is ready for one. The first exception ends the sharing and is raised.
    """
    n_loops = min(threads, len(items))
    if n_loops <= 1:
        loop(iter(items))
        return
    queue = _Queue(items)
    running = [_pool(threads).submit(loop, queue) for _ in range(n_loops)]
    try:
        for future in running:
            future.result()
    except BaseException:
        queue.close()
        raise


class _Queue(Iterator[Item]):
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


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix=f"cqs-{threads}")


if hasattr(os, "register_at_fork"):  # a forked child has no threads: it must make its own
    os.register_at_fork(after_in_child=_pool.cache_clear)
