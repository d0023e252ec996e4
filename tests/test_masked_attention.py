"""Attention under every mask: exact, never touched by what is hidden, and never busy with it."""

from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import ON_NUMPY, Problem, fitted, problems
from test_masks import masks

import cqs
from cqs.errors import BackendError, DTypeError, OptionError, ShapeError
from cqs.kernels import KERNELS
from cqs.masks import (
    Causal,
    Dense,
    Documents,
    KeyLengths,
    Mask,
    Predicate,
    PrefixLM,
    Sinks,
    SlidingWindow,
)
from cqs.quorum import CyclicQuorumSet
from cqs.schedule import Group, QuorumLayout
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


ON_A_DEVICE = array_api_strict.ones((150, 150), dtype=array_api_strict.bool, device=array_api_strict.Device("device1"))


def example(seed: int = 0, shape: tuple[int, ...] = (2, 150, 16), dtype: Any = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(3)]


@given(problem=problems(), mask=masks, kernel=st.sampled_from(ON_NUMPY))
def test_any_mask_is_exact_in_every_kernel(problem: Problem, mask: Mask, kernel: str) -> None:
    q, k, v = problem.q, problem.k, problem.v
    mask = fitted(mask, q.shape[-2], k.shape[-2])
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
@pytest.mark.parametrize("kernel", ON_NUMPY)
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


# Masks that differ between batch entries and heads


def per_head_masks(batch: tuple[int, ...], H: int, T: int, S: int, rng: np.random.Generator) -> list[Mask]:
    lengths = rng.integers(0, S + 1, batch[0]).tolist() if len(batch) == 1 else None
    shapes = [(T, S), (1, T, S), (H, T, S), (*batch, 1, T, S), (*batch, H, T, S), (*batch, H, 1, S), (1, T, 1)]
    masks: list[Mask] = [Dense(rng.random(shape) < 0.5) for shape in shapes]
    masks.append(Predicate(lambda b, h, q, k: (q + k + h) % (b + 2) == 0))
    masks.append(Predicate(lambda b, h, q, k: k <= q) & Causal(3))
    if lengths is not None:
        masks += [KeyLengths(lengths), KeyLengths(lengths) & Causal(), ~KeyLengths(lengths) | SlidingWindow(4)]
        masks.append(KeyLengths(lengths, query_lengths=rng.integers(0, T + 1, batch[0]).tolist()))
    return masks


@given(problem=problems(), kernel=st.sampled_from(ON_NUMPY), data=st.data())
def test_a_mask_that_differs_between_heads_is_exact_in_every_kernel(
    problem: Problem, kernel: str, data: st.DataObject
) -> None:
    q, k, v = problem.q, problem.k, problem.v
    *batch, H, T, _ = q.shape
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    mask = data.draw(st.sampled_from(per_head_masks(tuple(batch), H, T, k.shape[-2], rng)))
    workers, scale = min(problem.workers, 9), problem.scale
    out, lse = cqs.attention(q, k, v, mask=mask, scale=scale, workers=workers, kernel=kernel, return_lse=True)
    assert_exact(out, q, k, v, mask=mask, scale=scale, lse=lse)


@pytest.mark.parametrize("library", ["array_api_strict", "torch"])
def test_masks_that_differ_between_heads_work_on_other_libraries(library: str) -> None:
    xp = array_api_strict if library == "array_api_strict" else pytest.importorskip("torch")
    q, k, v = example(shape=(3, 2, 60, 8))
    for mask in per_head_masks((3,), 2, 60, 60, np.random.default_rng(0)):
        out = cqs.attention(*map(xp.asarray, (q, k, v)), mask=mask, workers=4)
        assert_exact(np.from_dlpack(out), q, k, v, mask=mask)


def test_an_array_of_booleans_is_a_mask() -> None:
    q, k, v = example()
    array = np.random.default_rng(1).random((2, 150, 150)) < 0.3
    expected = cqs.attention(q, k, v, mask=Dense(array), workers=7)
    assert np.array_equal(cqs.attention(q, k, v, mask=array, workers=7), expected)
    torch = pytest.importorskip("torch")
    assert np.array_equal(cqs.attention(q, k, v, mask=torch.from_numpy(array), workers=7), expected)


def test_a_mask_on_disk_is_read_block_by_block(tmp_path: Path) -> None:
    q, k, v = example()
    array = np.random.default_rng(1).random((150, 150)) < 0.3
    np.save(tmp_path / "mask.npy", array)
    mask = Dense(np.load(tmp_path / "mask.npy", mmap_mode="r"))
    assert_exact(cqs.attention(q, k, v, mask=mask, workers=7), q, k, v, mask=Dense(array))


