"""Making tasks: what the mask leaves of the tiles of a layout, in strips and bundles. Integers only."""

from collections.abc import Iterable, Iterator

from cqs.masks import Coverage, Mask
from cqs.problem import AttentionProblem
from cqs.quorum import CyclicQuorumSet
from cqs.schedule.bundling import bundled
from cqs.schedule.layout import BalancedLayout, GridLayout, Layout, QuorumLayout, RingLayout, TreeLayout
from cqs.schedule.sizes import MOST_PARTS
from cqs.schedule.task import Bundle, Group, Strip, even_cuts

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


def bundles_of(strips: Iterable[Strip], mask: Mask, is_trimmed: bool, most_rows: int | None) -> tuple[Bundle, ...]:
    """Return what is to be computed of a task's tiles.

    Parameters
    ----------
    strips : iterable of Strip
        In increasing order of query, and within of key.
    mask : Mask
        Tiles that it leaves empty are dropped.
    is_trimmed : bool
        Whether of the others only the keys are kept that are seen.
    most_rows : int or None
        As of `bundled`.
    """
    left = (Strip(s.query, tuple(_seen(s, mask, is_trimmed))) for s in strips if s.query)
    return tuple(bundled((strip for strip in left if strip.keys), most_rows))


def _seen(strip: Strip, mask: Mask, is_trimmed: bool) -> Iterator[Group]:
    """Yield the keys of a strip that there are and that the mask leaves."""
    for key in filter(len, strip.keys):
        if mask.hides_nothing:
            yield key
        elif mask.classify(strip.query.tokens, key.tokens) is Coverage.EMPTY:
            continue
        elif is_trimmed and mask.has_edges:
            parts = mask.reach(strip.query.tokens, key.tokens)
            most = -(-len(parts) // MOST_PARTS)  # of very many parts some are read as one
            for cut in even_cuts(len(parts), most) if parts else []:  # none: there are no heads
                yield Group(key.index, parts[cut.start].start, parts[cut.stop - 1].stop)
        else:
            yield key
