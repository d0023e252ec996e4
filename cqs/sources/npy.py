"""`.npy` files: read slice by slice into memory, never mapped, and written beside their name until they are complete.

A memory map would count as this process's memory for as long as the system likes, and a disk error or a file that is
cut off under it would kill the process.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cqs.errors import SinkError, SourceError
from cqs.units import format_bytes

__all__ = ["NpyInput", "NpySink"]

_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
Lead = tuple[int | slice, ...] | None


class NpyInput:
    """A `.npy` file in C order. Each slice is read when asked for, from any thread.

    Parameters
    ----------
    path : str or Path
        The file.

    Raises
    ------
    SourceError
        If it is missing, is no `.npy` file of numbers in C order, or is shorter than its header says; and later, when
        something is read, if it has changed since.
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
            self._signature = self._sign()
            needed = self._offset + prod(self.shape) * self.dtype.itemsize
            if self._signature[0] < needed:
                got = f"{format_bytes(self._signature[0])} of {format_bytes(needed)}"
                raise SourceError(f"{self.path} is truncated: {got} are there; write it again")
        except BaseException:
            self._file.close()
            raise

    def read(self, lead: Lead, start: int, stop: int) -> npt.NDArray[Any]:
        """Read some tokens of some heads, or of all."""
        leading, (n_tokens, width) = self.shape[:-2], self.shape[-2:]
        shape, runs = _runs(leading, lead)
        rows = np.empty((*shape, stop - start, width), self.dtype)
        row_bytes = width * self.dtype.itemsize
        flat = rows.reshape(-1).view(np.uint8).data if rows.size else memoryview(b"")
        size = (stop - start) * row_bytes
        for i, run in enumerate(runs if rows.size else ()):
            self._read_into(flat[i * size : (i + 1) * size], self._offset + (run * n_tokens + start) * row_bytes)
        if self._sign() != self._signature:
            raise SourceError(f"{self.path} changed while it was read; run again when it is complete")
        return rows

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_into(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            try:
                n = os.preadv(self._file.fileno(), [buffer], offset)
            except OSError as error:
                raise SourceError(f"{self.path} cannot be read: {error.strerror}") from None
            if n == 0:
                raise SourceError(
                    f"{self.path} changed while it was read: it was cut off; run again when it is complete"
                )
            buffer, offset = buffer[n:], offset + n

    def _sign(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self._signature)


def _reopened(path: str, signature: tuple[int, int]) -> NpyInput:
    """Open a file again in another process."""
    again = NpyInput(path)
    if again._signature != signature:
        again.close()
        raise SourceError(f"{path} changed since the run began; run again when it is complete")
    return again


def _read_header(path: str, file: Any) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, type, and where the data begin."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
    except (ValueError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise SourceError(f"{path} is no complete .npy file ({reason}); write it with `np.save`") from None
    if dtype.hasobject:
        raise SourceError(f"{path} holds Python objects; convert it to numbers")
    if is_fortran and len(shape) > 1:
        raise SourceError(f"{path} is in Fortran order; write it again with `np.save(path, np.ascontiguousarray(x))`")
    return shape, dtype, file.tell()


def _runs(leading: tuple[int, ...], lead: Lead) -> tuple[tuple[int, ...], Iterator[int]]:
    """Return the leading shape of a slice, and the numbers of the matrices `(tokens, width)` that are in it."""
    index = (slice(None),) * len(leading) if lead is None else lead
    picked = [range(n)[i] if isinstance(i, slice) else i for i, n in zip(index, leading, strict=True)]
    shape = tuple(len(i) for i in picked if isinstance(i, range))
    strides = [prod(leading[axis + 1 :]) for axis in range(len(leading))]
    places = product(*([i] if isinstance(i, int) else i for i in picked))
    return shape, (sum(i * stride for i, stride in zip(place, strides, strict=True)) for place in places)


@dataclass(frozen=True, slots=True, eq=False)
class NpySink:
    """A `.npy` file that comes to be when it is complete. Until then it is beside its name, as `NAME.unfinished`.

    Parameters
    ----------
    path : Path
        Where the file goes; one that is there is replaced at the end.
    shape : tuple of int
        Of the array.
    dtype : NumPy dtype
        Its type; rows are rounded to it.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _file: Any
    _offset: int

    @classmethod
    def create(cls, path: str | os.PathLike[str], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Self:
        """Begin a file, and claim its space at once, so that a full disk is found out at the start.

        Raises
        ------
        SinkError
            If it cannot be written there, or the disk has no room for it.
        """
        target = Path(os.path.realpath(path))
        unfinished = _unfinished(target)
        try:
            file = open(unfinished, "w+b", buffering=0)  # noqa: SIM115  # closed by `finish` or `abandon`
        except OSError as error:
            raise SinkError(f"{target} cannot be written: {error.strerror}; choose another `out`") from None
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        sink = cls(target, shape, dtype, file, 0)
        try:
            np.lib.format.write_array_header_2_0(file, header)
            sink = cls(target, shape, dtype, file, file.tell())
            _claim(file, sink._offset + prod(shape) * dtype.itemsize)
        except OSError as error:
            sink.abandon()
            raise SinkError(
                f"{target} cannot be written: {error.strerror}; free some space or choose another `out`"
            ) from None
        return sink

    def write(self, lead: Lead, start: int, stop: int, rows: npt.NDArray[Any]) -> None:
        """Write some rows of some heads, or of all."""
        leading, (n_rows, width) = self.shape[:-2], self.shape[-2:]
        shape, runs = _runs(leading, lead)
        block = np.ascontiguousarray(rows, dtype=self.dtype).reshape(prod(shape), stop - start, width)
        for run, part in zip(runs, block, strict=True):
            offset = self._offset + (run * n_rows + start) * width * self.dtype.itemsize
            self._write_from(part.reshape(-1).view(np.uint8).data if part.size else memoryview(b""), offset)

    def finish(self) -> npt.NDArray[Any]:
        """Give the file its name, and return it as a read-only memory map."""
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            _unfinished(self.path).replace(self.path)
        except OSError as error:
            self.abandon()
            raise SinkError(f"{self.path} cannot be written: {error.strerror}") from None
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        finished: npt.NDArray[Any] = np.load(self.path, mmap_mode="r")
        return finished

    def abandon(self) -> None:
        """Remove what was written."""
        self._file.close()
        _unfinished(self.path).unlink(missing_ok=True)

    def _write_from(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            try:
                n = os.pwrite(self._file.fileno(), buffer, offset)
            except OSError as error:
                reason = "the disk is full" if error.errno in _NO_SPACE else error.strerror
                raise SinkError(f"{self.path} cannot be written: {reason}; nothing was kept") from None
            buffer, offset = buffer[n:], offset + n


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.unfinished")


def _claim(file: Any, size: int) -> None:
    """Have the system set space aside, where the file system can."""
    os.ftruncate(file.fileno(), size)
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise
