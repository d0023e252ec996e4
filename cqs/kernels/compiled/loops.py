"""What the compiled kernel runs: blocks of query rows against the keys that they see, panel by panel, tile by tile.

The queries of a block stand side by side in panels of 64, and a tile is what at most 96 keys score with one of them: it
stays in a core's nearest cache, and what is done to the scores of one query is done to those of 16 at once. Python is
not needed meanwhile, nor its lock.
"""

from typing import NamedTuple

import numpy as np
from numba import boolean, float32, float64, int32, int64, void
from numba.extending import register_jitable
from numba.types import UniTuple

from cqs.kernels.compiled.amx import HAS_TILES, begin, end, has_amx
from cqs.kernels.compiled.amx_tiles import add_keys_by_amx, amx_room
from cqs.kernels.compiled.dots import are_few
from cqs.kernels.compiled.hiding import Keys, seen_where
from cqs.kernels.compiled.joined import join_keys
from cqs.kernels.compiled.panels import PANEL_TYPE, Block, n_panels_of, panel_of
from cqs.kernels.compiled.pieces import STEP, in_steps, split_panel
from cqs.kernels.compiled.reading import ROW, copy_queries, pack_queries, padded, read, readable, write
from cqs.kernels.compiled.rounding import round_as_before, round_small_to_zero
from cqs.kernels.compiled.scores import CHANGE_ITEMS, PLAIN_CHANGE_TYPE
from cqs.kernels.compiled.sharing import next_item
from cqs.kernels.compiled.tiles import add_keys, fill, fold
from cqs.kernels.compiled.vectors import (
    ITEM,
    LANES,
    LIFT,
    all_less,
    any_less,
    compiled,
    inlined,
    load,
    spread,
    store,
    transpose,
)
from cqs.kernels.numba_scores import Change
from cqs.schedule import LEAST_SPLIT_LANES, PANEL, TILE_KEYS

__all__ = ["address_of", "attend", "has_amx", "padded", "room_size"]

_FOLD_KEYS = 3072  # after which sums are put aside: a sum of few numbers, and of few such sums, is more exact
_ZERO, _ONE, _NOTHING = np.float32(0), np.float32(1), np.float32(-np.inf)
_LN2 = 0.6931471805599453
_ROUNDED = 2.0**24  # scores from this on
_TO_ONE = np.float32(2.0**96)  # what makes 1 of a result that is barely not small
_NOT_FINITE, _SMALL, _LARGE = 1, 2, 4  # what is found among results
_NAN = np.float32(np.nan)
_ALIGNED = 16  # numbers more, so that an address can be a multiple of their bytes


