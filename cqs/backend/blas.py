"""The BLAS libraries in this process, and how to make them work on one thread.

The NumPy kernel runs one block of scores on each of its own threads, so BLAS must not start threads of its own: two
levels of threads would fight over the same cores, and the split would no longer be the plan's.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = ["BlasLibrary", "blas_libraries", "single_threaded_blas"]

_lock = threading.Lock()
_users = 0
_limiter: Any = None


@cache
def _controller() -> Any:
    return ThreadpoolController().select(user_api="blas")


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit every BLAS of the process to one thread while any thread is inside; then restore it.

    The limit belongs to the process, not to the thread, so entries are counted. Costs about 10 us.
    """
    global _users, _limiter
    with _lock:
        if _users == 0:
            _limiter = _controller().limit(limits=1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _limiter.restore_original_limits()


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
