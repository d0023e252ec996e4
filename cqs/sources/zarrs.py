"""Zarr arrays as inputs: read chunk by chunk, so that little more than the slice itself is held.

Zarr by itself reads many chunks at a time, each as it is on disk and decompressed.
"""

import hashlib
import os
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cqs.errors import BackendError, SourceError
from cqs.sources.marks import refuse_unfinished
from cqs.sources.on_disk import OnDisk
from cqs.sources.pieces import bounds_of, grown, pieces

__all__ = ["A_CHUNK", "PLAIN_WRITE", "Layout", "ZarrInput", "directory_of", "import_zarr", "is_zarr_path", "layout_of"]

Lead = tuple[int | slice, ...] | None

_AT_ONCE, _MOST_AT_ONCE = 512 << 10, 4  # bytes of small chunks that are read together, and how many: fastest by far
A_CHUNK = 24_000  # bytes of Python objects for each
_INDEX_BYTES = 100  # for each chunk of a shard
# Bytes that reading, and writing a part of a chunk take, as multiples of the chunk; measured, and held by tests. It is
# there as it is on disk, decoded, copied to be changed, and encoded; gzip and others double their buffers. And threads
# of Zarr let go of a chunk only after the next has been begun.
_LEAN_CODECS = ("ZstdCodec", "BloscCodec", "Crc32cCodec", "TransposeCodec", "Zstd", "Blosc")
PLAIN_WRITE = 5
_PLAIN, _ONE_CODEC, _CODECS, _WASTEFUL = (3, PLAIN_WRITE), (3, 6), (5, 7), (9, 11)


def import_zarr() -> ModuleType:
    """Import Zarr.

    Raises
    ------
    BackendError
        If it is missing, or older than version 3.
    """
    try:
        import zarr
    except ImportError:
        raise BackendError("Zarr arrays need the package zarr; `pip install 'cqs-attention[zarr]'`") from None
    if int(zarr.__version__.partition(".")[0]) < 3:
        raise BackendError(
            f"Zarr arrays need zarr 3 or later, got {zarr.__version__}; `pip install 'cqs-attention[zarr]'`"
        )
    return zarr