@register_jitable
def _room_sizes(n_lanes, n_keys, width, value_width):
    """Return how many numbers `attend` needs room for, to compute some lanes together, and copy some keys at a time.

    That is for panels of queries, a panel's queries as they are, a tile of scores, keys, values, sums and totals of
    recent keys, those of keys before, maxima, what is noted of a panel's lanes, what scores are changed by, and for AMX
    pieces of keys, of values, and of weights, with what they add. While keys are split, a panel's rows and the tile
    hold values that are still to be split.
    """
    in_panels, wide, value_wide = -(-n_lanes // PANEL) * PANEL, in_steps(width) * STEP, in_steps(value_width) * STEP
    n_steps = in_steps(n_keys)
    n_split = 0 if n_lanes < LEAST_SPLIT_LANES else 3
    return (
        max(n_split * in_panels * wide // 2, in_panels * wide),
        2 * PANEL * max(wide, value_wide),
        TILE_KEYS * PANEL,
        n_keys * wide,
        n_keys * value_wide,
        in_panels * (value_wide + 1),
        in_panels * (value_wide + 1),
        in_panels,
        3 * PANEL,
        CHANGE_ITEMS,
        n_split * n_steps * STEP * wide // 2,
        n_split * n_steps * STEP * value_wide // 2,
        amx_room(value_wide) * (n_split > 0),
    )


@register_jitable
def room_size(n_lanes, n_keys, width, value_width):
    """Return how many numbers `attend` needs room for in all; each part of it begins at a multiple of 64 bytes."""
    total = _ALIGNED
    for size in _room_sizes(n_lanes, n_keys, width, value_width):
        total += -(-size // _ALIGNED) * _ALIGNED
    return total


@compiled(int64(int64, int64, int64, float32))
def _divide(sums, out, width, total):
    """Write the sums of a row divided by that of its weights; return what was found among them."""
    divisor, zero, squares = spread(total), spread(_ZERO), spread(_ZERO)
    for e in range(0, width, LANES):
        numbers = load(sums + e * ITEM) / divisor
        zero = zero + numbers * spread(_ZERO)
        lifted = numbers * spread(_TO_ONE)
        squares = squares + lifted * lifted
        if e + LANES <= width:
            store(numbers, out + e * ITEM)
        else:
            store(numbers, sums + e * ITEM)
    for e in range(width // LANES * LANES, width):
        write(read(sums + e * ITEM, _ZERO), out + e * ITEM)
    found = _LARGE if any_less(spread(_ONE), squares) else _SMALL
    return found if all_less(zero, spread(_ONE)) else found | _NOT_FINITE


@register_jitable
def address_of(array):
    """Return where an array is."""
    return np.int64(array.ctypes.data)


class _Room(NamedTuple):
    """The addresses of what `_room_sizes` describes."""

    panels: int
    rows: int
    tile: int
    keys: int
    values: int
    sums: int
    kept: int
    tops: int
    between: int
    noted: int
    k_pieces: int
    v_pieces: int
    weighing: int


@register_jitable
def _after(place, size):
    """Return the next multiple of 64 bytes after some numbers at a place that is one."""
    return place + -(-size // _ALIGNED) * _ALIGNED * ITEM


@register_jitable
def _room(array, n_lanes, n_keys, width, value_width):
    """Lay out the room, in an array as large as `room_size` says."""
    sizes = _room_sizes(n_lanes, n_keys, width, value_width)
    panels = -(-np.int64(array.ctypes.data) // 64) * 64
    rows = _after(panels, sizes[0])
    tile = _after(rows, sizes[1])
    keys = _after(tile, sizes[2])
    values = _after(keys, sizes[3])
    sums = _after(values, sizes[4])
    kept = _after(sums, sizes[5])
    tops = _after(kept, sizes[6])
    between = _after(tops, sizes[7])
    noted = _after(between, sizes[8])
    k_pieces = _after(noted, sizes[9])
    v_pieces = _after(k_pieces, sizes[10])
    weighing = _after(v_pieces, sizes[11])
    return _Room(
        panels, rows, tile, keys, values, sums, kept, tops, between, noted, k_pieces, v_pieces, weighing
    )  # fmt: skip


@register_jitable
def _block(n_lanes, n_rows, depth, value_width, tokens, pieces, room):
    """Return a block of queries; AMX takes as many of them at a time as it can, vectors about as many each time."""
    n_wide = PANEL if pieces > 0 else padded(-(-n_lanes // -(-n_lanes // PANEL)))
    width = in_steps(value_width) * STEP if pieces > 0 else padded(value_width)
    return Block(
        room.panels, depth, n_rows, n_lanes, n_wide, room.sums, room.kept, width, room.tops, tokens, pieces
    )  # fmt: skip


@register_jitable
def _fill_panel(panel, queries, batch, head, first_row, factor, rows):
    """Write a panel's queries, and begin its sums; return whether AMX cannot multiply them."""
    own = batch, head, first_row, panel.n_rows, panel.lane, panel.n_lanes, factor
    fill(panel.sums, (panel.width + 1) * PANEL, _ZERO)
    fill(panel.tops, PANEL, _NOTHING)
    if panel.pieces > 0:
        steps, beside = in_steps(panel.depth), rows + PANEL * in_steps(panel.depth) * STEP * ITEM
        pack_queries(queries, *own, rows, beside)
        n_packed = padded(panel.depth)
        fill(beside + n_packed * ROW, (steps * STEP - n_packed) * PANEL, _ZERO)
        return split_panel(beside, padded(panel.n_lanes) // LANES, steps, panel.pieces, panel.queries)
    if are_few(panel.n_lanes, panel.depth):
        copy_queries(queries, *own, panel.queries)
    else:
        pack_queries(queries, *own, rows, panel.queries)
    return False


@inlined
def _add_keys(chunks, batch, head, runs, p, key, most_keys, block, room, bounds, hidden, change, factor, is_kept):
    """Do by vectors what `_add_next_keys` does, with keys of one run."""
    n_keys, kind, place = runs[p, 2], runs[p, 3], runs[p, 4]
    n, first = min(most_keys, n_keys - key), runs[p, 1] + key
    seen, is_few = seen_where(kind, place, bounds, hidden), are_few(block.n_lanes, block.depth)
    k = readable(chunks, batch, runs[p, 0], 0, head, first, n, room.keys, block.depth, is_few)
    v = readable(chunks, batch, runs[p, 0], 1, head, first, n, room.values, block.width, is_few)
    round_small_to_zero()
    keys = Keys(*k, *v, key, n, kind, seen, runs[p, 5])
    for i in range(n_panels_of(block)):
        add_keys(panel_of(block, i), keys, change, room.tile, room.between, room.noted, factor, is_kept)
    return (n, p, key + n, False) if key + n < n_keys else (n, p + 1, 0, False)


@inlined
def _add_next_keys(
    chunks, batch, head, runs, p, key, end, most_keys, block, room, bounds, hidden, change, factor, is_kept
):
    """Add keys from the number `key` of the run p on; return how many, where the next are, and if AMX cannot do."""
    if HAS_TILES and block.pieces > 0:  # where there are none, the compiler leaves this out
        joined, p, key, are_small = join_keys(
            chunks, batch, head, runs, p, key, end, most_keys, block, room, bounds, hidden
        )
        round_small_to_zero()
        add_keys_by_amx(block, joined, change, room.weighing, room.between, room.noted, factor, is_kept)
        return joined.n, p, key, are_small
    return _add_keys(
        chunks, batch, head, runs, p, key, most_keys, block, room, bounds, hidden, change, factor, is_kept
    )  # fmt: skip


@register_jitable
def _rows_of_sums(panel, sums, rows):
    """Return where the sums of each lane of a panel are next to each other; there is room for such rows."""
    if panel.pieces == 0:
        return sums
    for lane in range(0, panel.n_lanes, LANES):
        for e in range(0, panel.width, LANES):
            target = rows + lane * panel.width * ITEM + e * ITEM
            transpose(sums + e * ROW + lane * ITEM, ROW, target, panel.width * ITEM)
    return rows


@compiled(UniTuple(float32, 2)(float64, float64))
def _log_sum(top, total):
    """Return a log-sum-exp by its largest score and the sum of its weights: rounded, and what rounding took.

    Of a score so large that float32 numbers are 2 apart, the rest would leave no place for the logarithm of the sum:
    such a score is rounded, as it is in the plain formula. So keys of equal scores count alike wherever they are.
    """
    score = top if abs(top) < _ROUNDED else np.float64(np.float32(top))
    logarithm = (np.log2(total) - LIFT) * _LN2
    lse = np.float32(score + logarithm)
    rest = np.float32((score - lse) + logarithm)
    return lse, rest if np.isfinite(lse) else _ZERO


@compiled(
    int64(PANEL_TYPE, boolean, int64, int64, int64, float64, float32[:, :, ::1], float32[:, ::1], float32[:, ::1])
)
def _write_rows(panel, is_kept, rows, head, first_row, scale, out, lse, rest):
    """Write the result of a panel's lanes; return what was found among those that see anything."""
    found, width, sums = 0, out.shape[2], panel.kept if is_kept else panel.sums
    totals, sums = sums + panel.width * ROW, _rows_of_sums(panel, sums, rows)
    r, i = divmod(panel.lane, panel.n_rows)
    for own in range(panel.n_lanes):
        top, total = read(panel.tops + own * ITEM, _ZERO), read(totals + own * ITEM, _ZERO)
        there, row = head + r, first_row + i
        if total == 0:
            out[there, row], lse[there, row], rest[there, row] = _ZERO, _NOTHING, _ZERO
        else:
            place = out.ctypes.data + (there * out.shape[1] + row) * width * ITEM
            found |= _divide(sums + own * panel.width * ITEM, place, width, total)
            lse[there, row], rest[there, row] = _log_sum(np.float64(top) * scale, np.float64(total))
        r, i = (r, i + 1) if i + 1 < panel.n_rows else (r + 1, 0)
    return found


@inlined
def _attend_item(
    queries, chunks, query_factor, factor, scale, item, rows, runs, seen_at, change, tokens, room, most_keys, out, lse,
    rest, begins, ends, pieces,
):  # fmt: skip
    """Attend with the query heads of an item; return whether the result counts, and how many keys there were."""
    batch, kv_head, head, n_heads, _ = item
    bounds_at, hidden_at = seen_at
    first_row, end_row, p, end_run = rows
    n_lanes = n_heads * (end_row - first_row)
    block = _block(n_lanes, end_row - first_row, queries[0, 5], out.shape[2], tokens, pieces, room)
    n_panels = n_panels_of(block)
    n_sums, is_small = n_panels * (block.width + 1) * PANEL, False
    for n in range(n_panels if begins else 0):
        is_small |= _fill_panel(panel_of(block, n), queries, batch, head, first_row, query_factor, room.rows)
    rounding = round_small_to_zero()
    n_recent, n_keys, is_kept, key = 0, 0, not begins, 0  # keys since sums were folded, and all
    while p < end_run:
        round_as_before(rounding)  # small keys matter where queries are large
        n, p, key, are_small = _add_next_keys(
            chunks, batch, kv_head, runs, p, key, end_run, most_keys, block, room, bounds_at, hidden_at, change, factor,
            is_kept,
        )  # fmt: skip
        is_small |= are_small
        n_recent, n_keys = n_recent + n, n_keys + n
        if n_recent >= _FOLD_KEYS:
            fold(room.sums, room.kept, n_sums, is_kept)
            n_recent, is_kept = 0, True
    if is_small:  # so that whoever gets the result computes it otherwise
        fill(room.sums, n_sums, _NAN)
    if is_kept or not ends:
        fold(room.sums, room.kept, n_sums, is_kept)
    round_as_before(rounding)
    found, here = 0, batch * (out.shape[0] // queries.shape[0]) + head
    for n in range(n_panels if ends else 0):
        found |= _write_rows(panel_of(block, n), is_kept, room.rows, here, first_row, scale, out, lse, rest)
    return found & _NOT_FINITE == 0 and found != _SMALL, n_keys


@compiled(
    void(
        int64[:, ::1], int64[:, :, :, ::1], float32, float32, float64, int64[:, ::1], int64[:, ::1], int64[:, ::1],
        int32[::1], boolean[::1], PLAIN_CHANGE_TYPE, int64[::1], float32[::1], int64, int64,
        float32[:, :, ::1], float32[:, ::1], float32[:, ::1], boolean, boolean, int64[::1], int64, boolean[::1], int64,
    )
)  # fmt: skip
def attend(
    queries, chunks, query_factor, factor, scale, items, blocks, runs, bounds, hidden, change, tokens, room_array,
    most_lanes, most_keys, out, lse, rest, begins, ends, turn, most_scores, is_left, pieces,
):  # fmt: skip
    """Attend item by item: with the query heads of a key head, in one block of rows. Threads may share the items.

    Parameters
    ----------
    queries : int64, `(batch, 6)`
        Where queries are: address, bytes from head to head, row to row, number to number; type; width.
    chunks : int64, `(batch, n, 2, 6)`
        Likewise for keys and values.
    query_factor, factor : float32
        What queries are multiplied by, and scores before weights are powers of 2 of them; the latter is positive.
    scale : float
        What scores are multiplied by before weights are powers of e of them.
    items : int64, `(i, 5)`
        Batch entry, key head, first query head and how many, block.
    blocks : int64, `(m, 4)`
        First row and the one after the last; first piece and the one after the last.
    runs : int64, `(p, 6)`
        Runs of keys: chunk, first key in it, number of keys; what rows see of them, and where that is said; the token
        number of the first key, which matters if scores are changed.
    bounds : int32
        For BOUNDED pieces the first key that each row sees, and the one after the last, counted from the first key.
    hidden : bool
        For FLAGGED pieces which keys are hidden from which rows, `(keys, rows)`.
    change : tuple
        The parts of a `Change`: what is done to scores before the mask.
    tokens : int64, `(T,)`
        The token numbers of the rows; of any length if scores are not changed.
    room_array : float32
        As large as `room_size` says.
    most_lanes, most_keys : int
        Queries of a block, and keys that are read for one panel after the other.
    out, lse, rest : float32, `(heads, T, E)` and `(heads, T)`
        Where the result goes, as of a `Partial`, for the heads of all batch entries.
    begins, ends : bool
        Whether these are the blocks' first pieces, and the last, with which the result is written.
    turn : int64, `(1,)`
        The item that is next; whoever takes it adds 1. It ends at the number of items or above.
    most_scores : int
        After which no other item is taken.
    is_left : bool, `(i,)`
        Becomes True for items taken here whose result does not count: sums are not finite, or all are so small that
        they may lack digits.
    pieces : int
        Of each number of queries, keys and values, for AMX to multiply where that is faster; 0 if it cannot. An item
        whose result would not count, since numbers are too small for AMX or for other reasons, is computed again by
        vectors, unless it has been begun or is to be ended by another call.

    Notes
    -----
    Within it all is done by address: handing on parts of arrays would count who uses them, for each tile.
    """
    changing = Change(*change)
    room = _room(room_array, most_lanes, most_keys, queries[0, 5], out.shape[2])
    seen_at, tokens_at = (address_of(bounds), address_of(hidden)), address_of(tokens)
    if pieces > 0:
        begin()
    n_scores = 0
    item, own_pieces = next_item(address_of(turn)), pieces
    while item < len(items):
        first_row, end_row, first_run, end_run = blocks[items[item, 4]]
        n_lanes = items[item, 3] * (end_row - first_row)
        is_fit, n_keys = _attend_item(
            queries, chunks, query_factor, factor, scale, items[item], (first_row, end_row, first_run, end_run), runs,
            seen_at, changing, tokens_at + first_row * tokens.itemsize, room, most_keys, out, lse, rest, begins, ends,
            own_pieces if n_lanes >= LEAST_SPLIT_LANES else 0,
        )  # fmt: skip
        n_scores += n_lanes * n_keys
        if not is_fit and own_pieces > 0 and begins and ends:
            own_pieces = 0
            continue
        is_left[item] = not is_fit
        if n_scores >= most_scores:
            break
        item, own_pieces = next_item(address_of(turn)), pieces
    if pieces > 0:
        end()
