"""Merging by compiled code: as `cqs.partial.merge_into`, but for the last bits."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cqs
from cqs.kernels import KERNELS
from cqs.kernels.numba import merge_into
from cqs.partial import Partial, merge


def partial_of(seed: int, shape: tuple[int, ...], spread: float, dtype: str = "float32") -> Partial:
    """A partial result of which some rows saw no key."""
    rng = np.random.default_rng(seed)
    lse = (spread * rng.standard_normal(shape[:-1])).astype(dtype)
    lse[rng.random(shape[:-1]) < 0.2] = -np.inf
    return Partial(np.where(np.isneginf(lse)[..., None], 0, rng.standard_normal(shape)).astype(dtype), lse)


def assert_merged(total: Partial, a: Partial, b: Partial) -> None:
    expected = merge(*(Partial(x.out.astype(np.float64), x.lse.astype(np.float64)) for x in (a, b)))
    np.testing.assert_allclose(total.lse, expected.lse, rtol=3e-7, atol=1e-6)
    np.testing.assert_allclose(total.out, expected.out, atol=2e-6)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.one_of(
        st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 70)),
        st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 20), st.sampled_from([16, 33])),
        st.tuples(st.integers(1, 40), st.integers(1, 20)),
    ),
    spread=st.sampled_from([1.0, 20.0, 1e4, 1e30]),
)
def test_two_results_are_merged_in_place(seed: int, shape: tuple[int, ...], spread: float) -> None:
    a, b = partial_of(seed, shape, spread), partial_of(seed + 1, shape, spread)
    total, before = Partial(a.out.copy(), a.lse.copy()), b.out.copy()
    b.out.flags.writeable = b.lse.flags.writeable = False  # as from another process
    merge_into(np, [total], [b])
    assert_merged(total, a, b)
    assert np.array_equal(b.out, before)


def test_the_total_may_be_part_of_a_larger_array() -> None:
    out, lse = np.full((2, 3, 50, 20), 7, np.float32), np.full((2, 3, 50), 7, np.float32)
    a, b = partial_of(1, (2, 3, 9, 20), 3.0), partial_of(2, (2, 3, 9, 20), 3.0)
    out[..., 11:20, :], lse[..., 11:20] = a.out, a.lse
    merge_into(np, [Partial(out[..., 11:20, :], lse[..., 11:20])], [b])
    assert_merged(Partial(out[..., 11:20, :], lse[..., 11:20]), a, b)
    for rows in (slice(0, 11), slice(20, None)):
        assert (out[..., rows, :] == 7).all()
        assert (lse[..., rows] == 7).all()


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_special_log_sum_exps_go_where_they_go_by_numpy(special: float) -> None:
    for which in range(2):
        parts = [partial_of(seed, (1, 30, 8), 1.0) for seed in range(2)]
        parts[which].lse[0, 17] = special
        found, expected = ([Partial(x.out.copy(), x.lse.copy()) for x in parts] for _ in range(2))
        with np.errstate(all="ignore"):
            merge_into(np, found[:1], found[1:])
            KERNELS["numpy"].merge(np, expected[:1], expected[1:])
        np.testing.assert_allclose(found[0].out, expected[0].out, atol=2e-6)
        np.testing.assert_allclose(found[0].lse, expected[0].lse, atol=2e-6)


@pytest.mark.parametrize("change", ["float64", "reversed"])
def test_what_it_cannot_merge_numpy_does(change: str) -> None:
    a, b = (partial_of(seed, (2, 9, 8), 1.0, "float64" if change == "float64" else "float32") for seed in range(2))
    if change == "reversed":
        a, b = (Partial(x.out[..., ::-1], x.lse) for x in (a, b))
    totals = [Partial(a.out.copy(order="K"), a.lse.copy()) for _ in range(2)]
    if change == "reversed":
        totals = [Partial(np.ascontiguousarray(t.out[..., ::-1])[..., ::-1], t.lse) for t in totals]
    merge_into(np, totals[:1], [b])
    KERNELS["numpy"].merge(np, totals[1:], [b])
    assert np.array_equal(totals[0].out, totals[1].out)
    assert np.array_equal(totals[0].lse, totals[1].lse)


@pytest.mark.parametrize("kernel", ["numba", "numpy"])
def test_results_are_merged_as_the_kernel_of_the_plan_says(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name, row in KERNELS.items():
        noted = lambda *args, name=name, row=row: (called.append(name), row.merge(*args))  # noqa: E731
        monkeypatch.setitem(KERNELS, name, replace(row, merge=noted))
    x = np.random.default_rng(0).standard_normal((1, 50, 8), dtype=np.float32)
    cqs.attention(x, x, x, workers=7, kernel=kernel)
    assert set(called) == {kernel}
