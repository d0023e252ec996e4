"""A `.npy` file as output: written beside its name until it is complete."""

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cqs.errors import SinkError
from cqs.sources.files import hold, is_full, reason_of, unfinished_of
from cqs.sources.npy import matrices
from cqs.sources.sink import byte_parts

__all__ = ["NpySink"]

Lead = tuple[int | slice, ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class NpySink:
    """A `.npy` file that comes to be when it is complete. Until then it is beside its name, as `NAME.unfinished`.

    Made by `NpySink.create`.

    Parameters
    ----------
    path : Path
        Where the file goes, links followed; one that is there is replaced at the end.
    shape : tuple of int
        Of the array, `(*B, H, T, E)`.
    dtype : NumPy dtype
        Its type; rows are rounded to it.

    Notes
    -----
    The unfinished file is locked. A second run that is to write the same output is refused; what a run that was killed
    left is taken over by the next one, and removed when that fails.
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
            If it cannot be written there, the disk has no room for it, or another run is writing it.
        """
        target = Path(os.path.realpath(path))
        file = os.fdopen(hold(target), "r+b", buffering=0)  # closed by `finish` or `abandon`
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        try:
            file.truncate(0)
            np.lib.format.write_array_header_2_0(file, header)
            _claim(file, file.tell() + prod(shape) * dtype.itemsize)
        except OSError as error:
            cls(target, shape, dtype, file, 0).abandon()
            raise SinkError(f"{target} cannot be written: {reason_of(error)}") from None
        return cls(target, shape, dtype, file, file.tell())

    def write(self, lead: Lead, start: int, stop: int, rows: npt.NDArray[Any]) -> None:
        """Write some rows of some heads, or of all; they are copied, if need be, a little at a time.

        Raises
        ------
        SinkError
            If the disk is full, or fails.
        """
        leading, (n_rows, width) = self.shape[:-2], self.shape[-2:]
        shape, numbers = matrices(leading, lead)
        for matrix, place in zip(numbers, np.ndindex(*shape), strict=True):
            offset = self._offset + (matrix * n_rows + start) * width * self.dtype.itemsize
            for part in byte_parts(rows[place], self.dtype):
                self._write_from(part, offset)
                offset += len(part)

    def finish(self) -> npt.NDArray[Any]:
        """Give the file its name, and return it as a read-only memory map.

        Raises
        ------
        SinkError
            If the disk has not taken all of it, or the name is taken by something that is no file.
        """
        try:
            os.fsync(self._file.fileno())
            unfinished_of(self.path).replace(self.path)
        except OSError as error:
            self.abandon()
            raise SinkError(f"{self.path} cannot be written: {reason_of(error)}") from None
        self._file.close()
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        finished: npt.NDArray[Any] = np.load(self.path, mmap_mode="r")
        return finished

    def abandon(self) -> None:
        """Remove what was written. Once it is finished, or abandoned, do nothing."""
        if not self._file.closed:  # then the lock is held, and the unfinished file is this one
            unfinished_of(self.path).unlink(missing_ok=True)
            self._file.close()

    def _write_from(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            try:
                n = os.pwrite(self._file.fileno(), buffer, offset)
            except OSError as error:
                raise SinkError(f"{self.path} cannot be written: {reason_of(error)}; nothing was kept") from None
            buffer, offset = buffer[n:], offset + n


def _claim(file: Any, size: int) -> None:
    """Have the system set space aside, where the file system can."""
    os.ftruncate(file.fileno(), size)
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if is_full(error):  # others: a file system that cannot
                raise
