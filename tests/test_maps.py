"""Maps: sums of weights over bins are those of the formula, whoever computes them and however they are cut."""

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import bfloat16

import cqs
from cqs.engines import LocalEngine
from cqs.errors import BackendError, DTypeError, OptionError, ShapeError, TileError
from cqs.maps import Bins, MapAdder, MapWorker
from cqs.masks import Causal, KeyLengths, SlidingWindow
from cqs.scores import ALiBi
from cqs.sources import ArrayInput
from cqs.trace import Recorder


def inputs(H: int, G: int, T: int, S: int, D: int = 8, dtype: object = np.float64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(T * S + H)
    return rng.standard_normal((H, T, D)).astype(dtype), rng.standard_normal((G, S, D)).astype(dtype)


def weights_of(q, k, *, visible=None, scale=None, softcap=None, bias=None, sinks=None) -> np.ndarray:
    """The formula, in float64."""
    q, k = q.astype(np.float64), np.repeat(k.astype(np.float64), q.shape[-3] // k.shape[-3], axis=-3)
    scores = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
    scores = scores if bias is None else scores + bias
    scores = scores if visible is None else np.where(visible, scores, -np.inf)
    top = np.maximum(scores.max(axis=-1, keepdims=True, initial=-1e300), -1e300)
    powers = np.exp(scores - top)
    total = powers.sum(axis=-1, keepdims=True) + (0 if sinks is None else np.exp(sinks[:, None, None] - top))
    return np.divide(powers, total, out=np.zeros_like(powers), where=total > 0)


def binned(weights: np.ndarray, rows: Bins, columns: Bins) -> np.ndarray:
    """The mean over the rows of each bin of the sums over its columns."""
    by_row = [weights[..., a:b, :].mean(axis=-2) for a, b in pairwise([*rows.starts, rows.n_tokens])]
    cuts = list(pairwise([*columns.starts, columns.n_tokens]))
    return np.stack([np.stack([row[..., a:b].sum(axis=-1) for a, b in cuts], axis=-1) for row in by_row], axis=-2)


@st.composite
def bins_of(draw: st.DrawFn, n: int) -> int | list[int]:
    if draw(st.booleans()):
        return draw(st.sampled_from([1, 2, 7, n, n + 3]))
    return sorted({0, *draw(st.lists(st.integers(0, n - 1), max_size=5))})


VISIBLE = {
    None: lambda i, j: i >= 0,
    Causal(): lambda i, j: j <= i,
    SlidingWindow(9, 2): lambda i, j: (i - 9 <= j) & (j <= i + 2),
}


@given(data=st.data(), n=st.integers(1, 150), heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]), W=st.integers(1, 14))
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, bfloat16])
def test_a_map_is_what_the_formula_says(dtype, data, n, heads, W) -> None:
    q, k = inputs(*heads, n, n, dtype=dtype)
    rows, columns = data.draw(bins_of(n)), data.draw(bins_of(n))
    mask = data.draw(st.sampled_from(list(VISIBLE)))
    found = cqs.attention_map(q, k, rows=rows, columns=columns, workers=W, mask=mask)
    visible = VISIBLE[mask](np.arange(n)[:, None], np.arange(n))
    bins = Bins.of("rows", rows, n), Bins.of("columns", columns, n)
    assert found.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_allclose(found, binned(weights_of(q, k, visible=visible), *bins), rtol=3e-5, atol=1e-7)


@pytest.mark.parametrize("sizes", [(1, 400), (30, 200), (200, 30)])
@pytest.mark.parametrize("workers", [None, 1, 4])
def test_queries_and_keys_may_differ_in_number(sizes, workers) -> None:
    q, k = inputs(4, 2, *sizes)
    bins = Bins.of("rows", 6, sizes[0]), Bins.of("columns", 5, sizes[1])
    found = cqs.attention_map(q, k, rows=6, columns=5, workers=workers)
    np.testing.assert_allclose(found, binned(weights_of(q, k), *bins), rtol=1e-10)


CHANGES = {
    "scale": {"scale": 0.9},
    "a large scale": {"scale": 2.0**21},
    "softcap": {"softcap": 0.5},
    "bias": {"bias": np.random.default_rng(1).standard_normal((4, 90, 90))},
    "bias of all": {"bias": np.random.default_rng(1).standard_normal((1, 90))},
    "sinks": {"sinks": np.array([0.0, 3.0, -np.inf, 1.0])},
}


@pytest.mark.parametrize("change", CHANGES)
def test_scores_may_be_changed(change: str) -> None:
    q, k = inputs(4, 2, 90, 90)
    how = dict(CHANGES[change])
    expected = binned(weights_of(q, k, **how), Bins.of("rows", 9, 90), Bins.of("columns", 9, 90))
    if "sinks" in how:
        how["sink_logits"] = how.pop("sinks")
    found = cqs.attention_map(q, k, rows=9, columns=9, workers=7, **how)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


