"""Reading inputs from .npy and .npz files, and writing outputs that are either complete or not there."""

import errno
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.errors import OptionError

__all__ = ["check_output", "read_array", "read_inputs", "unfinished", "writing"]

Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]

_UNREADABLE = (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError)
_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)

unfinished: set[Path] = set()  # files that are being written


def read_inputs(paths: Sequence[str]) -> Arrays:
    """Read queries, keys and values: from three .npy files, as memory maps, or from one .npz with q, k and v.

    Raises
    ------
    OptionError
        If there are other than one or three paths, or a file is not what it should be.
    OSError
        If a file is missing or may not be read.
    """
    if len(paths) == 3:
        q, k, v = map(read_array, paths)
        return q, k, v
    if len(paths) != 1:
        raise OptionError.of("FILE", "be q.npy k.npy v.npy, or one inputs.npz", f"{len(paths)} files", "give 1 or 3")
    (path,) = paths
    if not _is_archive(path):
        rule = "be an .npz archive with q, k and v, if it is the only input"
        raise OptionError.of(path, rule, "another kind of file", "give three .npy files, or an .npz archive")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            names = archive.files
            found = {name: archive[name] for name in ("q", "k", "v") if name in names}
    except _UNREADABLE as error:
        raise _unreadable(path, "a complete .npz archive of numbers", error) from None
    if len(found) < 3:
        got = ", ".join(names) or "none"
        raise OptionError.of(path, "hold the arrays q, k and v", got, "write it with `np.savez(path, q=q, k=k, v=v)`")
    return found["q"], found["k"], found["v"]


def read_array(path: str) -> npt.NDArray[Any]:
    """Map a .npy file into memory, for reading."""
    if _is_archive(path):
        raise OptionError.of(path, "be a .npy file", "an .npz archive", "give it alone, or its arrays as .npy files")
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise _unreadable(path, "a complete .npy file of numbers", error) from None
    return array.view(np.ndarray)


def _is_archive(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _unreadable(path: str, what: str, error: Exception) -> OptionError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return OptionError.of(path, f"be {what}", f"a file that NumPy refuses ({reason})", "write it again")


def check_output(option: str, path: str, inputs: Sequence[str], force: bool) -> Path:
    """Return where an output goes, links followed, or refuse it before anything is computed.

    Raises
    ------
    OptionError
        If it is not to be a .npy file, exists and is not to be replaced, or is one of the inputs.
    """
    target = Path(os.path.realpath(path))
    if target.suffix != ".npy":
        raise OptionError.of(option, "be a .npy file", path, f"write {path}.npy, say")
    if not target.parent.is_dir():
        raise OptionError.of(option, "be in a directory that exists", path, f"make {target.parent} first")
    if not os.access(target.parent, os.W_OK):
        raise OptionError.of(option, "be in a directory that may be written to", path, "write elsewhere")
    if target.exists():
        if any(target.samefile(other) for other in inputs):
            raise OptionError.of(option, "not be one of the inputs", path, "write to another file")
        if not target.is_file():
            raise OptionError.of(option, "be a regular file", path, "write to another file")
        if not force:
            raise OptionError.of(option, "not exist yet", path, "give --force to replace it")
    return target


@contextmanager
def writing(target: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Iterator[npt.NDArray[Any]]:
    """Give an array that becomes the .npy file `target` at the end, and nothing at all if anything fails before.

    Its memory is a file beside the target, whose space is claimed at once: a full disk is found out at the start.
    """
    path = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    unfinished.add(path)
    try:
        path.open("xb").close()
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
        _claim(path)
        yield array.view(np.ndarray)
        array.flush()
        path.replace(target)
    finally:
        path.unlink(missing_ok=True)
        unfinished.discard(path)


def _claim(path: Path) -> None:
    """Have the system set the file's space aside: writing to a memory map on a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno in _NO_SPACE:  # others: a file system that cannot
                    raise OSError(error.errno, error.strerror, str(path.parent)) from None
