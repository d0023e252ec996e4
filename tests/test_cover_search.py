"""Search for difference covers: it finds known ones, repeats itself, stops when told, and refuses nonsense."""

import importlib
import tracemalloc
from collections.abc import Iterator
from itertools import combinations, islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqs.errors import QuorumError
from cqs.quorum import DifferenceCover, search, singer
from cqs.quorum.starts import _n_pairs, completed, moved_at_random, starts
from cqs.quorum.tabu import _walk
from cqs.quorum.walks import Walks

MODULE = importlib.import_module("cqs.quorum.tabu")

# W -> the least size of a cover; perfect ones among them (7, 13, 21, 31, 57), and 128 and 160 as published
SIZES = {1: 1, 2: 2, 3: 2, 4: 3, 7: 3, 8: 4, 13: 4, 20: 6, 21: 5, 31: 6, 32: 7, 57: 8, 64: 9, 100: 12}


def uncovered(W: int, elements: list[int]) -> int:
    """Differences that no pair has, d and -d once, by plain loops."""
    reached = {(a - b) % W for a in elements for b in elements}
    return sum(d not in reached for d in range(1, W // 2 + 1))


def reports(W: int, size: int, **options: object) -> tuple[list[int], DifferenceCover | None]:
    """The least numbers of uncovered residues that a search tells of, each once, and what it finds."""
    told: list[int] = []
    cover = search(W, size, progress=lambda uncovered, gone: told.append(uncovered), **options)
    return sorted(set(told), reverse=True), cover


# What it finds


@pytest.mark.parametrize(("W", "size"), SIZES.items())
def test_a_cover_of_the_least_size_is_found(W: int, size: int) -> None:
    cover = search(W, size)
    assert cover is not None
    assert (cover.modulus, cover.size, cover.base[0]) == (W, size, 0)
    assert uncovered(W, list(cover.base)) == 0


@pytest.mark.parametrize(("W", "size"), [(128, 13), (160, 15), (256, 19), (313, 21), (1040, 40)])
@pytest.mark.parametrize("seed", range(2))
def test_a_cover_of_the_size_to_reach_is_found_in_a_few_seconds(W: int, size: int, seed: int) -> None:
    cover = search(W, size, seed=seed)
    assert cover is not None
    assert cover.size == size
    assert uncovered(W, list(cover.base)) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("W", "size"), [(128, 13), (160, 15)])
@pytest.mark.parametrize("seed", range(10))
def test_every_seed_reaches_the_size_within_30_seconds(W: int, size: int, seed: int) -> None:
    assert search(W, size, seconds=30, seed=seed) is not None


@pytest.mark.parametrize("start", [None, singer(27), singer(29), singer(31)], ids=["any", "27", "29", "31"])
def test_39_elements_are_found_for_1040(start: DifferenceCover | None) -> None:
    cover = search(1040, 39, seconds=300, seed=0, start=start)
    assert cover is not None
    assert uncovered(1040, list(cover.base)) == 0


@pytest.mark.parametrize("W", [W for W in SIZES if W <= 21])
def test_any_size_from_the_least_to_all_residues_is_found(W: int) -> None:
    for size in range(SIZES[W], W + 1):
        cover = search(W, size)
        assert cover is not None
        assert cover.size == size


def test_none_is_returned_when_time_is_up() -> None:
    # A projective plane of order 6 does not exist
    assert search(43, 7, seconds=0.05) is None


def test_a_cover_that_is_found_at_once_is_returned_however_short_the_time() -> None:
    assert search(10, 10, seconds=1e-9) == DifferenceCover(10, tuple(range(10)))


# Where it starts


def test_a_start_that_is_a_cover_is_found_at_once() -> None:
    cover = DifferenceCover(31, (0, 1, 3, 8, 12, 18))
    for start in (cover, [-1, 0, 33, 7, 42, np.int64(17), 17], {a + 5 for a in cover.base}):
        found = search(31, 6, seconds=1e-9, start=start)
        assert found is not None
        assert any({(a + s) % 31 for a in found.base} == set(cover.base) for s in range(31))


def test_a_start_with_too_few_elements_is_added_to_and_one_with_too_many_taken_from() -> None:
    cover = singer(9)
    for size, base in ((10, cover.base[:-1]), (10, (*cover.base, 2)), (12, cover.base), (91, cover.base)):
        found = search(91, size, seconds=1e-9, start=base)
        assert found is not None
        assert found.size == size
    assert search(57, 8, start=[]) is not None
    assert search(57, 8, start=range(57)) is not None


def test_a_cover_of_another_modulus_is_moved_at_random_in_its_own() -> None:
    rng = np.random.default_rng(0)
    moved = {tuple(sorted(moved_at_random(singer(9), rng).tolist())) for _ in range(50)}
    assert len(moved) > 40
    assert all(DifferenceCover(91, base).is_perfect for base in moved)
    covers = {search(128, 13, seed=seed, start=singer(9)) for seed in range(5)}
    assert None not in covers
    assert len(covers) == 5


def test_half_of_the_starts_are_random_and_the_others_of_the_planes_of_orders_nearby() -> None:
    first = [next(walk) for walk in [starts(128, 13, np.random.default_rng(0))] for _ in range(8)]
    assert [len(elements) for elements in first] == [6, 9, 6, 10, 6, 9, 6, 10]
    assert len(next(starts(7, 3, np.random.default_rng(0)))) == 1


@pytest.mark.parametrize(("W", "elements", "n_pairs"), [(4, [0, 2], [2, 0, 1]), (7, [0, 1, 3], [3, 1, 1, 1])])
def test_two_elements_half_way_around_are_one_pair(W: int, elements: list[int], n_pairs: list[int]) -> None:
    assert _n_pairs(W, np.array(elements)).tolist() == n_pairs


@given(data=st.data(), W=st.integers(2, 40))
def test_what_is_taken_away_first_is_what_bares_least_and_what_is_added_first_covers_most(
    data: st.DataObject, W: int
) -> None:
    elements = data.draw(st.lists(st.integers(0, W - 1), unique=True, min_size=1, max_size=W - 1))
    n = len(elements)
    rng = np.random.default_rng(0)
    (added,) = set(completed(W, n + 1, np.array(elements), rng).tolist()) - set(elements)
    assert made(W, elements, added) == max(made(W, elements, r) for r in set(range(W)) - set(elements))
    (dropped,) = set(elements) - set(completed(W, n - 1, np.array(elements), rng).tolist())
    assert held_alone(W, elements, dropped) == min(held_alone(W, elements, x) for x in elements)


# Reproducible


def test_the_same_seed_finds_the_same_cover_and_another_seed_another() -> None:
    covers = [search(64, 10, seed=seed) for seed in (0, 0, 1, 2, 10**30)]
    assert covers[0] == covers[1]
    assert len(set(covers)) == 4


def test_the_moves_depend_on_neither_time_nor_progress() -> None:
    whole, cover = reports(313, 21, seconds=30)
    assert cover == search(313, 21) == search(313, 21, seconds=float("inf"))
    cut, nothing = reports(313, 21, seconds=1e-9)
    assert nothing is None
    assert cut == whole[: len(cut)]
    assert whole[-1] == 0


def test_numbers_of_numpy_are_numbers() -> None:
    assert search(np.int64(31), np.int32(6), np.float64(30.0), np.uint8(0)) == search(31, 6)


# Progress and interruption


def test_progress_falls_to_zero_as_the_clock_goes_on() -> None:
    told: list[tuple[int, float]] = []
    assert search(57, 8, progress=lambda *report: told.append(report)) is not None
    bests, seconds = zip(*told, strict=True)
    assert bests == tuple(sorted(bests, reverse=True))
    assert seconds == tuple(sorted(seconds))
    assert bests[-1] == 0


def test_progress_is_told_while_nothing_gets_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "REPORT_SECONDS", 0.02)
    told: list[int] = []
    assert search(43, 7, seconds=0.2, progress=lambda uncovered, gone: told.append(uncovered)) is None
    assert len(told) > len(set(told))
    assert len(told) < 30