def test_masks_and_scores_may_differ_between_heads_and_entries() -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 2, 4, 60, 8))
    alibi, mask = ALiBi.standard(4), KeyLengths([20, 50])
    found = cqs.attention_map(q, k, rows=5, columns=60, workers=7, mask=mask, bias=alibi)
    distance = np.abs(np.arange(60)[:, None] - np.arange(60))
    bias = -np.array(alibi.slopes)[:, None, None] * distance
    for b, length in enumerate((20, 50)):
        expected = weights_of(q[b], k[b], visible=np.arange(60) < length, bias=bias)
        np.testing.assert_allclose(found[b], binned(expected, Bins.of("r", 5, 60), Bins.of("c", 60, 60)), atol=1e-12)


def test_score_mod_is_called() -> None:
    q, k = inputs(2, 2, 50, 50)
    found = cqs.attention_map(q, k, rows=50, columns=50, score_mod=lambda score, b, h, i, j: score + 0.1 * h * (i - j))
    bias = 0.1 * np.arange(2)[:, None, None] * (np.arange(50)[:, None] - np.arange(50))
    np.testing.assert_allclose(found, weights_of(q, k, bias=bias), atol=1e-12)


def test_the_log_sum_exp_may_be_given_and_is_not_computed_again() -> None:
    q, k = inputs(2, 2, 300, 300)
    _, lse = cqs.attention(q, k, k, return_lse=True)
    assert np.array_equal(cqs.attention_map(q, k, lse), cqs.attention_map(q, k))
    assert np.allclose(cqs.attention_map(q, k, lse + np.log(2)).sum(axis=-1), 0.5)


def test_queries_that_see_nothing_attend_to_nothing() -> None:
    q, k = inputs(1, 1, 20, 20)
    found = cqs.attention_map(q, k, rows=20, columns=20, mask=Causal(-5))
    assert not found[:, :5].any()
    assert np.allclose(found[:, 5:].sum(axis=-1), 1)


def test_what_is_hidden_does_not_show() -> None:
    q, k = inputs(1, 1, 40, 40)
    k[:, 30:] = np.nan
    found = cqs.attention_map(q, k, rows=40, columns=40, is_causal=True, workers=7)
    assert np.isfinite(found[:, :30]).all()
    assert not found[:, :30, 30:].any()


@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (2, 0, 8), (1, 2, 0, 8)])
def test_there_may_be_nothing_to_show(shape: tuple[int, ...]) -> None:
    empty = np.zeros(shape)
    assert cqs.attention_map(empty, empty, rows=3, columns=3).shape == (*shape[:-2], *(min(shape[-2], 3),) * 2)


def test_bits_depend_on_the_plan_alone() -> None:
    q, k = inputs(4, 2, 500, 500, dtype=np.float32)
    _, lse = cqs.attention(q, k, k, return_lse=True, workers=1)
    first, *others = (
        cqs.attention_map(q, k, lse, workers=13, rows=10, columns=10, engine=engine)
        for engine in (LocalEngine(1), LocalEngine(3), ThreadPoolExecutor(3))
    )
    assert all(np.array_equal(first, other) for other in others)


def test_tasks_may_run_in_other_processes(processes: ProcessPoolExecutor) -> None:
    q, k = inputs(2, 2, 200, 200)
    recorder = Recorder()
    found = cqs.attention_map(q, k, workers=7, rows=10, columns=10, engine=processes, on_event=recorder)
    np.testing.assert_allclose(found, cqs.attention_map(q, k, workers=7, rows=10, columns=10), rtol=1e-12)
    assert recorder.counters.n_tasks == 7


def test_files_may_be_given(tmp_path: Path) -> None:
    q, k = inputs(2, 2, 100, 100, dtype=np.float16)
    np.save(tmp_path / "q.npy", q)
    np.save(tmp_path / "k.npy", k)
    found = cqs.attention_map(tmp_path / "q.npy", tmp_path / "k.npy", rows=4, columns=4)
    np.testing.assert_allclose(found, cqs.attention_map(q, k, rows=4, columns=4), rtol=1e-6)


def test_other_libraries_get_arrays_of_their_own() -> None:
    q, k = inputs(2, 1, 100, 100)
    found = cqs.attention_map(*map(array_api_strict.asarray, (q, k)), rows=4, columns=5, softcap=1.0)
    assert isinstance(found, type(array_api_strict.asarray(q)))
    np.testing.assert_allclose(np.asarray(found), cqs.attention_map(q, k, rows=4, columns=5, softcap=1.0), rtol=1e-12)


