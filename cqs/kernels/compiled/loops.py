"""What the compiled kernel runs: blocks of query rows against the keys that they see, panel by panel, tile by tile.

The queries of a block stand side by side in panels of 64, and a tile is what at most 96 keys score with one of them: it
stays in a core's nearest cache, and what is done to the scores of one query is done to those of 16 at once. Python is
not needed meanwhile, nor its lock.
"""

import numpy as np
from numba import boolean, float32, float64, int32, int64, void
from numba.extending import register_jitable
from numba.types import UniTuple

from cqs.kernels.compiled.dots import are_few
from cqs.kernels.compiled.hiding import Keys
from cqs.kernels.compiled.reading import ROW, copy_queries, pack_queries, padded, read, readable, write
from cqs.kernels.compiled.rounding import round_as_before, round_small_to_zero
from cqs.kernels.compiled.scores import CHANGE_ITEMS, PLAIN_CHANGE_TYPE
from cqs.kernels.compiled.tiles import PANEL_TYPE, Panel, add_keys, fill, fold
from cqs.kernels.compiled.vectors import ITEM, LANES, LIFT, all_less, any_less, compiled, load, spread, store
from cqs.kernels.numba_scores import Change
from cqs.kernels.numba_tables import BOUNDED
from cqs.schedule import PANEL, TILE_KEYS

__all__ = ["address_of", "attend", "padded", "room_sizes"]

_FOLD_KEYS = 3072  # after which sums are put aside: a sum of few numbers, and of few such sums, is more exact
_ZERO, _ONE, _NOTHING = np.float32(0), np.float32(1), np.float32(-np.inf)
_LN2 = 0.6931471805599453
_ROUNDED = 2.0**24  # scores from this on
_TO_ONE = np.float32(2.0**96)  # what makes 1 of a result that is barely not small
_NOT_FINITE, _SMALL, _LARGE = 1, 2, 4  # what is found among results


