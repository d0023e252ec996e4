"""Choosing how to cut the backward pass so that it fits a memory budget. No task is made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isqrt, prod
from operator import itemgetter

from cqs.backward.bias import BiasShape
from cqs.errors import BudgetError
from cqs.problem import DTYPES, AttentionProblem
from cqs.quorum import CyclicQuorumSet
from cqs.schedule import CallShape, Grain, Plan, Scheduler, Setting, blockwise_block
from cqs.schedule.budget import cover_size, format_bytes_up, head_choices, settings_within, worker_choices
from cqs.schedule.grain import n_head_blocks
from cqs.schedule.memory import CACHED_TASKS
from cqs.schedule.scratch import BACKWARD_SHARES, backward_bytes, mask_bytes
from cqs.schedule.sizes import bounded_sizes
from cqs.sources import Input
from cqs.units import format_bytes, parse_bytes, plural

__all__ = ["BackwardCandidate", "plan_within"]

_SLOW = {2 << 20: 1.0, 512 << 10: 1.05, 64 << 10: 1.4}  # blocks of scores that are tried, and times of array code
_BLOCKS, _CHANGES = 4, 5  # of scores that array code holds at a time; and what it changes them by
_BASE_BYTES = 1_500_000  # threads, events, mask classification, and whatever else does not grow
_MOST_TRIED = 300
_FLOPS, _BYTES, _TASK_SECONDS = 5e10, 2e9, 1e-3  # of a typical thread: a second's, and of a task
_MASK_BLOCKS = 4  # of bytes, one for each pair of a block, that say what is hidden


@dataclass(frozen=True, slots=True)
class BackwardCandidate:
    """One way to run the backward pass of a problem.

    Parameters
    ----------
    problem : AttentionProblem
        What was computed.
    strategy : {"cqs", "tiles"}
        How scores are cut.
    workers : int
        W.
    grain, setting : Grain, Setting
        As of `Plan`.
    is_staged : bool
        Whether inputs are read into memory.
    bias : BiasShape, optional
        Of a bias whose gradient is asked for.
    """

    problem: AttentionProblem
    strategy: str
    workers: int
    grain: Grain
    setting: Setting
    is_staged: bool
    bias: BiasShape | None = None

    def plan(self) -> Plan:
        """Return the plan."""
        base = CyclicQuorumSet(self.workers).base if self.strategy == "cqs" else None
        return Plan(self.problem, self.strategy, self.workers, base, self.grain, self.setting)

    def held_bytes(self) -> int:
        """Return the most that it may hold: the gradients, what tasks in flight hold, and those that wait."""
        p, setting, grain = self.problem, self.setting, self.grain
        size = cover_size(self.workers) if self.strategy == "cqs" else 0
        sizes = bounded_sizes(p, self.strategy, self.workers, size, grain, setting)
        call, a = CallShape.of(p, grain.kv_heads, sizes), DTYPES[p.accumulator_dtype][0]
        n_kv, in_flight = call.batch * call.kv_heads, min(setting.in_flight, self.n_tasks)
        keys = sizes.key_tokens * n_kv * (p.width + p.value_width)  # numbers of all keys of a task, and their values
        rows = sizes.bundle_rows * call.n_heads  # of a bundle's queries
        result = (keys + sizes.query_rows * call.n_heads * p.width) * a
        beside = 0
        if self.bias is not None:
            strips = 2 * size * size if self.strategy == "cqs" else 1  # where tiles are given out by their work
            of_task = call, strips, sizes.query_rows, sizes.key_tokens
            beside = self.bias.most_beside(*of_task) * a
            # what a single task adds becomes the gradient
            result += self.bias.most_of_task(*of_task) * a if self.n_tasks > 1 else 0
        read = keys * p.itemsize + rows * (p.width + 2 * p.value_width) * a if self.is_staged else 0
        # queries, outputs and their gradients side by side, and products of the latter, of which delta is the sum
        joined = rows * (p.width + 5 * p.value_width + 6) * a
        shares = (BACKWARD_SHARES - 1) * keys * a if n_kv < BACKWARD_SHARES and call.is_shared else 0
        at_once = result + read + joined + shares + setting.read_bytes
        waiting = result * in_flight if in_flight > 1 else 0
        scratch = max(setting.threads, setting.in_flight) * (self._scratch_bytes(call) + beside)
        objects = _BASE_BYTES + (CACHED_TASKS + 2 * in_flight) * sizes.object_bytes
        return self.gradient_bytes + in_flight * at_once + waiting + scratch + objects

    @property
    def n_tasks(self) -> int:
        """How many tasks there are."""
        return self.workers * n_head_blocks(self.problem, self.grain.kv_heads)

    @property
    def gradient_bytes(self) -> int:
        """The gradients, as sums, and beside them in the type of what they are of, if that is another."""
        p = self.problem
        a, n = DTYPES[p.accumulator_dtype][0], sum(map(prod, p.input_shapes.values()))
        found = n * (a if p.itemsize == a else a + p.itemsize)
        if self.bias is not None:
            found += prod(self.bias.whole) * (a if self.bias.itemsize == a else a + self.bias.itemsize)
        return found

    def seconds(self) -> float:
        """Predict its time on a typical machine; of use only to compare with others."""
        p, grain = self.problem, self.grain
        n_tasks, share = self.n_tasks, cover_size(self.workers) if self.strategy == "cqs" else 1
        at_once = min(self.setting.in_flight if self.setting.in_flight > 1 else self.setting.threads, n_tasks * 4)
        flops = 2.5 * p.flops(p.n_pairs) * (1 if self._is_compiled else _SLOW[grain.block_bytes])
        moved = 3 * share * sum(map(prod, p.input_shapes.values())) * 4
        return flops / (_FLOPS * at_once) + n_tasks * _TASK_SECONDS / at_once + moved / _BYTES

    def _scratch_bytes(self, call: CallShape) -> int:
        """Bound what a thread computes in: blocks of scores of array code, and the room of compiled loops."""
        rows, columns = blockwise_block(self.grain.block_bytes)
        rows, columns = min(rows, call.n_queries), min(columns, call.n_keys)
        width = call.width + call.value_width
        blocks = _BLOCKS + _CHANGES * self.setting.has_scores
        array = (blocks * rows * columns + (4 * rows + 6 * columns) * width) * call.itemsize
        array += 3 * call.n_queries * call.width * call.itemsize  # gradients of one head's queries
        mask = mask_bytes(call, rows) + _MASK_BLOCKS * rows * columns * call.is_masked
        if not self._is_compiled:
            return array + mask
        tables = self.grain.block_bytes
        return array + mask + tables + backward_bytes(call.n_keys, call.width, call.value_width)

    @property
    def _is_compiled(self) -> bool:
        return self.setting.kernel == "numba" and self.problem.accumulator_dtype == "float32"


def plan_within(
    problem: AttentionProblem, scheduler: Scheduler, inputs: Sequence[Input], bias: BiasShape | None = None
) -> Plan:
    """Return the plan of the candidate that is predicted to be fastest among those that fit.

    Parameters
    ----------
    problem : AttentionProblem
        What was computed.
    scheduler : Scheduler
        With a budget; its strategy, workers and setting say what may be taken.
    inputs : sequence of Input
        What is read.
    bias : BiasShape, optional
        Of a bias whose gradient is asked for.

    Raises
    ------
    OptionError
        If the strategy does not fit the problem or the budget.
    BudgetError
        Naming the least that works.
    """
    memory, workers = parse_bytes("memory", scheduler.memory), scheduler.workers
    families = list(_families(problem, scheduler, inputs, bias))
    fitting = [found for family in families if (found := family.first_within(workers, memory)) is not None]
    if fitting:
        return min(fitting, key=lambda candidate: candidate.seconds()).plan()
    candidates = (family.at(W) for family in families for W in family.choices(workers))
    held, least = min(((candidate.held_bytes(), candidate) for candidate in candidates), key=itemgetter(0))
    rule = f"be at least {format_bytes_up(held)} ({least.strategy}, {plural(least.workers, 'task')})"
    remedy = f"raise it: the gradients themselves take {format_bytes(least.gradient_bytes)}"
    raise BudgetError.of("memory", rule, format_bytes(memory), remedy)


@dataclass(frozen=True, slots=True)
class _Family:
    """Candidates that differ in the number of workers."""

    problem: AttentionProblem
    strategy: str
    kv_heads: int | None
    block_bytes: int
    setting: Setting
    is_staged: bool
    bias: BiasShape | None

    def at(self, W: int) -> BackwardCandidate:
        """Return the one with so many workers."""
        row_groups = None if self.strategy == "cqs" else max(isqrt(W), 1)
        grain = Grain(self.kv_heads, row_groups, block_bytes=self.block_bytes)
        return BackwardCandidate(self.problem, self.strategy, W, grain, self.setting, self.is_staged, self.bias)

    def choices(self, workers: int | None) -> Sequence[int]:
        """Return the numbers of workers that are tried."""
        if workers is not None:
            return [workers]
        found = worker_choices(self.problem, self.strategy)
        if len(found) <= _MOST_TRIED:
            return found
        return [found[i] for i in sorted({int(1.3**n) - 1 for n in range(64)}) if i < len(found)]

    def first_within(self, workers: int | None, memory: int) -> BackwardCandidate | None:
        """Return the one with the fewest workers that holds at most so many bytes."""
        return next((c for c in map(self.at, self.choices(workers)) if c.held_bytes() <= memory), None)


def _families(
    problem: AttentionProblem, scheduler: Scheduler, inputs: Sequence[Input], bias: BiasShape | None
) -> Iterator[_Family]:
    setting = replace(scheduler.setting, read_bytes=max(x.read_bytes for x in inputs))
    one_by_one = replace(setting, in_flight=1) if setting.threads > 1 else setting  # on all threads, or on fewer
    for strategy in scheduler.strategies_for(problem):
        fewer = [own for own in settings_within(problem, strategy, one_by_one) if not own.is_spilled]
        settings = [setting, *fewer] if setting.threads > 1 else fewer
        for own, kv_heads, block_bytes in product(settings, head_choices(problem), _SLOW):
            yield _Family(problem, strategy, kv_heads, block_bytes, own, any(x.is_staged for x in inputs), bias)
