"""Search for difference covers: it finds known ones, repeats itself, stops when told, and refuses nonsense."""

import importlib
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqs.errors import QuorumError
from cqs.quorum.cover import DifferenceCover
from cqs.quorum.tabu import _Differences, _walks, search

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


@pytest.mark.parametrize(("W", "size"), [(128, 13), (160, 15), (248, 20)])
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


# Reproducible


def test_the_same_seed_finds_the_same_cover_and_another_seed_another() -> None:
    covers = [search(64, 10, seed=seed) for seed in (0, 0, 1, 2, 10**30)]
    assert covers[0] == covers[1]
    assert len(set(covers)) == 4


def test_the_moves_depend_on_neither_time_nor_progress() -> None:
    whole, cover = reports(128, 13, seconds=30)
    assert cover == search(128, 13) == search(128, 13, seconds=float("inf"))
    cut, nothing = reports(128, 13, seconds=0.01)
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
        ({"W": 4097}, "`W` must be at most 4096, .*, got 4097; construct a cover by `difference_cover"),
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
        ({"progress": True}, "`progress` must be a function of .uncovered, seconds gone., got True; leave it out"),
    ],
    ids=str,
)
def test_an_argument_out_of_its_range_is_refused_with_rule_value_and_remedy(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(QuorumError, match=message):
        search(**{"W": 31, "size": 6} | arguments)


@pytest.mark.parametrize(("W", "size"), [(4096, 64), (10**12, 10**7), (4096, 4097)])
def test_a_search_is_refused_before_anything_is_allocated(W: int, size: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(QuorumError):
            search(W, size)
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()


# The moves


@given(data=st.data(), W=st.integers(2, 40))
def test_what_a_swap_leaves_uncovered_is_what_a_count_of_the_swapped_set_gives(data: st.DataObject, W: int) -> None:
    elements = data.draw(st.lists(st.integers(0, W - 1), unique=True, min_size=1, max_size=W - 1))
    state = _Differences(W, np.array(elements))
    for _ in range(3):
        left = state.uncovered_after()
        i = data.draw(st.integers(0, len(elements) - 1))
        for r in set(range(W)) - set(elements):
            assert left[i, r] == uncovered(W, [*elements[:i], r, *elements[i + 1 :]])
        assert (left[:, elements] > W).all()
        elements[i] = data.draw(st.sampled_from(sorted(set(range(W)) - set(elements))))
        state.swap(i, elements[i])
        assert state.elements.tolist() == elements
        assert state.n_uncovered == uncovered(W, elements)


def moves(W: int, size: int, n: int) -> Iterator[frozenset[int]]:
    walks = _walks(W, size, np.random.default_rng(0))
    for _ in range(n):
        yield frozenset(next(walks).elements.tolist())


def test_each_move_swaps_one_element_and_a_walk_does_not_turn_back() -> None:
    sets = list(moves(43, 7, 400))
    assert all(len(a - b) == len(b - a) == 1 for a, b in pairwise(sets))
    assert all(a != b for a, b in zip(sets, sets[2:], strict=False))


def test_a_walk_starts_anew_when_it_gets_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "PATIENCE", 5)
    sets = list(moves(43, 7, 200))
    assert sum(len(a - b) > 1 for a, b in pairwise(sets)) > 5
