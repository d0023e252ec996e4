"""An engine that runs only tasks whose results are not kept yet, and keeps those that it computes."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from cqs.engines import Accept, Engine
from cqs.events import Emit, ResultLoaded, ResultSaved
from cqs.jobs.job import Job
from cqs.schedule import Plan
from cqs.worker import TaskResult, Worker

__all__ = ["ResumingEngine"]


@dataclass(frozen=True, slots=True)
class ResumingEngine:
    """Another engine, and a job that keeps what it computes.

    Parameters
    ----------
    engine : Engine
        What runs tasks.
    job : Job
        Has begun.
    """

    engine: Engine
    job: Job

    def run(self, plan: Plan, worker: Worker, accept: Accept, tasks: Sequence[int] | None = None) -> None:
        """Pass on results in the plan's order: those that are kept in between those that are computed."""
        tasks = range(len(plan)) if tasks is None else tasks
        missing = self.job.missing(tasks)
        kept = deque(sorted(set(tasks).difference(missing)))

        def pass_on(before: int) -> None:
            while kept and kept[0] < before:
                accept(self._loaded(plan, kept.popleft(), worker.emit))

        def keep(result: TaskResult) -> None:
            self._save(result, worker.emit)
            pass_on(result.task.index)
            accept(result)

        if missing:
            pass_on(missing[0])
            self.engine.run(plan, worker, keep, missing)
        pass_on(len(plan))

    def _save(self, result: TaskResult, emit: Emit) -> None:
        start = perf_counter()
        n_bytes = self.job.directory.save(result)
        if emit is not None:
            emit(ResultSaved(task=result.task.index, start=start, n_bytes=n_bytes))

    def _loaded(self, plan: Plan, i: int, emit: Emit) -> TaskResult:
        start = perf_counter()
        result, n_bytes = self.job.directory.load(plan.task(i), plan.setting.has_scores)
        if emit is not None:
            emit(ResultLoaded(task=i, start=start, n_bytes=n_bytes))
        return result
