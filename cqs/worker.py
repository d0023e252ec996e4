"""The Worker: a task and a source become partial results. It talks to no one and keeps nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from cqs.backend import quiet_floats, single_threaded_blas
from cqs.checks import check_listener
from cqs.computing import Computation, joined
from cqs.errors import OptionError, ShapeError
from cqs.events import Emit, Event, task_events
from cqs.kernels import Attend
from cqs.partial import Partial
from cqs.problem import AttentionProblem, dtype_name
from cqs.reading import Direct, Feed
from cqs.schedule import Grain, Task
from cqs.scores import Scores
from cqs.sources import InputSource, Source

__all__ = ["TaskResult", "Worker"]


@dataclass(frozen=True, slots=True, eq=False)
class TaskResult:
    """A task and one `Partial` for each of its strips, in the order of the strips.

    Parameters
    ----------
    task : Task
        Of a plan.
    partials : tuple of Partial
        `(*B, H, t, E)` for t queries of a strip, or `(h, t, E)` for the h heads of a task that has its own.
    events : tuple of Event
        What happened meanwhile, if nobody was told at once.
    has_scores : bool
        Whether scores were changed before the mask, which the plan must have foreseen.
    """

    task: Task
    partials: tuple[Partial, ...]
    events: tuple[Event, ...] = ()
    has_scores: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Worker:
    """Runs tasks.

    Parameters
    ----------
    problem : AttentionProblem
        Scale and mask are taken from it.
    source : Source
        What the groups of a task are read from: arrays of the problem's shapes and type.
    attend : kernel
        A function of the signature `cqs.kernels.Attend`.
    scores : Scores, optional
        What is done to scores before the mask, as of `cqs.scores.Scores.of`.
    grain : Grain
        How large kernel calls and their blocks are, as of the plan.
    emit : function, optional
        Told of every `cqs.events.Event`, from any thread.
    records : bool
        Whether events come back with the result, as from another process.
    """

    problem: AttentionProblem
    source: Source
    attend: Attend
    scores: Scores | None = None
    grain: Grain = Grain()  # noqa: RUF009  # frozen
    emit: Emit = None
    records: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.problem, AttentionProblem):
            remedy = "as in `Worker(plan.problem, source, attend)`"
            raise OptionError.of("problem", "be an `AttentionProblem`", type(self.problem).__name__, remedy)
        if not (hasattr(self.source, "queries") and hasattr(self.source, "keys")):
            rule, remedy = "have methods `queries` and `keys`", "for arrays give `cqs.ArraySource(q, k, v)`"
            raise OptionError.of("source", rule, type(self.source).__name__, remedy)
        if isinstance(self.source, InputSource):
            self._check_inputs(self.source)
        if not callable(self.attend):
            remedy = "give the function of a kernel, as in `KERNELS['reference'].attend`"
            raise OptionError.of("attend", "be a function", type(self.attend).__name__, remedy)
        check_listener("emit", self.emit)

    def _check_inputs(self, source: InputSource) -> None:
        for name, shape in self.problem.input_shapes.items():
            array = getattr(source, name)
            due, got = f"{shape} of {self.problem.dtype}", f"{tuple(array.shape)} of {dtype_name(array)}"
            if due != got:
                remedy = "a plan is for inputs of one shape and type: plan again"
                raise ShapeError.of(name, f"be {due}, as the problem says", got, remedy)

    def run(self, task: Task, threads: int = 1, feed: Feed | None = None) -> TaskResult:
        """Compute the tiles that the task owns, bundle by bundle.

        Parameters
        ----------
        task : Task
            What to compute.
        threads : int
            How many threads the kernel may use; the result does not depend on it.
        feed : Feed, optional
            Gives what the task reads; by default it is read from the source when it is wanted.

        Returns
        -------
        TaskResult
            The same task always gives the same result, bit for bit, so it may be run again anywhere.

        Notes
        -----
        A task that runs out of memory is divided by `cqs.divide`, what was computed of it is kept, and the rest is
        computed part by part. Such a result may differ in its last bits, and is the same for the same failures.

        Raises
        ------
        MemoryError
            If there is not even room for one query and one key.
        """
        if not isinstance(task, Task):
            raise OptionError.of("task", "be a `Task`", type(task).__name__, "take one of a plan, as in `plan.task(0)`")
        told = task_events(task.index, self.emit, self.records)
        with told as (emit, events), quiet_floats(), single_threaded_blas():  # so bits do not depend on who calls
            how = Computation(self.problem, self.attend, self.scores, self.grain, self.source, threads, emit)
            partials = how.partials(task, feed or Direct(self.source, emit))
        return TaskResult(task, partials, tuple(events), self.scores is not None)

    def join(self, task: Task, parts: Sequence[TaskResult]) -> TaskResult:
        """Merge the results of the tasks that `cqs.divide` made of a task, in their order."""
        with quiet_floats():
            partials = joined(task, [(part.task, part.partials) for part in parts])
        return TaskResult(task, partials, has_scores=self.scores is not None)
