"""Attention under every mask: exact, never touched by what is hidden, and never busy with it."""

from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Problem, problems
from test_masks import masks

import cqs
from cqs.kernels import KERNELS
from cqs.masks import Causal, Documents, Mask, PrefixLM, Sinks, SlidingWindow
from cqs.schedule import Group
from cqs.sources import ArraySource
from cqs.testing import assert_exact
from cqs.tiler import Tiler
from cqs.worker import Worker

EXAMPLES: dict[str, Mask] = {
    "causal": Causal(),
    "window": SlidingWindow(20),
    "two-sided window": SlidingWindow(3, 9),
    "prefix": PrefixLM(30),
    "documents": Documents([40, 1, 0, 70, 39]) & Causal(),
    "window and sinks": (SlidingWindow(15) | Sinks(4)) & Causal(),
    "everything but a band": ~SlidingWindow(10, 10),
    "nothing for some": SlidingWindow(5, 0, offset=-60),
}


def example(seed: int = 0, shape: tuple[int, ...] = (2, 150, 16), dtype: Any = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(3)]


@given(problem=problems(), mask=masks, kernel=st.sampled_from(sorted(KERNELS)))
def test_any_mask_is_exact_in_every_kernel(problem: Problem, mask: Mask, kernel: str) -> None:
    q, k, v = problem.q, problem.k, problem.v
    workers, scale = problem.workers, problem.scale
    out, lse = cqs.attention(q, k, v, mask=mask, scale=scale, workers=workers, kernel=kernel, return_lse=True)
    assert_exact(out, q, k, v, mask=mask, scale=scale, lse=lse)


@pytest.mark.parametrize("library", ["array_api_strict", "torch"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_masks_work_on_other_libraries(name: str, library: str) -> None:
    xp = array_api_strict if library == "array_api_strict" else pytest.importorskip("torch")
    q, k, v = example()
    out = cqs.attention(*map(xp.asarray, (q, k, v)), mask=EXAMPLES[name], workers=7)
    assert_exact(np.from_dlpack(out), q, k, v, mask=EXAMPLES[name])


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "nothing for some"])
@pytest.mark.parametrize("workers", [1, 7, 8])
def test_masks_agree_with_torch(name: str, workers: int) -> None:
    torch = pytest.importorskip("torch")
    q, k, v = example()
    visible = EXAMPLES[name].visible(np.arange(150)[:, None], np.arange(150))
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=torch.from_numpy(visible))
    out = cqs.attention(q, k, v, mask=EXAMPLES[name], workers=workers)
    assert np.allclose(out, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("strategy", ["cqs", "tiles"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_that_see_nothing_are_zero_with_lse_minus_infinity(kernel: str, strategy: str) -> None:
    q, k, v = example()
    mask = EXAMPLES["nothing for some"]
    options = {"workers": 8, "kernel": kernel, "strategy": strategy}
    out, lse = cqs.attention(q, k, v, mask=mask, return_lse=True, **options)
    blind = ~mask.visible(np.arange(150)[:, None], np.arange(150)).any(axis=1)
    assert blind.any()
    assert not out[:, blind].any()
    assert (lse[:, blind] == -np.inf).all()
    assert np.isfinite(lse[:, ~blind]).all()


# What is hidden


def hidden_from(mask: Mask, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Some keys, and the queries that see none of them."""
    keys = rng.choice(n, 5, replace=False)
    return keys, ~mask.visible(np.arange(n)[:, None], keys).any(axis=1)


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(EXAMPLES)),
    kernel=st.sampled_from(sorted(KERNELS)),
    workers=st.sampled_from([1, 7, 8, 31, 57]),
    poison=st.sampled_from([np.nan, np.inf, -np.inf]),
    where=st.sampled_from(["k", "v", "both"]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    seed=st.integers(0, 1000),
)
def test_what_a_query_does_not_see_cannot_touch_it(name, kernel, workers, poison, where, dtype, seed) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = example(seed, dtype=dtype)
    keys, safe = hidden_from(EXAMPLES[name], 150, rng)
    options = {"mask": EXAMPLES[name], "workers": workers, "kernel": kernel, "return_lse": True}
    clean, clean_lse = cqs.attention(q, k, v, **options)
    for array in (k, v):
        if where in ("both", "k" if array is k else "v"):
            array[:, keys] = poison
    out, lse = cqs.attention(q, k, v, **options)
    assert np.allclose(out[:, safe], clean[:, safe], rtol=1e-3 if dtype == np.float16 else 1e-5, atol=1e-5)
    assert np.allclose(lse[:, safe], clean_lse[:, safe], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("workers", [1, 7, 57])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_query_that_sees_poison_shows_it(kernel: str, workers: int, poison: float) -> None:
    q, k, v = example()
    v[:, 40, 3] = poison
    out = cqs.attention(q, k, v, is_causal=True, workers=workers, kernel=kernel)
    assert np.isfinite(out[:, :40]).all()
    assert not np.isfinite(out[:, 40:, 3]).any()
    assert np.isfinite(out[..., :3]).all()
    assert np.isfinite(out[..., 4:]).all()


# What is not computed


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("strategy", ["cqs", "tiles"])
def test_empty_tiles_are_not_in_the_plan(name: str, strategy: str) -> None:
    q, k, v = example()
    mask = EXAMPLES[name]
    plan = cqs.plan(q, k, v, mask=mask, workers=13, strategy=strategy)
    visible = mask.visible(np.arange(150)[:, None], np.arange(150))
    for task in plan.tasks():
        for tile in task.tiles:
            rows, cols = tile.query, tile.key
            assert visible[rows.start : rows.stop, cols.start : cols.stop].any()
    assert sum(plan.loads()) == visible.sum() == plan.problem.n_pairs


def test_keys_that_no_tile_sees_are_not_read() -> None:
    q, k, v = example()
    read: set[int] = set()

    class Spy(ArraySource):
        def keys(self, group: Group) -> Any:
            read.add(group.index)
            return super().keys(group)

    plan = cqs.plan(q, k, v, mask=Sinks(5), workers=15, strategy="cqs")
    worker = Worker(plan.problem, Spy(q, k, v), KERNELS["numpy"].attend)
    tiler = Tiler(plan, np.empty_like(q))
    for task in plan.tasks():
        tiler.add(worker.run(task))
    assert read == {0}
    assert_exact(tiler.result().out, q, k, v, mask=Sinks(5))


@pytest.mark.parametrize("mask", [SlidingWindow(100), Documents([1000] * 8), SlidingWindow(60) | Sinks(4)], ids=repr)
def test_work_grows_with_what_is_visible(mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    q = np.ones((1, 8000, 4), dtype=np.float32)
    n_scores = 0
    matmul = np.matmul

    def counting(a: np.ndarray, b: np.ndarray, **options: Any) -> np.ndarray:
        nonlocal n_scores
        n_scores += a.shape[-2] * b.shape[-1] if a.shape[-1] == 4 else 0
        return matmul(a, b, **options)

    monkeypatch.setattr(np, "matmul", counting)
    cqs.attention(q, q, q, mask=mask, workers=1, kernel="numpy")
    assert n_scores < 8000 * 8000 / 6
