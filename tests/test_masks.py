"""Masks answer for rectangles what the pairs in them say one by one."""

import itertools
import json
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cqs
from cqs.errors import CQSError, DTypeError, OptionError
from cqs.masks import (
    And,
    Causal,
    Coverage,
    Documents,
    Mask,
    NoMask,
    Not,
    Or,
    PrefixLM,
    Sinks,
    SlidingWindow,
    mask_from_dict,
)

lengths = st.lists(st.integers(0, 20), max_size=6)
causal = st.builds(Causal, st.integers(-40, 40))
simple = st.one_of(
    st.just(NoMask()),
    causal,
    st.builds(SlidingWindow, st.integers(0, 30), st.integers(0, 30), st.integers(-20, 20)),
    st.builds(PrefixLM, st.integers(0, 60)),
    st.builds(Sinks, st.integers(0, 60)),
    st.builds(Documents, lengths),
    lengths.flatmap(
        lambda q: st.builds(Documents, st.just(q), st.lists(st.integers(0, 20), min_size=len(q), max_size=len(q)))
    ),
)
masks = st.recursive(
    simple,
    lambda parts: st.one_of(st.builds(And, parts, parts), st.builds(Or, parts, parts), st.builds(Not, parts)),
    max_leaves=4,
)
runs = st.builds(lambda start, n: range(start, start + n), st.integers(0, 40), st.integers(0, 30))


def document_of(position: int, lengths: tuple[int, ...]) -> int:
    for number, length in enumerate(lengths):
        if position < length:
            return number
        position -= length
    return -1


def sees(mask: Mask, q: int, k: int) -> bool:
    """The definition, in plain words."""
    match mask:
        case NoMask():
            return True
        case Causal(offset):
            return k <= q + offset
        case SlidingWindow(left, right, offset):
            return -left <= k - (q + offset) <= right
        case PrefixLM(n):
            return k < n or k <= q
        case Sinks(n):
            return k < n
        case Documents(lengths, key_lengths):
            document = document_of(q, lengths)
            return document >= 0 and document == document_of(k, lengths if key_lengths is None else key_lengths)
        case And(left, right):
            return sees(left, q, k) and sees(right, q, k)
        case Or(left, right):
            return sees(left, q, k) or sees(right, q, k)
        case Not(inner):
            return not sees(inner, q, k)
    raise AssertionError(mask)


def seen(mask: Mask, rows: range, cols: range) -> np.ndarray:
    """The definition, pair by pair."""
    return np.array([[sees(mask, q, k) for k in cols] for q in rows], dtype=bool).reshape(len(rows), len(cols))


@given(mask=masks, rows=runs, cols=runs)
def test_classify_says_empty_or_full_exactly_where_the_pairs_are(mask: Mask, rows: range, cols: range) -> None:
    pairs = seen(mask, rows, cols)
    expected = Coverage.EMPTY if not pairs.any() else Coverage.FULL if pairs.all() else Coverage.PARTIAL
    assert mask.classify(rows, cols) is expected


@given(mask=masks, rows=runs, cols=runs)
def test_count_is_the_number_of_visible_pairs(mask: Mask, rows: range, cols: range) -> None:
    assert mask.count(rows, cols) == seen(mask, rows, cols).sum()


@given(mask=masks, rows=runs, cols=runs, data=st.data())
def test_counts_before_are_counts_of_the_keys_before(mask: Mask, rows: range, cols: range, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(cols.start, cols.stop), max_size=5))
    found = mask.counts_before(rows, cols, np.array(cuts, np.int64))
    assert found.tolist() == [mask.count(rows, range(cols.start, cut)) for cut in cuts]


@given(mask=masks, rows=runs, cols=runs)
def test_reach_is_a_part_of_the_columns_outside_of_which_nothing_is_seen(mask: Mask, rows: range, cols: range) -> None:
    parts = mask.reach(rows, cols)
    assert all(part and part.step == 1 for part in parts)
    assert all(before.stop < after.start for before, after in itertools.pairwise(parts))
    reached = {k for part in parts for k in part}
    columns_seen = {k for k, is_seen in zip(cols, seen(mask, rows, cols).any(axis=0), strict=True) if is_seen}
    assert columns_seen <= reached <= set(cols)


