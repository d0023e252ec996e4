"""The laws of merging two partial results, on every library, and against their definition in long double."""

from typing import Any

import array_api_strict
import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given
from hypothesis import strategies as st
from problems import ON_NUMPY

from cqs.errors import CQSError
from cqs.kernels import KERNELS, KeyChunk
from cqs.partial import Partial, merge, merge_into

LIBRARIES = ["numpy", "array_api_strict", "torch"]


@st.composite
def partials(draw: st.DrawFn, n: int, dtype: str) -> list[Partial]:
    """Draw n partials of the same few queries, as NumPy arrays; some of their queries saw nothing."""
    n_rows = draw(st.integers(1, 4))
    finite = st.floats(-100, 100, width=32)
    lses = st.lists(st.one_of(finite, finite, st.just(-np.inf)), min_size=n_rows, max_size=n_rows)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    drawn = []
    for _ in range(n):
        lse = np.array(draw(lses), dtype=dtype)
        rest = np.where(lse == -np.inf, 0, rng.uniform(-0.25, 0.25, n_rows) * np.spacing(abs(lse))).astype(dtype)
        out = rng.standard_normal((n_rows, 3)).astype(dtype)
        out[lse == -np.inf] = 0
        drawn.append(Partial(out, lse, rest))
    return drawn


def load(library: str) -> Any:
    module = {"numpy": np, "array_api_strict": array_api_strict}.get(library) or pytest.importorskip(library)
    return array_namespace(module.ones(1))


def move(xp: Any, partial: Partial) -> Partial:
    """A copy in another library's arrays."""
    return Partial(*(xp.asarray(x.copy()) for x in (partial.out, partial.lse, partial.rest)))


def back(partial: Partial) -> Partial:
    return Partial(*map(np.from_dlpack, (partial.out, partial.lse, partial.rest)))


def checked(*merging: Partial) -> Partial:
    """Merge from left to right, in NumPy without a single invalid operation."""
    total = merging[0]
    with np.errstate(invalid="raise", divide="raise", over="raise"):
        for partial in merging[1:]:
            total = merge(total, partial)
    return back(total)


def exact(a: Partial, b: Partial) -> Partial:
    """The definition of a merge, in long double."""
    lse_a, lse_b = (x.lse.astype(np.longdouble) + x.rest for x in (a, b))
    lse = np.logaddexp(lse_a, lse_b)
    shift = np.where(lse == -np.inf, 0, lse)
    out = a.out * np.exp(lse_a - shift)[:, None] + b.out * np.exp(lse_b - shift)[:, None]
    return Partial(out, lse)