def test_tensors_come_back_as_tensors() -> None:
    torch = pytest.importorskip("torch")
    q, k = inputs(2, 1, 100, 100, dtype=np.float32)
    seen = set()
    for how in ({}, {"score_mod": lambda score, b, h, i, j: seen.add(type(score)) or score * 2}):
        found = cqs.attention_map(torch.from_numpy(q), torch.from_numpy(k), rows=4, columns=5, **how)
        assert isinstance(found, torch.Tensor)
        assert seen <= {torch.Tensor}  # a function of the caller's is called with tensors
        np.testing.assert_allclose(found.numpy(), cqs.attention_map(q, k, rows=4, columns=5, **how), rtol=1e-5)
    with pytest.raises(BackendError, match="`q` must not require gradients"):
        cqs.attention_map(torch.from_numpy(q).requires_grad_(), torch.from_numpy(k))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"rows": 0}, OptionError, "`rows` must be at least 1, got 0"),
        ({"columns": 2.5}, OptionError, "`columns` must be a whole number, or whole numbers"),
        ({"columns": True}, OptionError, "`columns`"),
        ({"rows": [1, 5]}, OptionError, "increase from 0 to less than 10"),
        ({"rows": [0, 5, 5]}, OptionError, "increase"),
        ({"rows": [0, 10]}, OptionError, "less than 10"),
        ({"rows": [False, True]}, OptionError, "`rows`"),
        ({"lse": np.zeros((2, 10)), "sink_logits": np.zeros(3)}, ShapeError, "`sink_logits`"),
        ({"rows": "3"}, OptionError, "`rows`"),
        ({"rows": []}, OptionError, "`rows`"),
        ({"lse": np.zeros((2, 9))}, ShapeError, "`lse` must have shape (2, 10)"),
        ({"lse": np.zeros((2, 10), np.float32)}, DTypeError, "float64"),
        ({"lse": 3.0}, BackendError, "`lse` must be an array"),
        ({"k": np.zeros((2, 10, 7))}, ShapeError, "width"),
        ({"q": [1, 2]}, BackendError, "`q`"),
        ({"on_event": 3}, OptionError, "`on_event`"),
        ({"memory": "1 GiB"}, OptionError, "`memory` must be an option of `attention_map`"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(change, error, words, monkeypatch) -> None:
    monkeypatch.setattr(cqs.api, "attention", None)
    monkeypatch.setattr(MapWorker, "run", None)
    q, k = inputs(2, 2, 10, 10)
    given = {"q": q, "k": k} | change
    with pytest.raises(error) as caught:
        cqs.attention_map(given.pop("q"), given.pop("k"), **given)
    assert words in str(caught.value)


def test_each_task_is_added_once() -> None:
    q, k = inputs(1, 1, 20, 20)
    plan, bins = cqs.plan(q, k, k, workers=3), (Bins.of("rows", 2, 20),) * 2
    worker = MapWorker(plan.problem, *map(ArrayInput, (q, k, np.zeros((1, 20, 1)))), bins)
    adder = MapAdder(plan, bins)
    adder.add(worker.run(plan.task(1)))
    with pytest.raises(TileError, match="task 1 came twice"):
        adder.add(worker.run(plan.task(1)))
    with pytest.raises(TileError, match="2 of 3 tasks never came, the first of them task 0"):
        adder.result()
    adder.add(worker.run(plan.task(0)))
    with pytest.raises(TileError, match="task 0 came twice"):  # which was passed on already
        adder.add(worker.run(plan.task(0)))
    with pytest.raises(TileError, match="not of this plan"):
        adder.add(worker.run(cqs.plan(q, k, k, workers=7).task(0)))


def test_it_is_cut_as_the_strategy_says_and_heads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = MapWorker.run

    def run(self, task, threads=1, feed=None):
        seen.append((len(task.strips), threads))
        return original(self, task, threads, feed)

    monkeypatch.setattr(MapWorker, "run", run)
    q, k = inputs(2, 2, 300, 300)
    expected = cqs.attention_map(q, k, workers=1, engine=LocalEngine(2))
    assert seen == [(1, 2)]
    seen.clear()
    found = cqs.attention_map(q, k, workers=5, strategy="tree", engine=LocalEngine(1))
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert seen == [(1, 1)] * 5


@pytest.mark.parametrize("threads", [1, 2])
def test_what_overflows_warns_of_nothing(threads: int) -> None:
    q, k = inputs(4, 4, 50, 50, dtype=np.float32)
    q[:, 3], k[:, 4] = 3e38, 1e38
    with np.errstate(all="raise"):
        found = cqs.attention_map(q, k, rows=50, columns=50, engine=LocalEngine(threads), workers=1)
    assert np.isfinite(found[:, 10:, 10:]).all()