def is_zarr_path(path: str | os.PathLike[str]) -> bool:
    """Whether a path is one of a Zarr array, there or not: a directory, or in one that is called `*.zarr`."""
    return os.path.isdir(path) or any(part.endswith(".zarr") for part in Path(path).parts)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a Zarr array is cut, and what it takes to read and write it.

    Parameters
    ----------
    files : tuple of int
        The shape of what is in one file: a chunk, or a shard of them.
    read_box, write_box : tuple of int
        The shapes that are read and written at a time.
    read_bytes, write_bytes : int
        What that holds beyond the slice itself.
    """

    files: tuple[int, ...]
    read_box: tuple[int, ...]
    write_box: tuple[int, ...]
    read_bytes: int
    write_bytes: int


def layout_of(array: Any) -> Layout:
    """Return how a Zarr array is cut."""
    chunks, shards, itemsize = tuple(array.chunks), array.shards, np.dtype(array.dtype).itemsize
    files = tuple(shards or chunks)
    # chunks of a shard can be read alone, unless the shard is itself compressed
    n_codecs = len(getattr(array.metadata, "codecs", ()))
    unit = chunks if shards is None or n_codecs == 1 else files
    box = grown(unit, array.shape, min(_AT_ONCE // itemsize, _MOST_AT_ONCE * prod(unit)))
    n_inner = prod(files) // max(prod(chunks), 1)
    reads, writes = _multiples(array)
    objects = A_CHUNK * max(prod(box) // max(prod(unit), 1), 1) + _INDEX_BYTES * n_inner
    return Layout(
        files,
        box,
        files,
        reads * prod(box) * itemsize + objects,
        writes * prod(files) * itemsize + A_CHUNK * n_inner,
    )


def _multiples(array: Any) -> tuple[int, int]:
    codecs = [*array.filters, *array.compressors]
    if any(type(codec).__name__ not in _LEAN_CODECS for codec in codecs):
        return _WASTEFUL
    if array.shards is not None or len(codecs) > 1:
        return _CODECS
    return _ONE_CODEC if codecs else _PLAIN


def directory_of(array: Any) -> Path | None:
    """Return the directory of a Zarr array; None if it is not in a local one."""
    root = getattr(array.store, "root", None)
    return Path(root) / array.path if isinstance(root, (str, Path)) else None


@dataclass(frozen=True, slots=True, eq=False)
class ZarrInput(OnDisk):
    """A Zarr array. Slices are copied into memory, along the borders of chunks.

    Parameters
    ----------
    array : zarr.Array
        Of shape `(*B, heads, tokens, width)`.
    name : str
        What it is called in errors: the argument, or the path.

    Notes
    -----
    If it is in a local directory, each file that is read must be as old as the newest was when the first was read. A
    chunk without a file holds the fill value, as Zarr has it.
    """

    array: Any
    name: str
    layout: Layout
    _newest: list[int] = field(default_factory=list)

    is_staged: bool = field(default=True, init=False)

    @classmethod
    def of(cls, array: Any, name: str) -> Self:
        """Take an array as an input.

        Raises
        ------
        SourceError
            If it carries the mark of an output that is not complete.
        """
        refuse_unfinished(array, name)
        return cls(array, name, layout_of(array))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open an array in a local directory.

        Raises
        ------
        BackendError
            If Zarr is missing.
        SourceError
            If there is no array at the path, its description is damaged, or it is not complete.
        """
        given = os.fspath(path)
        try:
            names = set(os.listdir(given))
        except OSError as error:
            raise SourceError(f"{given} cannot be read: {error.strerror}; check the path") from None
        if not names & {"zarr.json", ".zarray", ".zgroup"}:
            raise SourceError(f"{given} is a directory without zarr.json; give a Zarr array, or a .npy file")
        zarr = import_zarr()
        try:
            found = zarr.open(given, mode="r")
        except Exception as error:  # damaged JSON, unknown codecs, denied access
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise SourceError(f"{given} is no complete Zarr array ({reason}); write it again") from None
        if not isinstance(found, zarr.Array):
            members = ", ".join(sorted(found.array_keys())) or "none"
            raise SourceError(f"{given} is a Zarr group, with the arrays {members}; give one, as in {given}/q")
        return cls.of(found, given)

    @property
    def read_bytes(self) -> int:
        """What reading some chunks takes, as they are on disk and decompressed."""
        return self.layout.read_bytes

    def read(self, lead: Lead, start: int, stop: int) -> npt.NDArray[Any]:
        """Read some tokens of some heads, or of all.

        Raises
        ------
        SourceError
            If a chunk is damaged, cannot be read, or has changed since the first was read.
        """
        from zarr.core.buffer.cpu import NDBuffer

        bounds = bounds_of(self.shape, lead, start, stop)
        rows = np.empty([len(axis) for axis in bounds], self.dtype)
        self._since()
        for own, part in pieces(bounds, self.layout.read_box) if rows.size else ():
            try:
                self.array.get_basic_selection(own, out=NDBuffer.from_numpy_array(rows[part]))
            except MemoryError:
                raise
            except Exception as error:  # of a codec or the store, of whatever kind
                where = ", ".join(f"{axis.start}:{axis.stop}" for axis in own)
                reason = str(error).partition("\n")[0] or type(error).__name__
                raise SourceError(f"`{self.name}` cannot be read at [{where}]: {reason}; write it again") from error
            self._check_files(own)
        kept = [len(axis) for axis, i in zip(bounds, lead or (), strict=False) if isinstance(i, slice)]
        return rows if lead is None else rows.reshape(*kept, *rows.shape[-2:])

    def files(self) -> dict[str, Any] | None:
        """Return by what the files of an array in a local directory are known; None elsewhere. O(number of files)."""
        directory = directory_of(self.array)
        if directory is None:
            return None
        found = hashlib.sha256()
        for file in sorted(path for path in directory.rglob("*") if path.is_file()):
            status = file.stat()
            found.update(f"{file.relative_to(directory)} {status.st_size} {status.st_mtime_ns}\n".encode())
        return {"path": os.path.realpath(directory), "files": found.hexdigest()}

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def __reduce__(self) -> tuple[Any, ...]:
        self._since()  # what counts is when the run began, not when another process reads first
        return type(self), (self.array, self.name, self.layout, self._newest)

    def _since(self) -> None:
        directory = directory_of(self.array)
        if not self._newest and directory is not None:
            self._newest.append(max(_mtimes(directory), default=0))

    def _check_files(self, own: tuple[slice, ...]) -> None:
        directory = directory_of(self.array)
        if directory is None:
            return
        numbers = [range(s.start // n, -(-s.stop // n)) for s, n in zip(own, self.layout.files, strict=True)]
        for place in product(*numbers):
            file = directory / self.array.metadata.encode_chunk_key(place)
            folder = file.parent
            while not folder.exists() and folder != directory:  # chunks of the fill value alone have none
                folder = folder.parent
            if max(_mtime(file), _mtime(folder)) > self._newest[0] or not directory.exists():
                what = f"{file} was written to or removed"
                raise SourceError(f"`{self.name}` changed while it was read: {what}; run again when it is complete")


def _mtimes(directory: Path) -> Any:
    for folder, _, names in os.walk(directory):
        yield from map(_mtime, (folder, *(os.path.join(folder, name) for name in names)))


def _mtime(path: str | os.PathLike[str]) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0
