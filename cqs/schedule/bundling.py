"""Which strips of a task are computed together: in one kernel call, and within it in one piece. Integers only."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

from cqs.problem import AttentionProblem
from cqs.schedule.grain import Grain, Setting
from cqs.schedule.task import Bundle, Strip

__all__ = ["MOST_BUNDLED_ROWS", "SMALL_ROWS", "bundled", "bundled_rows", "worth_one_piece"]

SMALL_ROWS = 128  # rows; a strip with more fills a matrix product by itself
# Together strips may have so many rows and columns; and of the rectangle that they span they must own this share.
MOST_BUNDLED_ROWS, _MOST_COLUMNS, _LEAST_SHARE = 512, 1024, 0.75
_CALL_BLOCKS = 2  # blocks of scores that the queries of a call may take; they are copied side by side

_Key = TypeVar("_Key")


def bundled_rows(problem: AttentionProblem, grain: Grain, setting: Setting) -> int | None:
    """Return how many rows the strips of a kernel call may have together; None: no more than is worth one piece.

    The kernels for NumPy arrays leave out tiles that are not the task's own, and copy keys side by side once a call: so
    they are given a task's strips in few calls, as long as their queries, which are copied as well, do not take much;
    under a budget they are not, since memory is better spent on larger groups.
    """
    if not setting.has_own_threads or setting.memory is not None:
        return None
    if grain.kv_heads is None:
        n_heads = problem.n_batch_heads
    else:
        n_heads = grain.kv_heads * (problem.n_heads // problem.n_kv_heads)
    row = n_heads * problem.width * problem.itemsize
    return max(_CALL_BLOCKS * grain.block_bytes // max(row, 1), SMALL_ROWS)


def worth_one_piece(rows: Sequence[int], keys: Sequence[Mapping[_Key, int]], small: int = SMALL_ROWS) -> list[range]:
    """Cut strips into those that are worth computing as one rectangle; most are worth one each.

    Small strips are computed together: a large matrix product in place of many small ones. The rectangle that they span
    may have tiles that are not theirs. They are at most a quarter of it; their scores are computed and thrown away,
    which for groups of a few dozen tokens costs less than a product a strip.

    Parameters
    ----------
    rows : sequence of int
        Of each strip.
    keys : sequence of mapping
        For each strip its groups of keys, by any names, and their sizes.
    small : int
        Rows; taller strips are never computed together.
    """
    cuts = [0]
    seen: Mapping[_Key, int] = {}  # by the strips since the last cut
    n_rows = n_owned = tallest = 0
    for i, (height, own) in enumerate(zip(rows, keys, strict=True)):
        width, together = sum(own.values()), {**seen, **own}
        n_columns = sum(together.values())
        is_small = max(tallest, height) <= small
        fits = is_small and n_rows + height <= MOST_BUNDLED_ROWS and n_columns <= _MOST_COLUMNS
        if i and not (fits and n_owned + height * width >= _LEAST_SHARE * (n_rows + height) * n_columns):
            cuts.append(i)
            together, n_rows, n_owned, tallest = dict(own), 0, 0, 0
        seen, tallest = together, max(tallest, height)
        n_rows, n_owned = n_rows + height, n_owned + height * width
    return _between(cuts, len(rows))


def bundled(strips: Iterable[Strip], most_rows: int | None = None) -> Iterator[Bundle]:
    """Cut a task's strips into those that share a kernel call.

    Parameters
    ----------
    strips : iterable of Strip
        In increasing order of their queries.
    most_rows : int or None
        As of `bundled_rows`. None: they share a call if they are worth computing in one piece.
    """
    strips = list(strips)
    rows = [len(strip.query) for strip in strips]
    if most_rows is None:
        runs = worth_one_piece(rows, [{key: len(key) for key in strip.keys} for strip in strips])
    else:
        runs = _by_rows(rows, most_rows)
    for run in runs:
        yield _bundle(strips[run.start : run.stop])


def _by_rows(rows: Sequence[int], most: int) -> list[range]:
    cuts, ends = [0], list(accumulate(rows, initial=0))
    for i in range(1, len(rows)):
        if ends[i + 1] - ends[cuts[-1]] > most:
            cuts.append(i)
    return _between(cuts, len(rows))


def _between(cuts: Sequence[int], n: int) -> list[range]:
    return [range(*pair) for pair in pairwise([*cuts, n])] if n else []


def _bundle(strips: Sequence[Strip]) -> Bundle:
    own = [{(key.start, key.stop): key for key in strip.keys} for strip in strips]  # groups are told apart by tokens
    columns = {place: key for keys in own for place, key in keys.items()}
    places = sorted(columns)
    foreign = frozenset((i, j) for i, keys in enumerate(own) for j, place in enumerate(places) if place not in keys)
    return Bundle(tuple(strips), tuple(columns[place] for place in places), foreign)
