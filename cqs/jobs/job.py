"""A job: a call whose results of tasks are kept, so that whoever makes the same call again goes on from there."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from cqs.errors import BackendError, OptionError
from cqs.jobs.directory import JobDirectory
from cqs.jobs.identity import contents_of, differences, file_of, identity_of
from cqs.jobs.manifest import Manifest
from cqs.kernels import KERNELS
from cqs.problem import AttentionProblem
from cqs.schedule import Plan, Scheduler
from cqs.scores import Scores
from cqs.sources import InputSource, like_of

__all__ = ["Job"]

_INPUTS = ("q", "k", "v")


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A call, and the directory that keeps its results; made by `Job.of`.

    Parameters
    ----------
    directory : JobDirectory
        Where results are kept.
    identity : dict
        What decides the results, beside the numbers in the inputs.
    source : InputSource
        The inputs.
    manifest : Manifest or None
        What the directory says of the call that began the job; None if it has not begun.
    """

    directory: JobDirectory
    identity: dict[str, Any]
    source: InputSource
    manifest: Manifest | None

    @classmethod
    def of(
        cls, path: Any, problem: AttentionProblem, scores: Scores | None, source: InputSource, is_run: bool = True
    ) -> Self:
        """Look at a directory, which need not be there yet; nothing is written, and no input read.

        If nothing is to run, arrays of masks and biases are not read either, and taken to be those that they were.

        Raises
        ------
        OptionError
            If the job was begun by another call, functions take part, or something else is there.
        BackendError
            If arrays are not NumPy's: results are kept as such.
        """
        like = like_of(source.q)
        if not isinstance(like, np.ndarray):
            got = f"{type(like).__module__}.{type(like).__name__}"
            remedy = "give NumPy arrays or files; with backend='cupy' a GPU computes"
            raise BackendError.of("job", "be left out unless inputs are NumPy arrays or files", got, remedy)
        directory = JobDirectory(path)
        directory.check_place()
        job = cls(directory, identity_of(problem, scores, reads=is_run), source, directory.manifest())
        job._check_identity()
        return job

    def kernel(self, name: str, on_gpu: bool) -> str:
        """Return the kernel that is to compute: the one that the job was begun with.

        Parameters
        ----------
        name : str
            What was asked for.
        on_gpu : bool
            Whether a GPU is to compute.

        Raises
        ------
        OptionError
            If another was asked for, or it is one for GPUs and none computes.
        """
        if self.manifest is None:
            return name
        begun = self.manifest.kernel
        if begun in KERNELS and KERNELS[begun].library == "CuPy" and not on_gpu:
            rule, got = "be 'cupy', as when the job was begun", f"none, and `{begun}` is a kernel for GPUs"
            raise OptionError.of("backend", rule, got, "give backend='cupy', or begin another job")
        return str(_same("kernel", None if name == "auto" else name, begun))

    def plan(self, scheduler: Scheduler, problem: AttentionProblem) -> Plan:
        """Return the plan: cut as the job was when it was begun, for what the scheduler is to plan for.

        Raises
        ------
        OptionError
            If another number of workers or strategy was asked for.
        BudgetError
            If tasks of that size do not fit the budget.
        """
        if self.manifest is None:
            return scheduler.plan(problem)
        cut = self.manifest.cut
        _same("workers", scheduler.workers, cut.workers)
        _same("strategy", None if scheduler.strategy == "auto" else scheduler.strategy, cut.strategy)
        return scheduler.plan_cut(problem, cut)

    def begin(self, plan: Plan) -> "Job":
        """Make the directory, or see that the inputs are those that the job was begun with; return it as begun. O(N D).

        Another run may have begun it just now, with another plan: then that is its plan. Files that are where they
        were, and have not been written to since, are not read.

        Raises
        ------
        OptionError
            If an input has other numbers, or the other run made another call.
        SinkError
            If the directory cannot be written, or the disk has no room for the results that are missing.
        """
        begun = self.manifest
        inputs = {name: self._contents(name, {} if begun is None else begun.inputs[name]) for name in _INPUTS}
        if begun is None:
            ours = Manifest(self.identity, inputs, len(plan), plan.setting.kernel, plan.cut)
            begun = self.directory.create(ours)
        job = replace(self, manifest=begun)
        job._check_identity()
        for name in _INPUTS:
            if begun.inputs[name]["sha256"] != inputs[name]["sha256"]:
                rule = f"be of this call: it was begun with another `{name}`"
                raise OptionError.of("job", rule, str(self.directory.path), "give the same, or begin another job")
        n_missing = len(job.missing(range(begun.n_tasks)))
        self.directory.check_room(plan.traffic.results * n_missing // max(len(plan), 1) if plan.is_counted else 0)
        return job

    def missing(self, tasks: Sequence[int]) -> Sequence[int]:
        """Return those of some tasks whose results are not kept yet; 8 bytes each."""
        if self.manifest is None:
            return tasks
        done = self.directory.done(self.manifest)
        return array("q", (i for i in tasks if not done[i]))

    def _contents(self, name: str, known: dict[str, Any]) -> dict[str, Any]:
        """Return by what an input is known; read it unless it is the file that it was."""
        x = getattr(self.source, name)
        file = file_of(x)
        if file is not None and known.get("file") == file:
            return known
        return {"sha256": contents_of(x), "file": file}

    def _check_identity(self) -> None:
        begun = self.identity if self.manifest is None else self.manifest.identity
        for name, ours, theirs in differences(self.identity, begun):
            rule = f"be of this call: it was begun with `{name}` {theirs}"
            raise OptionError.of("job", rule, ours, "make the same call, or begin another job")


def _same(name: str, asked: Any, begun: Any) -> Any:
    if asked is not None and asked != begun:
        remedy = "leave it out, or begin another job"
        raise OptionError.of(name, f"be {begun!r}, as when the job was begun", repr(asked), remedy)
    return begun
