"""The BLAS libraries in this process, and how to make them work on one thread.

The NumPy kernel runs one block of scores on each of its own threads, so BLAS must not start threads of its own: two
levels of threads would fight over the same cores, and the split would no longer be the plan's.
"""

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

from threadpoolctl import OpenBLASController, ThreadpoolController

__all__ = ["BlasLibrary", "blas_libraries", "limited_in_this_thread", "single_threaded_blas"]

_lock = threading.Lock()
_users = 0
_limiter: Any = None


class _OfThread(threading.local):
    """How often a thread is inside, and what limits its own libraries; kept apart, for another thread may leave."""

    def __init__(self) -> None:
        self.entries: list[AbstractContextManager[object]] = []


_inside = _OfThread()


class single_threaded_blas:  # noqa: N801  # used as a function would be
    """Limit every BLAS of the process to one thread while any thread is inside; then restore it.

    Most libraries keep one limit for the process, so threads are counted. Costs about 20 us, and hardly anything to a
    thread that is inside already.
    """

    def __enter__(self) -> None:
        global _users, _limiter
        self._entries = _inside.entries
        if self._entries:
            self._entries.append(nullcontext())
            return
        with _lock:
            if _users == 0:
                _limiter = _change(lambda: _controller().limit(limits=1))
            _users += 1
        self._entries.append(limited_in_this_thread())
        self._entries[0].__enter__()

    def __exit__(self, *error: object) -> None:
        global _users
        if len(self._entries) > 1:
            self._entries.pop()
            return
        self._entries.pop().__exit__(None, None, None)
        with _lock:
            _users = max(_users - 1, 0)  # which it is in a process that was forked meanwhile
            if _users == 0:
                _change(_limiter.restore_original_limits)


def _after_fork() -> None:
    """Start afresh in a child: whoever was inside is not there any more."""
    global _lock, _users, _limiter
    _inside.entries = []
    if _users > 0 and _limiter is not None:
        _change(_limiter.restore_original_limits)
    _lock, _users, _limiter = threading.Lock(), 0, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def limited_in_this_thread() -> AbstractContextManager[object]:
    """Limit those libraries to one thread whose limit belongs to the thread that sets it: the ones built on OpenMP."""
    of_threads = _openmp_controller()
    return of_threads.limit(limits=1) if of_threads.lib_controllers else nullcontext()


def _change(limits: Callable[[], Any]) -> Any:
    """Change limits of the process, and leave them free for any thread to change again.

    threadpoolctl lets one thread control OpenBLAS until it lets go; the first of our callers to enter and the last to
    leave may be different ones.
    """
    changed = limits()
    let_go = getattr(OpenBLASController, "clear_controlling_thread", None)  # older versions have no such rule
    if let_go is not None:
        let_go()
    return changed


@cache
def _controller() -> Any:
    return ThreadpoolController().select(user_api="blas")


@cache
def _openmp_controller() -> Any:
    names = [lib["filepath"] for lib in _controller().info() if lib.get("threading_layer") == "openmp"]
    return _controller().select(filepath=names)


@dataclass(frozen=True, slots=True)
class BlasLibrary:
    """One BLAS that is loaded: its name, version, the processor its kernels were written for, its threads."""

    name: str
    version: str
    architecture: str
    n_threads: int


def blas_libraries() -> tuple[BlasLibrary, ...]:
    """Return the BLAS libraries that are loaded into this process."""
    found = ThreadpoolController().select(user_api="blas").info()
    return tuple(
        BlasLibrary(lib["internal_api"], str(lib["version"]), str(lib.get("architecture", "")), lib["num_threads"])
        for lib in found
    )