def assert_close(actual: Partial, expected: Partial, parts: list[Partial]) -> None:
    """Equal within a few ulp of the parts."""
    assert not np.isnan(actual.out).any()
    eps = float(np.finfo(actual.lse.dtype).eps)
    magnitudes = [np.where(p.lse == -np.inf, 0, abs(p.lse)) for p in parts]
    lse_ulp = eps * np.maximum(np.max(magnitudes, axis=0), 1)
    assert np.array_equal(actual.lse == -np.inf, expected.lse == -np.inf)
    seen = expected.lse != -np.inf
    assert (abs(actual.lse[seen] - expected.lse[seen]) <= 4 * lse_ulp[seen]).all()
    out_ulp = np.max([abs(p.out).max(axis=-1) for p in parts], axis=0) * eps
    assert (abs(actual.out - expected.out) <= 8 * out_ulp[:, None]).all()
    assert (actual.out[~seen] == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("library", LIBRARIES)
class TestMerge:
    @given(data=st.data())
    def test_agrees_with_the_definition(self, library: str, dtype: str, data: st.DataObject) -> None:
        a, b = data.draw(partials(2, dtype))
        xp = load(library)
        merged = checked(move(xp, a), move(xp, b))
        assert merged.out.dtype == merged.lse.dtype == dtype
        assert_close(merged, exact(a, b), parts=[a, b])

    @given(data=st.data())
    def test_empty_is_its_identity(self, library: str, dtype: str, data: st.DataObject) -> None:
        (a,) = data.draw(partials(1, dtype))
        xp = load(library)
        empty = Partial.empty(xp, a.out.shape, getattr(xp, dtype))
        for merged in (checked(move(xp, a), empty), checked(empty, move(xp, a))):
            assert np.array_equal(merged.out, a.out)
            assert np.array_equal(merged.lse, a.lse)
            assert np.array_equal(merged.rest, a.rest)

    def test_of_nothing_and_nothing_is_nothing(self, library: str, dtype: str) -> None:
        xp = load(library)
        empty = Partial.empty(xp, (2, 3), getattr(xp, dtype))
        merged = checked(empty, empty)
        assert (merged.out == 0).all()
        assert (merged.lse == -np.inf).all()
        assert (merged.rest == 0).all()

    @given(data=st.data())
    def test_is_commutative_to_the_bit(self, library: str, dtype: str, data: st.DataObject) -> None:
        a, b = (move(load(library), partial) for partial in data.draw(partials(2, dtype)))
        one, other = checked(a, b), checked(b, a)
        assert np.array_equal(one.out, other.out)
        assert np.array_equal(one.lse, other.lse)
        assert np.array_equal(one.rest, other.rest)

    @given(data=st.data())
    def test_is_associative_within_a_few_ulp(self, library: str, dtype: str, data: st.DataObject) -> None:
        parts = data.draw(partials(3, dtype))
        a, b, c = (move(load(library), partial) for partial in parts)
        assert_close(checked(a, b, c), checked(a, merge(b, c)), parts=parts)

    @given(data=st.data())
    def test_leaves_its_arguments_as_they_are(self, library: str, dtype: str, data: st.DataObject) -> None:
        parts = data.draw(partials(2, dtype))
        moved = [move(load(library), partial) for partial in parts]
        checked(*moved)
        for before, after in zip(parts, map(back, moved), strict=True):
            assert np.array_equal(before.out, after.out)
            assert np.array_equal(before.lse, after.lse)
            assert np.array_equal(before.rest, after.rest)

    @given(data=st.data())
    def test_in_place_gives_the_same_bits(self, library: str, dtype: str, data: st.DataObject) -> None:
        a, b = (move(load(library), partial) for partial in data.draw(partials(2, dtype)))
        merged, before = checked(a, b), back(b).out.copy()
        merge_into(load(library), [a], [b])
        assert np.array_equal(back(a).out, merged.out)
        assert np.array_equal(back(a).lse, merged.lse)
        assert np.array_equal(back(a).rest, merged.rest)
        assert np.array_equal(back(b).out, before)

    @pytest.mark.parametrize("shape", [(300_001, 3), (3, 2, 7, 100_003), (0, 5), (2, 0, 5, 3)], ids=str)
    def test_in_place_gives_the_same_bits_for_any_size(self, library: str, dtype: str, shape: tuple[int, ...]) -> None:
        xp, rng = load(library), np.random.default_rng(0)
        numbers = [rng.standard_normal(s).astype(dtype) for s in (shape, shape[:-1], shape, shape[:-1])]
        a, b = (move(xp, Partial(*numbers[i : i + 2])) for i in (0, 2))
        merged = checked(a, b)
        merge_into(xp, [a], [b])
        assert np.array_equal(back(a).out, merged.out)
        assert np.array_equal(back(a).lse, merged.lse)
        assert np.array_equal(back(a).rest, merged.rest)

    @given(data=st.data())
    def test_in_place_several_at_once_give_the_same(self, library: str, dtype: str, data: st.DataObject) -> None:
        xp = load(library)
        pairs = [[move(xp, partial) for partial in data.draw(partials(2, dtype))] for _ in range(3)]
        expected = [checked(a, b) for a, b in pairs]
        merge_into(xp, [a for a, _ in pairs], [b for _, b in pairs])
        for (a, b), merged in zip(pairs, expected, strict=True):  # vectors end elsewhere, so not always bit for bit
            assert_close(back(a), merged, parts=[merged, back(b)])

    @pytest.mark.parametrize("magnitude", [1e3, 1e30])
    def test_neither_overflows_nor_vanishes(self, library: str, dtype: str, magnitude: float) -> None:
        xp = load(library)
        out = np.array([[1.0], [2.0], [3.0]], dtype=dtype)
        high = move(xp, Partial(out, np.full(3, magnitude, dtype)))
        low = move(xp, Partial(-out, np.full(3, -magnitude, dtype)))
        for merged in (checked(high, low), checked(low, high)):
            assert np.array_equal(merged.out, out)
            assert (merged.lse == np.dtype(dtype).type(magnitude)).all()
        assert np.array_equal(checked(high, high).out, out)
        assert np.array_equal(checked(low, low).out, -out)


def test_merge_refuses_arrays_of_two_libraries() -> None:
    a = Partial.empty(np, (2, 3), np.float32)
    b = Partial.empty(array_api_strict, (2, 3), array_api_strict.float32)
    with pytest.raises(CQSError, match="`b` must be of the same library as `a`"):
        merge(a, b)


@pytest.mark.parametrize("device", array_api_strict.__array_namespace_info__().devices(), ids=str)
def test_an_empty_partial_lies_on_its_device_and_merges_there(device: object) -> None:
    xp = array_api_strict
    empty = Partial.empty(xp, (2, 3), xp.float32, device)
    merged = merge(empty, empty)
    assert merged.out.device == merged.lse.device == empty.out.device == empty.lse.device == device


@pytest.mark.parametrize("kernel", ON_NUMPY)
@given(n_keys=st.tuples(st.integers(1, 30), st.integers(1, 30)), seed=st.integers(0, 2**32 - 1))
def test_attending_to_joined_keys_is_merging_what_attends_to_each(kernel: str, n_keys, seed: int) -> None:
    rng = np.random.default_rng(seed)
    attend = KERNELS[kernel].attend
    q = rng.standard_normal((4, 5, 8))
    first, second = (KeyChunk(rng.standard_normal((2, n, 8)), rng.standard_normal((2, n, 3))) for n in n_keys)
    joined = attend(q, [first, second], scale=0.4)
    merged = merge(attend(q, [first], scale=0.4), attend(q, [second], scale=0.4))
    np.testing.assert_allclose(merged.out, joined.out, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(merged.lse, joined.lse, rtol=1e-14, atol=1e-14)
