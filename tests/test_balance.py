"""Owners of tiles that differ in work: each tile once, by a holder of both groups, and as even as the quorums allow."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqs.errors import OptionError
from cqs.quorum import CyclicQuorumSet
from cqs.schedule.balance import balanced_owners, load_bound

EVEN = 1.05  # max / mean load that is asked for wherever some assignment reaches it


def visible_pairs(first: np.ndarray, stop: np.ndarray, W: int) -> np.ndarray:
    """The weights of W x W tiles where query q sees the keys first[q] .. stop[q] - 1."""
    n = len(first)
    see = (first[:, None] <= np.arange(n)) & (np.arange(n) < stop[:, None])
    edges = [g * n // W for g in range(W)]
    return np.add.reduceat(np.add.reduceat(see.astype(np.int64), edges, axis=0), edges, axis=1)


def window(W: int, n: int, width: int, causal: bool = False) -> np.ndarray:
    q = np.arange(n)
    return visible_pairs(np.maximum(q - width + 1, 0), np.minimum(q + (1 if causal else width), n), W)


def documents(W: int, lengths: list[int], causal: bool = False) -> np.ndarray:
    ends = np.cumsum(lengths)
    stop = np.repeat(ends, lengths)
    return visible_pairs(stop - np.repeat(lengths, lengths), np.arange(1, ends[-1] + 1) if causal else stop, W)


def cut(n: int, mean: int, seed: int) -> list[int]:
    """Random lengths that add up to n."""
    inner = np.unique(np.random.default_rng(seed).integers(1, n, size=max(n // mean - 1, 0)))
    return np.diff([0, *inner.tolist(), n]).tolist()


def random_weights(W: int, kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "documents":
        return documents(W, cut(8 * W, int(rng.integers(1, 8 * W + 1)), seed), causal=bool(seed % 2))
    weights = rng.integers(0, [2, 30, 10**9][seed % 3], (W, W))
    if kind == "sparse":
        weights[rng.random((W, W)) < 0.8] = 0
    if kind == "banded":
        weights[abs(np.subtract.outer(np.arange(W), np.arange(W))) > rng.integers(0, W)] = 0
    return weights


@st.composite
def cases(draw: st.DrawFn, most_workers: int = 40) -> tuple[CyclicQuorumSet, np.ndarray]:
    W = draw(st.integers(1, most_workers))
    kind = draw(st.sampled_from(["dense", "sparse", "banded", "documents"]))
    return CyclicQuorumSet(W), random_weights(W, kind, draw(st.integers(0, 10**6)))


def loads(owners: np.ndarray, weights: np.ndarray) -> list[int]:
    return [int(weights[owners == i].sum()) for i in range(len(owners))]


def assignable(quorums: CyclicQuorumSet, weights: np.ndarray) -> list[tuple[int, tuple[int, ...]]]:
    """The weight and the holders of every tile with work."""
    return [(int(weights[g, h]), quorums.holders(int(g), int(h))) for g, h in np.argwhere(weights)]


# Oracles


def flow_reaches(quorums: CyclicQuorumSet, weights: np.ndarray, limit: int) -> bool:
    """Whether no load exceeds the limit when tiles may be cut in parts: a maximal flow from holders to workers."""
    W, needs = quorums.modulus, {}
    for w, held in assignable(quorums, weights):
        needs[held] = needs.get(held, 0) + w
    sets, room, given = list(needs), [limit] * W, [{} for _ in range(W)]
    for s, held in enumerate(sets):
        left = needs[held]
        while left:
            # breadth first, over workers: from i what set t gave to i can be given to another of its holders
            came: dict[int, tuple[int, int]] = dict.fromkeys(held, (-1, s))
            queue = list(held)
            end = -1
            for i in queue:
                if room[i]:
                    end = i
                    break
                for t in given[i]:
                    for j in sets[t]:
                        if j not in came:
                            came[j] = (i, t)
                            queue.append(j)
            if end < 0:
                return False
            path, i = [], end
            while i >= 0:
                path.append((i, *came[i]))
                i = came[i][0]
            amount = min([left, room[end], *(given[k][t] for _, k, t in path if k >= 0)])
            for i, k, t in path:
                given[i][t] = given[i].get(t, 0) + amount
                if k >= 0:
                    given[k][t] -= amount
                    if not given[k][t]:
                        del given[k][t]
            room[end] -= amount
            left -= amount
    return True


def tiles_reach(quorums: CyclicQuorumSet, weights: np.ndarray, limit: int, patience: int = 20_000) -> bool | None:
    """Whether some assignment of whole tiles keeps all loads to the limit, by exhaustion; None if that takes long."""
    tiles, room, trials = assignable(quorums, weights), [limit] * quorums.modulus, 0

    def search(left: list[tuple[int, tuple[int, ...]]]) -> bool:
        nonlocal trials
        if not left:
            return True
        fits = [tuple(i for i in held if room[i] >= w) for w, held in left]
        t = min(range(len(left)), key=lambda t: (len(fits[t]), -left[t][0]))
        w, _ = left[t]
        rest = [tile for u, tile in enumerate(left) if u != t]
        for i in sorted(fits[t], key=lambda i: -room[i]):
            trials += 1
            if trials > patience:
                raise TimeoutError
            room[i] -= w
            if search(rest):
                return True
            room[i] += w
        return False

    try:
        return search(tiles)
    except TimeoutError:
        return None


def reaches(quorums: CyclicQuorumSet, weights: np.ndarray, limit: int) -> bool | None:
    return flow_reaches(quorums, weights, limit) and tiles_reach(quorums, weights, limit)


# What must hold for any weights


@given(case=cases())
def test_every_tile_with_work_has_one_owner_who_holds_both_groups_and_empty_tiles_have_none(case) -> None:
    quorums, weights = case
    owners = balanced_owners(quorums, weights)
    assert (owners.dtype, owners.shape) == (np.int64, weights.shape)
    for (g, h), i in np.ndenumerate(owners):
        assert i in quorums.holders(g, h) if weights[g, h] else i == -1
    assert sum(loads(owners, weights)) == weights.sum()


@given(case=cases())
def test_the_largest_load_is_between_the_bound_and_that_of_the_closed_form(case) -> None:
    quorums, weights = case
    largest = max(loads(balanced_owners(quorums, weights), weights))
    assert load_bound(quorums, weights) <= largest <= max(loads(quorums.ownership(), weights))


@given(case=cases())
def test_no_move_and_no_swap_lowers_a_single_largest_load_unless_it_is_near_the_bound(case) -> None:
    quorums, weights = case
    owners = balanced_owners(quorums, weights)
    owned = loads(owners, weights)
    most = max(owned)
    i = owned.index(most)
    if owned.count(most) > 1 or most <= 1.005 * load_bound(quorums, weights) + 1:
        return
    tiles = {tuple(tile): int(weights[tuple(tile)]) for tile in np.argwhere(weights).tolist()}
    for u in (tile for tile in tiles if owners[tile] == i):
        for j in set(quorums.holders(*u)) - {i}:
            back = [tiles[v] for v in tiles if owners[v] == j and i in quorums.holders(*v)]
            assert all(max(most - tiles[u] + w, owned[j] + tiles[u] - w) >= most for w in [0, *back])


@given(case=cases())
def test_owners_follow_from_the_values_of_the_weights_alone(case) -> None:
    quorums, weights = case
    owners = balanced_owners(quorums, weights)
    for same in (weights.astype(np.uint32), np.asfortranarray(weights)):
        same.flags.writeable = False
        np.testing.assert_array_equal(balanced_owners(quorums, same), owners)


@given(W=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_the_bound_is_below_the_best_of_all_assignments(W: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    quorums, weights = CyclicQuorumSet(W), rng.integers(0, 20, (W, W))
    weights.ravel()[rng.permutation(W * W)[7:]] = 0  # seven tiles, with up to four holders each
    tiles = assignable(quorums, weights)
    best = min(
        max(sum(w for (w, _), j in zip(tiles, owners, strict=True) if j == i) for i in range(W))
        for owners in product(*(held for _, held in tiles))
    )
    assert load_bound(quorums, weights) <= best <= max(loads(balanced_owners(quorums, weights), weights))


# When the closed form is kept, and when a pair is


@pytest.mark.parametrize("W", [1, 2, 7, 8, 31, 40])
def test_tiles_of_equal_work_keep_the_closed_form(W: int) -> None:
    quorums = CyclicQuorumSet(W)
    np.testing.assert_array_equal(balanced_owners(quorums, np.full((W, W), 9)), quorums.ownership())


@pytest.mark.parametrize("W", [7, 24, 31])
def test_a_causal_mask_keeps_the_closed_form_but_for_its_empty_tiles(W: int) -> None:
    quorums, weights = CyclicQuorumSet(W), window(W, 40 * W, 40 * W, causal=True)
    expected = np.where(np.tri(W, dtype=bool), quorums.ownership(), -1)
    np.testing.assert_array_equal(balanced_owners(quorums, weights), expected)


def test_without_any_work_nobody_owns_anything() -> None:
    quorums, weights = CyclicQuorumSet(7), np.zeros((7, 7), dtype=np.int64)
    assert (balanced_owners(quorums, weights) == -1).all()
    assert load_bound(quorums, weights) == 0


@pytest.mark.parametrize("W", [16, 32, 64, 100])
def test_both_tiles_of_a_pair_stay_together_where_that_is_even_enough(W: int) -> None:
    owners = balanced_owners(CyclicQuorumSet(W), window(W, 16 * W, 16))
    np.testing.assert_array_equal(owners, owners.T)


def test_a_pair_parts_where_that_is_more_even() -> None:
    quorums, weights = CyclicQuorumSet(2), np.array([[0, 5], [5, 0]])
    assert loads(balanced_owners(quorums, weights), weights) == [5, 5]


@pytest.mark.parametrize("W", [133, 300, 307])
def test_many_workers_are_served_too(W: int) -> None:
    quorums, weights = CyclicQuorumSet(W), np.random.default_rng(0).integers(0, 1000, (W, W))
    largest = max(loads(balanced_owners(quorums, weights), weights))
    assert largest <= 1.005 * load_bound(quorums, weights)


# The oracles themselves


def test_the_oracles_agree_with_cases_done_by_hand() -> None:
    two = CyclicQuorumSet(2)  # both workers hold both groups
    assert flow_reaches(two, np.array([[3, 3], [3, 0]]), 5)
    assert not flow_reaches(two, np.array([[3, 3], [3, 0]]), 4)
    assert tiles_reach(two, np.array([[3, 3], [3, 0]]), 6)
    assert tiles_reach(two, np.array([[3, 3], [3, 0]]), 5) is False
    seven = CyclicQuorumSet(7)  # a pair has one holder
    pair = np.zeros((7, 7), dtype=int)
    pair[2, 4] = pair[4, 2] = 4
    assert not flow_reaches(seven, pair, 7)
    assert flow_reaches(seven, pair, 8)
    assert tiles_reach(seven, pair, 8)


# Refusals


@pytest.mark.parametrize(
    "weights",
    [
        np.zeros((7, 6), int),
        np.zeros(49, int),
        np.zeros((8, 8), int),
        np.ones((7, 7)),
        np.ones((7, 7), bool),
        -np.eye(7, dtype=int),
    ],
    ids=["not square", "flat", "of another W", "float", "bool", "negative"],
)
def test_weights_that_are_no_w_by_w_counts_are_refused(weights: np.ndarray) -> None:
    for function in (balanced_owners, load_bound):
        with pytest.raises(OptionError, match=r"`weights` must be 7 x 7 integers of at least 0, got "):
            function(CyclicQuorumSet(7), weights)
