"""The sizes of a plan's tasks: counted task by task, or bounded without making any. Integers only."""

from collections.abc import Iterable
from dataclasses import dataclass

from cqs.problem import AttentionProblem
from cqs.schedule.bundling import MOST_BUNDLED_ROWS
from cqs.schedule.grain import Grain
from cqs.schedule.task import Task

__all__ = ["MOST_PARTS", "TaskSizes", "bounded_sizes", "counted_sizes", "rows_pending"]

MOST_PARTS = 64  # of a tile, that a mask leaves to be read


@dataclass(frozen=True, slots=True)
class TaskSizes:
    """The most of each that any task has, in tokens but for the last two.

    Parameters
    ----------
    query_rows : int
        Rows of its strips, together.
    bundle_rows, bundle_keys : int
        Rows and columns of one bundle.
    key_tokens : int
        Keys that it reads.
    key_group : int
        Of these, in one group.
    key_groups : int
        Groups of keys in one bundle.
    tiles : int
        Tiles that it owns.
    """

    query_rows: int
    bundle_rows: int
    bundle_keys: int
    key_tokens: int
    key_group: int
    key_groups: int
    tiles: int


def counted_sizes(tasks: Iterable[Task]) -> TaskSizes:
    """Return the largest sizes of some tasks."""
    most = [0] * 7
    for task in tasks:
        keys = [len(key) for key in task.key_groups]
        own = (
            sum(len(strip.query) for strip in task.strips),
            max((sum(len(s.query) for s in bundle.strips) for bundle in task.bundles), default=0),
            max((sum(map(len, bundle.keys)) for bundle in task.bundles), default=0),
            sum(keys),
            max(keys, default=0),
            max((len(bundle.keys) for bundle in task.bundles), default=0),
            sum(len(strip.keys) for strip in task.strips),
        )
        most = [max(pair) for pair in zip(most, own, strict=True)]
    return TaskSizes(*most)


def bounded_sizes(
    strategy: str, n_queries: int, n_keys: int, workers: int, size: int, row_groups: int | None
) -> TaskSizes:
    """Return sizes that no task of a plan exceeds, whatever its mask. O(1).

    Parameters
    ----------
    strategy : str
        As of `Plan`.
    n_queries, n_keys : int
        T and S.
    workers, size : int
        W, and for "cqs" the size m of its cover.
    row_groups : int or None
        For "tiles", R; None for what `GridLayout` takes.
    """
    T, S, W = n_queries, n_keys, workers
    if strategy == "cqs":
        n = -(-T // W)
        held, bundled = min(size * n, T), max(n, min(MOST_BUNDLED_ROWS, T, size * n))
        return TaskSizes(held, bundled, held, held, n, size, min(W, size * size))
    if strategy == "ring":
        rows, keys, in_row = -(-T // W), S, W
    elif strategy == "tree":
        rows, keys, in_row = T, -(-S // W), 1
    else:
        R = row_groups or 1
        most_in_row = (W + R - 1) // R
        rows, keys, in_row = (most_in_row * T + W - 1) // W, -(-S // max(W // R, 1)), 1
    return TaskSizes(rows, rows, keys, keys, -(-keys // in_row), in_row, in_row * MOST_PARTS)


def rows_pending(problem: AttentionProblem, strategy: str, workers: int, grain: Grain) -> int:
    """Return how many queries, at most, have sums at a time that are not complete; 0 if each task completes its own."""
    if strategy == "ring" or workers == 1 or (strategy == "tiles" and grain.row_groups == workers):
        return 0
    return problem.n_queries
