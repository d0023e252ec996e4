"""One panel of queries against some keys, backwards: tiles of scores become what they add to the gradients."""

from typing import NamedTuple

import numpy as np
from numba import boolean, float32, int64, types, void

from cqs.kernels.compiled.backward_bias import BiasSums, add_to_bias
from cqs.kernels.compiled.hiding import hide, seen_by_lanes
from cqs.kernels.compiled.products import multiply
from cqs.kernels.compiled.reading import ROW, padded
from cqs.kernels.compiled.rounding import round_as_before, round_small_to_zero
from cqs.kernels.compiled.scores import change_scores
from cqs.kernels.compiled.vectors import (
    ITEM,
    LANES,
    VECTOR_BYTES,
    compiled,
    exp,
    inlined,
    lifted_exp2,
    load,
    spread,
    store,
    tanh,
    where_less,
)
from cqs.kernels.numba_scores import Change
from cqs.schedule import TILE_KEYS

__all__ = ["PANEL_TYPE", "BackwardPanel", "add_pairs"]

_ZERO, _ONE, _FOUR = np.float32(0), np.float32(1), np.float32(4)
_LOG2_E = np.float32(1.4426950408889634)
_MOST, _NAN = np.float32(60), np.float32(np.nan)  # a power of 2 that no weight is, and what it is then


class BackwardPanel(NamedTuple):
    """Queries side by side, and what belongs to them."""

    queries: int  # address, `(D, 64)`
    douts: int  # address of the gradients of their outputs, `(E, 64)`
    q_rows: int  # address of the queries row by row, `(64, D')`, without the factor
    dout_rows: int  # address, `(64, E')`
    depth: int  # D
    value_depth: int  # E
    n_rows: int  # of each head, of which lanes are counted row by row
    lane: int  # the first of the panel's
    n_lanes: int
    dq: int  # address of sums, `(64, D')`
    lse: int  # address of log-sum-exps, `(64,)`
    delta: int  # address, `(64,)`
    tokens: int  # address of the token numbers of the block's rows


PANEL_TYPE = types.NamedUniTuple(int64, 13, BackwardPanel)


@compiled(void(int64, int64, int64, int64, float32, float32))
def _cap(tile, slopes, n_keys, n_vectors, factor, cap):
    """Turn products into scores within the cap, and write the slope of what bends them.

    The slope is 1 - tanh(x)^2, which has no digits left where x is large: it is made of e^(-2|x|).
    """
    zero, one, times, most, inverse = spread(_ZERO), spread(_ONE), spread(factor), spread(cap), spread(_ONE / cap)
    for i in range(n_keys):
        for n in range(n_vectors):
            place = i * ROW + n * VECTOR_BYTES
            x = load(tile + place) * times * inverse
            size = where_less(x, zero, zero - x, x)
            power = exp(zero - (size + size))
            store(tanh(x) * most, tile + place)
            store(spread(_FOUR) * power / ((one + power) * (one + power)), slopes + place)


@compiled(void(int64, int64, int64, float32, int64))
def _weigh(tile, n_keys, n_vectors, factor, lse):
    """Turn scores into weights, which are 2^32 times that, so that small ones have all their digits.

    A weight above 2^60, which no log-sum-exp of these scores gives, becomes NaN: array code then computes the rows.
    """
    times, log2_e, most, nan = spread(factor), spread(_LOG2_E), spread(_MOST), spread(_NAN)
    for n in range(n_vectors):
        here = n * VECTOR_BYTES
        level = load(lse + here)
        for i in range(n_keys):
            place = tile + i * ROW + here
            power = (load(place) * times - level) * log2_e
            store(lifted_exp2(where_less(most, power, nan, power)), place)


@compiled(void(int64, int64, int64, int64, int64, int64, boolean))
def _softmax_backward(weights, dweights, slopes, n_keys, n_vectors, delta, is_bent):
    """Turn gradients of weights into those of scores, which are 2^32 times that, as weights are."""
    for n in range(n_vectors):
        here = n * VECTOR_BYTES
        mean = load(delta + here)
        for i in range(n_keys):
            place = i * ROW + here
            change = load(weights + place) * (load(dweights + place) - mean)
            if is_bent:
                change = change * load(slopes + place)
            store(change, dweights + place)


