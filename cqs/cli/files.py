"""Inputs in .npy, .npz and Zarr files, and where outputs may go."""

import os
import pickle
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cqs.errors import OptionError

__all__ = ["FileInput", "check_output", "input_of", "inputs_of", "read_array", "refuse_missing", "refuse_unfinished"]

FileInput: TypeAlias = str | npt.NDArray[Any]  # a path, which is read slice by slice, or an array

_UNREADABLE = (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError)


def inputs_of(paths: Sequence[str]) -> tuple[FileInput, ...]:
    """Return queries, keys and values as `cqs.attention` takes them: three paths, or the arrays of one .npz.

    A .npy file in Fortran order, which cannot be read by rows, is mapped into memory.

    Raises
    ------
    OptionError
        If there are other than one or three paths, or a file is not what it should be.
    OSError
        If a file is missing or may not be read.
    """
    if len(paths) == 3:
        return tuple(map(input_of, paths))
    if len(paths) != 1:
        raise OptionError.of("FILE", "be q.npy k.npy v.npy, or one inputs.npz", f"{len(paths)} files", "give 1 or 3")
    (path,) = paths
    if os.path.isdir(path) or not _is_archive(path):
        rule = "be an .npz archive with q, k and v, if it is the only input"
        remedy = "give three .npy or Zarr files, or an .npz archive"
        raise OptionError.of(path, rule, "another kind of file", remedy)
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


def input_of(path: str) -> FileInput:
    """Return a path, or the array of a .npy file in Fortran order, which is mapped into memory."""
    if os.path.isdir(path):
        return path
    if _is_archive(path):
        raise _archive(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE:
        return path  # the library says what is wrong with it
    return path if array.flags.c_contiguous else array.view(np.ndarray)


def read_array(option: str, path: str) -> npt.NDArray[Any]:
    """Map the .npy file of an option into memory, for reading."""
    _refuse_missing(option, path)
    if _is_archive(path):
        raise _archive(path)
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise _unreadable(path, "a complete .npy file of numbers", error) from None
    return array.view(np.ndarray)


def refuse_missing(paths: Sequence[str], output: str | None = None) -> None:
    """Refuse inputs, and an output that is to be read, that do not exist, by what the usage calls them."""
    names = ("Q", "K", "V") if len(paths) == 3 else ("INPUTS.npz",) * len(paths)
    for name, path in zip(names, paths, strict=False):
        _refuse_missing(name, path)
    if output is not None:
        _refuse_missing("OUT", output)


def _refuse_missing(name: str, path: str) -> None:
    if not os.path.lexists(path):
        remedy = "check its name" if os.path.isabs(path) else f"there is none of that name in {os.getcwd()}"
        raise OptionError.of(name, "be a file that exists", path, remedy)


def refuse_unfinished(path: str) -> None:
    """Refuse an output that a run has not completed, by its name."""
    if path.rstrip(os.sep).endswith(".unfinished"):
        got = "what a run has left that was interrupted, or is still going on"
        raise OptionError.of(path, "be a finished output", got, "run `cqs run` again")


def _archive(path: str) -> OptionError:
    return OptionError.of(path, "be a .npy file", "an .npz archive", "give it alone, or its arrays as .npy files")


def _is_archive(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _unreadable(path: str, what: str, error: Exception) -> OptionError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return OptionError.of(path, f"be {what}", f"a file that NumPy refuses ({reason})", "write it again")


def check_output(option: str, path: str, inputs: Sequence[str], force: bool, kinds: Sequence[str] = (".npy",)) -> Path:
    """Return where an output goes, links followed, or refuse it before anything is computed.

    Raises
    ------
    OptionError
        If it is of none of the kinds, exists and is not to be replaced, or is one of the inputs.
    """
    target = Path(os.path.realpath(path))
    if target.suffix not in kinds:
        raise OptionError.of(option, f"be a {' or '.join(kinds)} file", path, f"write {path}{kinds[0]}, say")
    if not target.parent.is_dir():
        raise OptionError.of(option, "be in a directory that exists", path, f"make {target.parent} first")
    if not os.access(target.parent, os.W_OK):
        raise OptionError.of(option, "be in a directory that may be written to", path, "write elsewhere")
    if target.exists():
        if any(target.samefile(other) for other in inputs):
            raise OptionError.of(option, "not be one of the inputs", path, "write to another file")
        if not target.is_file() and target.suffix != ".zarr":
            kind = "a directory" if target.is_dir() else "neither a file nor a directory"
            raise OptionError.of(option, "be a regular file", f"{path}, which is {kind}", "write to another file")
        if not force:
            raise OptionError.of(option, "not exist yet", path, "give --force to replace it")
    return target
