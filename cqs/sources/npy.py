"""`.npy` files as inputs: read slice by slice into memory, never mapped.

A memory map would count as this process's memory for as long as the system likes, and a disk error or a file that is
cut off under it would kill the process.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.backend import dtype_of
from cqs.errors import SourceError
from cqs.sources.files import Stamp
from cqs.units import format_bytes

__all__ = ["NpyInput", "matrices"]

Lead = tuple[int | slice, ...] | None


class NpyInput:
    """A `.npy` file in C order. Each slice is read when asked for, from any thread.

    Parameters
    ----------
    path : str or Path
        The file, of format 1, 2 or 3.

    Raises
    ------
    SourceError
        If it is missing, is no `.npy` file of numbers in C order, or is shorter or longer than its header says; and
        later, when something is read, if it has changed since.

    Notes
    -----
    Numbers of two bytes without a type are bfloat16: so NumPy writes what `ml_dtypes` adds to it.

    Big-endian and structured files can be opened, so that `cqs.problem` refuses their type by name. Pickling it, as for
    another process, sends path, size and time of change; it is opened again there, and must be the same.
    """

    is_staged = True
    read_bytes = 0

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  # closed by `close`
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read: {error.strerror}; check the path") from None
        try:
            self.shape, self.dtype, self._offset = _read_header(self.path, self._file)
            self.stamp = Stamp.of(self._file.fileno())
            self._check_size()
        except BaseException:
            self._file.close()
            raise

    def read(self, lead: Lead, start: int, stop: int) -> npt.NDArray[Any]:
        """Read some tokens of some heads, or of all.

        Raises
        ------
        SourceError
            If the file cannot be read, or is not what it was when it was opened.
        """
        n_tokens, width = self.shape[-2:]
        shape, numbers = matrices(self.shape[:-2], lead)
        rows = np.empty((*shape, stop - start, width), self.dtype)
        row_bytes = width * self.dtype.itemsize
        flat = rows.reshape(-1).view(np.uint8).data if rows.size else memoryview(b"")
        size = (stop - start) * row_bytes
        for i, matrix in enumerate(numbers if rows.size else ()):
            self._read_into(flat[i * size : (i + 1) * size], self._offset + (matrix * n_tokens + start) * row_bytes)
        now = Stamp.of(self._file.fileno())
        if now != self.stamp:
            raise _changed(self.path, self.stamp.difference(now))
        return rows

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _check_size(self) -> None:
        needed, size = self._offset + prod(self.shape) * self.dtype.itemsize, self.stamp.size
        if size < needed:
            got = f"{format_bytes(size)} of {format_bytes(needed)}"
            raise SourceError(f"{self.path} is truncated: {got} are there; write it again")
        if size > needed:
            got = f"{format_bytes(size - needed)} follow the {format_bytes(needed)} that its header says"
            raise SourceError(f"{self.path} is too long: {got}; write it again")

    def _read_into(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            try:
                n = os.preadv(self._file.fileno(), [buffer], offset)
            except OSError as error:
                raise SourceError(f"{self.path} cannot be read: {error.strerror}; check the disk") from None
            if n == 0:
                raise _changed(self.path, "it was cut off")
            buffer, offset = buffer[n:], offset + n

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self.stamp)


def _changed(path: str, what: str) -> SourceError:
    return SourceError(f"{path} changed while it was read: {what}; run again when it is complete")


@lru_cache(maxsize=8)  # one process opens it once, and not for each task
def _reopened(path: str, stamp: Stamp) -> NpyInput:
    """Open a file in another process."""
    again = NpyInput(path)
    if again.stamp != stamp:
        again.close()
        raise _changed(path, stamp.difference(again.stamp))
    return again


def _read_header(path: str, file: Any) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, type, and where the data begin."""
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"version {version[0]}.{version[1]}")
        # version 3 differs from 2 in the names of fields, which numbers have none of
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
        if any(n < 0 for n in shape):
            raise ValueError(f"shape {shape}")
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; check the path") from None
    except Exception as error:  # NumPy parses the header as Python, which fails in many ways
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise SourceError(f"{path} is no complete .npy file ({reason}); write it with `np.save`") from None
    if dtype == np.dtype("V2"):  # as which `np.save` writes ml_dtypes' bfloat16, and nothing else that is in use
        dtype = dtype_of(np, "bfloat16")
    if dtype.hasobject:
        raise SourceError(f"{path} holds Python objects; convert it to numbers")
    if is_fortran and len(shape) > 1:
        raise SourceError(f"{path} is in Fortran order; write it again with `np.save(path, np.ascontiguousarray(x))`")
    return shape, dtype, file.tell()


def matrices(leading: tuple[int, ...], lead: Lead) -> tuple[tuple[int, ...], Iterator[int]]:
    """Return the leading shape of a slice, and the numbers of the matrices `(tokens, width)` that are in it.

    >>> shape, numbers = matrices((2, 3), (1, slice(0, 2)))
    >>> shape, list(numbers)
    ((2,), [3, 4])
    """
    index = (slice(None),) * len(leading) if lead is None else lead
    picked = [range(n)[i] if isinstance(i, slice) else i for i, n in zip(index, leading, strict=True)]
    shape = tuple(len(i) for i in picked if isinstance(i, range))
    strides = [prod(leading[axis + 1 :]) for axis in range(len(leading))]
    places = product(*([i] if isinstance(i, int) else i for i in picked))
    return shape, (sum(i * stride for i, stride in zip(place, strides, strict=True)) for place in places)
