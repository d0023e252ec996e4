"""The sizes of a plan's tasks: counted task by task, or bounded without making any. Integers only."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from cqs.problem import AttentionProblem
from cqs.schedule.bundling import MOST_BUNDLED_ROWS, SMALL_ROWS, bundled_rows
from cqs.schedule.grain import Grain, Setting
from cqs.schedule.layout import BalancedLayout
from cqs.schedule.task import Task, largest_cut

__all__ = [
    "MOST_PARTS",
    "TaskSizes",
    "bounded_sizes",
    "counted_sizes",
    "heaviest_rows",
    "n_tiles_of_task",
    "result_dtype",
    "rows_pending",
]

MOST_PARTS = 64  # of a tile, that a mask leaves to be read


@dataclass(frozen=True, slots=True)
class TaskSizes:
    """The most of each that any task has, in tokens.

    Parameters
    ----------
    query_rows : int
        Rows of its strips, together.
    bundle_rows, call_rows, call_keys : int
        Rows of one bundle, and rows and columns of one kernel call.
    key_tokens : int
        Keys that it reads and keeps, or if they are streamed, two parts of them that follow each other.
    ahead_keys : int
        Keys that are read at a time.
    key_groups : int
        Groups of keys in one call: not tokens, but a number.
    object_bytes : int
        What the task itself takes as a Python object.
    is_bundled : bool
        Whether strips share calls.
    """

    query_rows: int
    bundle_rows: int
    call_rows: int
    call_keys: int
    key_tokens: int
    ahead_keys: int
    key_groups: int
    object_bytes: int
    is_bundled: bool


def counted_sizes(tasks: Iterable[Task], grain: Grain) -> TaskSizes:
    """Return the largest sizes of some tasks."""
    most = [0] * 8
    is_bundled = False
    for task in tasks:
        most = [max(pair) for pair in zip(most, _sizes_of(task, grain), strict=True)]
        is_bundled |= any(len(bundle.strips) > 1 for bundle in task.bundles)
    query_rows, bundle_rows, call_rows, call_keys, key_tokens, ahead_keys, key_groups, objects = most
    return TaskSizes(
        query_rows, bundle_rows, call_rows, call_keys, key_tokens, ahead_keys, key_groups, objects, is_bundled
    )


def _sizes_of(task: Task, grain: Grain) -> tuple[int, ...]:
    keys = [len(key) for key in task.key_groups]
    rows = [sum(len(strip.query) for strip in bundle.strips) for bundle in task.bundles]
    groups = {id(strip.query) for strip in task.strips}  # tiles may share them
    groups |= {id(key) for strip in task.strips for key in strip.keys}
    n_bytes = _object_bytes(sum(len(strip.keys) for strip in task.strips), len(groups))
    call_rows = max(rows, default=0)
    if grain.keys is None:
        call_keys = max((sum(map(len, bundle.keys)) for bundle in task.bundles), default=0)
        n_groups = max((len(bundle.keys) for bundle in task.bundles), default=0)
        return sum(rows), call_rows, call_rows, call_keys, sum(keys), max(keys, default=0), n_groups, n_bytes
    lengths = [len(key) for bundle in task.bundles for key in bundle.keys]
    parts = [largest_cut(n, grain.keys) for n in lengths]
    of_one = [min(2 * part, n) for part, n in zip(parts, lengths, strict=True)]
    largest, two = max(parts, default=0), max([*of_one, *map(sum, pairwise(parts))], default=0)
    return sum(rows), call_rows, _largest_cut(call_rows, grain.rows), largest, two, largest, 1, n_bytes


def _largest_cut(n: int, most: int | None) -> int:
    return n if most is None else largest_cut(n, most)


def _object_bytes(n_tiles: int, n_groups: int) -> int:
    return 4000 + 80 * n_tiles + 400 * n_groups


def bounded_sizes(
    problem: AttentionProblem, strategy: str, workers: int, size: int, grain: Grain, setting: Setting
) -> TaskSizes:
    """Return sizes that no task of a plan exceeds, whatever its mask. O(1).

    Parameters
    ----------
    problem : AttentionProblem
        What is computed.
    strategy : str
        As of `Plan`.
    workers, size : int
        W, and for "cqs" the size m of its cover.
    grain, setting : Grain, Setting
        As of `Plan`.
    """
    T, S, W = problem.n_queries, problem.n_keys, workers
    if strategy == "cqs":
        n = -(-T // W)
        held = min(size * n, T)
        rows, is_bundled = _bundle_rows(problem, n, held, grain, setting)
        # where tiles are given out by their work, a task may have more of them, or parts, with groups of their own
        is_balanced = BalancedLayout.is_worth(W, problem.mask)
        n_tiles = 2 * size * size if is_balanced else min(W, size * size)
        n_bytes = _object_bytes(n_tiles, 2 * (n_tiles if is_balanced else size))
        return TaskSizes(held, rows, rows, held, held, n, size, n_bytes, is_bundled)
    if strategy == "ring":
        rows, keys, n_groups = -(-T // W), S, W
    elif strategy == "tree":
        rows, keys, n_groups = T, -(-S // W), 1
    else:
        R = grain.row_groups or 1
        most_in_row = (W + R - 1) // R
        rows, keys, n_groups = (most_in_row * T + W - 1) // W, -(-S // max(W // R, 1)), 1
    n_tiles = n_groups if problem.mask.hides_nothing else n_groups * MOST_PARTS
    n_bytes = _object_bytes(n_tiles, n_tiles + 1)
    if grain.keys is None:
        return TaskSizes(rows, rows, rows, keys, keys, -(-keys // n_groups), n_tiles, n_bytes, False)
    # a mask may leave any number of keys, of which parts are larger than even parts of all
    part = min(grain.keys, keys) if not problem.mask.hides_nothing else _largest_cut(keys, grain.keys)
    call_rows = _largest_cut(rows, grain.rows)
    return TaskSizes(rows, rows, call_rows, part, min(2 * part, keys), part, 1, n_bytes, False)


def _bundle_rows(p: AttentionProblem, n: int, held: int, grain: Grain, setting: Setting) -> tuple[int, bool]:
    """Return how many rows a bundle of strips of at most n has at most, and whether any has two."""
    most = bundled_rows(p, grain, setting)
    if most is None:
        return (n, False) if n > SMALL_ROWS else (min(MOST_BUNDLED_ROWS, held), True)
    return (n, False) if 2 * (n - 1) > most else (max(min(most, held), n), True)


def rows_pending(problem: AttentionProblem, strategy: str, workers: int, grain: Grain) -> int:
    """Return how many queries, at most, have sums at a time that are not complete; 0 if each task completes its own."""
    if strategy == "ring" or workers == 1 or (strategy == "tiles" and grain.row_groups == workers):
        return 0
    return problem.n_queries


def result_dtype(problem: AttentionProblem, setting: Setting, rows_pending: int) -> str:
    """Return the type of results of tasks: that of sums, or of the output if a device completes and rounds them.

    Rounded there, half as much is copied back, and the machine, which rounds to float16 slowly, has nothing to do.
    """
    is_rounded = setting.devices and rows_pending == 0 and not setting.has_sink_logits and not setting.keeps_results
    return (setting.output_dtype or problem.dtype) if is_rounded else problem.accumulator_dtype


def n_tiles_of_task(strategy: str, workers: int) -> int:
    """Return how many tiles a task has before the mask."""
    return workers if strategy in ("cqs", "ring") else 1


def heaviest_rows(problem: AttentionProblem, strategy: str, grain: Grain, setting: Setting) -> float:
    """Return how many pairs the last group of rows of a grid sees, as a multiple of the mean, at least 1.

    Only where several devices share them, and of masks that have edges; tasks of quorums are equally heavy.
    """
    T, R, mask = problem.n_queries, grain.row_groups or 1, problem.mask
    is_even = strategy != "tiles" or R == 1 or len(setting.devices) < 2
    if is_even or not mask.has_edges or not problem.n_pairs:
        return 1.0
    rows = range((R - 1) * T // R, T)
    return max(R * mask.count(rows, range(problem.n_keys)) / problem.n_pairs, 1.0)
