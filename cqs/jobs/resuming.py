"""An engine that runs only tasks whose results are not kept yet, and keeps those that it computes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from time import perf_counter

from cqs.engines import Accept, Engine
from cqs.errors import SourceError
from cqs.events import Emit, ResultLoaded, ResultSaved
from cqs.jobs.directory import JobDirectory
from cqs.jobs.job import Job
from cqs.jobs.manifest import Manifest
from cqs.reading import Feed
from cqs.schedule import Plan, Task
from cqs.units import plural
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
        assert self.job.manifest is not None
        place = _Place(self.job.directory, self.job.manifest)
        tasks = range(len(plan)) if tasks is None else tasks
        missing = self.job.missing(tasks)
        kept = _Without(tasks, missing)
        comes_from_device = bool(plan.setting.devices)  # and is to be kept when it is back

        def pass_on(before: int) -> None:
            for i in kept.before(before):
                accept(place.loaded(plan, i, worker.emit))

        def take(result: TaskResult) -> None:
            if comes_from_device:
                place.save(result, worker.emit)
            pass_on(result.task.index)
            accept(result)

        if missing:
            pass_on(missing[0])
            own = worker if comes_from_device else _KeepingWorker.of(worker, place)
            self.engine.run(plan, own, take, missing)
        pass_on(len(plan))


class _Without:
    """The tasks of one sequence that are not in another, both in increasing order; each is given once."""

    def __init__(self, tasks: Sequence[int], others: Sequence[int]) -> None:
        self._tasks, self._others = tasks, others
        self._n_tasks = self._n_others = 0  # that are behind us

    def before(self, end: int) -> Iterator[int]:
        """Yield those before a task that have not been given yet."""
        while self._n_tasks < len(self._tasks) and self._tasks[self._n_tasks] < end:
            i = self._tasks[self._n_tasks]
            self._n_tasks += 1
            if self._n_others < len(self._others) and self._others[self._n_others] == i:
                self._n_others += 1
            else:
                yield i


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the results of one job are."""

    directory: JobDirectory
    manifest: Manifest

    def save(self, result: TaskResult, emit: Emit) -> None:
        """Keep a result, and tell of it."""
        start = perf_counter()
        n_bytes = self.directory.save(self.manifest, result)
        if emit is not None:
            emit(ResultSaved(task=result.task.index, start=start, n_bytes=n_bytes))

    def loaded(self, plan: Plan, i: int, emit: Emit) -> TaskResult:
        """Return a result that is kept, and tell of it."""
        start = perf_counter()
        try:
            result, n_bytes = self.directory.load(self.manifest, plan.task(i), plan.setting.has_scores)
        except SourceError as error:
            damaged = plural(len(self.directory.drop_damaged(self.manifest)), "result")
            raise SourceError(f"{error}; removed {damaged}: run again, which computes anew what is missing") from None
        if emit is not None:
            emit(ResultLoaded(task=i, start=start, n_bytes=n_bytes))
        return result


@dataclass(frozen=True, slots=True, eq=False)
class _KeepingWorker(Worker):
    """A worker that keeps its results: as soon as there is one, wherever it runs."""

    place: _Place | None = None

    @classmethod
    def of(cls, worker: Worker, place: _Place) -> "_KeepingWorker":
        """Return the same worker, which keeps results."""
        return cls(**{field.name: getattr(worker, field.name) for field in fields(Worker)}, place=place)

    def run(self, task: Task, threads: int = 1, feed: Feed | None = None) -> TaskResult:
        """Compute a task, and keep its result."""
        assert self.place is not None
        result = Worker.run(self, task, threads, feed)
        if not self.records:
            self.place.save(result, self.emit)
            return result
        events = list(result.events)
        self.place.save(result, events.append)
        return replace(result, events=tuple(events))
