"""Masks that differ between batch entries and heads answer for rectangles what the pairs of all of them say."""

import itertools
import json
import pickle
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import fitted
from test_masks import masks, runs, seen

import cqs
from cqs.errors import BackendError, CQSError, OptionError, ShapeError
from cqs.masks import (
    Causal,
    Coverage,
    Dense,
    Documents,
    KeyLengths,
    Mask,
    Not,
    Or,
    Predicate,
    Sinks,
    SlidingWindow,
    mask_from_dict,
)
from cqs.testing import assert_exact

# Shapes that broadcast to the batch dimensions (2, 3)
BATCH = (2, 3)
shapes = st.sampled_from([(3,), (1,), (2, 3), (2, 1), (1, 3), (1, 1)])


def numbers(least: int, most: int) -> st.SearchStrategy[Any]:
    """Whole numbers for the batch entries, as nested lists."""
    return shapes.flatmap(
        lambda shape: st.integers(0, 2**32 - 1).map(
            lambda seed: np.random.default_rng(seed).integers(least, most + 1, shape).tolist()
        )
    )


offsets, lengths = numbers(-40, 40), numbers(0, 60)
entry_masks = st.one_of(
    st.builds(Causal, offsets),
    st.builds(SlidingWindow, st.integers(0, 30), st.integers(0, 30), offsets),
    st.builds(KeyLengths, lengths),
    st.builds(KeyLengths, lengths, lengths | st.integers(0, 60)),
)


