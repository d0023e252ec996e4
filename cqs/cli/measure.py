"""What this machine does in a second, found out in about a second: attention, and reading from a file."""

import os
import tempfile
from time import perf_counter

import numpy as np

from cqs.backend import compute_threads
from cqs.kernels import KERNELS, KeyChunk
from cqs.schedule import Rates

__all__ = ["measured_rates"]

_SECONDS = 0.4
_TOKENS, _WIDTH = 1024, 64
_PART, _MOST = 4 << 20, 64 << 20  # bytes that are read at a time, and in all


def measured_rates(threads: int, path: str | None = None, kernel: str = "numpy") -> Rates:
    """Compute attention in float32 for some heads of 1024 tokens on so many threads, and read up to 64 MiB of a file.

    Parameters
    ----------
    threads : int
        How many compute.
    path : str, optional
        What is read; by default a file that is written for it, which the system then has in its cache. What was read
        lately is there, too: then the rate is that of memory, and not of the disk.
    kernel : str
        What computes: one that takes NumPy arrays.
    """
    is_file = path is not None and os.path.isfile(path)
    return Rates(_flops(threads, kernel), _reading(str(path)) if is_file else _reading_new())


def _flops(threads: int, kernel: str) -> float:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2 * threads, _TOKENS, _WIDTH), dtype=np.float32)
    chunks, attend = [KeyChunk(k, v)], KERNELS[kernel].attend
    with compute_threads():
        attend(q, chunks, scale=_WIDTH**-0.5, threads=threads)  # what is compiled and allocated the first time
        n, started = 0, perf_counter()
        while perf_counter() < started + _SECONDS:
            attend(q, chunks, scale=_WIDTH**-0.5, threads=threads)
            n += 1
        return n * 4 * len(q) * _TOKENS**2 * _WIDTH / (perf_counter() - started)


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
