"""Difference covers and quorum sets: every pair of groups has one owner, who holds both, and all own the same."""

import pickle
from dataclasses import FrozenInstanceError
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqs.errors import QuorumError
from cqs.quorum import CyclicQuorumSet, DifferenceCover, difference_cover, known_moduli, size_lower_bound
from cqs.schedule import group

ALL = range(1, 201)
MANY = [*known_moduli()[:200], *known_moduli()[200::20]]
PERFECT = (1, 3, 7, 13, 21, 31, 57, 73, 91, 133, 183)

# Interest sets of the paper's published code, and the longest subsequence it reports for N = 10000 and 49000
PUBLISHED_SETS = {4: (0, 1, 2), 7: (0, 1, 3), 8: (0, 1, 2, 4), 31: (0, 1, 3, 8, 12, 18)}
PUBLISHED_TOKENS = {
    10_000: {4: 7500, 7: 4287, 8: 5000, 31: 1937},
    49_000: {4: 36_750, 7: 21_000, 8: 24_500, 31: 9486},
}
# W -> its published speed-up in pairs: N^2 over the largest load, averaged over N = 40 W .. 41 W
PUBLISHED_BALANCE = {4: 3.196, 6: 5.116, 8: 7.075, 100: 98.41, 111: 109.73}


@cache
def quorum_set(W: int) -> CyclicQuorumSet:
    return CyclicQuorumSet(W)


@cache
def ownership_matrix(W: int) -> np.ndarray:
    return quorum_set(W).ownership()


def held(quorums: CyclicQuorumSet) -> np.ndarray:
    """Which worker (row) holds which group (column)."""
    W = quorums.modulus
    matrix = np.zeros((W, W), dtype=bool)
    for i in range(W):
        matrix[i, list(quorums.quorum(i))] = True
    return matrix


def owned(quorums: CyclicQuorumSet) -> np.ndarray:
    """How many times each worker lists each tile, as rows (worker, query group, key group)."""
    return np.array([(i, g, h) for i in range(quorums.modulus) for g, h in quorums.tiles(i)])


def differences(W: int, base: tuple[int, ...]) -> list[int]:
    """Every difference of two elements, by two plain loops."""
    return [(a - b) % W for a in base for b in base]


