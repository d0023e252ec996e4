"""Choosing how to cut a problem so that it fits a memory budget. Integers only, and no task is made.

Every way to run the problem is a *candidate*: a strategy, a block of heads, blocks of some size, a number of threads,
sums in memory or in a scratch file, and a number of workers. What each would hold is bounded by a formula; of those
that fit, the one that is predicted to be fastest is taken.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isqrt, prod
from operator import itemgetter

from cqs.errors import BudgetError
from cqs.problem import AttentionProblem
from cqs.quorum import difference_cover, singer_moduli
from cqs.quorum.finite_field import prime_power
from cqs.schedule.cost import Rates, Run
from cqs.schedule.grain import Grain, Setting, n_head_blocks
from cqs.schedule.memory import footprint
from cqs.schedule.sizes import bounded_sizes, heaviest_rows, n_tiles_of_task, result_dtype, rows_pending
from cqs.schedule.traffic import TaskReads, Traffic, estimated_reads, traffic
from cqs.units import format_bytes, plural

__all__ = [
    "Candidate",
    "best_within",
    "cover_size",
    "format_bytes_up",
    "head_choices",
    "settings_within",
    "worker_choices",
]

# Bytes of a block of scores, queries of a kernel call and keys that are streamed for it; and the speed of a kernel with
# such blocks, as a share of that with the first.
_LEVELS = (
    (2 << 20, 16384, 16384, 1.0),
    (2 << 20, 8192, 8192, 0.97),
    (1 << 20, 4096, 4096, 0.93),
    (1 << 20, 4096, 2048, 0.88),
    (512 << 10, 2048, 2048, 0.8),
    (256 << 10, 1024, 1024, 0.6),
    (64 << 10, 128, 128, 0.2),
)
_DEVICE_LEVELS = (
    (256 << 20, 1 << 20, 1 << 16, 1.0),
    (128 << 20, 1 << 18, 1 << 15, 0.98),
    (64 << 20, 1 << 16, 1 << 14, 0.95),
    (32 << 20, 1 << 14, 1 << 13, 0.85),
    (8 << 20, 4096, 4096, 0.5),
    (1 << 20, 512, 512, 0.1),
    (64 << 10, 128, 128, 0.01),
)
_MOST_WORKERS = 1_000_000
_AS_FAST = 1.01
_TASKS_OF_A_DEVICE = (1, 2, 4, 8, 16, 32)  # that are tried


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a problem.

    Parameters
    ----------
    strategy : {"cqs", "tiles"}
        How scores are cut.
    workers, size : int
        W, and for "cqs" the size of its cover.
    grain, setting : Grain, Setting
        As of `Plan`.
    speed : float
        Of the kernel with such blocks, as a share of its best.
    """

    strategy: str
    workers: int
    size: int
    grain: Grain
    setting: Setting
    speed: float

    def held_bytes(self, problem: AttentionProblem) -> int:
        """Return the most that it may hold, whatever the mask."""
        p, grain = problem, self.grain
        sizes = bounded_sizes(p, self.strategy, self.workers, self.size, grain, self.setting)
        return footprint(p, sizes, grain, self.setting, self._rows_pending(p)).total

    def seconds(self, problem: AttentionProblem, flops: int) -> float:
        """Predict its time on a typical machine."""
        reads, blocks = self._reads(problem), n_head_blocks(problem, self.grain.kv_heads)
        moved = self._moved(problem, reads)
        rates = Rates.typical(self.setting)
        rates = replace(rates, flops=rates.flops * self.speed)
        run = Run(
            flops, moved, self.workers, blocks, reads, self.setting,
            is_streamed=self.grain.keys is not None, is_summed=self._rows_pending(problem) > 0,
            heaviest=heaviest_rows(problem, self.strategy, self.grain, self.setting),
            n_tiles=n_tiles_of_task(self.strategy, self.workers),
        )  # fmt: skip
        return run.seconds(rates)

    def traffic(self, problem: AttentionProblem) -> Traffic:
        """Return about what it moves."""
        return self._moved(problem, self._reads(problem))

    def _moved(self, problem: AttentionProblem, reads: TaskReads) -> Traffic:
        dtype = result_dtype(problem, self.setting, self._rows_pending(problem))
        return traffic(problem, reads, self.setting, dtype)

    def _rows_pending(self, problem: AttentionProblem) -> int:
        return rows_pending(problem, self.strategy, self.workers, self.grain)

    def _reads(self, problem: AttentionProblem) -> TaskReads:
        return estimated_reads(problem, self.strategy, self.workers, self.size, self.grain, self.setting)

    def __str__(self) -> str:
        heads = "all heads" if self.grain.kv_heads is None else plural(self.grain.kv_heads, "key head")
        threads = self.setting.threads if self.setting.in_flight == 1 else self.setting.in_flight
        return f"{self.strategy}, {plural(self.workers, 'task')} for {heads} at a time, {plural(threads, 'thread')}"