@pytest.mark.parametrize("signal", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interruption_passes_through_and_the_next_search_is_as_ever(signal: type[BaseException]) -> None:
    expected = search(57, 8)

    def interrupt(uncovered: int, gone: float) -> None:
        if uncovered < 6:
            raise signal

    with pytest.raises(signal):
        search(57, 8, progress=interrupt)
    assert search(57, 8) == expected


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"W": 0}, "`W` must be a whole number of at least 1, got 0; "),
        ({"W": 31.0}, "`W` must be a whole number of at least 1, got 31.0; "),
        ({"W": 10_001}, "`W` must be at most 10000, .*, got 10001; construct a cover by `difference_cover"),
        ({"size": 5}, "at least 6: no cover of Z_31 has fewer than 6 elements, by .*, got 5; search for 6 or more"),
        ({"size": 0}, "`size` must be a whole number of at least 1, got 0; .* 6 to 31 for W = 31"),
        ({"size": True}, "`size` must be a whole number of at least 1, got True; "),
        ({"size": 32}, "`size` must be at most 31: .* got 32; search for 31 or fewer"),
        ({"seconds": 0}, "`seconds` must be a number greater than 0, got 0; leave it out for 30 seconds"),
        ({"seconds": -1.5}, "`seconds` must be a number greater than 0, got -1.5; "),
        ({"seconds": float("nan")}, "`seconds` must be a number greater than 0, got nan; "),
        ({"seconds": "10"}, "`seconds` must be a number greater than 0, got '10'; "),
        ({"seconds": True}, "`seconds` must be a number greater than 0, got True; "),
        ({"seed": -1}, "`seed` must be a whole number of at least 0, got -1; "),
        ({"seed": None}, "`seed` must be a whole number of at least 0, got None; "),
        ({"start": 5}, "`start` must be a difference cover, or whole numbers, got 5; leave it out for sets of"),
        ({"start": [1, 2.5]}, r"`start` must be a difference cover, or whole numbers, got \[1, 2.5\]; leave it out"),
        ({"progress": True}, "`progress` must be a function of .uncovered, seconds gone., got True; leave it out"),
    ],
    ids=str,
)
def test_an_argument_out_of_its_range_is_refused_with_rule_value_and_remedy(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(QuorumError, match=message):
        search(**{"W": 31, "size": 6} | arguments)


@pytest.mark.parametrize(("W", "size"), [(10_000, 100), (10**12, 10**7), (10_000, 10_001)])
def test_a_search_is_refused_before_anything_is_allocated(W: int, size: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(QuorumError):
            search(W, size)
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()


# The moves


def distance(W: int, a: int, b: int) -> int:
    return min((a - b) % W, (b - a) % W)


def made(W: int, elements: list[int], r: int) -> int:
    """Pairs of r and an element at distances that no pair of elements has; at W/2 they count twice."""
    has = {distance(W, a, b) for a in elements for b in elements}
    return sum(1 + (2 * d == W) for a in elements if (d := distance(W, a, r)) not in has)


def held_alone(W: int, elements: list[int], x: int) -> int:
    """Distances of which x has the only pair."""
    pairs = [(distance(W, a, b), {a, b}) for a, b in combinations(elements, 2)]
    return sum(x in pair and [d for d, _ in pairs].count(d) == 1 for d, pair in pairs)


@given(data=st.data(), W=st.integers(8, 40))
def test_the_numbers_of_pairs_and_what_a_move_would_lose_and_gain_are_those_of_plain_loops(
    data: st.DataObject, W: int
) -> None:
    size = data.draw(st.integers(2, W // 2 - 1))
    walks = Walks(W, size, 3, np.random.default_rng(0))
    for n in range(3):
        walks.begin(n, np.array(data.draw(st.permutations(range(W))))[:size])
    for _ in range(4):
        walks.move()
    walks.weights[:, 1:] = 1
    walks.n_moves += 2  # nothing is barred any more
    losses, gains = walks.losses(), walks.gains(np.zeros(3, dtype=int))
    for n, elements in enumerate(walks.elements.tolist()):
        assert len(set(elements)) == size
        assert walks.n_uncovered[n] == uncovered(W, elements)
        assert losses[n].tolist() == [held_alone(W, elements, x) for x in elements]
        for r in set(range(W)) - set(elements):
            had = {distance(W, a, b) for a in elements for b in elements}
            pairs = [d for a in elements[1:] if (d := distance(W, a, r)) not in had]
            assert gains[n, r] == sum(1 + (2 * d == W) for d in pairs)
        assert (gains[n, elements] == -np.inf).all()


def test_weights_are_one_more_than_the_moves_after_which_a_distance_was_uncovered() -> None:
    walks = Walks(43, 7, 2, np.random.default_rng(0))
    for n in range(2):
        walks.begin(n, np.arange(7) * (n + 1))
    expected = np.ones((2, 22))
    for _ in range(30):
        walks.move()
        expected += walks.n_pairs == 0
    assert np.array_equal(walks.weights[:, 1:], expected[:, 1:])


def moves(W: int, size: int, n: int) -> Iterator[frozenset[int]]:
    """The sets that the first of the walks comes to, without those in which it waits for the others to start."""
    rng = np.random.default_rng(0)
    for walks in islice(_walk(W, size, starts(W, size, rng), rng), n):
        yield frozenset(walks.elements[0].tolist())


def test_each_move_swaps_one_element_and_a_walk_does_not_turn_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "PATIENCE", 1000)
    sets = [a for a, b in pairwise(moves(43, 7, 400)) if a != b]
    assert len(sets) > 300
    assert all(len(a - b) == len(b - a) == 1 for a, b in pairwise(sets))
    assert all(a != b for a, b in zip(sets, sets[2:], strict=False))


def test_a_walk_starts_anew_when_it_gets_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "PATIENCE", 5)
    sets = list(moves(43, 7, 2000))
    assert sum(len(a - b) > 1 for a, b in pairwise(sets)) > 5
