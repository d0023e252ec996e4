"""A block of queries against some keys, by AMX: its products take turns with what vectors do to scores.

A processor multiplies tiles in a part of its own, while others compute with vectors. But it looks only some hundred
instructions ahead, so both have to be near each other in the program. So while the scores of a tile become weights, two
by two vectors, the next keys are multiplied with the queries and the weights before with their values.
"""

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from cqs.kernels.compiled.amx import multiply_pieces
from cqs.kernels.compiled.joined import mask_tile, seen_tiles
from cqs.kernels.compiled.panels import Panel, n_panels_of, panel_of
from cqs.kernels.compiled.pieces import STEP, TILE_BYTES, in_steps
from cqs.kernels.compiled.reading import ROW
from cqs.kernels.compiled.tiles import compared, raise_tops, rescale
from cqs.kernels.compiled.vectors import ITEM, LANES, VECTOR_BYTES, inlined, load, spread, store
from cqs.kernels.compiled.weighing import WORK_BYTES, begin_weighing, weigh_rest
from cqs.schedule import PANEL, TILE_KEYS

__all__ = ["add_keys_by_amx", "amx_room"]

_NOTHING = np.float32(-np.inf)
_TILE_ROOM = TILE_KEYS * PANEL * ITEM


@register_jitable
def amx_room(width):
    """Return how many numbers `add_keys_by_amx` needs room for, if values are as wide as that."""
    return 5 * TILE_KEYS * PANEL + PANEL * (width + 2) + WORK_BYTES // ITEM


@inlined
def _score(panel, joined, here, n, tile, work):
    """Write what n keys from the number `here` on score."""
    steps = in_steps(panel.depth)
    k_tile = steps * TILE_BYTES
    multiply_pieces(
        joined.k + here // LANES * k_tile, k_tile, joined.k_piece,
        panel.queries, 4 * k_tile, tile, 2 * in_steps(n), -(-panel.n_lanes // LANES), steps,
        panel.pieces, panel.pieces, work,
    )  # fmt: skip


@inlined
def _sum_values(panel, joined, here, n, weights, products, work):
    """Write the sums of n values from the number `here` on, times their weights."""
    steps, n_tiles, v = in_steps(n), panel.width // LANES, joined.v + here // STEP * TILE_BYTES
    multiply_pieces(
        v, joined.v_piece // n_tiles, joined.v_piece, weights, 4 * steps * TILE_BYTES, products,
        n_tiles, -(-panel.n_lanes // LANES), steps, panel.pieces, 3, work,
    )  # fmt: skip


@register_jitable
def _add(panel, products):
    for e in range(panel.width):
        for place in range(e * ROW, e * ROW + panel.n_lanes * ITEM, VECTOR_BYTES):
            store(load(panel.sums + place) + load(products + place), panel.sums + place)


class _Tile(NamedTuple):
    """Scores of a panel."""

    n: int  # of the panel
    panel: Panel
    left: int  # which tiles after this one the panel sees, a bit for each
    here: int  # number of the first key
    n_keys: int  # none, if there is no such tile


@register_jitable
def _next_tile(block, n, here, left, joined, between):
    """Return the next tile of a block, after the one at `here`, of which in the n-th panel those are `left`."""
    while left == 0 and n + 1 < n_panels_of(block):
        n, here = n + 1, -TILE_KEYS
        left = seen_tiles(panel_of(block, n), joined, between)
    if left == 0:
        return _Tile(n, panel_of(block, n), left, here, 0)
    here += TILE_KEYS
    while left & 1 == 0:
        here, left = here + TILE_KEYS, left >> 1
    return _Tile(n, panel_of(block, n), left >> 1, here, min(TILE_KEYS, joined.n - here))


@register_jitable
def _raise_tops(tile, scores, times, totals, factors, shifts, parts):
    """Begin to add a tile's weights; return in which vectors of lanes tops were raised, as `weigh` does."""
    grew, panel = 0, tile.panel
    for i in range(-(-panel.n_lanes // LANES)):
        place = i * VECTOR_BYTES
        if raise_tops(scores + place, tile.n_keys, times, panel.tops + place, totals + place, factors + place):
            grew |= 1 << i
        store(compared(load(panel.tops + place)), shifts + place)
        store(spread(np.float32(0)), parts + place)
        for row in range(tile.n_keys, in_steps(tile.n_keys) * STEP):
            store(spread(_NOTHING), scores + row * ROW + place)
    return grew


@inlined
def add_keys_by_amx(block, joined, change, room, between, noted, factor, is_kept):
    """Do what `add_keys` does for all panels of a block, with pieces; there is room as `amx_room` says."""
    factors, times = between + 2 * ROW, spread(factor)
    scores, later, weights, weights_before = room, room + _TILE_ROOM, room + 2 * _TILE_ROOM, room + 7 * _TILE_ROOM // 2
    parts = room + 5 * _TILE_ROOM
    shifts, work = parts + ROW, parts + 2 * ROW
    products = work + WORK_BYTES
    begin_weighing(work, 0, 0, 0, 0, 0, 0, factor)
    tile = _next_tile(block, np.int64(-1), np.int64(0), np.int64(0), joined, between)
    before, is_one_before = tile, False
    if tile.n_keys > 0:
        _score(tile.panel, joined, tile.here, tile.n_keys, scores, work)
    while tile.n_keys > 0:
        panel, n_keys = tile.panel, tile.n_keys
        totals = panel.sums + panel.width * ROW
        mask_tile(panel, joined, change, scores, tile.here, n_keys, between, noted)
        grew = _raise_tops(tile, scores, times, totals, factors, shifts, parts)
        begin_weighing(work, scores, n_keys, -(-panel.n_lanes // LANES), weights, shifts, parts, factor)
        following = _next_tile(block, tile.n, tile.here, tile.left, joined, between)
        if following.n_keys > 0:
            _score(following.panel, joined, following.here, following.n_keys, later, work)
        if is_one_before:
            _sum_values(before.panel, joined, before.here, before.n_keys, weights_before, products, work)
            _add(before.panel, products)
        weigh_rest(work)
        for place in range(0, panel.n_lanes * ITEM, VECTOR_BYTES):
            store(load(totals + place) + load(parts + place), totals + place)
        if grew != 0:
            rescale(panel, factors, grew, is_kept)
        before, is_one_before, tile = tile, True, following
        scores, later = later, scores
        weights, weights_before = weights_before, weights
    if is_one_before:
        _sum_values(before.panel, joined, before.here, before.n_keys, weights_before, products, work)
        _add(before.panel, products)
