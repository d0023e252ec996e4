"""What the compiled kernel runs: blocks of query rows against the keys that they see, panel by panel, tile by tile.

The queries of a block stand side by side in panels of 64, and a tile is what at most 96 keys score with one of them: it
stays in a core's nearest cache, and what is done to the scores of one query is done to those of 16 at once. Python is
not needed meanwhile, nor its lock.
"""

import numpy as np
from numba import boolean, float32, float64, int32, int64, void
from numba.extending import register_jitable
from numba.types import UniTuple

from cqs.kernels.compiled.amx import begin, end, has_amx
from cqs.kernels.compiled.amx_tiles import add_keys_by_amx, amx_room
from cqs.kernels.compiled.dots import are_few
from cqs.kernels.compiled.hiding import Keys
from cqs.kernels.compiled.pieces import STEP, TILE_BYTES, in_steps, split_keys, split_panel, split_values
from cqs.kernels.compiled.reading import ROW, copy_queries, pack_queries, padded, read, readable, write
from cqs.kernels.compiled.rounding import round_as_before, round_small_to_zero
from cqs.kernels.compiled.scores import CHANGE_ITEMS, PLAIN_CHANGE_TYPE
from cqs.kernels.compiled.tiles import PANEL_TYPE, Panel, add_keys, fill, fold
from cqs.kernels.compiled.vectors import ITEM, LANES, LIFT, all_less, any_less, compiled, load, spread, store, transpose
from cqs.kernels.numba_scores import Change
from cqs.kernels.numba_tables import BOUNDED
from cqs.schedule import LEAST_SPLIT_LANES, PANEL, TILE_KEYS

__all__ = ["address_of", "attend", "has_amx", "padded", "room_sizes"]

_FOLD_KEYS = 3072  # after which sums are put aside: a sum of few numbers, and of few such sums, is more exact
_ZERO, _ONE, _NOTHING = np.float32(0), np.float32(1), np.float32(-np.inf)
_LN2 = 0.6931471805599453
_ROUNDED = 2.0**24  # scores from this on
_TO_ONE = np.float32(2.0**96)  # what makes 1 of a result that is barely not small
_NOT_FINITE, _SMALL, _LARGE = 1, 2, 4  # what is found among results
_NAN = np.float32(np.nan)
_ALIGNED = 16  # numbers more, so that an address can be a multiple of their bytes


