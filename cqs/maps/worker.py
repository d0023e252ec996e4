"""The worker of a map: a task becomes what its tiles add to the bins that its tokens are in."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from cqs.backend import Workspace, compute_threads, dtype_of, namespace_of, quiet_floats
from cqs.events import Emit, Event, task_events
from cqs.kernels import Region
from cqs.maps.bins import Bins
from cqs.maps.kernel import Sums, sum_weights
from cqs.masks.mask import Integers
from cqs.problem import AttentionProblem
from cqs.reading import Feed
from cqs.schedule import Bundle, Grain, Group, Task
from cqs.scores import Scores
from cqs.sources import Input
from cqs.types import Array

__all__ = ["MapResult", "MapWorker"]


@dataclass(frozen=True, slots=True, eq=False)
class MapResult:
    """What the tiles of a task add to a map.

    Parameters
    ----------
    task : Task
        Of a plan.
    rows, columns : int64, `(r,)` and `(c,)`
        The bins of its queries and of its keys, in increasing order.
    sums : float64, `(*B, H, r, c)`
        Sums of weights.
    events : tuple of Event
        What happened meanwhile, if nobody was told at once.
    """

    task: Task
    rows: Integers
    columns: Integers
    sums: Sums
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class MapWorker:
    """Runs the tasks of a plan for a map. It talks to no one and keeps nothing.

    Parameters
    ----------
    problem : AttentionProblem
        Scale and mask are taken from it; values play no part.
    q, k, lse : Input, `(*B, H, T, D)`, `(*B, G, S, D)`, `(*B, H, T, 1)`
        Queries, keys, log-sum-exps.
    bins : two of Bins
        Of queries and of keys.
    scores : Scores, optional
        What is done to scores before the mask.
    grain : Grain
        How large blocks of scores are, as of the plan.
    emit, records
        As of `cqs.Worker`.
    """

    problem: AttentionProblem
    q: Input
    k: Input
    lse: Input
    bins: tuple[Bins, Bins]
    scores: Scores | None = None
    grain: Grain = Grain()  # noqa: RUF009  # frozen
    emit: Emit = None
    records: bool = False

    def run(self, task: Task, threads: int = 1, feed: Feed | None = None) -> MapResult:
        """Sum up the weights of the tiles that the task owns.

        Parameters
        ----------
        task : Task
            What to compute.
        threads : int
            How many threads heads are shared out to; the result does not depend on it.
        feed : Feed, optional
            Not used: what is read is read when it is wanted.

        Returns
        -------
        MapResult
            The same task always gives the same result, bit for bit.
        """
        told = task_events(task.index, self.emit, self.records)
        with told as (_, events), quiet_floats():
            bins = self.bins[0].numbers(_tokens(task.query_groups)), self.bins[1].numbers(_tokens(task.key_groups))
            rows, columns = map(np.unique, bins)
            p = self.problem
            sums = np.zeros((*p.batch, p.n_heads, len(rows), len(columns)))
            keys = {group: self.k.read(None, group.start, group.stop) for group in task.key_groups}
            for bundle in task.bundles:
                self._bundle(bundle, [keys[group] for group in bundle.keys], (rows, columns), sums, threads)
        return MapResult(task, rows, columns, sums, tuple(events))

    def _bundle(
        self, bundle: Bundle, keys: list[Array], own: tuple[Integers, Integers], sums: Sums, threads: int
    ) -> None:
        """Add what the tiles of a bundle have, of all heads."""
        p, groups = self.problem, [strip.query for strip in bundle.strips]
        region = Region(
            queries=tuple(group.tokens for group in groups),
            keys=tuple(group.tokens for group in bundle.keys),
            mask=p.mask,
            foreign=bundle.foreign,
            scores=self.scores,
        )
        q, lse = (_joined([x.read(None, g.start, g.stop) for g in groups]) for x in (self.q, self.lse))
        of_tokens = tuple(
            np.searchsorted(known, bins.numbers(_tokens(of)))
            for known, bins, of in zip(own, self.bins, (groups, bundle.keys), strict=True)
        )
        dtype, shared = dtype_of(namespace_of(q=q), p.accumulator_dtype), p.n_heads // p.n_kv_heads

        def work(item: tuple[tuple[int, ...], int], space: Workspace) -> None:
            b, h = item
            with quiet_floats():  # which holds for one thread only
                sum_weights(
                    q[(*b, h, ...)], lse[(*b, h, ..., 0)], [x[(*b, h // shared, ...)] for x in keys],
                    (of_tokens[0], of_tokens[1]), sums[(*b, h)], scale=p.scale, region=region.at((*b, h)), dtype=dtype,
                    block_bytes=self.grain.block_bytes, space=space,
                )  # fmt: skip

        with compute_threads() as pool:
            pool.share([(b, h) for b in np.ndindex(*p.batch) for h in range(p.n_heads)], work, threads)


def _tokens(groups: Sequence[Group]) -> Integers:
    return np.fromiter(chain.from_iterable(group.tokens for group in groups), np.int64)


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else namespace_of(q=parts[0]).concat(parts, axis=-2)
