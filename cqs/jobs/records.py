"""The result of a task as a file: an `.npz` archive, which says whose it is and carries checksums."""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.errors import SinkError, SourceError
from cqs.partial import Partial
from cqs.schedule import Task
from cqs.sources import byte_parts
from cqs.sources.files import try_hold, unfinished_of
from cqs.worker import TaskResult

__all__ = ["is_whole", "read_result", "write_result"]

# what Zip and NumPy say of bytes that they did not write
_ARRAYS = ("out", "lse", "rest")
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, OverflowError, RuntimeError, ValueError)


def write_result(path: Path, owner: str, result: TaskResult) -> int:
    """Write a result, which is there as a whole or not at all; return its bytes, 0 if another run is just writing it.

    The rows of all strips stand below each other in the arrays `out`, `(*B, H, t, E)`, `lse` and `rest`, `(*B, H, t)`,
    which `numpy.load` shows. They are written a little at a time. The archive's comment is the `owner`.

    Raises
    ------
    SinkError
        If the disk is full, or fails; nothing is left then.
    """
    try:
        descriptor = try_hold(path)
        if descriptor is None:
            return 0
        with os.fdopen(descriptor, "r+b") as file:
            try:
                file.truncate(0)  # what a run has left that was killed
                with zipfile.ZipFile(file, "w") as archive:
                    archive.comment = owner.encode()
                    partials = [p.on_host() for p in result.partials]
                    _write(archive, "out", [p.out for p in partials])
                    _write(archive, "lse", [p.lse[..., None] for p in partials], is_vector=True)
                    _write(archive, "rest", [p.rest[..., None] for p in partials], is_vector=True)
                n_bytes = file.tell()
                unfinished_of(path).replace(path)
            except BaseException:
                unfinished_of(path).unlink(missing_ok=True)
                raise
    except OSError as error:
        remedy = "what was kept before is safe: see to the disk, and run again"
        raise SinkError(f"{path} cannot be written: {error.strerror or error}; {remedy}") from None
    return n_bytes


def read_result(path: Path, owner: str, task: Task, has_scores: bool) -> tuple[TaskResult, int]:
    """Read the result of a task; return its bytes, too.

    Raises
    ------
    SourceError
        If the file is not what was written, or another's.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.comment != owner.encode():
                raise ValueError("it is the result of another task, or of another job")
            whole = Partial(*(_read(archive, name) for name in _ARRAYS))
        ends = list(accumulate((len(strip.query) for strip in task.strips), initial=0))
        shapes = whole.out.shape, whole.lse.shape, whole.rest.shape
        if set(shapes[1:]) != {shapes[0][:-1]} or shapes[1][-1] != ends[-1]:
            raise ValueError("shapes {}, {} and {}".format(*shapes))
        partials = tuple(whole.at(..., slice(a, b)) for a, b in pairwise(ends))
        return TaskResult(task, partials, has_scores=has_scores), path.stat().st_size
    except (*_DAMAGED, OSError) as error:
        raise SourceError(f"{path} is damaged: {error}") from None


def is_whole(path: Path, owner: str, is_read: bool = False) -> bool:
    """Whether a file ends as one does that was written to its end, by this owner; or if it is read, every checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            has_all = set(archive.namelist()) == {f"{name}.npy" for name in _ARRAYS}
            return has_all and archive.comment == owner.encode() and not (is_read and archive.testzip())
    except (*_DAMAGED, OSError):
        return False


def _write(archive: zipfile.ZipFile, name: str, parts: Sequence[npt.NDArray[Any]], is_vector: bool = False) -> None:
    """Write arrays below each other, without putting them together."""
    lead = parts[0].shape[:-2] if parts else ()
    shape = (*lead, sum(x.shape[-2] for x in parts), parts[0].shape[-1] if parts else 0)
    dtype = parts[0].dtype if parts else np.dtype(np.float32)
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape[:-1] if is_vector else shape,
    }
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_2_0(member, header)
        for part in _rows(lead, parts):
            member.write(part)


def _rows(lead: tuple[int, ...], parts: Sequence[npt.NDArray[Any]]) -> Iterator[memoryview]:
    for place in np.ndindex(*lead):
        for part in parts:
            yield from byte_parts(part[place])


def _read(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(f"{name}.npy") as member:
        found: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
            raise ValueError(f"{name} is too long")
    return found
