"""Blocks of queries, in panels that stand side by side: where they are, and what belongs to them."""

from typing import NamedTuple

from numba import int64, types
from numba.extending import register_jitable

from cqs.kernels.compiled.reading import ROW, padded
from cqs.schedule import TILE_WIDTH

__all__ = ["PANEL_TYPE", "Block", "Panel", "n_panels_of", "panel_of"]


class Block(NamedTuple):
    """Queries that see the same keys, in panels, and what belongs to them."""

    queries: int  # address, by panels `(D, 64)`, or where they are few `(n, D)`
    depth: int  # D
    n_rows: int  # of each head, of which lanes are counted row by row
    n_lanes: int
    n_wide: int  # lanes of all panels but the last
    sums: int  # address, by panels, of sums `(64, E')` of recent keys, and their totals `(64,)`
    kept: int  # likewise of the keys before
    width: int  # E'
    tops: int  # address of the largest scores
    tokens: int  # address of the token numbers of the block's rows
    pieces: int  # of each number, if AMX multiplies; then of queries are pieces, and sums are `(E', 64)`; otherwise 0


class Panel(NamedTuple):
    """Queries of a block that are computed together: the same of them."""

    queries: int
    depth: int
    n_rows: int
    lane: int  # the first of the panel's
    n_lanes: int
    sums: int
    kept: int
    width: int
    tops: int
    tokens: int
    pieces: int


PANEL_TYPE = types.NamedUniTuple(int64, len(Panel._fields), Panel)


@register_jitable
def n_panels_of(block):
    """Return how many panels a block has."""
    return -(-block.n_lanes // block.n_wide)


@register_jitable
def panel_of(block, n):
    """Return the n-th panel of a block."""
    steps = -(-block.depth // TILE_WIDTH)
    of_queries = block.pieces * steps * TILE_WIDTH * ROW // 2 if block.pieces > 0 else padded(block.depth) * ROW
    lane, n_sums = n * block.n_wide, n * (block.width + 1) * ROW
    return Panel(
        block.queries + n * of_queries, block.depth, block.n_rows, lane, min(block.n_wide, block.n_lanes - lane),
        block.sums + n_sums, block.kept + n_sums, block.width, block.tops + n * ROW, block.tokens, block.pieces,
    )  # fmt: skip
