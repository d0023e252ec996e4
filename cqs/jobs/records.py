"""The result of a task as a file: an `.npz` archive, which carries a checksum of everything in it."""

import uuid
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.backend import on_host
from cqs.errors import SinkError, SourceError
from cqs.partial import Partial
from cqs.schedule import Task
from cqs.sources import steps
from cqs.worker import TaskResult

__all__ = ["is_whole", "read_result", "write_result"]

_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError)


def write_result(path: Path, result: TaskResult) -> int:
    """Write a result, which is there as a whole or not at all; return its bytes.

    Strip i has the arrays `out{i}` and `lse{i}`, as `numpy.load` shows them. They are written a little at a time.

    Raises
    ------
    SinkError
        If the disk is full, or fails; nothing is left then.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # nobody else's
    try:
        with zipfile.ZipFile(unfinished, "x") as archive:
            for i, partial in enumerate(result.partials):
                _write(archive, f"out{i}", on_host(partial.out))
                _write(archive, f"lse{i}", on_host(partial.lse)[..., None])
        n_bytes = unfinished.stat().st_size
        unfinished.replace(path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        remedy = "what was kept before is safe: see to the disk, and run again"
        raise SinkError(f"{path} cannot be written: {error.strerror or error}; {remedy}") from None
    return n_bytes


def read_result(path: Path, task: Task, has_scores: bool) -> tuple[TaskResult, int]:
    """Read the result of a task; return its bytes, too.

    Raises
    ------
    SourceError
        If the file is not what was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            partials = tuple(
                Partial(_read(archive, f"out{i}"), _read(archive, f"lse{i}")[..., 0]) for i in range(len(task.strips))
            )
        return TaskResult(task, partials, has_scores=has_scores), path.stat().st_size
    except (*_DAMAGED, OSError) as error:
        remedy = "remove it and run again, which computes that task once more"
        raise SourceError(f"{path} is damaged ({error}); {remedy}") from None


def is_whole(path: Path) -> bool:
    """Whether a file ends as one does that was written to its end. Checksums are looked at when it is read."""
    return zipfile.is_zipfile(path)


def _write(archive: zipfile.ZipFile, name: str, array: npt.NDArray[Any]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_2_0(member, header)
        for part in _parts(array):
            member.write(part)


def _parts(array: npt.NDArray[Any]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of an array in C order, few at a time."""
    for place in np.ndindex(*array.shape[:-2]):
        matrix = array[place]
        for start, stop in steps(0, len(matrix), matrix.shape[-1]):
            part = np.ascontiguousarray(matrix[start:stop])
            yield part.reshape(-1).view(np.uint8).data if part.size else b""


def _read(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(f"{name}.npy") as member:
        found: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
            raise ValueError(f"{name} is too long")
    return found