@st.composite
def any_masks(draw: st.DrawFn, batch: tuple[int, ...] = BATCH, H: int = 2, T: int = 70, S: int = 70) -> Mask:
    """Compositions of masks of every kind: shared, of batch entries, of heads, arrays and functions."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def of_entries(make: Any, least: int, most: int) -> Mask:
        shape = tuple(n if rng.random() < 0.7 else 1 for n in batch)[rng.integers(0, len(batch) + 1) :]
        return make(rng.integers(least, most + 1, shape).tolist())

    def dense() -> Mask:
        shape = tuple(n if rng.random() < 0.7 else 1 for n in (*batch, H, T, S))[rng.integers(0, len(batch) + 2) :]
        return Dense(rng.random(shape) < rng.choice([0.02, 0.5, 0.98]))

    def leaf() -> Mask:
        return [
            lambda: fitted(draw(masks), T, S),
            lambda: of_entries(Causal, -S, S),
            lambda: of_entries(lambda offset: SlidingWindow(int(rng.integers(0, S)), 2, offset), -S, S),
            lambda: of_entries(KeyLengths, 0, S),
            lambda: of_entries(lambda n: KeyLengths(int(rng.integers(0, S + 1)), n), 0, T),
            dense,
            lambda: Predicate(RULES[rng.integers(len(RULES))]),
        ][draw(st.integers(0, 6))]()

    mask = leaf()
    for _ in range(draw(st.integers(0, 2))):
        match draw(st.sampled_from(["and", "or", "not"])):
            case "and":
                mask = mask & leaf()
            case "or":
                mask = leaf() | mask
            case "not":
                mask = ~mask
    return mask


# Of (b, h, queries, keys); among them some that see nothing or everything in large rectangles
RULES = [
    lambda b, h, q, k: (q + k + h) % (b + 2) == 0,
    lambda b, h, q, k: k <= q,
    lambda b, h, q, k: (q // 20 == k // 20) & (h + b + q >= 0),
    lambda b, h, q, k: k == h,
    lambda b, h, q, k: np.True_,
    lambda b, h, q, k: q < 10 * h,
]


def pairs_of(mask: Mask, heads: tuple[int, ...], rows: range, cols: range) -> np.ndarray:
    """What each batch entry and head sees, pair by pair: `(*heads, rows, cols)`."""
    q, k = np.arange(rows.start, rows.stop)[:, None], np.arange(cols.start, cols.stop)
    each = [mask.at(index).visible(q, k) for index in np.ndindex(*heads)]
    return np.array(each, dtype=bool).reshape(*heads, len(rows), len(cols))


def coverage_of(pairs: np.ndarray) -> Coverage:
    return Coverage.EMPTY if not pairs.any() else Coverage.FULL if pairs.all() else Coverage.PARTIAL


# Numbers that differ between batch entries


@given(mask=entry_masks, rows=runs, cols=runs, index=st.tuples(st.integers(0, 1), st.integers(0, 2), st.just(0)))
def test_each_batch_entry_sees_by_its_own_number(mask: Mask, rows: range, cols: range, index: tuple[int, ...]) -> None:
    def own(values: Any) -> int:
        return int(np.broadcast_to(np.array(values), BATCH)[index[:-1]])

    match mask:
        case Causal(offset):
            alone = seen(Causal(own(offset)), rows, cols)
        case SlidingWindow(left, right, offset):
            alone = seen(SlidingWindow(left, right, own(offset)), rows, cols)
        case KeyLengths(lengths, query_lengths):
            alone = seen(Sinks(own(lengths)), rows, cols)
            if query_lengths is not None:
                alone[max(own(query_lengths) - rows.start, 0) :] = False
    assert np.array_equal(pairs_of(mask, (*BATCH, 1), rows, cols)[index], alone)


@given(mask=entry_masks, rows=runs, cols=runs)
def test_entries_together_are_classified_counted_and_reached_as_their_pairs(mask: Mask, rows: range, cols: range):
    mask = mask.bind(BATCH, 4, 70, 70)
    own = pairs_of(mask, mask.lead, rows, cols)
    assert np.broadcast_shapes(mask.lead, (*BATCH, 4)) == (*BATCH, 4)
    assert mask.classify(rows, cols) is coverage_of(own)
    assert mask.count(rows, cols) == own.sum()
    reached = {k for part in mask.reach(rows, cols) for k in part}
    assert {cols[i] for i in np.flatnonzero(own.any(axis=tuple(range(own.ndim - 1))))} <= reached <= set(cols)
    assert not mask.is_shared
    assert not mask.hides_nothing


@given(mask=entry_masks)
def test_masks_of_batch_entries_are_values(mask: Mask) -> None:
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert hash(pickle.loads(pickle.dumps(mask))) == hash(mask)
    assert eval(repr(mask)) == mask
    assert mask_from_dict(json.loads(json.dumps((mask & Causal([[1], [2]])).to_dict()))) == mask & Causal([[1], [2]])


def test_numbers_may_come_as_arrays_of_any_library() -> None:
    torch = pytest.importorskip("torch")
    for array in (np.array([3, 5]), np.array([3, 5], np.uint8), torch.tensor([3, 5]), array_api_strict.asarray([3, 5])):
        assert Causal(array) == Causal([3, 5]) == Causal((3, 5))
        assert KeyLengths(array, query_lengths=array) == KeyLengths([3, 5], [3, 5])
    assert Causal(np.int64(3)) == Causal(3) == Causal(np.array(3))
    assert Causal(np.array([3])) != Causal(3)
    assert Causal(3).is_shared


@pytest.mark.parametrize(
    ("batch", "mask"),
    [
        ((3,), Causal([0, -40, 17])),
        ((2, 3), Causal([[0], [-70]]) | Sinks(2)),
        ((2, 3), SlidingWindow(9, 2, offset=[5, -5, 0])),
        ((2, 3), KeyLengths([[60, 0, 13], [1, 59, 30]]) & Causal()),
        ((2, 1, 2), KeyLengths([60, 10], query_lengths=[[[30]], [[60]]])),
        ((), KeyLengths(7)),
    ],
    ids=str,
)
@pytest.mark.parametrize("strategy", ["cqs", "tiles"])
def test_numbers_of_batch_entries_are_exact_in_attention(batch: tuple[int, ...], mask: Mask, strategy: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((*batch, heads, 60, 8), dtype=np.float32) for heads in (4, 2, 2))
    for workers in (1, 7, 8):
        out, lse = cqs.attention(q, k, v, mask=mask, workers=workers, strategy=strategy, return_lse=True)
        assert_exact(out, q, k, v, mask=mask, lse=lse)


@pytest.mark.parametrize("mask", [KeyLengths([]), Causal([]), SlidingWindow(3, offset=[])], ids=str)
def test_a_batch_without_entries_is_no_error(mask: Mask) -> None:
    q = np.zeros((0, 2, 60, 8), np.float32)
    assert cqs.attention(q, q, q, mask=mask, workers=7).shape == q.shape
    assert cqs.plan(q, q, q, mask=mask, workers=7).loads() == [0] * 7


def test_entries_with_their_own_offset_are_as_if_they_were_alone() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 1, 60, 8), dtype=np.float32) for _ in range(3))
    each = cqs.attention(q, k, v, mask=Causal([4, -3]), workers=7)
    for b, offset in enumerate([4, -3]):
        np.testing.assert_allclose(each[b], cqs.attention(q, k, v, mask=Causal(offset), workers=7)[b], atol=1e-6)
    plan = cqs.plan(q, k, v, mask=Causal([4, -3]), workers=7)
    assert sum(plan.loads()) == plan.problem.n_pairs == sum(Causal(n).count(range(60), range(60)) for n in (4, -3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Causal([1, 2.5]), OptionError, r"`offset\[1\]` must be a whole number, got 2.5;"),
        (lambda: SlidingWindow(3, 0, [[1, "x"]]), OptionError, r"`offset\[0\]\[1\]` must be a whole number, got 'x';"),
        (lambda: Causal([[1, 2], [3]]), ShapeError, r"`offset` must have rows of one length, got rows of shape \(1,\)"),
        (lambda: Causal(np.array([0.5])), OptionError, r"`offset\[0\]` must be a whole number, got 0.5;"),
        (lambda: KeyLengths([3, -1]), OptionError, r"`lengths\[1\]` must be a whole number of at least 0, got -1;"),
        (lambda: KeyLengths("12"), OptionError, "`lengths` must be a whole number of at least 0, got '12';"),
        (lambda: KeyLengths(None), OptionError, "`lengths` must be a whole number of at least 0, got None;"),
        (
            lambda: KeyLengths([3, 4], [1, 2, 3]),
            ShapeError,
            r"`query_lengths` must broadcast with `lengths`, of shape \(2,\), got shape \(3,\);",
        ),
    ],
    ids=range(8),
)
def test_numbers_that_make_no_sense_are_refused(make: Any, error: type[CQSError], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("mask", "name"),
    [
        (Causal([1, 2]), "offset"),
        (SlidingWindow(3, offset=[[1, 2, 3]] * 3), "offset"),
        (Sinks(3) | Causal([[[1]]]), "offset"),
        (~KeyLengths([1, 2]), "lengths"),
        (KeyLengths([1, 2, 3], [[[1]]]), "query_lengths"),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_the_batch_are_refused_before_anything_is_computed(mask: Mask, name: str) -> None:
    q, message = (
        np.zeros((2, 3, 1, 5, 4), np.float32),
        rf"`{name}` must broadcast to the batch dimensions, \*B = \(2, 3\)",
    )
    with pytest.raises(ShapeError, match=message):
        cqs.plan(q, q, q, mask=mask)


# Arrays and functions


@given(mask=any_masks(), rows=runs, cols=runs)
def test_any_composition_is_classified_counted_and_reached_as_its_pairs(mask: Mask, rows: range, cols: range) -> None:
    mask = mask.bind(BATCH, 2, 70, 70)
    own = pairs_of(mask, mask.lead, rows, cols)
    assert mask.classify(rows, cols) is coverage_of(own)
    assert mask.count(rows, cols) == own.sum()
    parts = mask.reach(rows, cols)
    assert all(part and part.step == 1 for part in parts)
    assert all(before.stop < after.start for before, after in itertools.pairwise(parts))
    reached = {k for part in parts for k in part}
    assert {cols[i] for i in np.flatnonzero(own.any(axis=tuple(range(own.ndim - 1))))} <= reached <= set(cols)


class Calls:
    """A rule that notes how many pairs it was asked about, and of how many at once."""

    def __init__(self, rule: Any) -> None:
        self.rule, self.n_pairs, self.most = rule, 0, 0

    def __call__(self, b: int, h: int, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        self.n_pairs += q.size * k.size
        self.most = max(self.most, q.size * k.size)
        return self.rule(q, k)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (lambda q, k: k < q - 10**6, Coverage.EMPTY),
        (lambda q, k: (q == 999) & (k == 2000 + 999), Coverage.PARTIAL),
        (lambda q, k: (q >= 0) & (k >= 0), Coverage.FULL),
    ],
    ids=["empty", "one pair", "full"],
)
def test_a_function_is_evaluated_to_the_last_pair_where_that_is_affordable(rule: Any, expected: Coverage) -> None:
    calls = Calls(rule)
    mask = Predicate(calls).bind((), 1, 10**6, 10**6)
    assert mask.classify(range(1000), range(2000, 3000)) is expected
    assert (calls.n_pairs, calls.most <= 1 << 18) == (10**6, True)


def test_a_function_of_too_many_pairs_is_taken_to_be_seen_in_part_without_a_call() -> None:
    calls = Calls(lambda q, k: k < 0)
    assert Predicate(calls).bind((), 1, 5000, 5000).classify(range(5000), range(5000)) is Coverage.PARTIAL
    assert Predicate(calls).bind((20,), 5, 5000, 5000).classify(range(400), range(400)) is Coverage.PARTIAL
    assert Predicate(calls).bind((1100,), 1, 5, 5).classify(range(5), range(5)) is Coverage.PARTIAL
    assert calls.n_pairs == 0


def test_a_function_is_asked_no_more_once_two_pairs_differ() -> None:
    calls = Calls(lambda q, k: k <= q)
    assert Predicate(calls).bind((), 9, 10**6, 10**6).classify(range(300), range(300)) is Coverage.PARTIAL
    assert calls.n_pairs <= 1 << 13


def test_a_plan_evaluates_each_pair_at_most_once_and_never_many_together() -> None:
    calls = Calls(lambda q, k: (k // 100 == q // 100) & (k >= 0))
    plan = cqs.plan(*[(1, 2000, 8)] * 3, mask=Predicate(calls), workers=20)
    tiles = [(tile.query.start, tile.key.start) for task in plan.tasks() for tile in task.tiles]
    assert sorted(tiles) == [(start, start) for start in range(0, 2000, 100)]
    assert calls.n_pairs <= 2000 * 2000
    assert calls.most <= 1 << 18


def test_tiles_that_a_function_or_an_array_empties_are_neither_planned_nor_read() -> None:
    block = np.arange(120) // 30
    for mask in (Predicate(lambda b, h, q, k: q // 30 == k // 30), Dense(block[:, None] == block)):
        both = mask & Causal()
        expected = cqs.plan(*[(2, 120, 8)] * 3, mask=Documents([30] * 4) & Causal(), workers=8)
        plan = cqs.plan(*[(2, 120, 8)] * 3, mask=both, workers=8)
        tiles = lambda plan: sorted((t.query.index, t.key.index) for task in plan.tasks() for t in task.tiles)  # noqa: E731
        assert tiles(plan) == tiles(expected)


def test_a_large_array_is_classified_exactly() -> None:
    array = np.zeros((1200, 1200), bool)
    mask = Dense(array).bind((), 1, 1200, 1200)
    everything = range(1200), range(1200)
    assert mask.classify(*everything) is Coverage.EMPTY
    array[1199, 1199] = True
    assert mask.classify(*everything) is Coverage.PARTIAL
    assert mask.reach(*everything) == (range(1199, 1200),)
    assert Not(mask).classify(*everything) is Coverage.PARTIAL
    assert Or(mask, Dense(~array)).bind((), 1, 1200, 1200).count(*everything) == 1200**2


class OnAnotherDevice:
    """An array that NumPy cannot read, as those of CuPy and of torch on a GPU."""

    dtype, shape = bool, (5, 5)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (lambda: Predicate(3), OptionError, r"`function` must be a function of \(b, h, q_idx, k_idx\), got 3;"),
        (
            lambda: Predicate(lambda b, h, q, k: np.ones((3, 4), bool)),
            ShapeError,
            r"`mask` must return what broadcasts to \(5, 5\), got shape \(3, 4\) from",
        ),
        (
            lambda: Predicate(lambda b, h, q, k: np.ones((2, 5, 5), bool)),
            ShapeError,
            r"`mask` must return what broadcasts to \(5, 5\), got shape \(2, 5, 5\) from",
        ),
        (lambda: Predicate(lambda b, h, q, k: q - k), OptionError, "`mask` must return booleans, got int64 from"),
        (OnAnotherDevice, BackendError, "`mask` must be an array in memory, or a memory map, got OnAnotherDevice; "),
        (
            lambda: "m.npy",
            OptionError,
            r"`mask` must be a mask from `cqs.masks`, got str; .* `np.load\(path, mmap_mode='r'\)`",
        ),
    ],
    ids=range(6),
)
def test_functions_and_arrays_that_make_no_mask_are_refused_by_the_plan(mask: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        cqs.plan(*[(1, 5, 4)] * 3, mask=mask()).task(0)
