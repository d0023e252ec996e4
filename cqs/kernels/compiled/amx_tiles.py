"""One panel of queries against some keys, by AMX: its products take turns with what vectors do to scores.

A processor multiplies tiles in a part of its own, while others compute with vectors. But it looks only some hundred
instructions ahead, so both have to be near each other in the program. So while the scores of a tile become weights, two
by two vectors, the next keys are multiplied with the queries and the weights before with their values.
"""

import numpy as np
from numba import boolean, float32, int64, void
from numba.extending import register_jitable

from cqs.kernels.compiled.amx import multiply_pieces
from cqs.kernels.compiled.hiding import KEYS_TYPE, hide, seen_by_lanes
from cqs.kernels.compiled.pieces import STEP, TILE_BYTES, in_steps
from cqs.kernels.compiled.reading import ROW
from cqs.kernels.compiled.scores import CHANGE_TYPE, change_scores
from cqs.kernels.compiled.tiles import PANEL_TYPE, compared, raise_tops, rescale
from cqs.kernels.compiled.vectors import ITEM, LANES, VECTOR_BYTES, compiled, load, spread, store
from cqs.kernels.compiled.weighing import WORK_BYTES, begin_weighing, weigh_rest
from cqs.schedule import PANEL, TILE_KEYS

__all__ = ["add_keys_by_amx", "amx_room"]

_NOTHING = np.float32(-np.inf)
_TILE_ROOM = TILE_KEYS * PANEL * ITEM


@register_jitable
def amx_room(width):
    """Return how many numbers `add_keys_by_amx` needs room for, if values are as wide as that."""
    return 5 * TILE_KEYS * PANEL + PANEL * (width + 2) + WORK_BYTES // ITEM


@register_jitable
def _next_seen(here, end, seen):
    """Return the first key of the next tile of which anything is seen, or the end."""
    while here < end and (seen[3] <= here or seen[0] >= min(here + TILE_KEYS, end)):
        here += TILE_KEYS
    return min(here, end)


@register_jitable
def _score(panel, keys, here, n, tile, work):
    """Write what n keys from the number `here` on score."""
    steps = in_steps(panel.depth)
    k_tile = steps * TILE_BYTES
    multiply_pieces(
        keys.k + (here - keys.first) // LANES * k_tile, k_tile, 2 * in_steps(keys.n) * k_tile,
        panel.queries, 4 * k_tile, tile, 2 * in_steps(n), -(-panel.n_lanes // LANES), steps,
        panel.pieces, panel.pieces, work,
    )  # fmt: skip


@register_jitable
def _sum_values(panel, keys, here, n, weights, products, work):
    """Write the sums of n values from the number `here` on, times their weights."""
    steps, n_tiles, v_tile = in_steps(n), panel.width // LANES, in_steps(keys.n) * TILE_BYTES
    multiply_pieces(
        keys.v + (here - keys.first) // STEP * TILE_BYTES, v_tile, n_tiles * v_tile, weights, 4 * steps * TILE_BYTES,
        products, n_tiles, -(-panel.n_lanes // LANES), steps, panel.pieces, 3, work,
    )  # fmt: skip


@register_jitable
def _add(panel, products, n_vectors):
    for e in range(panel.width):
        for place in range(e * ROW, e * ROW + n_vectors * VECTOR_BYTES, VECTOR_BYTES):
            store(load(panel.sums + place) + load(products + place), panel.sums + place)


@compiled(void(PANEL_TYPE, KEYS_TYPE, CHANGE_TYPE, int64, int64, int64, float32, boolean))
def add_keys_by_amx(panel, keys, change, room, between, noted, factor, is_kept):
    """Do what `add_keys` does with pieces of queries, keys and values; there is room as `amx_room` says."""
    n_vectors, end = -(-panel.n_lanes // LANES), keys.first + keys.n
    factors, totals = between + 2 * ROW, panel.sums + panel.width * ROW
    tile, later, weights, weights_before = room, room + _TILE_ROOM, room + 2 * _TILE_ROOM, room + 7 * _TILE_ROOM // 2
    parts = room + 5 * _TILE_ROOM
    shifts, work = parts + ROW, parts + 2 * ROW
    products = work + WORK_BYTES
    seen = seen_by_lanes(keys, panel.n_rows, panel.lane, panel.n_lanes, between)
    here, before, times = _next_seen(keys.first, end, seen), np.int64(-1), spread(factor)
    begin_weighing(work, 0, 0, 0, 0, 0, 0, factor)
    if here < end:
        _score(panel, keys, here, min(TILE_KEYS, end - here), tile, work)
    while here < end:
        n = min(TILE_KEYS, end - here)
        if change.is_made:
            token, lane, n_lanes = keys.token + here, panel.lane, panel.n_lanes
            change_scores(change, tile, n, token, panel.tokens, panel.n_rows, lane, n_lanes, noted)
        hide(tile, here, n, keys, seen, panel.n_rows, panel.lane, panel.n_lanes, between)
        grew = 0
        for i in range(n_vectors):
            place = i * VECTOR_BYTES
            if raise_tops(tile + place, n, times, panel.tops + place, totals + place, factors + place):
                grew |= 1 << i
            store(compared(load(panel.tops + place)), shifts + place)
            store(spread(np.float32(0)), parts + place)
            for row in range(n, in_steps(n) * STEP):
                store(spread(_NOTHING), tile + row * ROW + place)
        begin_weighing(work, tile, n, n_vectors, weights, shifts, parts, factor)
        following = _next_seen(here + TILE_KEYS, end, seen)
        if following < end:
            _score(panel, keys, following, min(TILE_KEYS, end - following), later, work)
        if before >= 0:
            _sum_values(panel, keys, before, min(TILE_KEYS, end - before), weights_before, products, work)
            _add(panel, products, n_vectors)
        weigh_rest(work)
        for place in range(0, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
            store(load(totals + place) + load(parts + place), totals + place)
        if grew != 0:
            rescale(panel, factors, grew, is_kept)
        before, here = here, following
        tile, later = later, tile
        weights, weights_before = weights_before, weights
    if before >= 0:
        _sum_values(panel, keys, before, min(TILE_KEYS, end - before), weights_before, products, work)
        _add(panel, products, n_vectors)
