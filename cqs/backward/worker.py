"""The worker of the backward pass: a task becomes what its pairs add to the gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from cqs.backend import dtype_of, namespace_of, quiet_floats
from cqs.backward.bias import BiasShape
from cqs.backward.heads import Differentiate, differentiate_per_head
from cqs.backward.kernel import QueryRows
from cqs.backward.source import GradientSource
from cqs.events import Emit, Event, task_events
from cqs.kernels import KeyChunk, Region
from cqs.problem import AttentionProblem
from cqs.reading import Feed
from cqs.schedule import Bundle, Grain, Task
from cqs.scores import Scores
from cqs.types import Array

__all__ = ["GradientResult", "GradientWorker"]


@dataclass(frozen=True, slots=True, eq=False)
class GradientResult:
    """What the pairs of a task add to the gradients.

    Parameters
    ----------
    task : Task
        Of a plan.
    queries : tuple of array
        For each of its strips `(*B, H, t, D)`, or `(h, t, D)` for the h heads of a task that has its own.
    keys : tuple of KeyChunk
        For each of its groups of keys `(*B, G, s, D)` and `(*B, G, s, E)`, or with g in place of `*B, G`.
    events : tuple of Event
        What happened meanwhile, if nobody was told at once.
    bias : tuple of array
        If it is asked for, for each of its bundles what is added to the gradient of the bias: `(*B, H, t, s)` or
        `(h, t, s)`, where those axes are 1 that are 1 of the bias.
    """

    task: Task
    queries: tuple[Array, ...]
    keys: tuple[KeyChunk, ...]
    events: tuple[Event, ...] = ()
    bias: tuple[Array, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class GradientWorker:
    """Runs the tasks of a plan backwards. It talks to no one and keeps nothing.

    Parameters
    ----------
    problem : AttentionProblem
        Scale and mask are taken from it.
    source : GradientSource
        What the groups of a task are read from.
    differentiate : function
        Computes gradients of all heads.
    scores : Scores, optional
        What is done to scores before the mask; no `score_mod`, whose derivative nobody knows.
    grain : Grain
        How large blocks of scores are, as of the plan.
    emit : function, optional
        Told of every `cqs.events.Event`, from any thread.
    records : bool
        Whether events come back with the result, as from another process.
    bias : BiasShape, optional
        Of a bias whose gradient is asked for.
    """

    problem: AttentionProblem
    source: GradientSource
    differentiate: Differentiate
    scores: Scores | None = None
    grain: Grain = Grain()  # noqa: RUF009  # frozen
    emit: Emit = None
    records: bool = False
    bias: BiasShape | None = None

    def run(self, task: Task, threads: int = 1, feed: Feed | None = None) -> GradientResult:
        """Compute what the tiles that the task owns add to the gradients.

        Parameters
        ----------
        task : Task
            What to compute.
        threads : int
            How many threads heads, or rows, are shared out to; the result does not depend on it.
        feed : Feed, optional
            Not used: what is read is read when it is wanted.

        Returns
        -------
        GradientResult
            The same task always gives the same result, bit for bit. About 2.5 times the operations of attention.
        """
        with task_events(task.index, self.emit, self.records) as (_, events), quiet_floats():
            keys = {group: self.source.keys(group, task.heads) for group in task.key_groups}
            sums = {group: KeyChunk(*(self._zeros(x.shape, x) for x in chunk)) for group, chunk in keys.items()}
            queries: list[Array] = []
            of_bias: list[Array] = []
            for bundle in task.bundles:
                own_keys, own_sums = ([some[group] for group in bundle.keys] for some in (keys, sums))
                if self.bias is not None:
                    of_bias.append(self._zeros(self.bias.part(bundle, task.heads), own_keys[0].k))
                bias_sums = of_bias[-1] if of_bias else None
                queries += self._bundle(task, bundle, own_keys, own_sums, bias_sums, threads)
        of_keys = tuple(sums[group] for group in task.key_groups)
        return GradientResult(task, tuple(queries), of_keys, tuple(events), tuple(of_bias))

    def _bundle(
        self,
        task: Task,
        bundle: Bundle,
        chunks: list[KeyChunk],
        sums: list[KeyChunk],
        bias_sums: Array | None,
        threads: int,
    ) -> Iterator[Array]:
        """Add what the pairs of a bundle add to the sums of its keys, and yield it for the queries of each strip."""
        region = Region(
            queries=tuple(strip.query.tokens for strip in bundle.strips),
            keys=tuple(group.tokens for group in bundle.keys),
            mask=self.problem.mask,
            foreign=bundle.foreign,
            scores=self.scores,
        )
        dq = differentiate_per_head(
            self.differentiate,
            _joined([self.source.rows(strip.query, task.heads) for strip in bundle.strips]),
            chunks,
            sums,
            scale=self.problem.scale,
            region=region,
            threads=threads,
            block_bytes=self.grain.block_bytes,
            first=((), 0) if task.heads is None else (task.heads.batch, task.heads.queries.start),
            bias_sums=bias_sums,
        )
        ends = list(accumulate((len(strip.query) for strip in bundle.strips), initial=0))
        return (dq[..., start:stop, :] for start, stop in pairwise(ends))

    def _zeros(self, shape: tuple[int, ...], like: Array) -> Array:
        xp = namespace_of(like=like)
        return xp.zeros(shape, dtype=dtype_of(xp, self.problem.accumulator_dtype), device=like.device)


def _joined(parts: Sequence[QueryRows]) -> QueryRows:
    """Put the rows of small strips side by side."""
    if len(parts) == 1:
        return parts[0]
    xp = namespace_of(q=parts[0].q)
    q, dout, lse, delta = zip(*parts, strict=True)
    return QueryRows(
        xp.concat(q, axis=-2), xp.concat(dout, axis=-2), xp.concat(lse, axis=-1), xp.concat(delta, axis=-1)
    )
