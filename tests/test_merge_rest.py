"""Merging where log-sum-exps are of any size: held to exact arithmetic, by every code that merges."""

from collections.abc import Callable
from fractions import Fraction
from math import exp, log1p
from typing import Any

import array_api_strict
import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given
from hypothesis import strategies as st

from cqs.errors import BackendError, DTypeError, ShapeError
from cqs.kernels import numba
from cqs.partial import Partial, merge, merge_into

Merging = Callable[[Partial, Partial], Partial]


def by_array_code(xp: Any) -> Merging:
    def merging(a: Partial, b: Partial) -> Partial:
        there = (Partial(*(xp.asarray(x) for x in (p.out, p.lse, p.rest))) for p in (a, b))
        found = merge(*there)
        return Partial(*map(np.from_dlpack, (found.out, found.lse, found.rest)))

    return merging


def compiled(a: Partial, b: Partial) -> Partial:
    """By vectors and by what is left over: rows that are many times the same."""
    total, part = (Partial(*(np.concatenate([x] * 21)[None] for x in (p.out, p.lse, p.rest))) for p in (a, b))
    numba.merge_into(np, [total], [part])
    n = a.lse.size
    assert all(np.array_equal(x[0, :n], x[0, -n:], equal_nan=True) for x in (total.out, total.lse, total.rest))
    return total.at(0, slice(n))


MERGES: dict[str, Merging] = {
    "numpy": by_array_code(np),
    "array_api_strict": by_array_code(array_api_strict),
    "torch": lambda a, b: by_array_code(array_namespace(pytest.importorskip("torch").ones(1)))(a, b),
    "compiled": compiled,
}
CASES = [
    (name, dtype) for name in MERGES for dtype in ("float32", "float64") if (name, dtype) != ("compiled", "float64")
]


def is_rounded(lse: Any, rest: Any) -> bool:
    """Whether a log-sum-exp is the nearest number to the sum of both."""
    return bool(lse + rest == lse)


@st.composite
def pairs(draw: st.DrawFn, dtype: str, n: int = 2) -> list[tuple[Any, Any]]:
    """Draw log-sum-exps with their rests, near each other or not, of any size."""
    kind, limits = np.dtype(dtype).type, np.finfo(dtype)
    exponent = draw(st.integers(-40, limits.maxexp - 1))
    first = kind(draw(st.sampled_from([-1.0, 1.0])) * draw(st.floats(1, 1.999)) * 2.0**exponent)
    found = []
    for _ in range(n):
        steps = draw(st.sampled_from([0, 0, 0, 1, -1, 7, -50]))
        lse = kind(np.clip(first + kind(steps) * np.spacing(abs(first)), limits.min, limits.max))
        if draw(st.integers(0, 4)) == 0:
            lse = kind(draw(st.floats(-90, 90)))
        rest = kind(
            draw(st.sampled_from([draw(st.floats(-0.5, 0.5)) * float(np.spacing(abs(lse))), 0.0, 7.6, 0.7, 3.3]))
        )
        found.append((lse, rest if is_rounded(lse, rest) else kind(0)))
    return found


def rows_of(lse: Any, rest: Any, of: float) -> Partial:
    return Partial(np.full((1, 20), of, lse.dtype), np.array([lse]), np.array([rest]))


@pytest.mark.parametrize(("how", "dtype"), CASES)
@given(data=st.data())
def test_weights_and_sums_are_those_of_exact_arithmetic(how: str, dtype: str, data: st.DataObject) -> None:
    (lse_a, rest_a), (lse_b, rest_b) = data.draw(pairs(dtype))
    eps = float(np.finfo(dtype).eps)
    a, b = (Fraction(float(x)) + Fraction(float(y)) for x, y in ((lse_a, rest_a), (lse_b, rest_b)))
    difference = float(max(min(a - b, 10_000), -10_000))
    share = 1 / (1 + exp(difference)) if difference < 700 else 0.0  # of b
    with np.errstate(over="ignore"):  # of differences that are larger than any number
        found = MERGES[how](rows_of(lse_a, rest_a, 0.0), rows_of(lse_b, rest_b, 1.0))
    assert (abs(found.out - share) <= (4 + abs(difference)) * eps * share + 2.0**-125).all()
    merged = Fraction(float(found.lse[0])) + Fraction(float(found.rest[0]))
    grown = float(merged - max(a, b)) - log1p(exp(-abs(difference)))
    assert abs(grown) <= 2 * eps + eps * abs(float(found.rest[0]))
    assert is_rounded(found.lse[0], found.rest[0])