@compiled(void(int64, int64, int64, int64))
def _bend(dtile, slopes, n_keys, n_vectors):
    """Multiply gradients of scores by the slopes of what bent them."""
    for i in range(n_keys):
        for n in range(n_vectors):
            place = i * ROW + n * VECTOR_BYTES
            store(load(dtile + place) * load(slopes + place), dtile + place)


@inlined
def add_pairs(panel, keys, change, tile, between, room, factor, dk, dv, bias):
    """Add what a panel and some keys add to the gradients of both.

    Parameters
    ----------
    panel : BackwardPanel
        Queries, to whose sums it is added.
    keys : Keys
        Keys and their values, whose rows are padded to whole vectors.
    change : Change
        What is done to scores.
    tile, between, room : address
        Of room for three tiles; for which keys each lane sees, as of `seen_by_lanes`; and for `change_scores`.
    factor : float32
        What products are multiplied by, to be scores, if these are not changed.
    dk, dv : address of sums `(n, D')` and `(n, E')`
        To which it is added.
    bias : BiasSums
        To which gradients of scores are added, of the panel's first lane and the first key. If there are any, lanes are
        rows of one head.
    """
    n_vectors, end = -(-panel.n_lanes // LANES), keys.first + keys.n
    lane, n_lanes, n_rows = panel.lane, panel.n_lanes, panel.n_rows
    row, value_row = padded(panel.depth) * ITEM, padded(panel.value_depth) * ITEM
    dtile, slopes, is_bent = tile + TILE_KEYS * ROW, tile + 2 * TILE_KEYS * ROW, change.cap != _ZERO
    # what is left to be done to scores that are capped, and scaled, already
    rest_of_change = Change(
        True, _ONE if is_bent else change.factor, _ZERO, change.slope, change.offset, change.bias, change.bias_row,
        change.bias_item, change.bias_kind,
    )  # fmt: skip
    seen = seen_by_lanes(keys, n_rows, lane, n_lanes, between)
    for here in range(keys.first, end, TILE_KEYS):
        n, n_before = min(TILE_KEYS, end - here), here - keys.first
        if seen[3] <= here or seen[0] >= here + n:
            continue
        k, v = keys.k + n_before * keys.k_row, keys.v + n_before * keys.v_row
        multiply(k, keys.k_row, ITEM, panel.queries, ROW, tile, ROW, n, n_vectors, panel.depth, False)
        if is_bent:
            _cap(tile, slopes, n, n_vectors, change.factor, change.cap)
        if change.is_made:
            change_scores(rest_of_change, tile, n, keys.token + here, panel.tokens, n_rows, lane, n_lanes, room)
        hide(tile, here, n, keys, seen, n_rows, lane, n_lanes, between)
        rounding = round_small_to_zero()
        _weigh(tile, n, n_vectors, _ONE if change.is_made else factor, panel.lse)
        round_as_before(rounding)
        multiply(v, keys.v_row, ITEM, panel.douts, ROW, dtile, ROW, n, n_vectors, panel.value_depth, False)
        is_added = bias.place != 0
        _softmax_backward(tile, dtile, slopes, n, n_vectors, panel.delta, is_bent and not is_added)
        if is_added:
            own = BiasSums(bias.place + n_before * bias.item, bias.row, bias.item)
            add_to_bias(dtile, n, n_lanes, own, room)
            if is_bent:
                _bend(dtile, slopes, n, n_vectors)
        n_wide, n_value_wide = padded(panel.depth) // LANES, padded(panel.value_depth) // LANES
        multiply(
            tile, ROW, ITEM, panel.dout_rows, value_row, dv + n_before * value_row, value_row, n, n_value_wide, n_lanes,
            True,
        )  # fmt: skip
        multiply(dtile, ROW, ITEM, panel.q_rows, row, dk + n_before * row, row, n, n_wide, n_lanes, True)
        multiply(dtile, ITEM, ROW, k, keys.k_row, panel.dq, row, n_lanes, n_wide, n, True)
