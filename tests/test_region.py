"""Regions and blocks: what a kernel hides and what it walks over, against the pairs one by one."""

from itertools import pairwise

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqs.kernels import Region
from cqs.kernels.blocks import column_blocks, even_cuts, in_chunks, row_blocks
from cqs.masks import Causal, Coverage, NoMask


@st.composite
def run_lists(draw: st.DrawFn) -> tuple[range, ...]:
    """Draw runs of tokens in token order: some adjacent, some apart, now and then a long one."""
    sizes = st.one_of(st.integers(1, 9), st.integers(1, 300))
    runs, start = [], 0
    for gap, size in draw(st.lists(st.tuples(st.sampled_from([0, 0, 1, 7, 60]), sizes), min_size=1, max_size=5)):
        runs.append(range(start + gap, start + gap + size))
        start = runs[-1].stop
    return tuple(runs)


@st.composite
def regions(draw: st.DrawFn) -> Region:
    queries, keys = draw(run_lists()), draw(run_lists())
    places = st.tuples(st.integers(0, len(queries) - 1), st.integers(0, len(keys) - 1))
    mask = draw(st.one_of(st.just(NoMask()), st.builds(Causal, st.integers(-200, 200))))
    return Region(queries, keys, mask, frozenset(draw(st.sets(places, max_size=6))))


@st.composite
def parts(draw: st.DrawFn, n: int) -> range:
    """Draw a part of 0..n-1 that is not empty."""
    start = draw(st.integers(0, n - 1))
    return range(start, draw(st.integers(start + 1, n)))


def numbered(runs: tuple[range, ...]) -> np.ndarray:
    """For each row (or column), the run that it is in, and its token."""
    return np.array([(i, token) for i, run in enumerate(runs) for token in run]).T


def visible(region: Region) -> np.ndarray:
    """The definition, for every row and column: not foreign, and seen through the mask."""
    (i, query), (j, key) = numbered(region.queries), numbered(region.keys)
    is_foreign = np.zeros((len(region.queries), len(region.keys)), dtype=bool)
    for place in region.foreign:
        is_foreign[place] = True
    offset = region.mask.offset if isinstance(region.mask, Causal) else 10**9
    return (key[None, :] <= query[:, None] + offset) & ~is_foreign[i[:, None], j[None, :]]


@pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "array_api_strict"])
@given(region=regions(), data=st.data())
def test_hide_leaves_exactly_the_scores_that_are_visible(xp, region: Region, data: st.DataObject) -> None:
    rows = data.draw(parts(sum(map(len, region.queries))))
    pieces = data.draw(st.lists(parts(region.n_columns), min_size=1, max_size=3))
    columns = [column for piece in pieces for column in piece]
    scores = xp.ones((2, len(rows), len(columns)))
    region.hide(xp, scores, rows, pieces)
    expected = np.where(visible(region)[list(rows)][:, columns], 1.0, -np.inf)
    assert np.array_equal(np.from_dlpack(scores), np.broadcast_to(expected, scores.shape))


@given(region=regions(), data=st.data())
def test_seen_is_increasing_and_leaves_out_no_visible_column(region: Region, data: st.DataObject) -> None:
    rows = data.draw(parts(sum(map(len, region.queries))))
    pieces = list(region.seen(rows))
    columns = [column for piece in pieces for column in piece]
    assert all(pieces)
    assert columns == sorted(set(columns))
    assert set(columns) <= set(range(region.n_columns))
    is_visible = visible(region)[list(rows)].any(axis=0)
    assert set(np.flatnonzero(is_visible)) <= set(columns)
    if region.is_masked:  # a causal mask says exactly which columns are seen
        assert columns == list(np.flatnonzero(is_visible))


@given(region=regions())
def test_a_region_knows_whether_anything_in_it_is_hidden(region: Region) -> None:
    assert region.is_full == (visible(region).all() and not region.foreign)
    assert region.n_columns == sum(map(len, region.keys))


def test_a_whole_region_counts_its_tokens_from_zero() -> None:
    region = Region.whole(4, 9, Causal(2))
    assert region == Region((range(4),), (range(9),), Causal(2))
    assert visible(region).sum() == Causal(2).count(range(4), range(9))
    assert Region.whole(4, 9).is_full


@pytest.mark.parametrize("n_keys", [127, 128, 129, 1000])
def test_wide_rectangles_on_the_diagonal_are_hidden_exactly(n_keys: int) -> None:
    for offset in (0, 1, 63, n_keys - 50):
        scores = np.ones((50, n_keys))
        Region.whole(50, n_keys, Causal(offset)).hide(np, scores, range(50), [range(n_keys)])
        assert np.array_equal(np.isfinite(scores), np.tri(50, n_keys, offset, dtype=bool))


class CarefulMask(Causal):
    """Says PARTIAL wherever a mask may."""

    def classify(self, rows: range, cols: range) -> Coverage:
        return Coverage.PARTIAL


def test_a_mask_that_always_says_partial_hides_the_same() -> None:
    queries, keys = (range(3, 40), range(50, 90)), (range(0, 60), range(70, 75))
    hidden = []
    for mask in (Causal(4), CarefulMask(4)):
        scores = np.ones((77, 65))
        Region(queries, keys, mask, frozenset({(1, 0)})).hide(np, scores, range(77), [range(65)])
        hidden.append(scores)
    assert np.array_equal(*hidden)


