"""The directory of a job: what it is of, and a file for each result. Any number of runs may write to it at a time."""

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cqs.errors import OptionError, SinkError
from cqs.jobs.records import is_whole, read_result, write_result
from cqs.schedule import Task
from cqs.units import format_bytes
from cqs.worker import TaskResult

__all__ = ["FORMAT", "JobDirectory"]

FORMAT = "cqs.job/1"
_MANIFEST, _RESULTS = "job.json", "results"


@dataclass(frozen=True, slots=True)
class JobDirectory:
    """A directory that keeps the results of tasks, each from when it is complete.

    Parameters
    ----------
    path : Path
        Where it is; it need not be there yet.
    """

    path: Path

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike):
            raise OptionError.of("job", "be a path", repr(self.path), "as in `job='run.job'`, a directory")
        object.__setattr__(self, "path", Path(os.path.realpath(self.path)))

    def check_place(self) -> None:
        """Refuse a place where something else is, or that can be neither made nor written to, with an `OptionError`."""
        path, given = self.path, os.fspath(self.path)
        if path.exists():
            is_begun = self._manifest.exists() or self._results.exists()
            if not path.is_dir() or (any(path.iterdir()) and not is_begun):
                raise OptionError.of("job", "be new, or the directory of a job", given, "choose another name")
        elif not path.parent.is_dir():
            raise OptionError.of("job", "be in a directory that exists", given, f"make {path.parent} first")
        if not os.access(path if path.exists() else path.parent, os.W_OK | os.X_OK):
            raise OptionError.of("job", "be where it may be written to", given, "choose another place")

    def manifest(self) -> dict[str, Any] | None:
        """Return what `create` has written, or None before.

        Raises
        ------
        OptionError
            If that cannot be read.
        """
        try:
            values = json.loads(self._manifest.read_text())
            if values["format"] != FORMAT:
                raise ValueError(f"the format {values['format']!r}")
            found: dict[str, Any] = values
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as error:
            rule, got = f"hold a {_MANIFEST} in the format {FORMAT}", f"{self._manifest}, {error}"
            raise OptionError.of("job", rule, got, "choose another name, or remove it if it is of no use") from None
        return found

    def create(self, values: dict[str, Any]) -> dict[str, Any]:
        """Write what the job is of, unless another run has just done so; return what is there now.

        Raises
        ------
        SinkError
            If it cannot be written.
        """
        unfinished = self.path / f".{_MANIFEST}.{uuid.uuid4().hex}"
        try:
            self._results.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps({"format": FORMAT, **values}, indent=1))
            try:
                os.link(unfinished, self._manifest)  # which only the first can do
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                unfinished.replace(self._manifest)
        except OSError as error:
            raise SinkError(f"{self.path} cannot be written: {error.strerror or error}; choose another `job`") from None
        finally:
            unfinished.unlink(missing_ok=True)
        found = self.manifest()
        assert found is not None
        return found

    def done(self) -> list[int]:
        """Return the tasks whose results are there, in order. O(number of results)."""
        if not self._results.is_dir():
            return []
        names = (path for path in self._results.iterdir() if path.suffix == ".npz" and path.stem.isdecimal())
        return sorted(int(path.stem) for path in names if is_whole(path))

    def n_bytes(self) -> int:
        """Return the bytes of all results."""
        return sum(path.stat().st_size for path in self._results.glob("*.npz"))

    def save(self, result: TaskResult) -> int:
        """Keep a result, also if there is one already, and return its bytes; see `cqs.jobs.records`."""
        return write_result(self._of(result.task), result)

    def load(self, task: Task, has_scores: bool) -> tuple[TaskResult, int]:
        """Return the result of a task, and its bytes."""
        return read_result(self._of(task), task, has_scores)

    def check_room(self, n_bytes: int) -> None:
        """Refuse to begin what the disk has no room for, with a `SinkError`."""
        free = shutil.disk_usage(self.path).free
        if free < n_bytes:
            got = f"{format_bytes(free)} are free"
            remedy = "free some, choose another place for `job`, or take fewer workers"
            raise SinkError(f"{self.path} needs {format_bytes(n_bytes)} for results, {got}; {remedy}")

    def _of(self, task: Task) -> Path:
        return self._results / f"{task.index:06}.npz"

    @property
    def _manifest(self) -> Path:
        return self.path / _MANIFEST

    @property
    def _results(self) -> Path:
        return self.path / _RESULTS
