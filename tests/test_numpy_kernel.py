"""The NumPy kernel by itself: strips that share a call, their keys copied once, and what is not theirs left out."""

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_calls import arrays_of, strips

from cqs.kernels import KERNELS, KeyChunk, Region
from cqs.kernels.numpy_threads import Call, attend
from cqs.masks import NoMask
from cqs.partial import Partial

BLOCK_BYTES = 64 << 10  # so that calls of a few hundred tokens have many blocks


def assert_equal(found: Partial, expected: Partial) -> None:
    np.testing.assert_allclose(found.out, expected.out, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(found.lse, expected.lse, rtol=1e-12, atol=1e-12)


def run(q: np.ndarray, chunks: list[KeyChunk], region: Region, threads: int = 1) -> Partial:
    return attend(q, chunks, scale=0.5, region=region, threads=threads, block_bytes=BLOCK_BYTES)


@given(region=strips(), heads=st.sampled_from([(1, 1), (3, 3), (6, 2)]))
def test_strips_that_share_a_call_are_as_the_formula_says(region: Region, heads: tuple[int, int]) -> None:
    q, chunks = arrays_of(region, *heads, "float64")
    assert_equal(run(q, chunks, region), KERNELS["reference"].attend(q, chunks, scale=0.5, region=region))


@given(region=strips(), hidden=st.sampled_from([np.nan, np.inf]))
def test_what_is_foreign_to_a_strip_does_not_reach_it(region: Region, hidden: float) -> None:
    q, chunks = arrays_of(region, 2, 1, "float64")
    expected = run(q, chunks, region)
    rows = list(accumulate(map(len, region.queries), initial=0))
    for i in range(len(region.queries)):
        spoilt = [
            KeyChunk(chunk.k, np.full_like(chunk.v, hidden)) if (i, j) in region.foreign else chunk
            for j, chunk in enumerate(chunks)
        ]
        own, found = slice(rows[i], rows[i + 1]), run(q, spoilt, region)
        assert_equal(*(Partial(x.out[:, own], x.lse[:, own]) for x in (found, expected)))


def three_strips() -> Region:
    """Three strips of 150 rows; each but the first lacks a group, which splits the columns of the second in two."""
    runs = tuple(range(i * 150, i * 150 + 150) for i in range(3))
    return Region(runs, runs, NoMask(), frozenset([(1, 1), (2, 0)]))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_a_call_is_bitwise_the_same_on_any_number_of_threads(dtype: str) -> None:
    region = three_strips()
    q, chunks = arrays_of(region, 6, 6, "float64")
    wide = [KeyChunk(*(np.tile(array, 16).astype(dtype) for array in chunk)) for chunk in chunks]
    q = np.tile(q, 16).astype(dtype)
    one, *others = (attend(q, wide, scale=0.05, region=region, threads=n) for n in (1, 2, 5))
    call = Call(q, wide, (150,) * 3, 0.05, region, one, 2 << 20)
    assert call.shape.is_shared
    assert len(call.units(2)) > len(call.units(1))
    for found in others:
        assert np.array_equal(found.out, one.out)
        assert np.array_equal(found.lse, one.lse)


def test_keys_of_strips_that_share_a_call_are_copied_once_if_they_are_few() -> None:
    region = three_strips()
    q, chunks = arrays_of(region, 1, 1, "float64")
    result = run(q, chunks, region)
    assert Call(q, chunks, (150,) * 3, 0.5, region, result, 2 << 20).are_keys_joined
    assert not Call(q, chunks, (150,) * 3, 0.5, region, result, 1 << 14).are_keys_joined
    whole = Call(q, chunks, (150,) * 3, 0.5, Region(region.queries, region.keys), result, 2 << 20)
    assert not whole.are_keys_joined