# Blocks


@given(n=st.integers(0, 5000), most=st.integers(1, 700))
def test_even_cuts_are_the_fewest_and_differ_by_at_most_one(n: int, most: int) -> None:
    cuts = even_cuts(n, most)
    sizes = [len(cut) for cut in cuts]
    assert [i for cut in cuts for i in cut] == list(range(n))
    assert len(cuts) == -(-n // most)
    assert all(0 < size <= most for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1


@given(region=regions(), data=st.data())
def test_what_is_known_at_once_of_a_block_is_so(region: Region, data: st.DataObject) -> None:
    rows, columns = data.draw(parts(sum(map(len, region.queries)))), data.draw(parts(region.n_columns))
    seen = visible(region)[rows.start : rows.stop]
    own, coverage = seen[:, columns.start : columns.stop], region.coverage(rows, columns)
    assert coverage is not Coverage.FULL or own.all()
    assert coverage is not Coverage.EMPTY or not own.any()
    if region.is_all_seen(rows):
        assert (seen == seen[:1]).all()
        assert np.flatnonzero(seen[0]).tolist() == [n for part in region.seen(rows) for n in part]


@given(region=regions(), most=st.integers(1, 400), most_masked=st.integers(1, 400))
def test_row_blocks_keep_apart_what_sees_other_keys_unless_it_is_small(region, most: int, most_masked: int) -> None:
    blocks = row_blocks(region, most, most_masked)
    assert [row for block in blocks for row in block] == list(range(sum(map(len, region.queries))))
    (run_of_row, _), (run_of_column, _) = numbered(region.queries), numbered(region.keys)
    for rows in blocks:
        runs = sorted(set(run_of_row[rows.start : rows.stop].tolist()))
        # rows that see all may be cut as others of their run are, from which something is hidden
        assert len(rows) <= (most_masked if region.hides_from(rows) else max(most, most_masked))
        assert region.hides_from(rows) == any(is_hidden(region, i) for i in runs)
        if region.foreign and len(runs) > 1:
            assert max(len(region.queries[i]) for i in runs) <= 128
        if region.foreign and len(runs) == 1:
            columns = [column for piece in region.seen(rows) for column in piece]
            assert not {(runs[0], j) for j in run_of_column[columns].tolist()} & region.foreign


@given(region=regions())
def test_at_most_a_quarter_of_what_is_computed_in_one_piece_is_foreign(region: Region) -> None:
    (run_of_row, _), (run_of_column, _) = numbered(region.queries), numbered(region.keys)
    for rows in row_blocks(region, 10**6, 10**6) if region.foreign else []:
        own = np.array([[(i, j) not in region.foreign for j in run_of_column] for i in run_of_row[list(rows)]])
        assert own.sum() >= 0.75 * len(rows) * own.any(axis=0).sum()


def is_hidden(region: Region, i: int) -> bool:
    """Whether the mask hides something of a run of queries that is not foreign, pair by pair."""
    own = [j for j in range(len(region.keys)) if (i, j) not in region.foreign]
    return any(not region.mask.block(region.queries[i], region.keys[j]).all() for j in own)


def test_small_runs_make_one_block_where_a_quarter_at_most_is_foreign() -> None:
    runs = tuple(range(i * 40, i * 40 + 40) for i in range(4))
    for n_foreign, expected in ((0, [range(160)]), (4, [range(160)]), (5, [range(0, 120), range(120, 160)])):
        foreign = frozenset([(3, 0), (3, 1), (3, 2), (2, 0), (1, 1)][:n_foreign])
        assert row_blocks(Region(runs, runs, NoMask(), foreign), 512, 128) == expected


@given(region=regions(), width=st.integers(1, 400), data=st.data())
def test_column_blocks_pack_what_is_seen_into_the_fewest_even_blocks(region, width: int, data) -> None:
    rows = data.draw(parts(sum(map(len, region.queries))))
    blocks = column_blocks(region, rows, width)
    seen = [column for piece in region.seen(rows) for column in piece]
    assert [column for block in blocks for piece in block for column in piece] == seen
    assert all(piece for block in blocks for piece in block)
    sizes = [sum(map(len, block)) for block in blocks]
    assert len(sizes) == -(-len(seen) // width)
    assert not sizes or (max(sizes) <= width and max(sizes) - min(sizes) <= 1)


@given(region=regions(), width=st.integers(1, 400))
def test_the_pieces_of_a_block_are_joined_where_they_continue_each_other(region: Region, width: int) -> None:
    for block in column_blocks(region, range(sum(map(len, region.queries))), width):
        assert all(before.stop < after.start for before, after in pairwise(block))


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any), data=st.data())
def test_in_chunks_finds_every_column_in_its_array(sizes: list[int], data: st.DataObject) -> None:
    pieces = data.draw(st.lists(parts(sum(sizes)), max_size=4))
    places = [(number, i) for number, size in enumerate(sizes) for i in range(size)]
    found = in_chunks(pieces, sizes)
    assert [(number, i) for number, part in found for i in part] == [places[c] for piece in pieces for c in piece]
    assert all(part for _, part in found)
