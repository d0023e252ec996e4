"""What the compiled backward pass runs: the pairs of blocks of query rows and the keys that they see, tile by tile.

As in the forward pass, queries stand side by side in panels of 64, and a tile is what some keys score with one of them.
Of each tile two are made, of weights and of what scores change the result by; both stay in a core's own caches while
they are multiplied with queries, keys, and gradients of outputs.
"""

from typing import NamedTuple

import numpy as np
from numba import boolean, float32, int32, int64, types, void

from cqs.kernels.compiled.backward_bias import BiasSums
from cqs.kernels.compiled.backward_tiles import PANEL_TYPE, BackwardPanel, add_pairs
from cqs.kernels.compiled.hiding import Keys, seen_where
from cqs.kernels.compiled.loops import address_of
from cqs.kernels.compiled.reading import ROW, pack_queries, padded, read, readable, write
from cqs.kernels.compiled.scores import CHANGE_ITEMS, PLAIN_CHANGE_TYPE
from cqs.kernels.compiled.tiles import fill, fold
from cqs.kernels.compiled.vectors import ITEM, LANES, LIFT, VECTOR_BYTES, all_less, compiled, load, spread, store
from cqs.kernels.numba_scores import Change
from cqs.schedule import PANEL, TILE_KEYS

__all__ = ["differentiate", "padded", "room_sizes"]

_FOLD_KEYS = 3072  # after which sums are put aside: a sum of few numbers, and of few such sums, is more exact
_ZERO, _ONE, _INFINITE = np.float32(0), np.float32(1), np.float32(np.inf)
_LOWER = np.float32(2.0**-LIFT)