@given(mask=masks, rows=runs, cols=runs)
def test_segments_of_the_columns_are_seen_as_a_whole_or_not_at_all(mask: Mask, rows: range, cols: range) -> None:
    found = [tuple(x.tolist() for x in row) for part in mask.segments(rows, cols) for row in zip(*part, strict=True)]
    assert len(found) == (len(rows) if cols else 0)
    for (starts, stops, is_seen), row in zip(found, seen(mask, rows, cols), strict=False):
        assert [starts[0], *stops] == [*starts, stops[-1]] == sorted([cols.start, *stops])
        assert stops[-1] == cols.stop
        columns = [
            k
            for start, stop, sees_it in zip(starts, stops, is_seen, strict=True)
            for k in range(start, stop)
            if sees_it
        ]
        assert columns == [k for k, sees_it in zip(cols, row, strict=True) if sees_it]


@given(mask=masks, rows=runs, cols=runs)
def test_a_mask_that_says_it_hides_nothing_hides_nothing(mask: Mask, rows: range, cols: range) -> None:
    assert seen(mask, rows, cols).all() or not mask.hides_nothing
    assert NoMask().hides_nothing
    assert not Causal().hides_nothing


@given(offset=st.integers(-40, 40), rows=runs.filter(bool), cols=runs)
def test_the_reach_of_a_causal_mask_has_no_column_too_many(offset: int, rows: range, cols: range) -> None:
    assert [k for part in Causal(offset).reach(rows, cols) for k in part] == [k for k in cols if k <= rows[-1] + offset]


@given(mask=masks, rows=runs, cols=runs)
def test_visible_is_the_definition(mask: Mask, rows: range, cols: range) -> None:
    visible = mask.visible(np.arange(rows.start, rows.stop)[:, None], np.arange(cols.start, cols.stop))
    assert visible.dtype == bool
    assert np.array_equal(visible, seen(mask, rows, cols))


@given(mask=masks, rows=runs.filter(bool))
def test_what_a_query_sees_changes_only_at_edges(mask: Mask, rows: range) -> None:
    for q, edges in zip(rows, mask.edges(np.arange(rows.start, rows.stop)), strict=True):
        row = seen(mask, range(q, q + 1), range(80))[0]
        assert set((np.flatnonzero(row[1:] != row[:-1]) + 1).tolist()) <= set(edges.tolist())


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
    assert [Causal().count(range(q, q + 1), range(9)) for q in range(4)] == [1, 2, 3, 4]
    assert [Causal(9 - 4).count(range(q, q + 1), range(9)) for q in range(4)] == [6, 7, 8, 9]


@pytest.mark.parametrize("offset", [1.5, 2.0, "1", None], ids=repr)
def test_an_offset_that_is_no_whole_number_is_refused(offset) -> None:
    with pytest.raises(CQSError, match="`offset` must be a whole number, got"):
        Causal(offset)


@given(mask=masks)
def test_a_mask_written_as_json_comes_back_equal(mask: Mask) -> None:
    assert mask_from_dict(json.loads(json.dumps(mask.to_dict()))) == mask


@pytest.mark.parametrize("values", [{}, {"kind": "Window", "size": 3}, {"kind": None}, {"offset": 3}], ids=str)
def test_an_unknown_kind_of_mask_is_refused_with_the_kinds_there_are(values) -> None:
    with pytest.raises(CQSError, match=r"`mask` must be one of NoMask, Causal, .*, got"):
        mask_from_dict(values)


def test_masks_are_written_with_operators() -> None:
    window, sinks = SlidingWindow(4), Sinks(2)
    assert (window & sinks, window | sinks, ~sinks) == (And(window, sinks), Or(window, sinks), Not(sinks))
    with pytest.raises(OptionError, match=r"`mask` must be a mask from `cqs.masks`, got list;"):
        window & np.ones((3, 3), dtype=bool).tolist()


