"""Lifts beyond what a ruler reaches: where the cover is cut open, what is added, and what is shipped."""

from itertools import product as pairs
from math import gcd

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqs.quorum import DifferenceCover, difference_cover, partial_lift, singer, size_lower_bound
from cqs.quorum.constructions import Reduced, Repaired, best_moves, cells_measured, move, reach_of_ruler
from cqs.quorum.constructions.repair import repair
from cqs.quorum.rulers import likely_added, likely_left, rulers
from cqs.quorum.tables import completed_lift, completed_moduli, listed_rulers

# Equivalent to the perfect sets of Z_7, Z_13 and Z_21, but with gaps as rulers
AROUND = [(0, 1, 3), (0, 2, 5, 6), (0, 2, 7, 8, 11), (0, 1, 8, 11, 13, 17), (0, 3)]


def left_out(W: int, v: int, base: tuple[int, ...], ruler: tuple[int, ...]) -> int:
    """How many of 1..W/2 are no difference of base + v ruler modulo W, by plain sets."""
    lifted = {(a + v * r) % W for a, r in pairs(base, ruler)}
    reached = {(a - b) % W for a, b in pairs(lifted, repeat=2)}
    return sum(x not in reached for x in range(1, W // 2 + 1))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([2, 3, 4, 5, 7]), st.sampled_from(AROUND), st.floats(0.6, 1.1))
def test_the_best_move_leaves_out_as_few_as_any_move_and_says_how_few(q: int, ruler: tuple[int, ...], share: float):
    cover = singer(q)
    v = cover.modulus
    W = max(int(share * v * (len(ruler) ** 2 - len(ruler) + 1)), v * (ruler[-1] + 1))
    least, factor, shift = best_moves(cover, ruler, W)[0]
    assert left_out(W, v, move(cover, factor, shift).base, ruler) == least
    units = [t for t in range(1, v) if gcd(t, v) == 1]
    assert least == min(left_out(W, v, move(cover, t, s).base, ruler) for t in units[:6] for s in range(v)) or (
        least < left_out(W, v, cover.base, ruler)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.sampled_from(AROUND), st.floats(0.6, 1.1))
def test_of_any_cover_a_move_leaves_out_no_more_than_it_says(v: int, ruler: tuple[int, ...], share: float):
    cover = difference_cover(v)
    W = max(int(share * v * (len(ruler) ** 2 - len(ruler) + 1)), 1)
    most, factor, shift = best_moves(cover, ruler, W)[0]
    assert left_out(W, v, move(cover, factor, shift).base, ruler) <= most


def test_cells_are_told_by_what_the_ruler_measures() -> None:
    assert cells_measured((0, 1, 4, 6), 8).tolist() == [3, 3, 3, 3, 3, 3, 1, 0]
    assert cells_measured((0, 3), 5).tolist() == [1, 0, 2, 1, 0]


# Repair


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 200), st.data())
def test_a_repaired_set_is_a_cover(W: int, data: st.DataObject) -> None:
    own = data.draw(st.sets(st.integers(0, W - 1), min_size=1, max_size=12))
    added = repair(W, tuple(sorted(own)))
    assert not own & set(added)
    assert len(added) == len(set(added))
    DifferenceCover.of(W, own | set(added))


@pytest.mark.parametrize("most", range(6))
def test_a_repair_adds_no_more_than_it_may(most: int) -> None:
    added = repair(31, (0, 1, 3, 8), most)
    assert added is None or 2 <= len(added) <= most  # no set of 5 covers Z_31
    assert len(repair(31, (0, 1, 3, 8))) <= 5


def test_a_cover_needs_no_repair() -> None:
    assert repair(7, (0, 1, 3)) == ()


def test_a_repair_is_the_same_every_time() -> None:
    assert repair(500, tuple(range(0, 40, 3))) == repair(500, tuple(range(0, 40, 3)))


# Rulers


def test_a_lift_by_a_ruler_that_goes_around_is_smaller_than_one_by_a_ruler_without_gaps() -> None:
    around = (0, 1, 12, 20, 26, 30, 33, 35, 57)  # a perfect set of Z_73
    assert partial_lift(singer(8), around, 5340).size <= 86
    assert difference_cover(5340).size <= 86


@pytest.mark.parametrize("q", [2, 3, 4, 5, 7, 8, 23])
def test_a_mark_that_goes_around_saves_an_element(q: int) -> None:
    ruler, v = (0, 16, 17, 28, 36, 42, 46, 49, 51, 73), q * q + q + 1
    assert reach_of_ruler(ruler) == 37
    for W in range(72 * v + 1, 74 * v, max(v // 13, 1)):
        n_saved = q + 1 if 73 * v == W else 1
        assert partial_lift(singer(q), ruler, W, most_added=0).size == 10 * (q + 1) - n_saved


@pytest.mark.parametrize("W", [39_817, 39_869, 39_921, 39_999, 40_368, 40_370, 40_921])
def test_a_mark_that_goes_around_is_used_where_it_is_best(W: int) -> None:
    cover = difference_cover(W)
    assert cover.size <= 239
    cover.certificate.verify()


def test_the_rulers_begin_at_0_and_are_few() -> None:
    for n_marks, those in rulers().items():
        for ruler in those:
            assert len(ruler) == n_marks
            assert ruler[0] == 0
            assert list(ruler) == sorted(set(ruler))
    assert sorted(rulers()) == list(range(2, 25))
    assert len(listed_rulers()) < 100


@pytest.mark.parametrize(("ruler", "ratio"), [((0, 1, 3), 7.3), ((0, 1, 4, 6), 13.4), ((0, 2, 7, 8, 11), 20.5)])
def test_what_a_lift_is_expected_to_leave_out_is_what_lifts_leave_out(ruler: tuple[int, ...], ratio: float) -> None:
    cover = singer(16)
    v, W = 273, int(ratio * 273)
    moved = [move(cover, 1, s).base for s in range(0, v, 7)]
    mean = sum(left_out(W, v, base, ruler) for base in moved) / len(moved)
    assert mean == pytest.approx(v * likely_left(ruler, ratio), rel=0.25)


def test_what_is_beyond_reach_is_expected_to_take_too_many() -> None:
    assert likely_added(10_000, 100, 0, 5) == 0
    assert 3 <= likely_added(10_000, 100, 30, 20) <= 15
    assert likely_added(10_000, 100, 5000, 20) == float("inf")


# The shipped lifts


def test_every_completed_lift_is_verified_and_proved() -> None:
    assert len(completed_moduli()) > 0
    for W in completed_moduli():
        cover = completed_lift(W)
        assert cover.modulus == W
        assert cover.size >= size_lower_bound(W)
        assert isinstance(cover.construction, Repaired)
        assert difference_cover(W) == cover
    for W in completed_moduli()[::12]:
        completed_lift(W).certificate.verify()
    assert any(isinstance(completed_lift(W).construction.construction, Reduced) for W in completed_moduli())
    assert completed_lift(1000) is None
