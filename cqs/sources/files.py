"""What inputs and outputs in files share: has a file changed, whose is it, and why could it not be written."""

import errno
import os
from pathlib import Path
from typing import NamedTuple

from cqs.errors import SinkError

__all__ = ["Stamp", "hold", "is_full", "reason_of", "try_hold", "unfinished_of"]

_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Stamp(NamedTuple):
    """What differs when a file was written to, cut off or replaced."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, file: int | str | os.PathLike[str]) -> "Stamp":
        """Ask the system for that of an open file, or of a path."""
        status = os.stat(file)
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)

    def difference(self, later: "Stamp") -> str:
        """Say how another stamp differs."""
        if self.size != later.size:
            return f"it had {self.size} bytes and has {later.size}"
        return "it was replaced" if self.inode != later.inode else "it was written to"


def is_full(error: OSError) -> bool:
    """Whether a file could not be written for want of room."""
    return error.errno in _NO_SPACE


def reason_of(error: OSError) -> str:
    """Say why a file could not be written, and what helps."""
    if is_full(error):
        return f"the disk is full ({error.strerror}); free some space or choose another `out`"
    return f"{error.strerror or error}; choose another `out`"


def unfinished_of(target: Path) -> Path:
    """Return where an output is until it is complete: beside its name, so that it need only be renamed."""
    return target.with_name(f"{target.name}.unfinished")


def hold(target: Path, is_directory: bool = False) -> int:
    """Open the unfinished file or directory of an output, for this run alone, and return its descriptor.

    What a run that was killed has left is taken over: the system has released its lock.

    Raises
    ------
    SinkError
        If it cannot be made, or another run is writing the same output.
    """
    try:
        descriptor = try_hold(target, is_directory)
    except OSError as error:
        raise SinkError(f"{target} cannot be written: {reason_of(error)}") from None
    if descriptor is None:
        remedy = "wait for it, or choose another `out`"
        raise SinkError(f"{target} cannot be written: another run is writing it; {remedy}")
    return descriptor


def try_hold(target: Path, is_directory: bool = False) -> int | None:
    """Return what `hold` does; None if another run holds it."""
    path = unfinished_of(target)
    flags = os.O_RDONLY | os.O_DIRECTORY if is_directory else os.O_RDWR | os.O_CREAT
    while True:
        if is_directory:
            path.mkdir(exist_ok=True)
        descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o666)
        try:
            _lock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # another run has finished meanwhile, and what was opened has its final name


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> None:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # a file system without locks
            raise
