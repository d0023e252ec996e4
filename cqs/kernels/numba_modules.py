"""Loading what Numba compiles: not before a call needs it, and not at all where Numba is missing or broken."""

import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

__all__ = ["compiled", "missing"]

_INSTALL = "pip install 'cqs-attention[numba]'"


def missing() -> str | None:
    """Return what is lacking to run compiled loops, with the remedy; None if there is all. Loads nothing."""
    if find_spec("numba") is None:
        return f"numba is not installed: {_INSTALL}"
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "Numba's compiler is off (NUMBA_DISABLE_JIT)"
    return None


@cache
def compiled(name: str) -> ModuleType | None:
    """Return a file of `cqs.kernels.compiled`; None, with a warning, where Numba is broken."""
    try:
        return _uninterrupted(partial(import_module, f"cqs.kernels.compiled.{name}"))
    except Exception as error:  # such as a version that does not know this NumPy, or no place to keep what is compiled
        _warn(str(error))
        return None


def _uninterrupted(load: Callable[[], ModuleType]) -> ModuleType:
    """Load in a thread that Ctrl-C does not reach.

    It would leave LLVM's lock taken if it came just when that is taken, and other threads would wait for ever. Instead
    whoever presses it waits until all is loaded, or presses it again.
    """
    if threading.current_thread() is not threading.main_thread():
        return load()
    with ThreadPoolExecutor(1, thread_name_prefix="cqs-load") as pool:
        try:
            loading = pool.submit(load)
        except RuntimeError:  # the interpreter is about to end, and starts no more threads
            return load()
        return loading.result()


@cache  # once, for all files
def _warn(error: str) -> None:
    what = f"Numba cannot be used ({error}), so another kernel computes: {_INSTALL} -U, or give another `kernel`"
    warnings.warn(what, RuntimeWarning, stacklevel=3)
