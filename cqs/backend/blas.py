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


class _Entries:
    """How often one thread has entered and not left, and what limits the libraries of its own meanwhile."""

    def __init__(self) -> None:
        self.depth = 0
        self.own: AbstractContextManager[object] = nullcontext()


class _Here(threading.local):
    def __init__(self) -> None:
        self.entries = _Entries()


_here = _Here()


class single_threaded_blas:  # noqa: N801  # used as a function would be
    """Limit every BLAS of the process to one thread while any thread is inside; then restore it.

    Most libraries keep one limit for the process, so threads are counted. A thread that is inside already may enter
    again, which costs a microsecond and not 20, and another thread may leave in its place. A process that is forked
    meanwhile is not inside.
    """

    def __enter__(self) -> None:
        global _users, _limiter
        entries = self._entries = _here.entries  # which whoever leaves has to know
        with _lock:
            if entries.depth == 0:
                entries.own = limited_in_this_thread()
                try:
                    _limiter = _limiter if _users > 0 else _change(lambda: _controller().limit(limits=1))
                except BaseException:
                    entries.own.__exit__(None, None, None)
                    raise
                _users += 1
            entries.depth += 1

    def __exit__(self, *error: object) -> None:
        global _users
        entries = self._entries
        with _lock:
            if entries.depth > 1 or entries.depth == 0:  # 0 if it was entered before a fork
                entries.depth = max(entries.depth - 1, 0)
                return
            entries.depth = 0
            _users -= 1
            try:
                entries.own.__exit__(None, None, None)
            finally:
                if _users == 0:
                    _change(_limiter.restore_original_limits)


def _after_fork() -> None:
    """Start afresh in a child: whoever was inside is not there any more, or is not inside."""
    global _lock, _users, _limiter
    entries, _here.entries = _here.entries, _Entries()
    if entries.depth > 0:
        entries.depth = 0
        entries.own.__exit__(None, None, None)
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