def room_sizes(n_lanes, n_keys, width, value_width):
    """Return how many numbers `attend` needs room for, to compute some lanes together, and copy some keys at a time.

    That is for panels of queries, a panel's queries as they are, a tile of scores, keys, values, sums and totals (of
    recent keys, and in the second half of those before), maxima, what is noted of a panel's lanes, what scores are
    changed by, and for AMX pieces of keys, of values, and of weights, with what they add. Places of pieces are
    multiples of 64 bytes.
    """
    in_panels, wide, value_wide = -(-n_lanes // PANEL) * PANEL, in_steps(width) * STEP, in_steps(value_width) * STEP
    n_steps = in_steps(n_keys)
    n_split = 0 if n_lanes < LEAST_SPLIT_LANES else 3
    sizes = (
        max(n_split * in_panels * wide // 2, in_panels * wide),
        2 * PANEL * max(wide, value_wide),
        TILE_KEYS * PANEL,
        n_keys * wide,
        n_keys * value_wide,
        2 * in_panels * (value_wide + 1),
        in_panels,
        3 * PANEL,
        CHANGE_ITEMS,
        n_split * n_steps * STEP * wide // 2,
        n_split * n_steps * STEP * value_wide // 2,
        amx_room(value_wide) * (n_split > 0),
    )
    return tuple(size + _ALIGNED for size in sizes)


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


@register_jitable
def _aligned(array):
    """Return the first address in an array that is a multiple of 64."""
    return -(-np.int64(array.ctypes.data) // 64) * 64


@register_jitable
def _panel(n, n_wide, n_lanes, n_rows, depth, width, panels, sums, kept, tops, tokens, pieces):
    """Return the n-th panel of a block; all but the last have `n_wide` lanes."""
    lane, n_sums = n * n_wide, n * (width + 1) * ROW
    of_queries = pieces * in_steps(depth) * 4 * TILE_BYTES if pieces > 0 else padded(depth) * ROW
    own_lanes, own_sums = min(n_wide, n_lanes - lane), sums + n_sums
    queries, own_kept, own_tops = panels + n * of_queries, kept + n_sums, tops + n * ROW
    return Panel(queries, depth, n_rows, lane, own_lanes, own_sums, own_kept, width, own_tops, tokens, pieces)


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


@register_jitable
def _add(panel, keys, change, tile, pieces, between, noted, factor, is_kept):
    """Add keys to the sums of a panel."""
    if panel.pieces > 0:
        add_keys_by_amx(panel, keys, change, pieces, between, noted, factor, is_kept)
    else:
        add_keys(panel, keys, change, tile, between, noted, factor, is_kept)


@register_jitable
def _rows_of_sums(panel, rows):
    """Return where the sums of each lane of a panel are next to each other; there is room for such rows."""
    if panel.pieces == 0:
        return panel.sums
    for lane in range(0, panel.n_lanes, LANES):
        for e in range(0, panel.width, LANES):
            target = rows + lane * panel.width * ITEM + e * ITEM
            transpose(panel.sums + e * ROW + lane * ITEM, ROW, target, panel.width * ITEM)
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


@compiled(int64(PANEL_TYPE, int64, int64, int64, float64, float32[:, :, ::1], float32[:, ::1], float32[:, ::1]))
def _write_rows(panel, rows, head, first_row, scale, out, lse, rest):
    """Write the result of a panel's lanes; return what was found among those that see anything."""
    found, width, totals, sums = 0, out.shape[2], panel.sums + panel.width * ROW, _rows_of_sums(panel, rows)
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


@compiled(
    void(
        int64[:, ::1], int64[:, :, :, ::1], float32, float32, float64, int64[:, ::1], int64[:, ::1], int64[:, ::1],
        int32[::1], boolean[::1], PLAIN_CHANGE_TYPE, int64[::1], UniTuple(float32[::1], 12), int64,
        float32[:, :, ::1], float32[:, ::1], float32[:, ::1], boolean, boolean, boolean[::1], int64,
    )
)  # fmt: skip
def attend(
    queries, chunks, query_factor, factor, scale, items, blocks, runs, bounds, hidden, change, tokens, room,
    most_keys, out, lse, rest, begins, ends, is_fit, pieces,
):  # fmt: skip
    """Attend item by item: with the query heads of a key head, in one block of rows.

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
    room : tuple of float32 arrays
        As large as `room_sizes` says.
    most_keys : int
        Keys that are read for one panel after the other.
    out, lse, rest : float32, `(heads, T, E)` and `(heads, T)`
        Where the result goes, as of a `Partial`, for the heads of all batch entries.
    begins, ends : bool
        Whether these are the blocks' first pieces, and the last, with which the result is written.
    is_fit : bool, `(i,)`
        Where it is said whose result counts: not if sums are not finite, or all are so small that they may lack digits,
        or AMX was to multiply numbers that are too small for it.
    pieces : int
        Of each number of queries, keys and values, for AMX to multiply where that is faster; 0 if it cannot.

    Notes
    -----
    Within it all is done by address: handing on parts of arrays would count who uses them, for each tile.
    """
    changing = Change(*change)
    panels, rows, tile, keys = _aligned(room[0]), _aligned(room[1]), _aligned(room[2]), _aligned(room[3])
    values, sums, tops, scratch = _aligned(room[4]), _aligned(room[5]), _aligned(room[6]), _aligned(room[7])
    noted, k_pieces, v_pieces, weights = _aligned(room[8]), _aligned(room[9]), _aligned(room[10]), _aligned(room[11])
    kept = sums + (room[5].size - _ALIGNED) // 2 * ITEM
    depth, n_heads = queries[0, 5], out.shape[0] // queries.shape[0]
    if pieces > 0:
        begin()
    for item in range(items.shape[0]):
        batch, kv_head, head, block = items[item, 0], items[item, 1], items[item, 2], items[item, 4]
        first_row, n_rows = blocks[block, 0], blocks[block, 1] - blocks[block, 0]
        n_lanes = items[item, 3] * n_rows
        n_panels = -(-n_lanes // PANEL)
        n_wide = padded(-(-n_lanes // n_panels))  # lanes of all panels but the last
        own_tokens = address_of(tokens) + first_row * tokens.itemsize
        own_pieces = pieces if n_lanes >= LEAST_SPLIT_LANES else 0
        width = in_steps(out.shape[2]) * STEP if own_pieces > 0 else padded(out.shape[2])
        key_width, n_sums = in_steps(depth) * STEP if own_pieces > 0 else depth, (width + 1) * PANEL
        is_small = False
        for n in range(n_panels if begins else 0):
            panel = _panel(n, n_wide, n_lanes, n_rows, depth, width, panels, sums, kept, tops, own_tokens, own_pieces)
            is_small |= _fill_panel(panel, queries, batch, head, first_row, query_factor, rows)
        rounding = round_small_to_zero()
        n_recent, is_kept = 0, not begins  # keys since sums were folded
        for p in range(blocks[block, 2], blocks[block, 3]):
            chunk, first, n_keys, kind = runs[p, 0], runs[p, 1], runs[p, 2], runs[p, 3]
            seen = address_of(bounds) + runs[p, 4] * ITEM if kind == BOUNDED else address_of(hidden) + runs[p, 4]
            for key in range(0, n_keys, most_keys):
                n_here = min(most_keys, n_keys - key)
                round_as_before(rounding)  # small keys matter where queries are large
                k, k_row = readable(chunks, batch, chunk, 0, kv_head, first + key, n_here, keys, key_width)
                v, v_row = readable(chunks, batch, chunk, 1, kv_head, first + key, n_here, values, width)
                if own_pieces > 0:
                    is_small |= split_keys(k, k_row, n_here, key_width, own_pieces, k_pieces)
                    is_small |= split_values(v, v_row, n_here, width, own_pieces, v_pieces, tile)
                    k, v = k_pieces, v_pieces
                round_small_to_zero()
                own_keys = Keys(k, k_row, v, v_row, key, n_here, kind, seen, runs[p, 5])
                for n in range(n_panels):
                    panel = _panel(
                        n, n_wide, n_lanes, n_rows, depth, width, panels, sums, kept, tops, own_tokens, own_pieces
                    )
                    _add(panel, own_keys, changing, tile, weights, scratch, noted, factor, is_kept)
                n_recent += n_here
                if n_recent >= _FOLD_KEYS:
                    fold(sums, kept, n_panels * n_sums, is_kept)
                    n_recent, is_kept = 0, True
        if is_small:  # so that whoever gets the result computes it otherwise
            fill(sums, n_panels * n_sums, _NAN)
        if is_kept or not ends:
            fold(sums, kept, n_panels * n_sums, is_kept)
        round_as_before(rounding)
        found = 0
        for n in range(n_panels if ends else 0):
            total = kept if is_kept else sums
            panel = _panel(n, n_wide, n_lanes, n_rows, depth, width, panels, total, kept, tops, own_tokens, own_pieces)
            found |= _write_rows(panel, rows, batch * n_heads + head, first_row, scale, out, lse, rest)
        is_fit[item] = found & _NOT_FINITE == 0 and found != _SMALL
    if pieces > 0:
        end()
