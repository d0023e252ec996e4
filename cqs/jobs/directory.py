"""The directory of a job: what it is of, and a file for each result. Any number of runs may write to it at a time."""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cqs.errors import OptionError, SinkError
from cqs.jobs.manifest import Manifest
from cqs.jobs.records import is_whole, read_result, write_result
from cqs.schedule import Task
from cqs.units import format_bytes
from cqs.worker import TaskResult

__all__ = ["JobDirectory"]

_MANIFEST, _RESULTS, _NAME = "job.json", "results", re.compile(r"[0-9]{6,}\.npz")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True, slots=True)
class JobDirectory:
    """A directory that keeps the result of each task as soon as there is one.

    Parameters
    ----------
    path : Path
        Where it is; it need not be there yet.

    Raises
    ------
    OptionError
        If that is no path.
    """

    path: Path

    def __post_init__(self) -> None:
        remedy = "as in `job='run.job'`, a directory"
        if not isinstance(self.path, str | os.PathLike) or not os.fspath(self.path):
            raise OptionError.of("job", "be a path", repr(self.path), remedy)
        try:
            path = Path(os.path.realpath(self.path))
            path.is_dir()
        except (ValueError, OSError) as error:  # as of a name that no file system has
            raise OptionError.of("job", "be a path", f"{self.path!r} ({error})", remedy) from None
        object.__setattr__(self, "path", path)

    def check_place(self) -> None:
        """Refuse a place where something else is, or that can be neither made nor written to, with an `OptionError`."""
        path, given = self.path, os.fspath(self.path)
        if path.exists():
            if not path.is_dir() or not (self._manifest.exists() or all(map(_is_ours, path.iterdir()))):
                raise OptionError.of("job", "be new, or the directory of a job", given, "choose another name")
        elif not path.parent.is_dir():
            raise OptionError.of("job", "be in a directory that exists", given, f"make {path.parent} first")
        if not os.access(path if path.exists() else path.parent, os.W_OK | os.X_OK):
            raise OptionError.of("job", "be where it may be written to", given, "choose another place")

    def manifest(self) -> Manifest | None:
        """Return what `create` has written, or None before.

        Raises
        ------
        OptionError
            If that cannot be read.
        """
        try:
            return Manifest.from_json(self._manifest.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            remedy = "begin another job, or remove this if it is of no use"
            raise OptionError.of(
                "job", f"have a {_MANIFEST} that can be read", f"{self.path}: {reason}", remedy
            ) from None

    def create(self, manifest: Manifest) -> Manifest:
        """Write what the job is of, unless another run has just done so; return what is there now.

        Raises
        ------
        SinkError
            If it cannot be written.
        """
        unfinished = self.path / f".{_MANIFEST}.{uuid.uuid4().hex}"
        try:
            self._results.mkdir(parents=True, exist_ok=True)
            try:
                unfinished.write_text(manifest.to_json(), encoding="utf-8")
                self._claim(unfinished)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise SinkError(f"{self.path} cannot be written: {error.strerror or error}; choose another `job`") from None
        found = self.manifest()
        assert found is not None
        return found

    def done(self, manifest: Manifest) -> bytearray:
        """Return a 1 for each task whose result is there, and a 0 for others. O(number of results)."""
        flags = bytearray(manifest.n_tasks)
        for i in self._numbers():
            if i < manifest.n_tasks:
                flags[i] = is_whole(self._of(i), _owner(manifest, i))
        return flags

    def n_bytes(self) -> int:
        """Return the bytes of all results."""
        return sum(path.stat().st_size for path in self._results.glob("*.npz"))

    def save(self, manifest: Manifest, result: TaskResult) -> int:
        """Keep a result, and return its bytes; see `cqs.jobs.records`.

        Raises
        ------
        SinkError
            If it cannot be written, or the directory has become that of another job.
        """
        now = self.manifest()
        if now is None or now.key != manifest.key:
            rule = "it has been removed, or is that of another job now, or this machine does not see it"
            raise SinkError(f"{self.path} cannot be written to: {rule}; run again where all workers see it")
        i = result.task.index
        return write_result(self._of(i), _owner(manifest, i), result)

    def load(self, manifest: Manifest, task: Task, has_scores: bool) -> tuple[TaskResult, int]:
        """Return the result of a task, and its bytes."""
        return read_result(self._of(task.index), _owner(manifest, task.index), task, has_scores)

    def drop_damaged(self, manifest: Manifest) -> list[int]:
        """Read all results, remove those whose checksums are wrong, and return their tasks."""
        damaged = [i for i in list(self._numbers()) if not is_whole(self._of(i), _owner(manifest, i), is_read=True)]
        for i in damaged:
            self._of(i).unlink(missing_ok=True)
        return damaged

    def check_room(self, n_bytes: int) -> None:
        """Refuse to begin what the disk has no room for, with a `SinkError`."""
        self._results.mkdir(exist_ok=True)  # if somebody has removed all results
        free = shutil.disk_usage(self.path).free
        if free < n_bytes:
            got = f"{format_bytes(free)} are free"
            remedy = "free some, choose another place for `job`, or take fewer workers"
            raise SinkError(f"{self.path} needs {format_bytes(n_bytes)} for results, {got}; {remedy}")

    def _claim(self, unfinished: Path) -> None:
        """Give a file the manifest's name, unless there is one: only the first of many can."""
        try:
            os.link(unfinished, self._manifest)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:
                os.close(os.open(self._manifest, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            except FileExistsError:
                return
            unfinished.replace(self._manifest)

    def _numbers(self) -> Iterator[int]:
        """Yield the tasks that have a file; one by one, since they may be very many."""
        if self._results.is_dir():
            with os.scandir(self._results) as entries:
                yield from (int(entry.name[:-4]) for entry in entries if _NAME.fullmatch(entry.name))

    def _of(self, i: int) -> Path:
        return self._results / f"{i:06}.npz"

    @property
    def _manifest(self) -> Path:
        return self.path / _MANIFEST

    @property
    def _results(self) -> Path:
        return self.path / _RESULTS


def _owner(manifest: Manifest, i: int) -> str:
    """Say whose a result is."""
    return f"task {i} of cqs job {manifest.key}"


def _is_ours(path: Path) -> bool:
    """Whether something in a directory is what a run leaves that was killed before the job had begun."""
    is_empty_results = path.name == _RESULTS and path.is_dir() and not any(path.iterdir())
    return is_empty_results or path.name.startswith(f".{_MANIFEST}.")