def room_sizes(n_lanes, n_keys, width, value_width):
    """Return how many numbers `attend` needs room for, to compute some lanes together, and copy some keys at a time.

    That is for panels of queries, a panel's queries as they are, a tile of scores, keys, values, sums and totals (of
    recent keys, and in the second half of those before), maxima, what is noted of a panel's lanes, and what scores are
    changed by.
    """
    in_panels, wide, value_wide = -(-n_lanes // PANEL) * PANEL, padded(width), padded(value_width)
    of_keys = n_keys * width, n_keys * value_wide
    return (
        in_panels * wide,
        PANEL * wide,
        TILE_KEYS * PANEL,
        *of_keys,
        2 * in_panels * (value_wide + 1),
        in_panels,
        3 * PANEL,
        CHANGE_ITEMS,
    )


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
def _panel(n, n_wide, n_lanes, n_rows, depth, width, panels, sums, kept, tops, tokens):
    """Return the n-th panel of a block; all but the last have `n_wide` lanes."""
    lane, n_sums = n * n_wide, n * (width + 1) * ROW
    queries, own_lanes = panels + n * padded(depth) * ROW, min(n_wide, n_lanes - lane)
    return Panel(queries, depth, n_rows, lane, own_lanes, sums + n_sums, kept + n_sums, width, tops + n * ROW, tokens)


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


@compiled(int64(PANEL_TYPE, int64, int64, float64, float32[:, :, ::1], float32[:, ::1], float32[:, ::1]))
def _write_rows(panel, head, first_row, scale, out, lse, rest):
    """Write the result of a panel's lanes; return what was found among those that see anything."""
    found, width, totals = 0, out.shape[2], panel.sums + panel.width * ROW
    r, i = divmod(panel.lane, panel.n_rows)
    for own in range(panel.n_lanes):
        top, total = read(panel.tops + own * ITEM, _ZERO), read(totals + own * ITEM, _ZERO)
        there, row = head + r, first_row + i
        if total == 0:
            out[there, row], lse[there, row], rest[there, row] = _ZERO, _NOTHING, _ZERO
        else:
            place = out.ctypes.data + (there * out.shape[1] + row) * width * ITEM
            found |= _divide(panel.sums + own * panel.width * ITEM, place, width, total)
            lse[there, row], rest[there, row] = _log_sum(np.float64(top) * scale, np.float64(total))
        r, i = (r, i + 1) if i + 1 < panel.n_rows else (r + 1, 0)
    return found


@compiled(
    void(
        int64[:, ::1], int64[:, :, :, ::1], float32, float32, float64, int64[:, ::1], int64[:, ::1], int64[:, ::1],
        int32[::1], boolean[::1], PLAIN_CHANGE_TYPE, int64[::1], UniTuple(float32[::1], 9), int64,
        float32[:, :, ::1], float32[:, ::1], float32[:, ::1], boolean, boolean, boolean[::1],
    )
)  # fmt: skip
def attend(
    queries, chunks, query_factor, factor, scale, items, blocks, pieces, bounds, hidden, change, tokens, room,
    most_keys, out, lse, rest, begins, ends, is_fit,
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
    pieces : int64, `(p, 6)`
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
        Where it is said whose result counts: not if sums are not finite, or all are so small that they may lack digits.

    Notes
    -----
    Within it all is done by address: handing on parts of arrays would count who uses them, for each tile.
    """
    changing = Change(*change)
    panels, rows, tile, keys = address_of(room[0]), address_of(room[1]), address_of(room[2]), address_of(room[3])
    values, sums, tops, scratch = address_of(room[4]), address_of(room[5]), address_of(room[6]), address_of(room[7])
    noted = address_of(room[8])
    depth, width, n_heads = queries[0, 5], padded(out.shape[2]), out.shape[0] // queries.shape[0]
    n_sums, kept = (width + 1) * PANEL, sums + room[5].size // 2 * ITEM
    for item in range(items.shape[0]):
        batch, kv_head, head, block = items[item, 0], items[item, 1], items[item, 2], items[item, 4]
        first_row, n_rows = blocks[block, 0], blocks[block, 1] - blocks[block, 0]
        n_lanes = items[item, 3] * n_rows
        n_panels = -(-n_lanes // PANEL)
        n_wide = padded(-(-n_lanes // n_panels))  # lanes of all panels but the last
        own_tokens = address_of(tokens) + first_row * tokens.itemsize
        for n in range(n_panels if begins else 0):
            panel = _panel(n, n_wide, n_lanes, n_rows, depth, width, panels, sums, kept, tops, own_tokens)
            own = batch, head, first_row, n_rows, panel.lane, panel.n_lanes, query_factor
            if are_few(panel.n_lanes, depth):
                copy_queries(queries, *own, panel.queries)
            else:
                pack_queries(queries, *own, rows, panel.queries)
            fill(panel.sums, n_sums, _ZERO)
            fill(panel.tops, PANEL, _NOTHING)
        rounding = round_small_to_zero()
        n_recent, is_kept = 0, not begins  # keys since sums were folded
        for p in range(blocks[block, 2], blocks[block, 3]):
            chunk, first, n_keys, kind = pieces[p, 0], pieces[p, 1], pieces[p, 2], pieces[p, 3]
            seen = address_of(bounds) + pieces[p, 4] * ITEM if kind == BOUNDED else address_of(hidden) + pieces[p, 4]
            for key in range(0, n_keys, most_keys):
                n_here = min(most_keys, n_keys - key)
                round_as_before(rounding)  # small keys matter where queries are large
                k, k_row = readable(chunks, batch, chunk, 0, kv_head, first + key, n_here, keys, depth)
                v, v_row = readable(chunks, batch, chunk, 1, kv_head, first + key, n_here, values, width)
                round_small_to_zero()
                own_keys = Keys(k, k_row, v, v_row, key, n_here, kind, seen, pieces[p, 5])
                for n in range(n_panels):
                    panel = _panel(n, n_wide, n_lanes, n_rows, depth, width, panels, sums, kept, tops, own_tokens)
                    add_keys(panel, own_keys, changing, tile, scratch, noted, factor, is_kept)
                n_recent += n_here
                if n_recent >= _FOLD_KEYS:
                    fold(sums, kept, n_panels * n_sums, is_kept)
                    n_recent, is_kept = 0, True
        if is_kept or not ends:
            fold(sums, kept, n_panels * n_sums, is_kept)
        round_as_before(rounding)
        found = 0
        for n in range(n_panels if ends else 0):
            total = kept if is_kept else sums
            panel = _panel(n, n_wide, n_lanes, n_rows, depth, width, panels, total, kept, tops, own_tokens)
            found |= _write_rows(panel, batch * n_heads + head, first_row, scale, out, lse, rest)
        is_fit[item] = found & _NOT_FINITE == 0 and found != _SMALL
