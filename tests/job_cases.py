"""Jobs that are broken off, for the tests of jobs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

import cqs
from cqs.engines import Accept, Engine, LocalEngine
from cqs.jobs import JobDirectory
from cqs.schedule import Plan
from cqs.worker import TaskResult, Worker

Arrays: TypeAlias = Sequence[np.ndarray]


class BrokenOffError(Exception):
    """What ends a run."""


class Breaking:
    """Another engine, which ends a run after some results."""

    def __init__(self, engine: Engine, after: int) -> None:
        self.engine, self.after = engine, after

    def run(self, plan: Plan, worker: Worker, accept: Accept, tasks: Sequence[int] | None = None) -> None:
        left = [self.after]

        def pass_on(result: TaskResult) -> None:
            if not left[0]:
                raise BrokenOffError
            left[0] -= 1
            accept(result)

        self.engine.run(plan, worker, pass_on, tasks)


def kept(job: Path) -> list[int]:
    """The tasks whose results a job has."""
    manifest = JobDirectory(job).manifest()
    done = b"" if manifest is None else JobDirectory(job).done(manifest)
    return [i for i, is_there in enumerate(done) if is_there]


def broken_off(job: Path, *qkv: Any, after: int, **options: Any) -> None:
    with pytest.raises(BrokenOffError):
        cqs.attention(*qkv, **options, job=job, engine=Breaking(LocalEngine(2), after))


def files(directory: Path) -> list[Path]:
    """The files of the fixture `qkv`."""
    return [directory / f"{name}.npy" for name in "qkv"]


def saved(directory: Path, arrays: Arrays) -> list[Path]:
    for path, array in zip(files(directory), arrays, strict=True):
        np.save(path, array)
    return files(directory)
