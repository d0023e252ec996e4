"""The plan: a problem and how it is cut into tasks. Made before anything is allocated, and small for any W."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache, wraps
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary

from cqs.checks import whole_number
from cqs.errors import CQSError, OptionError
from cqs.problem import AttentionProblem
from cqs.quorum import CyclicQuorumSet
from cqs.schedule.bundling import bundled_rows
from cqs.schedule.cost import Rates, Run
from cqs.schedule.cut import Cut
from cqs.schedule.grain import Grain, Setting, head_block, n_head_blocks
from cqs.schedule.layout import Layout
from cqs.schedule.making import bundles_of, layout_of
from cqs.schedule.memory import CACHED_TASKS, Footprint, SlotBytes, footprint, slot_bytes
from cqs.schedule.sizes import (
    TaskSizes,
    bounded_sizes,
    counted_sizes,
    heaviest_rows,
    n_tiles_of_task,
    result_dtype,
    rows_pending,
)
from cqs.schedule.task import Read, Task, reads
from cqs.schedule.traffic import TaskReads, Traffic, estimated_reads, reads_of, traffic
from cqs.units import format_bytes, format_count, plural, shortened

__all__ = ["Plan"]

_FORMAT = "cqs.plan/1"
PLANNED = ("cqs", "tiles", "ring", "tree")
_MOST_COUNTED = 500  # tasks that are looked at one by one, less than half a second's work

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Plan:
    """Which task computes which tiles. Tasks are made when asked for, never all at once.

    Parameters
    ----------
    problem : AttentionProblem
        What is to be computed.
    strategy : {"cqs", "tiles", "ring", "tree"}
        How the score matrix is cut: by a cyclic quorum set (self-attention), by a grid of rectangles, or, to compare
        with, by rows of queries that keys pass by, or by columns of keys whose results are reduced.
    workers : int
        W, into how many tasks. Where tasks are cut by heads, too, there are W for each block of heads.
    base : tuple of int or None
        The difference cover, for "cqs".
    grain : Grain
        How finely the work is cut beyond that.
    setting : Setting
        What the plan runs on and with.

    Notes
    -----
    A plan fixes every tile, block and order of merging, so that running it gives bitwise the same output on any
    number of threads and in whatever order its tasks finish.
    """

    problem: AttentionProblem
    strategy: str
    workers: int
    base: tuple[int, ...] | None = None
    grain: Grain = Grain()  # noqa: RUF009  # frozen
    setting: Setting = field(default_factory=Setting)

    def __post_init__(self) -> None:
        object.__setattr__(self, "workers", whole_number("workers", self.workers, 1, "see `Scheduler`"))
        if self.strategy not in PLANNED or (self.base is None) == (self.strategy == "cqs"):
            rule = f'be "cqs" with a base, or one of {", ".join(PLANNED[1:])} without'
            got = f"{self.strategy!r} with base {self.base}"
            raise OptionError.of("strategy", rule, got, "let `Scheduler` make the plan")
        if self.base is not None:
            object.__setattr__(self, "base", CyclicQuorumSet(self.workers, self.base).base)

    def __len__(self) -> int:
        return self.workers * n_head_blocks(self.problem, self.grain.kv_heads)

    def task(self, i: int) -> Task:
        """Return task i, with the tiles that the mask leaves empty dropped. O(W log W)."""
        if whole_number("i", i, 0, "tasks count from 0") >= len(self):
            raise OptionError.of("i", f"be a task in 0..{len(self) - 1}", i, "`len(plan)` is the number of tasks")
        return _tasks(self)(i)

    def tasks(self) -> Iterator[Task]:
        """Return the tasks in order, each made when it is reached."""
        return (self.task(i) for i in range(len(self)))

    def reads(self, tasks: Iterable[int] | None = None) -> Iterator[tuple[int, Read, int]]:
        """Yield task by task, of all or of some, what a worker reads for it, in order, and the bytes of each."""
        return (read for i in (range(len(self)) if tasks is None else tasks) for read in self.reads_of(self.task(i)))

    def reads_of(self, task: Task) -> Iterator[tuple[int, Read, int]]:
        """Yield what a worker reads for a task, in order: the task's number, what, and the bytes of it."""
        p, n_heads = self.problem, self._n_heads(task)
        n_kv_heads = n_heads * p.n_kv_heads // p.n_heads
        a_token = {"queries": n_heads * p.width, "keys": n_kv_heads * (p.width + p.value_width)}
        for read in reads(task, self.grain.keys):
            yield task.index, read, a_token[read.what] * p.itemsize * len(read.group)

    @property
    def cut(self) -> Cut:
        """How it cuts the problem, whatever it runs on."""
        return Cut(self.strategy, self.workers, self.base, self.grain)

    def completes(self, i: int) -> range:
        """Return the queries, of its heads, that are complete once task i has come after all before it."""
        return _layout(self).completes(i % self.workers)

    @property
    def completes_each(self) -> bool:
        """Whether every task completes the queries that it computes."""
        return self._rows_pending == 0

    @property
    def _rows_pending(self) -> int:
        return rows_pending(self.problem, self.strategy, self.workers, self.grain)

    def load(self, task: Task) -> int:
        """Return the visible pairs that a task computes, of one head or of all that the mask differs between."""
        count = self.problem.mask.count
        return sum(count(tile.query.tokens, tile.key.tokens) for tile in task.tiles)

    def loads(self) -> list[int]:
        """Return `load` of every task; of each block of heads they add up to `problem.n_pairs`."""
        return [self.load(task) for task in self.tasks()]

    def held_bytes(self, task: Task) -> int:
        """Return the bytes of queries, keys and values that a task reads."""
        n_queries = sum(len(group) for group in task.query_groups)
        n_keys = sum(len(group) for group in task.key_groups)
        return self.problem.input_bytes(n_queries, n_keys) * self._n_heads(task) // max(self.problem.n_batch_heads, 1)

    def partial_bytes(self, task: Task) -> int:
        """Return the bytes of a task's result: output, in the type of results, lse and its rest, for each strip."""
        n_rows = sum(len(strip.query) for strip in task.strips)
        return n_rows * self._n_heads(task) * self.problem.row_bytes(self.result_dtype, self.setting.n_sums)

    @property
    def result_dtype(self) -> str:
        """The type of the output in results of tasks: the accumulators', or that of the whole if a device rounds it."""
        return result_dtype(self.problem, self.setting, self._rows_pending)

    @property
    def keeps_sums_on_device(self) -> bool:
        """Whether results stay on the device that computes them, and are merged there."""
        return self.setting.sums_on_device and not self.completes_each

    @property
    def footprint(self) -> Footprint:
        """The most bytes that a run holds beyond the caller's arrays, by what they are for."""
        return footprint(self.problem, _sizes(self), self.grain, self.setting, self._rows_pending)

    @property
    def slot_bytes(self) -> SlotBytes:
        """With devices, what of these bytes is for keys, and what for queries, that are copied to each of them."""
        return slot_bytes(self.problem, _sizes(self), self.grain, self.setting, self._rows_pending)

    @property
    def projected_bytes(self) -> int:
        """The most bytes that a run holds beyond the caller's arrays."""
        return self.footprint.total

    @property
    def traffic(self) -> Traffic:
        """The bytes that a run moves."""
        return traffic(self.problem, _reads(self), self.setting, self.result_dtype)

    @property
    def is_counted(self) -> bool:
        """Whether `traffic` is exact: not where it is an estimate from above, of very many tasks under a mask."""
        return self.workers <= _MOST_COUNTED or self.problem.mask.hides_nothing

    def seconds(self, rates: Rates | None = None) -> float:
        """Predict the time of a run on a machine of such rates, by default a typical one."""
        rates = rates or Rates.typical(self.setting)
        p, blocks = self.problem, n_head_blocks(self.problem, self.grain.kv_heads)
        run = Run(
            p.flops(p.n_pairs), self.traffic, self.workers, blocks, _reads(self), self.setting,
            is_streamed=self.grain.keys is not None, is_summed=not self.completes_each,
            heaviest=heaviest_rows(p, self.strategy, self.grain, self.setting),
            n_tiles=n_tiles_of_task(self.strategy, self.workers),
        )  # fmt: skip
        return run.seconds(rates)

    def _n_heads(self, task: Task) -> int:
        return self.problem.n_batch_heads if task.heads is None else len(task.heads.queries)

    def to_json(self) -> str:
        """Write the plan as JSON; it holds what the tasks follow from, not the tasks."""
        values = {"format": _FORMAT} | self.cut.to_dict()
        return json.dumps(values | {"setting": asdict(self.setting), "problem": self.problem.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; the cover is verified again."""
        try:
            values: dict[str, Any] = json.loads(text)
            if values["format"] != _FORMAT:
                raise ValueError(f"the format {values['format']!r}")
            cut, setting = Cut.from_dict(values), Setting(**values["setting"])
            problem = AttentionProblem.from_dict(values["problem"])
            return cls(problem, cut.strategy, cut.workers, cut.base, cut.grain, setting)
        except CQSError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            rule, got = f"be a plan in the format {_FORMAT}", f"{type(error).__name__}: {error}"
            raise OptionError.of("text", rule, got, "was it written by `Plan.to_json` of another cqs?") from None

    def __str__(self) -> str:
        p, of_first = self.problem, ""
        if len(self):  # a batch may have no entries
            first = self.task(0)
            of_first = (
                f"reads {format_bytes(self.held_bytes(first))}, returns {format_bytes(self.partial_bytes(first))}"
            )
            of_first += f", {format_count(self.load(first))} pairs a head"
        blocks = n_head_blocks(p, self.grain.kv_heads)
        mask = shortened(str(p.mask))
        of_heads = f" for each of {blocks} blocks of heads" if blocks > 1 else ""
        return "\n".join(
            [
                f"Plan: {plural(self.workers, 'task')}{of_heads}, {self._cut()}",
                f"  problem   q {(*p.batch, p.n_heads, p.n_queries, p.width)}, "
                f"k {(*p.batch, p.n_kv_heads, p.n_keys, p.width)}, E = {p.value_width}, {p.dtype}, {mask}",
                f"  work      {format_count(p.flops(p.n_pairs))}FLOP over {format_count(p.n_pairs)} pairs a head",
                *([f"  task 0    {of_first}"] if of_first else []),
                f"  memory    {format_bytes(self.projected_bytes)}: {self.footprint}",
                *([f"  kernel    {self.computed_by}"] if self.computed_by else []),
            ]
        )

    @property
    def computed_by(self) -> str:
        """The kernel and the devices, and why kernels that would be preferred cannot do it; empty if that is plain."""
        setting = self.setting
        if not setting.devices and not setting.passed_over:
            return ""
        devices = f" on {' and '.join(setting.devices)}" if setting.devices else ""
        reasons = "".join(f"; not {name}: {reason}" for name, reason in setting.passed_over)
        return f"{setting.kernel}{devices}{reasons}"

    def _repr_html_(self) -> str:
        from html import escape

        title, *lines = str(self).splitlines()
        rows = "".join(f"<tr><th>{escape(line[:12].strip())}</th><td>{escape(line[12:])}</td></tr>" for line in lines)
        return f"<b>{escape(title)}</b><table>{rows}</table>"

    def _cut(self) -> str:
        if self.base is not None:
            return f"cyclic quorum set with base {shortened(str(self.base))}"
        return {"tiles": "grid of equal rectangles", "ring": "ring of key groups", "tree": "tree over key groups"}[
            self.strategy
        ]


def _kept(function: Callable[[Plan], _T]) -> Callable[[Plan], _T]:
    """Remember a function of a plan for as long as the plan lives: longer, its mask's arrays would live on, too."""
    found: WeakKeyDictionary[Plan, _T] = WeakKeyDictionary()

    @wraps(function)
    def remembered(plan: Plan) -> _T:
        try:
            return found[plan]
        except KeyError:
            return found.setdefault(plan, function(plan))

    return remembered


@_kept
def _layout(plan: Plan) -> Layout:
    return layout_of(plan.problem, plan.strategy, plan.workers, plan.base, plan.grain.row_groups)


@_kept
def _tasks(plan: Plan) -> Callable[[int], Task]:
    """Return what makes the tasks of a plan, and remembers the last of them; it does not hold the plan."""
    problem, kv_heads, W, layout = plan.problem, plan.grain.kv_heads, plan.workers, _layout(plan)
    is_trimmed, most_rows = plan.base is None, bundled_rows(problem, plan.grain, plan.setting)

    @lru_cache(maxsize=CACHED_TASKS)
    def task(i: int) -> Task:
        block, own = divmod(i, W)
        bundles = bundles_of(layout.strips(own), problem.mask, is_trimmed=is_trimmed, most_rows=most_rows)
        return Task(i, bundles, head_block(problem, kv_heads, block))

    return task


@_kept
def _sizes(plan: Plan) -> TaskSizes:
    if plan.workers <= _MOST_COUNTED:
        return counted_sizes(map(plan.task, range(min(plan.workers, len(plan)))), plan.grain)
    size = len(plan.base or ())
    return bounded_sizes(plan.problem, plan.strategy, plan.workers, size, plan.grain, plan.setting)


@_kept
def _reads(plan: Plan) -> TaskReads:
    if plan.workers <= _MOST_COUNTED:
        return reads_of(map(plan.task, range(min(plan.workers, len(plan)))), plan.strategy, plan.grain)
    size = len(plan.base or ())
    return estimated_reads(plan.problem, plan.strategy, plan.workers, size, plan.grain, plan.setting)
