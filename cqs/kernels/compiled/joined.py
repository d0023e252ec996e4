"""Keys of one or several runs, joined and split into pieces for AMX, which would often wait for few at a time."""

from typing import NamedTuple

import numpy as np
from numba import int64, types, void
from numba.extending import register_jitable

from cqs.kernels.compiled.hiding import Keys, hide, seen_by_lanes, seen_where
from cqs.kernels.compiled.panels import PANEL_TYPE
from cqs.kernels.compiled.pieces import STEP, TILE_BYTES, in_steps, split_keys, split_last_values, split_values
from cqs.kernels.compiled.reading import ROW, read, readable
from cqs.kernels.compiled.scores import CHANGE_TYPE, change_scores
from cqs.kernels.compiled.vectors import LANES, compiled, inlined
from cqs.schedule import TILE_KEYS

__all__ = ["Joined", "join_keys", "mask_tile", "seen_tiles"]

_RUN_BYTES = 6 * 8  # of a row of `runs`, as of `attend`
_N_KEYS, _KIND, _PLACE, _TOKEN = 2 * 8, 3 * 8, 4 * 8, 5 * 8  # where in it its columns are
_WHOLE = np.int64(0)


class Joined(NamedTuple):
    """Keys, side by side, and where it is said what is seen of them."""

    k: int  # address of their pieces
    k_piece: int  # bytes from piece to piece
    v: int
    v_piece: int
    n: int
    runs: int  # address of the run of the first, as of `attend`
    skipped: int  # keys of that run that are not among them
    bounds: int  # address, likewise
    hidden: int


_JOINED_TYPE = types.NamedUniTuple(int64, len(Joined._fields), Joined)


@inlined
def join_keys(chunks, batch, head, runs, p, key, end, most_keys, block, room, bounds, hidden):
    """Split keys from the number `key` of the run p on; return them, where the next are, and whether AMX cannot do.

    There are at most `most_keys` of them, which also says how far apart pieces are. The `room` is that of `attend`.
    """
    first, skipped, n, is_small = p, key, 0, False
    pieces, width, steps = block.pieces, in_steps(block.depth) * STEP, in_steps(most_keys)
    k_piece, v_piece = 2 * steps * width // STEP * TILE_BYTES, block.width // LANES * steps * TILE_BYTES
    while p < end and n < most_keys:
        chunk, start, n_here = runs[p, 0], runs[p, 1] + key, min(most_keys - n, runs[p, 2] - key)
        k, k_row, _ = readable(chunks, batch, chunk, 0, head, start, n_here, room.keys, width, False)
        v, v_row, _ = readable(chunks, batch, chunk, 1, head, start, n_here, room.values, block.width, False)
        is_small |= split_keys(k, k_row, n_here, n, width, pieces, k_piece, room.k_pieces)
        is_small |= split_values(v, v_row, n_here, n, block.width, pieces, v_piece, room.v_pieces, room.rows, room.tile)
        n, key = n + n_here, key + n_here
        if key == runs[p, 2]:
            p, key = p + 1, 0
    is_small |= split_last_values(n, block.width, pieces, v_piece, room.v_pieces, room.rows, room.tile)
    own_runs = np.int64(runs.ctypes.data) + first * _RUN_BYTES
    joined = Joined(room.k_pieces, k_piece, room.v_pieces, v_piece, n, own_runs, skipped, bounds, hidden)
    return joined, p, key, is_small


@register_jitable
def _keys_of(joined, run, first, n):
    """Return keys of a run, as it counts them, without saying where they are."""
    kind, place = read(run + _KIND, _WHOLE), read(run + _PLACE, _WHOLE)
    seen = seen_where(kind, place, joined.bounds, joined.hidden)
    return Keys(0, 0, 0, 0, 0, 0, first, n, kind, seen, read(run + _TOKEN, _WHOLE))


@compiled(int64(PANEL_TYPE, _JOINED_TYPE, int64))
def seen_tiles(panel, joined, between):
    """Return which tiles of keys some lane of a panel sees, a bit for each."""
    found, run, start = np.int64(0), joined.runs, -joined.skipped  # where the first key of the run would be
    while start < joined.n:
        n_keys = read(run + _N_KEYS, _WHOLE)
        first, end = max(-start, 0), min(n_keys, joined.n - start)
        keys = _keys_of(joined, run, first, end - first)
        seen = seen_by_lanes(keys, panel.n_rows, panel.lane, panel.n_lanes, between)
        first, end = start + max(seen[0], first), start + min(seen[3], end)
        for tile in range(first // TILE_KEYS, -(-end // TILE_KEYS) if end > first else 0):
            found |= np.int64(1) << tile
        run, start = run + _RUN_BYTES, start + n_keys
    return found


@compiled(void(PANEL_TYPE, _JOINED_TYPE, CHANGE_TYPE, int64, int64, int64, int64, int64))
def mask_tile(panel, joined, change, scores, here, n, between, noted):
    """Change the scores of n keys from the number `here` on, and set those to -inf that do not count."""
    run, start, own = joined.runs, -joined.skipped, (panel.n_rows, panel.lane, panel.n_lanes)
    while start < here + n:
        n_keys = read(run + _N_KEYS, _WHOLE)
        first, end = max(here - start, 0), min(n_keys, here + n - start)
        if first < end:
            keys, tile = _keys_of(joined, run, first, end - first), scores + (start + first - here) * ROW
            if change.is_made:
                n_rows, lane, n_lanes = own
                token = keys.token + first
                change_scores(change, tile, end - first, token, panel.tokens, n_rows, lane, n_lanes, noted)
            seen = seen_by_lanes(keys, *own, between)
            hide(tile, first, end - first, keys, seen, *own, between)
        run, start = run + _RUN_BYTES, start + n_keys