def best_within(
    problem: AttentionProblem, strategies: Sequence[str], workers: int | None, setting: Setting, memory: int
) -> Candidate:
    """Return the candidate that is predicted to be fastest among those that hold at most `memory` bytes.

    Of those that are as fast but for a hundredth, which no prediction tells apart, it is the one that moves least.

    Parameters
    ----------
    problem : AttentionProblem
        What is to be computed.
    strategies : sequence of {"cqs", "tiles"}
        Which may be taken.
    workers : int or None
        W, or None for any.
    setting : Setting
        Which says how many threads there are at most.
    memory : int
        The budget in bytes.

    Raises
    ------
    BudgetError
        Naming the least that works.
    """
    setting = replace(setting, memory=memory)
    flops = problem.flops(problem.n_pairs)
    fitting = []
    for family in _families(problem, strategies, setting):
        least = family.first_within(problem, memory) if workers is None else workers
        if least is not None:
            tried = map(family.at, [least] if workers else family.worth_a_try(least, len(setting.devices)))
            fitting += [candidate for candidate in tried if candidate.held_bytes(problem) <= memory]
    if fitting:
        seconds = [candidate.seconds(problem, flops) for candidate in fitting]
        near = [x for x, own in zip(fitting, seconds, strict=True) if own <= _AS_FAST * min(seconds)]
        return min(near, key=lambda candidate: candidate.traffic(problem).moved)
    raise _too_small(problem, strategies, workers, setting, memory)


@dataclass(frozen=True, slots=True)
class _Family:
    """Candidates that differ in the number of workers."""

    choices: Sequence[int]
    at: Callable[[int], Candidate]

    def first_within(self, problem: AttentionProblem, memory: int) -> int | None:
        """Return the fewest workers that hold at most `memory`, or None."""

        def fits(W: int) -> bool:
            return self.at(W).held_bytes(problem) <= memory

        if isinstance(self.choices, range):  # too many to try each, and what is held mostly shrinks as W grows
            first = bisect_left(self.choices, True, key=fits)
            if first < len(self.choices):
                return self.choices[first]
        return next(filter(fits, _spread(self.choices)), None)  # it shrinks until the tasks themselves take most

    def worth_a_try(self, least: int, n_devices: int) -> list[int]:
        """Return the fewest workers, and with devices up to 32 times as many as these: for each some, and smaller."""
        wanted = (n_devices * few for few in _TASKS_OF_A_DEVICE)
        more = [bisect_left(self.choices, W) for W in wanted if n_devices and least < W]
        return list(dict.fromkeys([least, *(self.choices[i] for i in more if i < len(self.choices))]))


def _families(
    problem: AttentionProblem, strategies: Sequence[str], setting: Setting, *, smallest: bool = False
) -> Iterator[_Family]:
    """Yield all that may be taken, or of blocks and threads only those that hold least."""
    levels: Sequence[tuple[int, int, int, float]] = _DEVICE_LEVELS if setting.devices or setting.is_for_gpu else _LEVELS
    levels = levels[-1:] if smallest else levels
    for strategy in strategies:
        choices = worker_choices(problem, strategy)
        spilling = _spilling(problem, strategy, setting)
        for fewer in _fewer(setting):
            for level, kv_heads, is_spilled in product(levels, head_choices(problem), spilling):
                own = replace(fewer, is_spilled=is_spilled)
                yield _Family(choices, _maker(strategy, kv_heads, level, own))


