"""Choosing how to cut the backward pass so that it fits a memory budget. Integers only, and no task is made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isqrt, prod
from operator import itemgetter

from cqs.errors import BudgetError
from cqs.problem import DTYPES, AttentionProblem
from cqs.quorum import CyclicQuorumSet
from cqs.schedule import CallShape, Grain, Plan, Scheduler, Setting, blockwise_block
from cqs.schedule.budget import cover_size, format_bytes_up, head_choices, settings_within, worker_choices
from cqs.schedule.memory import CACHED_TASKS
from cqs.schedule.sizes import bounded_sizes
from cqs.sources import Input
from cqs.units import format_bytes, parse_bytes, plural

__all__ = ["BackwardCandidate", "plan_within"]

_BLOCK_BYTES = (2 << 20, 512 << 10, 64 << 10)  # of blocks of scores that are tried
_BLOCKS = 10  # of scores that array code holds at a time, and what it changes them by
_BASE_BYTES = 1_500_000  # threads, events, mask classification, and whatever else does not grow
_LANES, _KEYS, _VECTOR, _PANEL = 256, 480, 16, 64  # of the compiled loops: see `cqs.backward.numba`
_MORE_SHARES = 3
_MOST_TRIED = 300
_FLOPS, _BYTES, _TASK_SECONDS = 5e10, 2e9, 1e-3  # of a typical thread: a second's, and of a task
_SLOW = {2 << 20: 1.0, 512 << 10: 1.05, 64 << 10: 1.4}  # times of blocks of such bytes, as multiples of the first
_MASK_BYTES = 24 << 16  # of a mask that is evaluated for as many pairs as are taken together


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
    """

    problem: AttentionProblem
    strategy: str
    workers: int
    grain: Grain
    setting: Setting
    is_staged: bool

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
        n_kv, in_flight = call.batch * call.kv_heads, setting.in_flight
        of_keys = n_kv * (p.width + p.value_width)  # numbers of a key and its value
        result = sizes.key_tokens * of_keys * a + sizes.query_rows * call.n_heads * p.width * a
        read = sizes.key_tokens * of_keys * p.itemsize + 3 * sizes.bundle_rows * call.n_heads * p.width * a
        rows = sizes.bundle_rows * call.n_heads * (p.width + 5 * p.value_width + 6) * a
        at_once = result + rows + (read if self.is_staged else 0) + setting.read_bytes
        shares = _MORE_SHARES * sizes.key_tokens * of_keys * a if n_kv <= _MORE_SHARES and call.is_shared else 0
        threads = max(setting.threads, in_flight)
        waiting = result * in_flight if in_flight > 1 else 0
        objects = _BASE_BYTES + (CACHED_TASKS + 2 * in_flight) * sizes.object_bytes
        held = in_flight * (at_once + shares) + waiting + threads * self._scratch_bytes(call)
        return self.gradient_bytes + held + objects

    @property
    def gradient_bytes(self) -> int:
        """The gradients, as sums, and beside them in the inputs' type if that is another."""
        p = self.problem
        a, n = DTYPES[p.accumulator_dtype][0], sum(map(prod, p.input_shapes.values()))
        return n * (a if p.itemsize == a else a + p.itemsize)

    def seconds(self) -> float:
        """Predict its time on a typical machine; of use only to compare with others."""
        p, grain = self.problem, self.grain
        blocks = 1 if grain.kv_heads is None else prod(p.batch) * -(-p.n_kv_heads // grain.kv_heads)
        n_tasks, share = self.workers * blocks, cover_size(self.workers) if self.strategy == "cqs" else 1
        at_once = min(self.setting.in_flight if self.setting.in_flight > 1 else self.setting.threads, n_tasks * 4)
        flops = 2.5 * p.flops(p.n_pairs) * _SLOW[grain.block_bytes]
        moved = 3 * share * sum(map(prod, p.input_shapes.values())) * 4
        return flops / (_FLOPS * at_once) + n_tasks * _TASK_SECONDS / at_once + moved / _BYTES

    def _scratch_bytes(self, call: CallShape) -> int:
        """Bound what a thread computes in: blocks of scores of array code, and the room of compiled loops."""
        rows, columns = blockwise_block(self.grain.block_bytes)
        rows, columns = min(rows, call.n_queries), min(columns, call.n_keys)
        width = call.width + call.value_width
        array = (_BLOCKS * rows * columns + (4 * rows + 6 * columns) * width) * call.itemsize
        array += 3 * call.n_queries * call.width * call.itemsize  # gradients of one head's queries
        mask = (_MASK_BYTES if call.is_evaluated else 32 * rows * columns) if call.is_masked else 0
        if self.setting.kernel != "numba" or call.itemsize != 4:
            return array + mask
        padded = sum(-(-n // _VECTOR) * _VECTOR for n in (call.width, call.value_width))
        room = 4 * _LANES * padded + _KEYS * padded + 9 * _PANEL * 96 + 8 * _LANES
        sums = call.n_keys * padded
        return array + mask + 4 * (room + sums) + self.grain.block_bytes


def plan_within(problem: AttentionProblem, scheduler: Scheduler, inputs: Sequence[Input]) -> Plan:
    """Return the plan of the candidate that is predicted to be fastest among those that fit.

    Parameters
    ----------
    problem : AttentionProblem
        What was computed.
    scheduler : Scheduler
        With a budget; its strategy, workers and setting say what may be taken.
    inputs : sequence of Input
        What is read.

    Raises
    ------
    OptionError
        If the strategy does not fit the problem or the budget.
    BudgetError
        Naming the least that works.
    """
    memory, workers = parse_bytes("memory", scheduler.memory), scheduler.workers
    families = list(_families(problem, scheduler, inputs))
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

    def at(self, W: int) -> BackwardCandidate:
        """Return the one with so many workers."""
        row_groups = None if self.strategy == "cqs" else max(isqrt(W), 1)
        grain = Grain(self.kv_heads, row_groups, block_bytes=self.block_bytes)
        return BackwardCandidate(self.problem, self.strategy, W, grain, self.setting, self.is_staged)

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


def _families(problem: AttentionProblem, scheduler: Scheduler, inputs: Sequence[Input]) -> Iterator[_Family]:
    setting = replace(scheduler.setting, read_bytes=max(x.read_bytes for x in inputs))
    one_by_one = replace(setting, in_flight=1) if setting.threads > 1 else setting  # on all threads, or on fewer
    for strategy in scheduler.strategies_for(problem):
        fewer = [own for own in settings_within(problem, strategy, one_by_one) if not own.is_spilled]
        settings = [setting, *fewer] if setting.threads > 1 else fewer
        for own, kv_heads, block_bytes in product(settings, head_choices(problem), _BLOCK_BYTES):
            yield _Family(problem, strategy, kv_heads, block_bytes, own, any(x.is_staged for x in inputs))
