"""Soft caps and biases in the compiled kernel: of any type and layout, for any strips."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_calls import arrays_of, strips

import cqs
from cqs.kernels import KERNELS, KeyChunk, Region, numba
from cqs.kernels.numba import attend
from cqs.scores import ALiBi, Scores


def biases(region: Region, rng: np.random.Generator) -> st.SearchStrategy[np.ndarray | ALiBi | None]:
    """What may be added to the scores of one head: numbers of any type and layout."""
    T, S = region.queries[-1].stop, region.keys[-1].stop

    def made(shape: tuple[int, int], dtype: str, layout: str) -> np.ndarray:
        array = rng.standard_normal(shape).astype(getattr(ml_dtypes, dtype, dtype))
        return np.repeat(array, 2, axis=1)[:, ::2] if layout == "every second" else np.asarray(array, order=layout)

    shapes = st.sampled_from([(T, S), (1, S), (T, 1), (1, 1)])
    types = st.sampled_from(["float64", "float32", "float16", "bfloat16"])
    arrays = st.builds(made, shapes, types, st.sampled_from(["C", "F", "every second"]))
    slopes = st.builds(lambda slope, offset: ALiBi((slope,), offset), st.floats(-1, 1), st.integers(-300, 300))
    return st.one_of(st.none(), arrays, slopes)


@given(
    region=strips(),
    data=st.data(),
    softcap=st.sampled_from([None, 0.1, 2.0, 50.0]),
    block_bytes=st.sampled_from([1 << 10, 1 << 14, 1 << 21]),
    heads=st.sampled_from([(1, 1), (3, 3), (6, 2)]),
)
def test_scores_are_changed_as_the_formula_says(
    region: Region, data: st.DataObject, softcap: float | None, block_bytes: int, heads: tuple[int, int]
) -> None:
    bias = data.draw(biases(region, np.random.default_rng(len(region.keys))))
    region = replace(region, scores=Scores(softcap, bias))
    q, chunks = arrays_of(region, *heads, "float32")
    if data.draw(st.booleans()):  # chunks need not be cut where runs are
        k, v = (np.concatenate(arrays, axis=-2) for arrays in zip(*chunks, strict=True))
        chunks = [KeyChunk(k[:, cut], v[:, cut]) for cut in (slice(0, 1), slice(1, None))]
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((numba.numpy_threads, "attend"), (numba.numpy_threads.Call, "computed")):
            patch.setattr(owner, name, None)
        patch.setattr(numba._Call, "_attend_carefully", None)
        found = attend(q, chunks, scale=-0.5, region=region, block_bytes=block_bytes)
    wide = [KeyChunk(*(x.astype(np.float64) for x in chunk)) for chunk in chunks]
    expected = KERNELS["reference"].attend(q.astype(np.float64), wide, scale=-0.5, region=region)
    np.testing.assert_allclose(found.out, expected.out, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(found.lse, expected.lse, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("shape", [(50, 60), (60, 50), (1, 59)])
def test_a_bias_that_is_too_small_is_not_read_beyond_its_end(shape: tuple[int, int]) -> None:
    q, chunks = np.ones((1, 60, 8), np.float32), [KeyChunk(*np.ones((2, 1, 60, 8), np.float32))]
    region = replace(Region.whole(60, 60), scores=Scores(bias=np.zeros(shape, np.float32)))
    with pytest.raises(ValueError, match="broadcast"):
        attend(q, chunks, scale=1.0, region=region)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 3.4e38])
def test_special_numbers_of_a_bias_go_where_they_go_in_the_numpy_kernel(special: float) -> None:
    rng = np.random.default_rng(7)
    q, k, v = rng.standard_normal((3, 1, 300, 8), dtype=np.float32)
    bias = rng.standard_normal((300, 300), dtype=np.float32)
    bias[200, 30], bias[250], bias[100, 200] = special, special, np.nan  # the last is hidden
    found, expected = (
        cqs.attention(q, k, v, bias=bias, is_causal=True, return_lse=True, workers=1, kernel=kernel)
        for kernel in ("numba", "numpy")
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)
        assert np.isfinite(one[:, :200]).all()
