"""A job: a call whose results of tasks are kept, so that whoever makes the same call again goes on from there."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np

from cqs.checks import whole_number
from cqs.errors import BackendError, BudgetError, OptionError
from cqs.jobs.directory import JobDirectory
from cqs.jobs.identity import contents_of, differences, file_of, identity_of
from cqs.problem import AttentionProblem
from cqs.schedule import Grain, Plan, Scheduler
from cqs.scores import Scores
from cqs.sources import InputSource, like_of
from cqs.units import format_bytes

__all__ = ["Job", "chosen_tasks"]

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
    begun : dict or None
        What the directory says of the call that began the job.
    """

    directory: JobDirectory
    identity: dict[str, Any]
    source: InputSource
    begun: dict[str, Any] | None

    @classmethod
    def of(cls, path: Any, problem: AttentionProblem, scores: Scores | None, source: InputSource) -> Self:
        """Look at a directory, which need not be there yet; nothing is written, and no input read.

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
        job = cls(directory, identity_of(problem, scores), source, directory.manifest())
        if job.begun is not None:
            job._check(job.begun)
        return job

    def kernel(self, name: str) -> str:
        """Return the kernel that is to compute: the one that the job was begun with.

        Raises
        ------
        OptionError
            If another was asked for.
        """
        if self.begun is None:
            return name
        return str(self._same("kernel", None if name == "auto" else name, self.begun["kernel"]))

    def plan(self, scheduler: Scheduler, problem: AttentionProblem) -> Plan:
        """Return the plan: cut as the job was when it was begun, for what the scheduler is to plan for.

        Raises
        ------
        OptionError
            If another number of workers or strategy was asked for.
        BudgetError
            If there is a budget, and the job was begun with a larger one.
        """
        if self.begun is None:
            return scheduler.plan(problem)
        cut = self.begun["cut"]
        workers = self._same("workers", scheduler.workers, cut["workers"])
        strategy = self._same("strategy", None if scheduler.strategy == "auto" else scheduler.strategy, cut["strategy"])
        plan = replace(scheduler, workers=workers, strategy=strategy).plan(problem)
        plan = replace(plan, base=cut["base"] and tuple(cut["base"]), grain=Grain(**cut["grain"]))
        memory = plan.setting.memory
        if memory is not None and plan.projected_bytes > memory:
            needed = format_bytes(plan.projected_bytes)
            rule = f"be at least {needed} for a job that was begun with tasks of this size"
            raise BudgetError.of("memory", rule, format_bytes(memory), "give as much as then, or begin another job")
        return plan

    def begin(self, plan: Plan) -> None:
        """Make the directory, or see that the inputs are those that the job was begun with. O(N D).

        Files that are where they were, and have not been written to since, are not read for it.

        Raises
        ------
        OptionError
            If an input has other numbers.
        SinkError
            If the directory cannot be written, or the disk has no room for the results that are missing.
        """
        begun = self.begun
        known = {} if begun is None else begun["inputs"]
        inputs = {name: self._contents(name, known.get(name)) for name in _INPUTS}
        cut = {"strategy": plan.strategy, "workers": plan.workers, "base": plan.base, "grain": asdict(plan.grain)}
        of_plan = {"n_tasks": len(plan), "kernel": plan.setting.kernel, "cut": cut}
        ours = {"identity": self.identity, "inputs": inputs} | of_plan
        if begun is None:
            begun = self.directory.create(ours)
            self._check(begun)
            if (begun["cut"], begun["kernel"]) != (cut | {"base": plan.base and list(plan.base)}, plan.setting.kernel):
                remedy = "make this call again, which then takes that plan"
                raise OptionError.of("job", "be begun by one run", "another run with another plan just now", remedy)
        for name in _INPUTS:
            if begun["inputs"][name]["sha256"] != inputs[name]["sha256"]:
                rule = f"be of this call: it was begun with another `{name}`"
                raise OptionError.of("job", rule, str(self.directory.path), "give the same, or begin another job")
        n_missing = len(self.missing(range(len(plan))))
        self.directory.check_room(plan.traffic.results * n_missing // max(len(plan), 1))

    def missing(self, tasks: Sequence[int]) -> list[int]:
        """Return those of some tasks whose results are not kept yet."""
        done = set(self.directory.done())
        return [i for i in tasks if i not in done]

    def _contents(self, name: str, known: dict[str, Any] | None) -> dict[str, Any]:
        """Return by what an input is known; read it unless it is the file that it was."""
        x = getattr(self.source, name)
        file = file_of(x)
        if known is not None and file is not None and known["file"] == file:
            return known
        return {"sha256": contents_of(x), "file": file}

    def _check(self, begun: dict[str, Any]) -> None:
        for name, ours, theirs in differences(self.identity, begun["identity"]):
            rule = f"be of this call: it was begun with `{name}` {theirs}"
            raise OptionError.of("job", rule, ours, "make the same call, or begin another job")

    def _same(self, name: str, asked: Any, begun: Any) -> Any:
        if asked is not None and asked != begun:
            remedy = "leave it out, or begin another job"
            raise OptionError.of(name, f"be {begun!r}, as when the job was begun", repr(asked), remedy)
        return begun


def chosen_tasks(tasks: slice | Iterable[int] | None, n_tasks: int) -> Sequence[int]:
    """Return the tasks that a `tasks=` argument means, in increasing order, each once.

    Raises
    ------
    OptionError
        If it is something else, or there is no such task.

    >>> list(chosen_tasks(slice(1, None, 3), 7)), chosen_tasks([5, 0, 5], 7)
    ([1, 4], [0, 5])
    """
    everything = range(n_tasks)
    if tasks is None:
        return everything
    remedy = "as in `tasks=slice(i, None, n)` for the i-th of n machines"
    if isinstance(tasks, slice):
        try:
            return sorted(everything[tasks])
        except (TypeError, ValueError) as error:
            raise OptionError.of("tasks", "be a slice of whole numbers", f"{tasks}, {error}", remedy) from None
    if not isinstance(tasks, Iterable) or isinstance(tasks, str | bytes):
        raise OptionError.of("tasks", "be a slice, or task numbers", repr(tasks), remedy)
    chosen = sorted({whole_number("tasks", i, 0, remedy) for i in tasks})
    if chosen and chosen[-1] >= n_tasks:
        raise OptionError.of("tasks", f"be among 0..{n_tasks - 1}", chosen[-1], remedy)
    return chosen
