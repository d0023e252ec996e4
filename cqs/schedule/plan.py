"""The plan: a problem and how it is cut into tasks. Made before anything is allocated, and small for any W."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, Self

from cqs.checks import whole_number
from cqs.errors import CQSError, OptionError
from cqs.masks import Coverage
from cqs.problem import DTYPES, AttentionProblem
from cqs.quorum import CyclicQuorumSet
from cqs.schedule.bundling import bundled
from cqs.schedule.layout import BalancedLayout, GridLayout, Layout, QuorumLayout
from cqs.schedule.task import Strip, Task
from cqs.units import format_bytes, format_count

__all__ = ["Plan"]

_FORMAT = "cqs.plan/1"


@dataclass(frozen=True, slots=True)
class Plan:
    """Which task computes which tiles. Tasks are made when asked for, never all at once.

    Parameters
    ----------
    problem : AttentionProblem
        What is to be computed.
    strategy : {"cqs", "tiles"}
        How the score matrix is cut: by a cyclic quorum set (self-attention), or by a grid of rectangles.
    workers : int
        W, the number of tasks.
    base : tuple of int or None
        The difference cover, for "cqs".

    Notes
    -----
    A plan fixes every tile, block and order of merging, so that running it gives bitwise the same output on any
    number of threads and in whatever order its tasks finish.
    """

    problem: AttentionProblem
    strategy: str
    workers: int
    base: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "workers", whole_number("workers", self.workers, 1, "see `Scheduler`"))
        if self.strategy not in ("cqs", "tiles") or (self.base is None) != (self.strategy == "tiles"):
            rule, got = 'be "cqs" with a base, or "tiles" without', f"{self.strategy!r} with base {self.base}"
            raise OptionError.of("strategy", rule, got, "let `Scheduler` make the plan")
        if self.base is not None:
            object.__setattr__(self, "base", CyclicQuorumSet(self.workers, self.base).base)

    def __len__(self) -> int:
        return self.workers

    def task(self, i: int) -> Task:
        """Return task i, with the tiles that the mask leaves empty dropped. O(W log W)."""
        if whole_number("i", i, 0, "tasks count from 0") >= self.workers:
            raise OptionError.of("i", f"be a task in 0..{self.workers - 1}", i, "`len(plan)` is the number of tasks")
        return _task(self, i)

    def tasks(self) -> Iterator[Task]:
        """Return the tasks in order, each made when it is reached."""
        return (self.task(i) for i in range(self.workers))

    def load(self, task: Task) -> int:
        """Return the visible pairs that a task computes, of one head or of all that the mask differs between."""
        count = self.problem.mask.count
        return sum(count(tile.query.tokens, tile.key.tokens) for tile in task.tiles)

    def loads(self) -> list[int]:
        """Return `load` of every task; they add up to `problem.n_pairs`."""
        return [self.load(task) for task in self.tasks()]

    def held_bytes(self, task: Task) -> int:
        """Return the bytes of queries, keys and values that a task reads."""
        n_queries = sum(len(group) for group in task.query_groups)
        n_keys = sum(len(group) for group in task.key_groups)
        return self.problem.input_bytes(n_queries, n_keys)

    def partial_bytes(self, task: Task) -> int:
        """Return the bytes of a task's result: output and lse, in the accumulator's type, for each of its strips."""
        p = self.problem
        n_rows = sum(len(strip.query) for strip in task.strips)
        return n_rows * p.n_batch_heads * (p.value_width + 1) * DTYPES[p.accumulator_dtype][0]

    def to_json(self) -> str:
        """Write the plan as JSON; it holds what the tasks follow from, not the tasks."""
        values = {"format": _FORMAT, "strategy": self.strategy, "workers": self.workers, "base": self.base}
        return json.dumps(values | {"problem": self.problem.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; the cover is verified again."""
        try:
            values: dict[str, Any] = json.loads(text)
            if values["format"] != _FORMAT:
                raise ValueError(f"the format {values['format']!r}")
            base = None if values["base"] is None else tuple(values["base"])
            return cls(AttentionProblem.from_dict(values["problem"]), values["strategy"], values["workers"], base)
        except CQSError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            rule, got = f"be a plan in the format {_FORMAT}", f"{type(error).__name__}: {error}"
            raise OptionError.of("text", rule, got, "was it written by `Plan.to_json` of another cqs?") from None

    def __str__(self) -> str:
        p, first = self.problem, self.task(0)
        cut = f"cyclic quorum set with base {self.base}" if self.base else "grid of equal rectangles"
        return "\n".join(
            [
                f"Plan: {self.workers} tasks, {cut}",
                f"  problem   q {(*p.batch, p.n_heads, p.n_queries, p.width)}, "
                f"k {(*p.batch, p.n_kv_heads, p.n_keys, p.width)}, E = {p.value_width}, {p.dtype}, {p.mask}",
                f"  work      {format_count(p.flops(p.n_pairs))}FLOP over {format_count(p.n_pairs)} pairs a head",
                f"  task 0    reads {format_bytes(self.held_bytes(first))}, "
                f"returns {format_bytes(self.partial_bytes(first))}, {format_count(self.load(first))} pairs a head",
            ]
        )


@lru_cache(maxsize=64)
def _layout(plan: Plan) -> Layout:
    p = plan.problem
    if plan.base is None:
        return GridLayout(p.n_queries, p.n_keys, plan.workers)
    quorums = CyclicQuorumSet(plan.workers, plan.base)
    if BalancedLayout.is_worth(plan.workers, p.mask):
        return BalancedLayout(p.n_queries, quorums, p.mask)
    return QuorumLayout(p.n_queries, quorums)


@lru_cache(maxsize=64)
def _task(plan: Plan, i: int) -> Task:
    mask = plan.problem.mask
    tiles = (tile for tile in _layout(plan).tiles(i) if tile.query and tile.key)
    if not mask.hides_nothing:
        tiles = (t for t in tiles if mask.classify(t.query.tokens, t.key.tokens) is not Coverage.EMPTY)
    of_queries = groupby(tiles, key=lambda tile: tile.query)
    return Task(i, tuple(bundled(Strip(query, tuple(t.key for t in of_query)) for query, of_query in of_queries)))