def test_boolean_arrays_are_masks_on_either_side_of_an_operator() -> None:
    seen = np.arange(12).reshape(3, 4) % 3 == 0
    rows, cols = np.arange(3)[:, None], np.arange(4)
    causal = Causal().visible(rows, cols)
    for mask, expected in [
        (Causal() & seen, causal & seen),
        (seen & Causal(), causal & seen),
        (Causal() | seen, causal | seen),
        (seen | Causal(), causal | seen),
    ]:
        assert (mask.visible(rows, cols) == expected).all()
    with pytest.raises(DTypeError, match="`mask` must be of type bool, got int64;"):
        Causal() & seen.astype(np.int64)


def test_and_or_and_if_are_refused() -> None:
    for combine in (
        lambda: Causal() and Sinks(3),
        lambda: Causal() or Sinks(3),
        lambda: not Causal(),
        lambda: 1 if Causal() & Sinks(3) else 0,
    ):
        with pytest.raises(OptionError, match=r"`mask` must not be taken for true or false, .*; combine masks by"):
            combine()


@given(mask=masks)
def test_masks_are_values(mask: Mask) -> None:
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert eval(repr(mask)) == mask
    assert hash(pickle.loads(pickle.dumps(mask))) == hash(mask)


def test_documents_are_made_from_the_number_of_each_token() -> None:
    assert Documents.from_segments([4, 4, 4, 0, 7, 7]) == Documents((3, 1, 2))
    assert Documents.from_segments(np.array([], dtype=int)) == Documents(())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlidingWindow(-1), "`left` must be a whole number of at least 0, got -1;"),
        (lambda: SlidingWindow(3, 1.5), "`right` must be a whole number of at least 0, got 1.5;"),
        (lambda: SlidingWindow(3, 0, "x"), "`offset` must be a whole number, got 'x';"),
        (lambda: PrefixLM(-2), "`n` must be a whole number of at least 0, got -2;"),
        (lambda: Sinks(None), "`n` must be a whole number of at least 0, got None;"),
        (lambda: Documents(5), "`lengths` must be the lengths of documents, got 5;"),
        (lambda: Documents([3, -1]), r"`lengths\[1\]` must be a whole number of at least 0, got -1;"),
        (lambda: Documents([3, 1], [4]), "`key_lengths` must name as many documents as `lengths`, 2, got 1;"),
        (
            lambda: Documents.from_segments([0, 1, 0]),
            "`ids` must keep the tokens of a document together, got 3 runs of 2",
        ),
        (lambda: Documents.from_segments([[0, 1]]), "`ids` must be whole numbers, one for each token"),
        (lambda: Documents.from_segments([0.5, 1.0]), "`ids` must be whole numbers, one for each token, got float64"),
    ],
    ids=range(11),
)
def test_masks_refuse_what_makes_no_sense(make, message: str) -> None:
    with pytest.raises(CQSError, match=message):
        make()


@pytest.mark.parametrize(
    ("far", "near"),
    [
        (SlidingWindow(3, sys.maxsize), SlidingWindow(3, 100)),
        (SlidingWindow(2**80, 2, 5), SlidingWindow(100, 2, 5)),
        (Causal(sys.maxsize) & SlidingWindow(3), SlidingWindow(3)),
        (~Causal(-(2**70)) & Causal(), Causal()),
        (PrefixLM(2**64) & Causal(4), Causal(4)),
        (Sinks(sys.maxsize) & Causal(), Causal()),
    ],
    ids=str,
)
def test_numbers_beyond_all_tokens_are_no_overflow(far: Mask, near: Mask) -> None:
    i, whole = np.arange(30), range(30)
    np.testing.assert_array_equal(far.visible(i[:, None], i), near.visible(i[:, None], i))
    assert far.count(whole, whole) == near.count(whole, whole)
    x = np.random.default_rng(0).standard_normal((1, 30, 4))
    assert cqs.attention(x, x, x, mask=far).tobytes() == cqs.attention(x, x, x, mask=near).tobytes()
