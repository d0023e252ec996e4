"""Attention under random compositions of masks: against float64, against torch, and with poison in what is hidden."""

from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import ON_NUMPY, Problem, problems
from test_mask_entries import any_masks, pairs_of

import cqs
from cqs.masks import Causal, Dense, Mask, SlidingWindow
from cqs.scores import ALiBi
from cqs.testing import assert_exact

T, S, BATCH, H, G = 24, 35, (2,), 4, 2

kernels = st.sampled_from(ON_NUMPY)
workers = st.sampled_from([1, 3, 4, 7])
seeds = st.integers(0, 2**32 - 1)
lengths = st.sampled_from([(T, S), (T, T), (1, S), (S, T)])


def arrays(seed: int, T: int, S: int, dtype: Any = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((*BATCH, heads, n, width)).astype(dtype)
        for heads, n, width in ((H, T, 8), (G, S, 8), (G, S, 5))
    ]


def moved(library: str, *arrays: np.ndarray) -> list[Any]:
    """The arrays as those of another library."""
    if library == "numpy":
        return [array.copy() for array in arrays]
    xp = array_api_strict if library == "array_api_strict" else pytest.importorskip("torch")
    return [xp.asarray(array.copy()) for array in arrays]


def visible(mask: Mask, T: int, S: int) -> np.ndarray:
    """What every head sees, `(*B, H, T, S)`."""
    return pairs_of(mask.bind(BATCH, H, T, S), (*BATCH, H), range(T), range(S))


# Against the formula in float64


@given(problem=problems(), kernel=kernels, data=st.data())
def test_any_composition_is_exact_in_every_kernel(problem: Problem, kernel: str, data: st.DataObject) -> None:
    q, k, v = problem.q, problem.k, problem.v
    *batch, H, T, _ = q.shape
    chosen = {"mask": data.draw(any_masks(tuple(batch), H, T, k.shape[-2])), "scale": problem.scale}
    n = min(problem.workers, 9)
    out, lse = cqs.attention(q, k, v, workers=n, kernel=kernel, return_lse=True, **chosen)
    assert_exact(out, q, k, v, lse=lse, **chosen)


@pytest.mark.parametrize("library", ["array_api_strict", "torch"])
@given(data=st.data(), sizes=lengths, workers=workers, seed=seeds)
def test_any_composition_is_exact_on_other_libraries(
    library: str, data: st.DataObject, sizes: tuple[int, int], workers: int, seed: int
) -> None:
    q, k, v = arrays(seed, *sizes)
    mask = data.draw(any_masks(BATCH, H, *sizes))
    out, lse = cqs.attention(*moved(library, q, k, v), mask=mask, workers=workers, return_lse=True)
    assert_exact(np.from_dlpack(out), q, k, v, mask=mask, lse=np.from_dlpack(lse))


@pytest.mark.parametrize("library", ["numpy", "array_api_strict", "torch"])
@given(data=st.data(), workers=workers, seed=seeds)
def test_any_composition_is_exact_with_what_torch_lacks(
    library: str, data: st.DataObject, workers: int, seed: int
) -> None:
    q, k, v = arrays(seed, T, S)
    logits = np.random.default_rng(seed).standard_normal(H).astype(np.float32)
    chosen = {
        "mask": data.draw(any_masks(BATCH, H, T, S)),
        "softcap": data.draw(st.sampled_from([None, 2.0])),
        "bias": data.draw(st.sampled_from([None, ALiBi.standard(H)])),
        "score_mod": data.draw(st.sampled_from([None, lambda s, b, h, i, j: s * (1 + b) - 0.1 * h])),
    }
    out = cqs.attention(*moved(library, q, k, v), sink_logits=moved(library, logits)[0], workers=workers, **chosen)
    assert_exact(np.from_dlpack(out), q, k, v, sink_logits=logits, **chosen)


# Against torch


def by_torch(q: np.ndarray, k: np.ndarray, v: np.ndarray, **options: Any) -> np.ndarray:
    torch = pytest.importorskip("torch")
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    return torch.nn.functional.scaled_dot_product_attention(*tensors, enable_gqa=True, **options).numpy()


@given(data=st.data(), sizes=lengths, workers=workers, kernel=kernels, scale=st.sampled_from([None, 0.3, 2.0]))
def test_any_composition_agrees_with_torch(
    data: st.DataObject, sizes: tuple[int, int], workers: int, kernel: str, scale: float | None
) -> None:
    torch = pytest.importorskip("torch")
    q, k, v = arrays(data.draw(seeds), *sizes, dtype=np.float64)
    mask = data.draw(any_masks(BATCH, H, *sizes))
    seen = visible(mask, *sizes)
    sighted = seen.any(axis=-1)  # of the others torch's versions make NaN or 0; here they are 0
    expected = by_torch(q, k, v, attn_mask=torch.from_numpy(seen), scale=scale)
    out = cqs.attention(q, k, v, mask=mask, scale=scale, workers=workers, kernel=kernel)
    np.testing.assert_allclose(out[sighted], expected[sighted], rtol=1e-9, atol=1e-12)
    assert not out[~sighted].any()