def room_sizes(n_lanes, n_keys, width, value_width):
    """Return how many numbers `differentiate` needs room for, as `cqs.kernels.compiled.loops.room_sizes` does.

    That is for panels of queries and of gradients of outputs, for both row by row, for three tiles, keys, values, sums
    (of recent keys, and in the second half of those before), log-sum-exps and deltas, what is noted of a panel's lanes,
    and what scores are changed by.
    """
    in_panels, wide, value_wide = -(-n_lanes // PANEL) * PANEL, padded(width), padded(value_width)
    of_lanes = in_panels * wide, in_panels * value_wide
    of_keys = n_keys * wide, n_keys * value_wide
    return (
        *of_lanes,
        *of_lanes,
        3 * TILE_KEYS * PANEL,
        *of_keys,
        2 * of_lanes[0],
        2 * in_panels,
        3 * PANEL,
        CHANGE_ITEMS,
    )


@compiled(boolean(int64, int64, float32))
def _is_finite(numbers, n, factor):
    """Return whether n numbers, a multiple of those of a vector, are finite and stay so with a factor."""
    zero = spread(_ZERO)
    for place in range(numbers, numbers + n * ITEM, VECTOR_BYTES):
        zero = zero + load(place) * spread(factor) * spread(_ZERO)
    return all_less(zero, spread(_ONE))


@compiled(void(int64, int64, int64, float32, float32, boolean))
def _write_row(sums, row, width, first, second, adds):
    """Write a row of sums times two factors, or add it to what is there."""
    for e in range(0, width // LANES * LANES, LANES):
        numbers = load(sums + e * ITEM) * spread(first) * spread(second)
        store(numbers + load(row + e * ITEM) if adds else numbers, row + e * ITEM)
    for e in range(width // LANES * LANES, width):
        number = read(sums + e * ITEM, _ZERO) * first * second
        write(number + read(row + e * ITEM, _ZERO) if adds else number, row + e * ITEM)


@compiled(void(int64[:, :, :, ::1], int64, int64, int64, int64[::1], int64, float32, float32))
def _add_up(gradients, batch, head, which, starts, sums, first, second):
    """Add the sums of keys (`which` is 0) or values (1), times two factors, to their gradients, chunk by chunk."""
    for n in range(gradients.shape[1]):
        width = gradients[batch, n, which, 5]
        row = gradients[batch, n, which, 0] + head * gradients[batch, n, which, 1]
        for i in range(starts[n], starts[n + 1]):
            _write_row(sums + i * padded(width) * ITEM, row, width, first, second, True)
            row += gradients[batch, n, which, 2]


@compiled(boolean(int64[:, :, :, ::1], int64, int64, int64[::1], int64, int64, float32, float32))
def _finish_keys(gradients, batch, head, starts, dk, dv, first, second):
    """Add the sums of a head's keys and values to their gradients, if all are finite; return whether they are."""
    n_keys, width, value_width = starts[-1], padded(gradients[batch, 0, 0, 5]), padded(gradients[batch, 0, 1, 5])
    if not (_is_finite(dk, n_keys * width, first) and _is_finite(dv, n_keys * value_width, _ONE)):
        return False
    _add_up(gradients, batch, head, 0, starts, dk, first, second)
    _add_up(gradients, batch, head, 1, starts, dv, _LOWER, _ONE)
    return True


class Block(NamedTuple):
    """The lanes of one block of rows, in panels side by side: queries of some heads, and what belongs to them."""

    n_rows: int  # of each head, of which lanes are counted row by row
    n_lanes: int
    n_wide: int  # lanes of all panels but the last
    depth: int  # D
    value_depth: int  # E
    queries: int  # address of panels, as all that follows
    douts: int
    q_rows: int
    dout_rows: int
    dq: int
    lse: int
    delta: int
    tokens: int  # address of the token numbers of the rows


_BLOCK = types.NamedUniTuple(int64, 13, Block)


@compiled(PANEL_TYPE(_BLOCK, int64))
def _panel(block, n):
    """Return the n-th panel of a block."""
    lane, row = n * block.n_wide, n * ROW
    wide, value_wide = padded(block.depth) * row, padded(block.value_depth) * row
    return BackwardPanel(
        block.queries + wide, block.douts + value_wide, block.q_rows + wide, block.dout_rows + value_wide, block.depth,
        block.value_depth, block.n_rows, lane, min(block.n_wide, block.n_lanes - lane), block.dq + wide,
        block.lse + row, block.delta + row, block.tokens,
    )  # fmt: skip


@compiled(void(PANEL_TYPE, int64, int64, int64, int64, int64))
def _note_rows(panel, lse, delta, head, first_row, head_bytes):
    """Write the log-sum-exp of each lane, infinite for one that sees nothing, and delta; more, to a whole vector."""
    r, i = divmod(panel.lane, panel.n_rows)
    for own in range(padded(panel.n_lanes)):
        is_lane, place = own < panel.n_lanes, (head + r) * head_bytes + (first_row + i) * ITEM
        level = read(lse + place, _ZERO) if is_lane else _INFINITE
        write(_INFINITE if level == -_INFINITE else level, panel.lse + own * ITEM)
        write(read(delta + place, _ZERO) if is_lane else _ZERO, panel.delta + own * ITEM)
        r, i = (r, i + 1) if i + 1 < panel.n_rows else (r + 1, 0)


@compiled(void(int64, int64, float32))
def _multiply_all(numbers, n, factor):
    """Multiply n numbers, a multiple of those of a vector, by a factor."""
    for place in range(numbers, numbers + n * ITEM, VECTOR_BYTES):
        store(load(place) * spread(factor), place)


@compiled(void(_BLOCK, int64[:, ::1], int64[:, ::1], int64, int64, int64, float32))
def _pack(block, queries, douts, batch, head, first_row, query_factor):
    """Put the queries of a block and the gradients of their outputs side by side, and row by row, in its panels."""
    n_rows = block.n_rows
    for n in range(-(-block.n_lanes // PANEL)):
        panel = _panel(block, n)
        lane, n_lanes = panel.lane, panel.n_lanes
        pack_queries(queries, batch, head, first_row, n_rows, lane, n_lanes, _ONE, panel.q_rows, panel.queries)
        pack_queries(douts, batch, head, first_row, n_rows, lane, n_lanes, _ONE, panel.dout_rows, panel.douts)
        if query_factor != _ONE:
            _multiply_all(panel.queries, panel.depth * PANEL, query_factor)


@compiled(void(_BLOCK, int64, float32[:, :, ::1], int64, int64, float32, float32))
def _write_queries(block, sums, dq, head, first_row, first, second):
    """Write the gradients of a block's queries, which are sums times two factors."""
    _, n_tokens, width = dq.shape
    for n in range(-(-block.n_lanes // PANEL)):
        panel = _panel(block, n)
        own_sums, (r, i) = sums + panel.dq - block.dq, divmod(panel.lane, panel.n_rows)
        for own in range(panel.n_lanes):
            row = address_of(dq) + ((head + r) * n_tokens + first_row + i) * width * ITEM
            _write_row(own_sums + own * padded(width) * ITEM, row, width, first, second, False)
            r, i = (r, i + 1) if i + 1 < panel.n_rows else (r + 1, 0)


_ROOM, _OF_ROWS = types.UniTuple(float32[::1], 11), types.Array(float32, 2, "C", readonly=True)


@compiled(
    void(
        int64[:, ::1], int64[:, ::1], int64[:, :, :, ::1], int64[:, :, :, ::1], int64[::1], _OF_ROWS, _OF_ROWS,
        float32, float32, float32, int64[:, ::1], int64[:, ::1], int64[:, ::1], int32[::1],
        boolean[::1], PLAIN_CHANGE_TYPE, int64[::1], _ROOM, types.UniTuple(float32[::1], 2), int64, float32[:, :, ::1],
        types.UniTuple(boolean, 4), boolean[::1], types.UniTuple(int64, 3),
    )
)  # fmt: skip
def differentiate(
    queries, douts, chunks, gradients, starts, lse, delta, query_factor, factor, scale, items, blocks, pieces, bounds,
    hidden, change, tokens, room, sums, most_keys, dq, when, is_fit, bias_sums,
):  # fmt: skip
    """Differentiate item by item: with the query heads of a key head, in some blocks of rows.

    Parameters
    ----------
    queries, douts : int64, `(batch, 6)`
        Where queries are, and the gradients of their outputs: as for `cqs.kernels.compiled.loops.attend`.
    chunks, gradients : int64, `(batch, n, 2, 6)`
        Likewise for keys and values, and for the gradients to which it is added what these pairs add.
    starts : int64, `(n + 1,)`
        How many keys are before each chunk, and in all.
    lse, delta : float32, `(heads, T)`
        As of `cqs.backward.QueryRows`, for the heads of all batch entries.
    query_factor, factor : float32
        What queries are multiplied by, and then scores; the latter is positive.
    scale : float32
        What gradients of queries and keys are multiplied by.
    items : int64, `(i, 4)`
        Batch entry, key head, first query head and how many.
    blocks, pieces, bounds, hidden, change, tokens : see `cqs.kernels.compiled.loops.attend`
    room : tuple of float32 arrays
        As large as `room_sizes` says. Of a block whose pieces come in several calls, sums stay in it in between.
    sums : tuple of float32 arrays
        Room for the gradients of all keys, and of all values, of one head; likewise for an item's blocks.
    most_keys : int
        Keys that are read for one panel after the other.
    dq : float32, `(heads, T, D)`
        Where the gradients of the queries go.
    when : tuple of bool
        Whether these are the blocks' first pieces, and the last; and the items' first blocks, and the last.
    is_fit : bool, `(i,)`
        Becomes False where gradients are not finite; of these, none were added to those of keys and values.
    bias_sums : tuple of int
        Where gradients of scores are added up, as of `BiasSums`, for the first row and key of all; then items are of
        one head each. Those of items that are not fit are added, too: the caller is to forget them.
    """
    changing, (begins, ends, opens, closes) = Change(*change), when
    tiles, keys, values, own_sums = address_of(room[4]), address_of(room[5]), address_of(room[6]), address_of(room[7])
    dk, dv, kept = address_of(sums[0]), address_of(sums[1]), own_sums + room[7].size // 2 * ITEM
    levels, noted, scratch = address_of(room[8]), address_of(room[9]), address_of(room[10])
    depth, value_depth, n_keys = queries[0, 5], douts[0, 5], starts[-1]
    width, value_width = padded(depth), padded(value_depth)
    bias_at, bias_row, bias_item = bias_sums
    first_factor, second_factor = (scale, _LOWER) if abs(scale) >= 1 else (_LOWER, scale)
    for item in range(items.shape[0]):
        batch, kv_head, head = items[item, 0], items[item, 1], items[item, 2]
        first_head = batch * (dq.shape[0] // queries.shape[0]) + head
        if opens:
            fill(dk, n_keys * width, _ZERO)
            fill(dv, n_keys * value_width, _ZERO)
        for m in range(blocks.shape[0]):
            first_row, n_rows = blocks[m, 0], blocks[m, 1] - blocks[m, 0]
            n_lanes = items[item, 3] * n_rows
            n_panels = -(-n_lanes // PANEL)
            block = Block(
                n_rows, n_lanes, padded(-(-n_lanes // n_panels)), depth, value_depth, address_of(room[0]),
                address_of(room[1]), address_of(room[2]), address_of(room[3]), own_sums, levels,
                levels + room[8].size // 2 * ITEM, address_of(tokens) + first_row * tokens.itemsize,
            )  # fmt: skip
            n_sums, own_bias = n_panels * PANEL * width, bias_at + first_row * bias_row
            if begins:
                fill(own_sums, n_sums, _ZERO)
                _pack(block, queries, douts, batch, head, first_row, query_factor)
                for n in range(n_panels):
                    _note_rows(
                        _panel(block, n), address_of(lse), address_of(delta), first_head, first_row, lse.shape[1] * ITEM
                    )
            n_recent, is_kept = 0, not begins  # keys since sums were folded
            for p in range(blocks[m, 2], blocks[m, 3]):
                chunk, first, n_own, kind = pieces[p, 0], pieces[p, 1], pieces[p, 2], pieces[p, 3]
                seen = seen_where(kind, pieces[p, 4], address_of(bounds), address_of(hidden))
                for key in range(0, n_own, most_keys):
                    n_here, place = min(most_keys, n_own - key), starts[chunk] + first + key
                    k = readable(chunks, batch, chunk, 0, kv_head, first + key, n_here, keys, width, False)
                    v = readable(chunks, batch, chunk, 1, kv_head, first + key, n_here, values, value_width, False)
                    own_keys = Keys(*k, *v, key, n_here, kind, seen, pieces[p, 5])
                    dk_here, dv_here = dk + place * width * ITEM, dv + place * value_width * ITEM
                    for n in range(n_panels):
                        panel = _panel(block, n)
                        bias = BiasSums(own_bias + panel.lane * bias_row + place * bias_item, bias_row, bias_item)
                        add_pairs(panel, own_keys, changing, tiles, noted, scratch, factor, dk_here, dv_here, bias)
                    n_recent += n_here
                    if n_recent >= _FOLD_KEYS:
                        fold(own_sums, kept, n_sums, is_kept)
                        n_recent, is_kept = 0, True
            if is_kept or not ends:
                fold(own_sums, kept, n_sums, is_kept)
            if ends:
                total = kept if is_kept else own_sums
                is_fit[item] &= _is_finite(total, n_sums, first_factor)
                _write_queries(block, total, dq, first_head, first_row, first_factor, second_factor)
        if closes and is_fit[item]:
            is_fit[item] = _finish_keys(gradients, batch, kv_head, starts, dk, dv, first_factor, second_factor)
