"""The Worker: a task and a source become partial results. It talks to no one and keeps nothing."""

from dataclasses import dataclass

from cqs.kernels import Attend
from cqs.partial import Partial
from cqs.problem import AttentionProblem
from cqs.schedule import Task
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
    threads : int
        How many threads the kernel may compute on.
    """

    problem: AttentionProblem
    source: Source
    attend: Attend
    threads: int = 1

    def run(self, task: Task) -> TaskResult:
        """Compute the tiles that the task owns, strip by strip.

        The same task always gives the same result, bit for bit, so it may be run again anywhere.
        """
        partials = []
        for strip in task.strips:
            chunks = [self.source.keys(group) for group in strip.keys]
            partials.append(
                self.attend(
                    self.source.queries(strip.query),
                    chunks,
                    scale=self.problem.scale,
                    mask=self.problem.mask,
                    q_start=strip.query.start,
                    threads=self.threads,
                )
            )
        return TaskResult(task, tuple(partials))