@pytest.mark.parametrize("strategy", ["tiles", "auto"])
@pytest.mark.parametrize("kernel", ON_NUMPY)
@pytest.mark.parametrize(("T", "S"), [(60, 60), (45, 60), (60, 45), (1, 60), (60, 1)])
def test_is_causal_aligns_the_top_left_as_in_torch(T: int, S: int, kernel: str, strategy: str) -> None:
    q, k, v = arrays(0, T, S, dtype=np.float64)
    expected = by_torch(q, k, v, is_causal=True)
    for n in (1, 7, 8):
        out = cqs.attention(q, k, v, is_causal=True, workers=n, kernel=kernel, strategy=strategy)
        np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel", ON_NUMPY)
@pytest.mark.parametrize(("T", "S"), [(60, 60), (45, 60), (1, 60), (59, 60), (2, 45)])
def test_decoding_with_a_past_is_torchs_causal_lower_right(T: int, S: int, kernel: str) -> None:
    bias = pytest.importorskip("torch.nn.attention.bias")
    q, k, v = arrays(0, T, S, dtype=np.float64)
    expected = by_torch(
        q, np.repeat(k, H // G, axis=-3), np.repeat(v, H // G, axis=-3), attn_mask=bias.causal_lower_right(T, S)
    )
    for n in (1, 7, 8):
        out = cqs.attention(q, k, v, mask=Causal(S - T), workers=n, kernel=kernel)
        np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel", ON_NUMPY)
def test_decoding_with_pasts_of_several_lengths_is_torchs_causal_lower_right_of_each(kernel: str) -> None:
    bias = pytest.importorskip("torch.nn.attention.bias")
    q, k, v = arrays(0, 5, S, dtype=np.float64)
    pasts = np.array([30, 11])
    out = cqs.attention(q, k, v, mask=Causal(pasts), workers=7, kernel=kernel)
    for b in np.ndindex(*BATCH):
        n = int(pasts[b]) + 5
        keys, values = (np.repeat(x[b][:, :n], H // G, axis=-3)[None] for x in (k, v))
        expected = by_torch(q[b][None], keys, values, attn_mask=bias.causal_lower_right(5, n))[0]
        np.testing.assert_allclose(out[b], expected, rtol=1e-9, atol=1e-12)


# Poison


@pytest.mark.parametrize("library", ["numpy", "array_api_strict", "torch"])
@given(
    data=st.data(),
    sizes=lengths,
    workers=workers,
    seed=seeds,
    poison=st.sampled_from([np.nan, np.inf, -np.inf]),
    where=st.sampled_from(["k", "v", "both"]),
    softcap=st.sampled_from([None, 1.0]),
)
def test_poison_that_a_query_does_not_see_cannot_touch_it(
    library: str, data: st.DataObject, sizes: tuple[int, int], workers: int, seed: int, poison, where: str, softcap
) -> None:
    q, k, v = arrays(seed, *sizes)
    mask = data.draw(any_masks(BATCH, H, *sizes))
    options = {"mask": mask, "workers": workers, "softcap": softcap, "return_lse": True}
    if library == "numpy":
        options["kernel"] = data.draw(kernels)
    keys = np.random.default_rng(seed).choice(sizes[1], min(5, sizes[1]), replace=False)
    safe = ~visible(mask, *sizes)[..., keys].any(axis=-1)
    clean, clean_lse = cqs.attention(*moved(library, q, k, v), **options)
    for array in (k, v):
        if where in ("both", "k" if array is k else "v"):
            array[..., keys, :] = poison
    out, lse = (np.from_dlpack(x) for x in cqs.attention(*moved(library, q, k, v), **options))
    np.testing.assert_allclose(out[safe], np.from_dlpack(clean)[safe], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse[safe], np.from_dlpack(clean_lse)[safe], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", ON_NUMPY)
def test_poison_in_each_key_reaches_the_queries_that_see_it_and_no_other(kernel: str) -> None:
    q, k, v = arrays(0, T, T)
    mask = (SlidingWindow(6, 2, offset=[0, 4]) & Dense(np.random.default_rng(1).random((H, T, T)) < 0.6)) | Causal(-12)
    seen = visible(mask, T, T)
    for key in range(0, T, 7):
        poisoned = v.copy()
        poisoned[..., key, 2] = np.nan
        out = cqs.attention(q, k, poisoned, mask=mask, workers=7, kernel=kernel)
        assert np.array_equal(np.isnan(out[..., 2]), seen[..., key])
        assert np.isfinite(np.delete(out, 2, axis=-1)).all()
