"""What this machine does in a second, found out in about a second: matrix products, and reading from a file."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np

from cqs.backend import single_threaded_blas
from cqs.schedule import Rates

__all__ = ["measured_rates"]

_SECONDS = 0.4
_ROWS, _COLUMNS, _WIDTH = 512, 1024, 64  # of a kernel's block of scores
_PART, _MOST = 4 << 20, 64 << 20  # bytes that are read at a time, and in all


def measured_rates(threads: int, path: str | None = None) -> Rates:
    """Multiply float32 matrices of the size of a kernel's blocks on so many threads, and read up to 64 MiB of a file.

    Parameters
    ----------
    threads : int
        How many compute.
    path : str, optional
        What is read; by default a file that is written for it, which the system then has in its cache. What was read
        lately is there, too: then the rate is that of memory, and not of the disk.
    """
    return Rates(_flops(threads), _reading(path) if path is not None and os.path.isfile(path) else _reading_new())


def _flops(threads: int) -> float:
    q, k = np.ones((_ROWS, _WIDTH), np.float32), np.ones((_WIDTH, _COLUMNS), np.float32)

    def multiply(stop: float) -> int:
        scores, n = np.empty((_ROWS, _COLUMNS), np.float32), 0
        while perf_counter() < stop:
            np.matmul(q, k, out=scores)
            n += 1
        return n

    with single_threaded_blas(), ThreadPoolExecutor(threads) as pool:
        list(pool.map(multiply, [perf_counter() + 0.05] * threads))  # BLAS allocates, and the CPU wakes up
        started = perf_counter()
        n = sum(pool.map(multiply, [started + _SECONDS] * threads))
        return n * 2 * _ROWS * _COLUMNS * _WIDTH / (perf_counter() - started)


def _reading(path: str) -> float:
    buffer = bytearray(_PART)
    with open(path, "rb", buffering=0) as file:
        n_bytes, started = 0, perf_counter()
        while n_bytes < _MOST and (n := file.readinto(buffer)):
            n_bytes += n
        return max(n_bytes, 1) / max(perf_counter() - started, 1e-9)


def _reading_new() -> float:
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(_MOST // _PART):
            file.write(bytes(_PART))
        file.flush()
        return _reading(file.name)
