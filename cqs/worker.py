"""The Worker: a task and a source become partial results. It talks to no one and keeps nothing."""

from collections.abc import Iterator
from dataclasses import dataclass

from cqs.backend import namespace_of, quiet_floats
from cqs.kernels import Attend, Region, attend_per_head
from cqs.partial import Partial
from cqs.problem import AttentionProblem
from cqs.schedule import Bundle, Task
from cqs.scores import Scores
from cqs.sources import Source

__all__ = ["TaskResult", "Worker"]


@dataclass(frozen=True, slots=True, eq=False)
class TaskResult:
    """A task and one `Partial` for each of its strips, in the order of the strips."""

    task: Task
    partials: tuple[Partial, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Worker:
    """Runs tasks.

    Parameters
    ----------
    problem : AttentionProblem
        Scale and mask are taken from it.
    source : Source
        What the groups of a task are read from.
    attend : kernel
        A function of the signature `cqs.kernels.Attend`.
    scores : Scores, optional
        What is done to scores before the mask.
    """

    problem: AttentionProblem
    source: Source
    attend: Attend
    scores: Scores | None = None

    def run(self, task: Task, threads: int = 1) -> TaskResult:
        """Compute the tiles that the task owns, bundle by bundle.

        Parameters
        ----------
        task : Task
            What to compute.
        threads : int
            How many threads the kernel may use; the result does not depend on it.

        The same task always gives the same result, bit for bit, so it may be run again anywhere.
        """
        with quiet_floats():
            partials = (partial for bundle in task.bundles for partial in self._attend(bundle, threads))
            return TaskResult(task, tuple(partials))

    def _attend(self, bundle: Bundle, threads: int) -> Iterator[Partial]:
        queries = [self.source.queries(strip.query) for strip in bundle.strips]
        xp = namespace_of(q=queries[0])
        partial = attend_per_head(
            self.attend,
            queries[0] if len(queries) == 1 else xp.concat(queries, axis=-2),
            [self.source.keys(group) for group in bundle.keys],
            scale=self.problem.scale,
            region=Region(
                queries=tuple(strip.query.tokens for strip in bundle.strips),
                keys=tuple(group.tokens for group in bundle.keys),
                mask=self.problem.mask,
                foreign=bundle.foreign,
                scores=self.scores,
            ),
            threads=threads,
        )
        first = 0
        for strip in bundle.strips:
            rows = slice(first, first + len(strip.query))
            yield Partial(partial.out[..., rows, :], partial.lse[..., rows])
            first = rows.stop