def settings_within(problem: AttentionProblem, strategy: str, setting: Setting) -> Iterator[Setting]:
    """Yield the setting, and then others that hold less: with fewer threads, and with sums in a scratch file."""
    for fewer in _fewer(setting):
        yield from (replace(fewer, is_spilled=is_spilled) for is_spilled in _spilling(problem, strategy, setting))


def _spilling(problem: AttentionProblem, strategy: str, setting: Setting) -> tuple[bool, ...]:
    may_spill = setting.may_spill and not setting.is_in_place(problem) and strategy != "tiles"
    return (False, True) if may_spill else (False,)


def _fewer(setting: Setting) -> Iterator[Setting]:
    """Yield the setting with all its threads, or tasks in flight, and then with powers of two below that."""
    most = max(setting.in_flight, setting.threads) if setting.in_flight > 1 else setting.threads
    for n in (most, *(1 << i for i in reversed(range((most - 1).bit_length())))):
        if setting.in_flight > 1:
            yield replace(setting, in_flight=min(n, setting.in_flight), threads=min(n, setting.threads))
        else:
            yield replace(setting, threads=n)


def _maker(
    strategy: str, kv_heads: int | None, level: tuple[int, int, int, float], setting: Setting
) -> Callable[[int], Candidate]:
    block_bytes, rows, keys, speed = level

    def make(W: int) -> Candidate:
        if strategy == "cqs":
            grain = Grain(kv_heads, block_bytes=block_bytes)
            return Candidate(strategy, W, cover_size(W), grain, setting, speed)
        is_streamed = setting.is_staged
        grain = Grain(kv_heads, W, rows if is_streamed else None, keys if is_streamed else None, block_bytes)
        return Candidate(strategy, W, 0, grain, setting, speed)

    return make


def cover_size(W: int) -> int:
    """Return the size of a cover: q + 1 for W = q^2 + q + 1 and a prime power q, without making it."""
    q = (isqrt(4 * W - 3) - 1) // 2
    is_perfect = q > 1 and q * q + q + 1 == W and prime_power(q) is not None
    return q + 1 if is_perfect else difference_cover(W).size


def worker_choices(problem: AttentionProblem, strategy: str) -> Sequence[int]:
    """Return the numbers of workers that are worth a try."""
    most = min(max(problem.n_queries, 1), _MOST_WORKERS)
    if strategy == "cqs":
        return [W for W in (1, 3, *singer_moduli(most)) if most >= W]
    return range(1, most + 1)


def head_choices(problem: AttentionProblem) -> list[int | None]:
    """Return None for all heads of all entries, and numbers of key heads of one entry: all, half, ..., one."""
    kv_heads = problem.n_kv_heads
    choices: list[int | None] = [None, kv_heads] if prod(problem.batch) > 1 else [None]
    while kv_heads > 1:
        kv_heads = -(-kv_heads // 2)
        choices.append(kv_heads)
    return choices


def _too_small(
    problem: AttentionProblem, strategies: Sequence[str], workers: int | None, setting: Setting, memory: int
) -> BudgetError:
    """Say what the least is that works."""
    candidates = (
        family.at(W)
        for family in _families(problem, strategies, setting, smallest=True)
        for W in (_spread(family.choices) if workers is None else (workers,))
    )
    held, least = min(((x.held_bytes(problem), x) for x in candidates), key=itemgetter(0))
    rule = f"be at least {format_bytes_up(held)} ({least})"
    remedies = ["raise it"]
    if workers is not None:
        remedies.append("leave `workers` out to let cqs choose")
    if setting.output == "new" and not setting.devices:
        remedies.append("give `out=` an array or a file, of which nothing is counted")
    return BudgetError.of("memory", rule, format_bytes(memory), ", or ".join(remedies))


def _spread(choices: Sequence[int]) -> Sequence[int]:
    """Return all moduli, which are few, or of a range about 60 numbers, closer together where they are small."""
    if not isinstance(choices, range):
        return choices
    wanted = {min(int(1.3**n), len(choices)) - 1 for n in range(64)}
    return [choices[i] for i in sorted(wanted) if i >= 0]


def format_bytes_up(n_bytes: int) -> str:
    """Write a byte count that, read again, is not less."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n_bytes >= scale:
            return f"{-(-n_bytes * 10 // scale) / 10:.1f} {unit}"
    return f"{n_bytes} B"