@pytest.mark.parametrize(("how", "dtype"), CASES)
@given(data=st.data())
def test_the_order_of_sides_changes_no_bit_and_that_of_merges_the_last(
    how: str, dtype: str, data: st.DataObject
) -> None:
    eps = float(np.finfo(dtype).eps)
    a, b, c = (rows_of(*x, of) for x, of in zip(data.draw(pairs(dtype, 3)), (0.0, 1.0, 5.0), strict=True))
    with np.errstate(over="ignore"):
        one, other = MERGES[how](a, b), MERGES[how](b, a)
        left, right = MERGES[how](one, c), MERGES[how](a, MERGES[how](b, c))
    for name in ("out", "lse", "rest"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert (abs(left.out - right.out) <= 8 * eps * 5).all()
    sums = [Fraction(float(x.lse[0])) + Fraction(float(x.rest[0])) for x in (left, right)]
    assert abs(float(sums[0] - sums[1])) <= 4 * eps + 2 * eps * abs(float(left.rest[0]))


@pytest.mark.parametrize(("how", "dtype"), CASES)
@given(data=st.data())
def test_what_saw_nothing_changes_no_bit(how: str, dtype: str, data: st.DataObject) -> None:
    (pair,) = data.draw(pairs(dtype, 1))
    a, empty = rows_of(*pair, 3.0), Partial.empty(np, (1, 20), np.dtype(dtype))
    for merged in (MERGES[how](a, empty), MERGES[how](empty, a)):
        assert (merged.out == 3).all()
        assert (merged.lse[0], merged.rest[0]) == pair
    nothing = MERGES[how](empty, empty)
    assert (nothing.out == 0).all()
    assert (nothing.lse[0], nothing.rest[0]) == (-np.inf, 0)


@pytest.mark.parametrize(("how", "dtype"), CASES)
def test_keys_of_equal_scores_count_alike_however_they_are_merged(how: str, dtype: str) -> None:
    limits = np.finfo(dtype)
    values = np.arange(1, 200, dtype=dtype)
    for score in (0.0, 900.0, 1e5, 1e9, float(limits.max), float(limits.min)):
        parts, first = [], 0
        for n in (1, 50, 3, 100, 45):
            lse = np.array([score or np.log(n)], dtype)
            rest = np.array([np.log(n) - float(lse[0]) if score == 0 else np.log(n)], dtype)
            mean = np.full((1, 20), values[first : first + n].mean(), dtype)
            parts.append(merge(Partial(mean, lse, rest), Partial.empty(np, (1, 20), np.dtype(dtype))))
            first += n
        total = parts[0]
        for part in parts[1:]:
            total = MERGES[how](total, part)
        assert (abs(total.out - 100) <= 100 * 8 * limits.eps).all()


def arrays_of(partial: Partial) -> tuple[np.ndarray, ...]:
    return partial.out, partial.lse, partial.rest


def drawn(rng: np.random.Generator) -> Partial:
    out, lse, rest = (rng.standard_normal(shape, dtype=np.float32) for shape in ((1, 9, 4), (1, 9), (1, 9)))
    return Partial(out, lse, rest * np.float32(1e-8))


def test_what_has_no_rest_is_as_if_it_were_zero() -> None:
    out, lse = np.ones((1, 4, 3), np.float32), np.linspace(-5, 900, 4, dtype=np.float32)[None]
    plain, zero = Partial(out, lse), Partial(out, lse, np.zeros_like(lse))
    assert np.array_equal(plain.rest, zero.rest)
    assert plain.rest.dtype == lse.dtype
    for x, y in zip(*(arrays_of(merge(p, p)) for p in (plain, zero)), strict=True):
        assert np.array_equal(x, y)


@pytest.mark.parametrize("merge_in_place", [merge_into, numba.merge_into])
def test_in_place_only_the_total_is_written(merge_in_place: Callable[..., None]) -> None:
    rng = np.random.default_rng(0)
    totals, parts = ([drawn(rng) for _ in range(3)] for _ in range(2))
    before = [tuple(x.copy() for x in arrays_of(p)) for p in parts]
    merge_in_place(np, totals, parts)
    for part, own in zip(parts, before, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(arrays_of(part), own, strict=True))


def test_rests_of_another_shape_are_refused() -> None:
    part = drawn(np.random.default_rng(0))
    with pytest.raises(ShapeError, match="`b` must have a log-sum-exp for each row"):
        merge(part, Partial(part.out, part.lse, part.rest[:, 1:]))


@pytest.mark.parametrize(("how", "dtype"), CASES)
@pytest.mark.parametrize("other", [-np.inf, 0.0, 3e38, np.nan])
@pytest.mark.parametrize("is_first", [True, False])
def test_nan_in_a_log_sum_exp_stays(how: str, dtype: str, other: float, is_first: bool) -> None:
    kind = np.dtype(dtype).type
    sides = [rows_of(kind(np.nan), kind(0), np.nan), rows_of(kind(other), kind(0), 1.0)]
    found = MERGES[how](*(sides if is_first else sides[::-1]))
    assert np.isnan(found.lse).all()
    assert np.isnan(found.out).all()
    assert (found.rest == 0).all()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda p: Partial(p.out, p.lse, 0.0), BackendError, "rest"),
        (lambda p: Partial(p.out, p.lse, array_api_strict.zeros((1,))), BackendError, "rest"),
        (lambda p: Partial(array_api_strict.zeros((1, 20)), p.lse), BackendError, "out"),
        (lambda p: Partial(p.out, p.lse.astype(int)), DTypeError, r"`a\.lse` must be float32 or float64"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(wrong: Any, error: type[Exception], message: str) -> None:
    right = rows_of(np.float32(1), np.float32(0), 1.0)
    with pytest.raises(error, match=message):
        merge(wrong(right), right)
