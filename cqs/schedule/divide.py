"""Dividing a task into smaller ones that own the same tiles: in two, or among the workers of a smaller quorum set."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, pairwise

from cqs.checks import whole_number
from cqs.errors import OptionError
from cqs.masks.mask import merged
from cqs.quorum import CyclicQuorumSet
from cqs.schedule.bundling import bundled
from cqs.schedule.task import Group, Strip, Task, Tile

__all__ = ["divide"]


def divide(task: Task, workers: int | None = None) -> tuple[Task, ...]:
    """Split a task into smaller tasks that together own the same tiles, each query-key pair once.

    Parameters
    ----------
    task : Task
        Of a plan, or a part of one.
    workers : int, optional
        W: the groups that the task holds are joined, or cut, into W equal groups, and each pair of these goes to the
        worker of a cyclic quorum set that owns it. This is CQS Divide. By default the task is cut in two, across its
        queries or its keys, whichever are more tokens.

    Returns
    -------
    tuple of Task
        With the index and the heads of `task`; those without a tile are left out. `task` alone if it is a single query
        against a single key. O(tiles).

    References
    ----------
    Bian & Akey, *Stream-CQSA*, arXiv 2604.20819, who divide by W = 7 and again until the parts fit. A direct cover of a
    larger W moves fewer tokens: t divisions by 7 make 7^t tasks that move 3^t N tokens, a cover of W tasks sqrt(W) N.

    Examples
    --------
    >>> import cqs
    >>> task = cqs.plan(*[(1, 70, 8)] * 3, workers=7).task(0)
    >>> [sum(len(t.query) * len(t.key) for t in part.tiles) for part in (task, *cqs.divide(task))]
    [700, 400, 300]
    """
    if not isinstance(task, Task):
        raise OptionError.of("task", "be a `Task`", type(task).__name__, "as in `cqs.divide(plan.task(0))`")
    if workers is None:
        return _halves(task)
    W = whole_number("workers", workers, 1, "leave it out to cut in two")
    quorums = CyclicQuorumSet(W)
    runs = _runs(task, W)
    tiles: list[list[Tile]] = [[] for _ in range(W)]
    for tile in task.tiles:
        for a, query in _pieces(tile.query, runs):
            for b, key in _pieces(tile.key, runs):
                tiles[quorums.owner(a, b)].append(Tile(query, key))
    return tuple(_task(task, part) for part in tiles if part)


def _halves(task: Task) -> tuple[Task, ...]:
    queries, keys = task.query_groups, task.key_groups
    n_rows, n_columns = sum(map(len, queries)), sum(map(len, keys))
    if n_rows * n_columns <= 1:
        return (task,)
    groups, cuts_queries = (queries, True) if n_rows >= n_columns else (keys, False)
    middle = _middle(groups)
    parts = []
    for start, stop in ((0, middle), (middle, max(g.stop for g in groups))):
        if cuts_queries:
            tiles = [Tile(_within(t.query, start, stop), t.key) for t in task.tiles]
        else:
            tiles = [Tile(t.query, _within(t.key, start, stop)) for t in task.tiles]
        parts.append([tile for tile in tiles if tile.query and tile.key])
    return tuple(_task(task, part) for part in parts if part)


def _middle(groups: tuple[Group, ...]) -> int:
    """Return the token before which half of the groups' tokens are."""
    half = sum(map(len, groups)) // 2
    for group in sorted(groups, key=lambda g: g.start):
        if half <= len(group):
            return group.start + half
        half -= len(group)
    raise AssertionError("unreachable")


def _within(group: Group, start: int, stop: int) -> Group:
    return Group(group.index, max(group.start, min(start, group.stop)), min(max(stop, group.start), group.stop))


def _runs(task: Task, W: int) -> list[tuple[int, int]]:
    """Cut the tokens that a task holds into W runs of nearly equal numbers, as (start, stop) of tokens."""
    held = merged([g.tokens for g in (*task.query_groups, *task.key_groups)])
    before = list(accumulate(map(len, held), initial=0))

    def token(n: int) -> int:
        """Return the n-th of the tokens that are held."""
        group = bisect_right(before, n) - 1
        return held[group].start + n - before[group]

    cuts = [i * before[-1] // W for i in range(W + 1)]
    return [(token(first), token(last - 1) + 1) if first < last else (0, 0) for first, last in pairwise(cuts)]


def _pieces(group: Group, runs: list[tuple[int, int]]) -> Iterator[tuple[int, Group]]:
    """Yield the parts of a group that are in each run, with the run's number."""
    for number, (start, stop) in enumerate(runs):
        part = _within(group, start, stop)
        if start < stop and part:
            yield number, part


def _task(parent: Task, tiles: list[Tile]) -> Task:
    """Make a task of tiles, which may be in any order."""
    keys: dict[Group, list[Group]] = {}
    for tile in sorted(tiles, key=lambda t: (t.query.start, t.query.stop, t.key.start)):
        keys.setdefault(tile.query, []).append(tile.key)
    return Task(parent.index, tuple(bundled(Strip(query, tuple(own)) for query, own in keys.items())), parent.heads)
