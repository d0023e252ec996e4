"""Making tasks: what the mask leaves of the tiles of a layout, in strips and bundles. Integers only."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from cqs.masks import Coverage, Mask
from cqs.problem import AttentionProblem
from cqs.quorum import CyclicQuorumSet
from cqs.schedule.bundling import bundled
from cqs.schedule.layout import BalancedLayout, GridLayout, Layout, QuorumLayout, RingLayout, TreeLayout
from cqs.schedule.sizes import MOST_PARTS
from cqs.schedule.task import Bundle, Group, Strip, Tile, even_cuts

__all__ = ["bundles_of", "layout_of"]


def layout_of(
    problem: AttentionProblem, strategy: str, workers: int, base: tuple[int, ...] | None, row_groups: int | None
) -> Layout:
    """Return how a strategy cuts the score matrix; see `cqs.Plan` for the arguments."""
    T, S = problem.n_queries, problem.n_keys
    if strategy == "ring":
        return RingLayout(T, S, workers)
    if strategy == "tree":
        return TreeLayout(T, S, workers)
    if base is None:
        return GridLayout(T, S, workers, row_groups)
    quorums = CyclicQuorumSet(workers, base)
    if BalancedLayout.is_worth(workers, problem.mask):
        return BalancedLayout(T, quorums, problem.mask)
    return QuorumLayout(T, quorums)


def bundles_of(tiles: Iterable[Tile], mask: Mask, is_trimmed: bool, most_rows: int | None) -> tuple[Bundle, ...]:
    """Return what is to be computed of a task's tiles.

    Parameters
    ----------
    tiles : iterable of Tile
        In increasing order of query, then of key.
    mask : Mask
        Tiles that it leaves empty are dropped.
    is_trimmed : bool
        Whether of the others only the keys are kept that are seen.
    most_rows : int or None
        As of `bundled`.
    """
    tiles = (tile for tile in tiles if tile.query and tile.key)
    if not mask.hides_nothing:
        tiles = (seen for tile in tiles for seen in _seen(tile, mask, is_trimmed))
    of_queries = groupby(tiles, key=lambda tile: tile.query)
    strips = (Strip(query, tuple(tile.key for tile in of_query)) for query, of_query in of_queries)
    return tuple(bundled(strips, most_rows))


def _seen(tile: Tile, mask: Mask, is_trimmed: bool) -> Iterator[Tile]:
    if mask.classify(tile.query.tokens, tile.key.tokens) is Coverage.EMPTY:
        return
    if not (is_trimmed and mask.has_edges):
        yield tile
        return
    parts = mask.reach(tile.query.tokens, tile.key.tokens)
    if not parts:  # there are no heads
        return
    for cut in even_cuts(len(parts), -(-len(parts) // MOST_PARTS)):  # of very many parts some are read as one
        yield Tile(tile.query, Group(tile.key.index, parts[cut.start].start, parts[cut.stop - 1].stop))
