"""The bytes that a plan moves, by where they go, and in how many pieces. Integers only."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from cqs.problem import DTYPES, AttentionProblem
from cqs.schedule.bundling import MOST_BUNDLED_ROWS, SMALL_ROWS, bundled_rows
from cqs.schedule.grain import Grain, Setting
from cqs.schedule.layout import GridLayout
from cqs.schedule.task import Task

__all__ = ["TaskReads", "Traffic", "estimated_reads", "reads_of", "traffic"]

_MOST_ROWS_ASKED = 512  # of a grid, how far each reaches: the others are taken to be like them


@dataclass(frozen=True, slots=True)
class TaskReads:
    """What tasks read and give back, in tokens of each head.

    Parameters
    ----------
    queries, keys : int
        Queries, for each of which a row of results comes back, and keys with their values.
    passed : int
        Of these keys, those that a ring of workers passes on from neighbour to neighbour.
    calls, slices : int
        Not tokens, but numbers: kernel calls, and slices of queries, keys and values that are read for them.
    """

    queries: int
    keys: int
    passed: int
    calls: int
    slices: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a run moves.

    Parameters
    ----------
    read : int
        Queries, keys and values that tasks read.
    passed : int
        Of these, keys and values that ring attention would pass from worker to worker.
    results : int
        Partial results that tasks hand to the Tiler.
    spilled : int
        Incomplete sums written to a scratch file and read back.
    written : int
        The output.
    """

    read: int
    passed: int
    results: int
    spilled: int
    written: int

    @property
    def moved(self) -> int:
        """What is moved between slow memory and fast memory: read, spilled and written."""
        return self.read + self.spilled + self.written


def reads_of(tasks: Iterable[Task], strategy: str, grain: Grain) -> TaskReads:
    """Count what tasks read, one after the other."""
    queries = keys = passed = calls = slices = 0
    for task in tasks:
        groups = task.key_groups
        queries += sum(len(strip.query) for strip in task.strips)
        keys += sum(map(len, groups))
        if strategy == "ring":
            passed += sum(len(key) for key in groups if key.index != task.index)
        if grain.keys is None:
            calls += len(task.bundles)
            slices += len(task.strips) + 2 * len(groups)
            continue
        for strip in task.strips:
            parts = sum(_cuts(len(key), grain.keys) for key in strip.keys)
            calls += parts * _cuts(len(strip.query), grain.rows)
            slices += 1 + 2 * parts
    return TaskReads(queries, keys, passed, calls, slices)


def traffic(problem: AttentionProblem, reads: TaskReads, setting: Setting, result_dtype: str) -> Traffic:
    """Return the bytes of what tasks read, over all heads, and hand to the Tiler in a type."""
    p = problem
    row = p.n_batch_heads * p.row_bytes(result_dtype, setting.n_sums)
    key = prod(p.batch) * p.n_kv_heads * (p.width + p.value_width) * p.itemsize
    results = reads.queries * row
    return Traffic(
        read=reads.queries * p.n_batch_heads * p.width * p.itemsize + reads.keys * key,
        passed=reads.passed * key,
        results=results,
        # each is written, and read when the next comes or at the end
        spilled=2 * results if setting.is_spilled and not setting.devices else 0,
        written=prod(p.out_shape) * DTYPES[setting.output_dtype or p.dtype][0],
    )


def estimated_reads(
    problem: AttentionProblem, strategy: str, workers: int, size: int, grain: Grain, setting: Setting
) -> TaskReads:
    """Return about what tasks read, without making any: exact where nothing is masked, and else more.

    Of a grid it is a little more; of a quorum set, whose groups a mask may leave unread, several times as much.

    See `bounded_sizes` for the arguments.
    """
    T, S, W = problem.n_queries, problem.n_keys, workers
    if strategy == "cqs":
        n_strips, n = min(size * W, size * T), -(-T // W)  # of n queries each
        most = bundled_rows(problem, grain, setting) or (MOST_BUNDLED_ROWS if n <= SMALL_ROWS else n)
        n_calls = min(W, T) * -(-size // max(most // n, 1)) if n else 0
        return TaskReads(size * T, size * S, 0, n_calls, 3 * n_strips)
    if strategy == "ring":
        return TaskReads(T, W * S, (W - 1) * S, W, (2 * W + 1) * W)
    if strategy == "tree":
        return TaskReads(W * T, S, 0, W, 3 * W)
    layout = GridLayout(T, S, W, grain.row_groups)
    R = layout.n_rows
    cuts = [row * W // R for row in range(R + 1)]
    heights = [last * T // W - first * T // W for first, last in pairwise(cuts)]
    n_in_row = [last - first for first, last in pairwise(cuts)]
    n_queries = sum(n * height for n, height in zip(n_in_row, heights, strict=True))
    n_keys = R * S
    if not problem.mask.hides_nothing:
        asked = range(R) if R <= _MOST_ROWS_ASKED else [i * R // _MOST_ROWS_ASKED for i in range(_MOST_ROWS_ASKED)]
        tokens = (range(cuts[row] * T // W, cuts[row + 1] * T // W) for row in asked)
        n_keys = sum(_reached(problem, rows) for rows in tokens) * R // len(asked)
    parts = W if grain.keys is None else -(-n_keys // grain.keys) + W // 2  # those at the ends are smaller
    return TaskReads(n_queries, n_keys, 0, parts * _cuts(max(heights), grain.rows), W + 2 * parts)


def _cuts(n: int, most: int | None) -> int:
    return 1 if most is None else -(-n // most)


def _reached(problem: AttentionProblem, rows: range) -> int:
    everything = range(problem.n_keys)
    return sum(map(len, problem.mask.reach(rows, everything))) if problem.mask.has_edges else problem.n_keys