def pair_loads(W: int, sizes: np.ndarray, is_causal: bool) -> np.ndarray:
    """Visible pairs of each worker for groups of the given sizes, each group's tokens after those of the one before."""
    pairs = np.multiply.outer(sizes, sizes)
    if is_causal:
        pairs = np.tril(pairs, -1) + np.diag(sizes * (sizes + 1) // 2)
    return np.bincount(ownership_matrix(W).ravel(), weights=pairs.ravel(), minlength=W).astype(np.int64)


@st.composite
def covers(draw: st.DrawFn) -> DifferenceCover:
    """Draw any cover, seldom a small one: random elements until their differences reach everything."""
    W = draw(st.integers(1, 40))
    base: list[int] = []
    for a in draw(st.permutations(range(W))):
        if set(differences(W, tuple(base))) == set(range(W)):
            break
        base.append(a)
    return DifferenceCover(W, tuple(sorted(base)))


# Covers


@pytest.mark.parametrize("W", known_moduli())
def test_every_shipped_cover_reaches_every_residue(W: int) -> None:
    cover = difference_cover(W)
    assert cover.modulus == W
    assert list(cover.base) == sorted(set(cover.base))
    assert set(cover.base) <= set(range(W))
    assert set(differences(W, cover.base)) == set(range(W))
    assert cover.size == len(cover.base) >= cover.lower_bound


def test_every_modulus_to_200_and_some_more_have_a_shipped_cover() -> None:
    assert known_moduli()[:200] == tuple(ALL)
    assert {313, 350, 1040} < set(known_moduli())


def test_the_perfect_covers_are_those_of_the_small_projective_planes() -> None:
    assert tuple(W for W in known_moduli() if difference_cover(W).is_perfect) == PERFECT


@pytest.mark.parametrize("W", PERFECT)
def test_in_a_perfect_cover_each_difference_occurs_once(W: int) -> None:
    counts = np.bincount(differences(W, difference_cover(W).base), minlength=W)
    assert (counts[1:] == 1).all()


def test_the_lower_bound_is_the_least_size_with_enough_differences() -> None:
    for W in range(1, 3000):
        assert size_lower_bound(W) == next(m for m in range(1, W + 1) if 1 + m * (m - 1) >= W)


@pytest.mark.parametrize("k", range(1, 60))
def test_the_lower_bound_is_exact_where_it_steps(k: int) -> None:
    huge = 10**k
    assert size_lower_bound(huge * (huge - 1) + 1) == huge
    assert size_lower_bound(huge * (huge - 1) + 2) == huge + 1


@pytest.mark.parametrize("W", range(1, 14))
def test_small_shipped_covers_are_as_small_as_any(W: int) -> None:
    from itertools import combinations

    sizes = (m for m in range(1, W + 1) for rest in combinations(range(W), m) if len({*differences(W, rest)}) == W)
    assert difference_cover(W).size == next(sizes)


@given(cover=covers())
def test_a_witness_is_a_pair_of_elements_with_that_difference(cover: DifferenceCover) -> None:
    for d in range(cover.modulus):
        a, b = cover.witness(d)
        assert {a, b} <= set(cover.base)
        assert (a - b) % cover.modulus == d


@given(cover=covers(), shift=st.integers(-100, 100), data=st.data())
def test_elements_may_come_in_any_order_and_unreduced(cover: DifferenceCover, shift: int, data: st.DataObject) -> None:
    W = cover.modulus
    shuffled = data.draw(st.permutations(cover.base))
    assert DifferenceCover.of(W, [a + shift * W for a in shuffled] + list(shuffled)) == cover


# Quorums and ownership


@pytest.mark.parametrize("W", ALL)
def test_every_tile_has_one_owner_who_holds_both_groups_and_all_own_equally_many(W: int) -> None:
    quorums = quorum_set(W)
    holds, ownership = held(quorums), ownership_matrix(W)
    i, g, h = owned(quorums).T
    assert np.array_equal(np.bincount(g * W + h, minlength=W * W), np.ones(W * W))  # each tile once
    assert np.array_equal(np.bincount(i, minlength=W), np.full(W, W))  # each worker W of them
    assert holds[i, g].all()
    assert holds[i, h].all()
    assert np.array_equal(ownership[g, h], i)


@pytest.mark.parametrize("W", MANY)
def test_every_two_quorums_meet_and_every_two_groups_share_a_worker(W: int) -> None:
    holds = held(quorum_set(W)).astype(np.float32)
    assert (holds.sum(axis=0) == quorum_set(W).cover.size).all()
    assert (holds.sum(axis=1) == quorum_set(W).cover.size).all()
    assert (holds @ holds.T > 0).all()
    assert (holds.T @ holds > 0).all()


@pytest.mark.parametrize("W", MANY)
def test_owner_agrees_with_the_ownership_matrix(W: int) -> None:
    owner = quorum_set(W).owner
    assert np.array_equal([[owner(g, h) for h in range(W)] for g in range(W)], ownership_matrix(W))


@pytest.mark.parametrize("W", ALL)
def test_holders_are_the_workers_whose_quorums_have_both_groups(W: int) -> None:
    quorums = quorum_set(W)
    holds = held(quorums)
    for g in range(W) if W <= 16 else (0, W // 2, W - 1):
        for h in range(W):
            assert quorums.holders(g, h) == tuple(np.flatnonzero(holds[:, g] & holds[:, h]))


@pytest.mark.parametrize("W", ALL)
def test_a_quorum_is_the_cover_moved_by_the_worker_and_tiles_come_in_order(W: int) -> None:
    quorums = quorum_set(W)
    assert quorums.base == quorums.quorum(0) == difference_cover(W).base
    for i in {0, W // 2, W - 1}:
        assert quorums.quorum(i) == tuple(sorted((a + i) % W for a in quorums.base))
        assert quorums.tiles(i) == tuple(sorted(quorums.tiles(i)))


@given(cover=covers())
def test_any_cover_gives_every_tile_one_owner_who_holds_both_groups(cover: DifferenceCover) -> None:
    W = cover.modulus
    quorums = CyclicQuorumSet(W, cover.base)
    holds, ownership = held(quorums), quorums.ownership()
    i, g, h = owned(quorums).T
    assert np.array_equal(np.bincount(g * W + h, minlength=W * W), np.ones(W * W))
    assert np.array_equal(np.bincount(i, minlength=W), np.full(W, W))
    assert (holds[i, g] & holds[i, h]).all()
    assert np.array_equal(ownership, [[quorums.owner(g, h) for h in range(W)] for g in range(W)])


@pytest.mark.parametrize("W", ALL)
def test_equal_groups_make_equal_loads(W: int) -> None:
    for n in (1, 2, 5, 64):
        sizes = np.full(W, n)
        loads = pair_loads(W, sizes, is_causal=False)
        assert (loads == W * n * n).all()
        causal = pair_loads(W, sizes, is_causal=True)
        assert causal.sum() == W * n * (W * n + 1) // 2
        if W % 2 == 1:
            assert (causal == causal[0]).all()
        else:  # the largest over the least is at most 1 + 2 / (W n), in whole numbers
            assert causal.max() * W * n <= causal.min() * (W * n + 2)


# What the paper's own code reports


@pytest.mark.parametrize("N", PUBLISHED_TOKENS)
@pytest.mark.parametrize("W", PUBLISHED_SETS)
def test_the_published_sets_hold_the_published_numbers_of_tokens_within_one(W: int, N: int) -> None:
    quorums = CyclicQuorumSet(W, PUBLISHED_SETS[W])

    def longest(sizes: list[int]) -> int:
        return max(sum(sizes[g] for g in quorums.quorum(i)) for i in range(W))

    # The paper makes the first N mod W groups one token longer; here the longer groups are spread, which may cost one
    assert longest([N // W + (g < N % W) for g in range(W)]) == PUBLISHED_TOKENS[N][W]
    assert abs(longest([len(group(g, W, N)) for g in range(W)]) - PUBLISHED_TOKENS[N][W]) <= 1


@pytest.mark.parametrize("W", PUBLISHED_BALANCE)
def test_loads_are_better_balanced_than_the_published_ones(W: int) -> None:
    speedups = []
    for N in range(40 * W, 41 * W + 1):
        sizes = np.array([len(group(g, W, N)) for g in range(W)])
        loads = pair_loads(W, sizes, is_causal=False)
        assert loads.sum() == N * N
        speedups.append(N * N / loads.max())
    assert np.mean(speedups) > PUBLISHED_BALANCE[W]


# What is refused


@pytest.mark.parametrize("make", [DifferenceCover, DifferenceCover.of, CyclicQuorumSet])
def test_a_set_that_is_no_cover_is_refused_with_a_residue_that_it_does_not_reach(make) -> None:
    with pytest.raises(QuorumError, match=r"does not reach 2;.*differ by 2"):
        make(7, (0, 1, 4))
    with pytest.raises(QuorumError, match="does not reach 0"):
        make(7, ())


@pytest.mark.parametrize("W", [2, 5, 12, 30])
def test_the_residue_named_is_the_first_that_is_missing(W: int) -> None:
    base = difference_cover(W).base[:-1]
    missing = min(set(range(W)) - set(differences(W, base)))
    with pytest.raises(QuorumError, match=rf"does not reach {missing};"):
        DifferenceCover(W, base)


@pytest.mark.parametrize("W", [0, -1, -7])
@pytest.mark.parametrize(
    "make",
    [
        difference_cover,
        CyclicQuorumSet,
        lambda W: DifferenceCover(W, (0,)),
        lambda W: DifferenceCover.of(W, (0,)),
        lambda W: CyclicQuorumSet(W, (0,)),
    ],
    ids=["difference_cover", "CyclicQuorumSet", "DifferenceCover", "DifferenceCover.of", "CyclicQuorumSet with base"],
)
def test_fewer_than_one_worker_is_refused(make, W: int) -> None:
    with pytest.raises(QuorumError, match=f"at least 1, got {W}"):
        make(W)


@pytest.mark.parametrize("make", [difference_cover, CyclicQuorumSet])
def test_a_modulus_beyond_all_reason_is_refused(make) -> None:
    with pytest.raises(QuorumError, match=r"`W` must be at most 10000000, .* got 1000000000;"):
        make(10**9)


@pytest.mark.parametrize(
    "base",
    [(1, 0, 3), (0, 1, 1, 3), (0, 1, 7), (-1, 0, 2), (0, 1, 3.0), (False, 1, 3), ("0", "1", "3"), (0, 1, None)],
    ids=str,
)
def test_elements_that_are_not_increasing_residues_are_refused_with_the_way_out(base) -> None:
    with pytest.raises(QuorumError, match=r"distinct residues of Z_7 in increasing order.*DifferenceCover\.of"):
        DifferenceCover(7, base)


@pytest.mark.parametrize("make", [DifferenceCover.of, CyclicQuorumSet])
@pytest.mark.parametrize("base", [(0, 1, 3.0), (0, 1, "3"), (0, 1, None)], ids=str)
def test_elements_that_are_no_integers_are_refused(make, base) -> None:
    with pytest.raises(QuorumError, match="`base` must be whole numbers, got"):
        make(7, base)


@pytest.mark.parametrize("W", [7.0, 7.5, "7", None, True], ids=repr)
@pytest.mark.parametrize("make", [difference_cover, CyclicQuorumSet, lambda W: DifferenceCover(W, (0, 1, 3))])
def test_a_modulus_that_is_no_integer_is_refused(make, W) -> None:
    difference_cover(7)  # what is remembered of an equal number does not help
    with pytest.raises(QuorumError, match="be a whole number of at least 1, got"):
        make(W)


@pytest.mark.parametrize("i", [-1, 7, 100, 1.5, "1", None], ids=repr)
def test_a_worker_or_group_out_of_range_is_refused(i) -> None:
    quorums = quorum_set(7)
    for ask in (quorums.quorum, quorums.tiles):
        with pytest.raises(QuorumError, match=rf"a worker in 0\.\.6, got {i!r};"):
            ask(i)
    for ask in (quorums.owner, quorums.holders):
        for name, (g, h) in (("g", (i, 0)), ("h", (0, i))):
            with pytest.raises(QuorumError, match=rf"`{name}` must be a group in 0\.\.6, got {i!r};"):
                ask(g, h)


# Values


@pytest.mark.parametrize("make", [difference_cover, CyclicQuorumSet])
def test_covers_and_quorum_sets_are_values(make) -> None:
    value = make(13)
    assert pickle.loads(pickle.dumps(value)) == value
    assert len({value, make(13), make(14)}) == 2
    assert "13" in repr(value)
    assert "(0, 1, 3, 9)" in repr(value)
    for name in value.__slots__:
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)


def test_quorum_sets_of_other_covers_differ() -> None:
    assert CyclicQuorumSet(7) == CyclicQuorumSet(7, (3, 1, 0))
    assert CyclicQuorumSet(7) != CyclicQuorumSet(7, (0, 1, 5))


def test_a_pickled_quorum_set_answers_as_before() -> None:
    quorums = quorum_set(21)
    assert np.array_equal(pickle.loads(pickle.dumps(quorums)).ownership(), quorums.ownership())


# What a notebook shows

BEYOND_DOTS = r"$\{0, 1, 2, 3, 4, \dots, 23, 24\} \subset \mathbb{Z}_{47},\quad m = 25 \ge 8$"


@pytest.mark.parametrize(
    ("cover", "shown"),
    [
        (DifferenceCover(1, (0,)), r"$\{0\} \subset \mathbb{Z}_1,\quad m = 1 \ge 1,\quad \text{perfect}$"),
        (DifferenceCover(7, (0, 1, 3)), r"$\{0, 1, 3\} \subset \mathbb{Z}_7,\quad m = 3 \ge 3,\quad \text{perfect}$"),
        (DifferenceCover(8, (0, 1, 2, 4)), r"$\{0, 1, 2, 4\} \subset \mathbb{Z}_8,\quad m = 4 \ge 4$"),
        (DifferenceCover(10, (0, 1, 3, 6)), r"$\{0, 1, 3, 6\} \subset \mathbb{Z}_{10},\quad m = 4 \ge 4$"),
        (DifferenceCover(9, tuple(range(6))), r"$\{0, 1, 2, 3, 4, 5\} \subset \mathbb{Z}_9,\quad m = 6 \ge 4$"),
        (DifferenceCover.of(47, range(25)), BEYOND_DOTS),
    ],
    ids=["trivial", "perfect", "as few as counting allows", "two digits", "more than counting asks for", "dots"],
)
def test_a_cover_is_shown_as_mathematics(cover: DifferenceCover, shown: str) -> None:
    assert cover._repr_latex_() == shown


def test_up_to_24_elements_are_all_shown() -> None:
    shown = DifferenceCover.of(47, range(24))._repr_latex_()
    assert shown.startswith(rf"$\{{{', '.join(map(str, range(24)))}\}} \subset \mathbb{{Z}}_{{47}},")
    assert "dots" not in shown


def test_a_notebook_has_the_mathematics_beside_the_text() -> None:
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    cover = difference_cover(7)
    shown, _ = formatter.format(cover)
    assert set(shown) == {"text/plain", "text/latex"}  # HTML, if there were any, would be shown in its place
    assert shown["text/latex"] == cover._repr_latex_()
    assert shown["text/plain"] == repr(cover) == "DifferenceCover(modulus=7, base=(0, 1, 3))"
