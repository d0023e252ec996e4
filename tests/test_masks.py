"""Masks answer for rectangles what the pairs in them say one by one."""

import json

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqs.errors import CQSError
from cqs.masks import Causal, Coverage, Mask, NoMask, mask_from_dict

masks = st.one_of(st.just(NoMask()), st.builds(Causal, st.integers(-40, 40)))
runs = st.builds(lambda start, n: range(start, start + n), st.integers(0, 40), st.integers(0, 30))


def seen(mask: Mask, rows: range, cols: range) -> np.ndarray:
    """The definition, pair by pair."""
    sees = {NoMask: lambda q, k: True, Causal: lambda q, k: k <= q + mask.offset}[type(mask)]
    return np.array([[sees(q, k) for k in cols] for q in rows], dtype=bool).reshape(len(rows), len(cols))


@given(mask=masks, rows=runs, cols=runs)
def test_classify_says_empty_or_full_exactly_where_the_pairs_are(mask: Mask, rows: range, cols: range) -> None:
    pairs = seen(mask, rows, cols)
    expected = Coverage.EMPTY if not pairs.any() else Coverage.FULL if pairs.all() else Coverage.PARTIAL
    assert mask.classify(rows, cols) is expected


@given(mask=masks, rows=runs, cols=runs)
def test_count_is_the_number_of_visible_pairs(mask: Mask, rows: range, cols: range) -> None:
    assert mask.count(rows, cols) == seen(mask, rows, cols).sum()


@given(mask=masks, rows=runs, cols=runs)
def test_reach_is_a_part_of_the_columns_outside_of_which_nothing_is_seen(mask: Mask, rows: range, cols: range) -> None:
    reach = mask.reach(rows, cols)
    assert set(reach) <= set(cols)
    columns_seen = {k for k, is_seen in zip(cols, seen(mask, rows, cols).any(axis=0), strict=True) if is_seen}
    assert columns_seen <= set(reach)


@given(mask=masks, rows=runs, cols=runs)
def test_only_a_mask_that_hides_nothing_says_so(mask: Mask, rows: range, cols: range) -> None:
    assert mask.hides_nothing == (type(mask) is NoMask)
    assert seen(mask, rows, cols).all() or not mask.hides_nothing


@given(offset=st.integers(-40, 40), rows=runs.filter(bool), cols=runs)
def test_the_reach_of_a_causal_mask_has_no_column_too_many(offset: int, rows: range, cols: range) -> None:
    assert list(Causal(offset).reach(rows, cols)) == [k for k in cols if k <= rows[-1] + offset]


@pytest.mark.parametrize("xp", [np, array_api_strict, "torch"], ids=["numpy", "array_api_strict", "torch"])
@given(mask=masks, rows=runs, cols=runs)
def test_visible_is_the_definition_on_every_library(xp, mask: Mask, rows: range, cols: range) -> None:
    xp = pytest.importorskip("torch") if xp == "torch" else xp
    q_idx, k_idx = xp.arange(rows.start, rows.stop)[:, None], xp.arange(cols.start, cols.stop)[None, :]
    visible = mask.visible(q_idx, k_idx)
    assert visible.dtype == xp.bool
    assert np.array_equal(np.from_dlpack(visible), seen(mask, rows, cols))


@given(
    offset=st.integers(-(10**18), 10**18),
    rows=st.tuples(st.integers(0, 10**18), st.integers(0, 10**18)),
    cols=st.tuples(st.integers(0, 10**18), st.integers(0, 10**18)),
)
def test_a_rectangle_of_any_size_is_counted_in_exact_integers(offset: int, rows, cols) -> None:
    rows, cols, mask = range(*sorted(rows)), range(*sorted(cols)), Causal(offset)
    middle = (rows.start + rows.stop) // 2
    halves = mask.count(range(rows.start, middle), cols) + mask.count(range(middle, rows.stop), cols)
    n_pairs = mask.count(rows, cols)
    assert n_pairs == halves
    area = (rows.stop - rows.start) * (cols.stop - cols.start)
    assert (n_pairs == 0, n_pairs == area) == (
        area == 0 or mask.classify(rows, cols) is Coverage.EMPTY,
        area == 0 or mask.classify(rows, cols) is Coverage.FULL,
    )


def test_causal_aligns_the_top_left_corners_unless_told_otherwise() -> None:
    assert [len(Causal().reach(range(q, q + 1), range(9))) for q in range(4)] == [1, 2, 3, 4]
    assert [len(Causal(9 - 4).reach(range(q, q + 1), range(9))) for q in range(4)] == [6, 7, 8, 9]


@pytest.mark.parametrize("offset", [1.5, 2.0, "1", None], ids=repr)
def test_an_offset_that_is_no_whole_number_is_refused(offset) -> None:
    with pytest.raises(CQSError, match="`offset` must be a whole number, got"):
        Causal(offset)


@given(mask=masks)
def test_a_mask_written_as_json_comes_back_equal(mask: Mask) -> None:
    assert mask_from_dict(json.loads(json.dumps(mask.to_dict()))) == mask


@pytest.mark.parametrize("values", [{}, {"kind": "Window", "size": 3}, {"kind": None}, {"offset": 3}], ids=str)
def test_an_unknown_kind_of_mask_is_refused_with_the_kinds_there_are(values) -> None:
    with pytest.raises(CQSError, match=r"`mask` must be one of NoMask, Causal, got"):
        mask_from_dict(values)