def test_padding_agrees_with_attention_over_what_is_not_padded() -> None:
    q, k, v = example(shape=(3, 2, 60, 8))
    lengths = [60, 17, 0]
    out = cqs.attention(q, k, v, mask=KeyLengths(lengths), workers=7)
    for b, n in enumerate(lengths):
        assert_exact(out[b], q[b], k[b, :, :n], v[b, :, :n])


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.ones((150, 150)), DTypeError, "`mask` must be of type bool, got float64; .* `bias`"),
        (np.ones((150, 150), int), DTypeError, "`mask` must be of type bool, got int64"),
        (np.ones(150, bool), ShapeError, "`mask` must have the form .*, got shape \\(150,\\); .* add an axis"),
        (
            np.ones((150, 149), bool),
            ShapeError,
            r"`mask` must broadcast to .* = \(2, 150, 150\), got shape \(150, 149\)",
        ),
        (np.ones((3, 150, 150), bool), ShapeError, "`mask` must broadcast to"),
        (np.ones((1, 2, 150, 150), bool), ShapeError, "`mask` must broadcast to"),
        (KeyLengths([150, 3]), ShapeError, r"`lengths` must broadcast to the batch .*, \*B = \(\), got shape \(2,\);"),
        (Predicate(lambda b, h, q, k: q + k), OptionError, "`mask` must return booleans, got int64 from"),
        (Predicate(lambda b, h, q, k: np.ones((3, 4), bool)), ShapeError, r"`mask` must return what broadcasts to \("),
        (ON_A_DEVICE, BackendError, "`mask` must be an array that NumPy can read, got Array, .*; move it"),
        (
            lambda b, h, q, k: k <= q,
            OptionError,
            r"`mask` must be a mask .*, got <function .*; wrap a function of .* `cqs.masks.Predicate\(f\)`",
        ),
        (Causal, OptionError, r"`mask` must be a mask .*, got the class Causal; call it, as in `Causal\(\)`"),
        (SlidingWindow, OptionError, r"got the class SlidingWindow; call it, as in `SlidingWindow\(1024\)`"),
        (
            Predicate(lambda b, h, q, k: k <= q and q - k < 9),
            OptionError,
            r"`mask` must be a function of \(b, h, q_idx, k_idx\), got ValueError: .*; its arguments are arrays: use &",
        ),
        (Documents([100, 60]), ShapeError, "`lengths` must come to at most 150 queries, .* got 160 in 2 documents;"),
        (
            Documents([100, 50], [100, 60]) & Causal(),
            ShapeError,
            "`key_lengths` must come to at most 150 keys, .* got 160 in 2 documents;",
        ),
        (np.float32, OptionError, "`mask` must be a mask .*, got <class 'numpy.float32'>; wrap a function"),
        (~KeyLengths(151), ShapeError, "`lengths` must be at most 150, the number of keys, got 151;"),
        (KeyLengths(3, 200), ShapeError, "`query_lengths` must be at most 150, the number of queries, got 200;"),
        ("causal", OptionError, "`mask` must be a mask from `cqs.masks`, got str"),
        (7, OptionError, "`mask` must be a mask from `cqs.masks`, got int"),
    ],
    ids=range(21),
)
def test_what_cannot_be_a_mask_is_refused(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cqs.attention(*example(), mask=mask, workers=3)


def test_tokens_after_the_last_document_are_padding() -> None:
    q, k, v = example()
    out, lse = cqs.attention(q, k, v, mask=Documents([100, 30]), workers=3, return_lse=True)
    assert (out[:, 130:] == 0).all()
    assert (lse[:, 130:] == -np.inf).all()
    assert (lse[:, :130] > -np.inf).all()


def test_predicates_of_other_arguments_are_refused_when_made() -> None:
    message = (
        r"`function` must take \(b, h, q_idx, k_idx\), got <lambda>\(q_idx, k_idx\); as in `Predicate\(lambda b, h"
    )
    with pytest.raises(OptionError, match=message):
        Predicate(lambda q_idx, k_idx: k_idx <= q_idx)  # type: ignore[misc, arg-type]


@pytest.mark.parametrize("mask", [Dense(np.ones((5, 5), bool)), Predicate(lambda b, h, q, k: k <= q)], ids=["d", "p"])
def test_a_plan_with_a_mask_that_is_no_number_is_not_written_as_json(mask: Mask) -> None:
    with pytest.raises(OptionError, match="`mask` must be made of numbers to be written as JSON"):
        cqs.plan((1, 5, 4), (1, 5, 4), (1, 5, 4), mask=mask).to_json()


# What is hidden


def hidden_from(mask: Mask, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Some keys, and the queries that see none of them."""
    keys = rng.choice(n, 5, replace=False)
    return keys, ~mask.visible(np.arange(n)[:, None], keys).any(axis=1)


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(EXAMPLES)),
    kernel=st.sampled_from(ON_NUMPY),
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


@pytest.mark.parametrize("kernel", ON_NUMPY)
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


# Who computes it


@pytest.mark.parametrize("W", [8, 13, 31, 64])
@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "causal"])
def test_tiles_of_unequal_work_are_shared_out_more_evenly_than_by_the_closed_form(name: str, W: int) -> None:
    mask, n = EXAMPLES[name], 20 * W
    plan = cqs.plan(*[(1, n, 8)] * 3, mask=mask, workers=W, strategy="cqs")
    quorums = CyclicQuorumSet(W, plan.base)
    for task in plan.tasks():
        assert all(task.index in quorums.holders(tile.query.index, tile.key.index) for tile in task.tiles)
    closed_form = QuorumLayout(n, quorums)
    before = [
        sum(mask.count(s.query.tokens, key.tokens) for s in closed_form.strips(i) for key in s.keys) for i in range(W)
    ]
    assert sum(plan.loads()) == sum(before)
    assert max(plan.loads()) <= max(before)


@pytest.mark.parametrize("W", [16, 100])
def test_windows_are_balanced_within_a_twentieth_where_groups_are_small(W: int) -> None:
    plan = cqs.plan(*[(1, 64 * W, 8)] * 3, mask=SlidingWindow(16 * W), workers=W, strategy="cqs")
    loads = plan.loads()
    assert max(loads) <= 1.05 * sum(loads) / W
