"""Checking rows of an output: no false alarms, every error found, in bounded memory."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import Problem, problems

import cqs
import cqs.oracle
import cqs.verify
from cqs.adversarial import border_rows, edge_rows
from cqs.errors import OptionError, ShapeError, SourceError
from cqs.masks import Causal, Dense, Documents, KeyLengths, Mask, NoMask, PrefixLM, SlidingWindow
from cqs.scores import ALiBi
from cqs.testing import reference_attention
from cqs.verify import verify_rows


@settings(derandomize=True)
@given(problems(scales=(1.0,), value_magnitudes=(1e-3, 1.0)), st.sampled_from([64, None]), st.integers(0, 1000))
def test_verify_rows_has_no_false_alarms(problem: Problem, n_rows: int | None, seed: int) -> None:
    out = cqs.attention(problem.q, problem.k, problem.v, **problem.options, workers=problem.workers)
    assume(out.size >= 64)  # on a handful of numbers luck decides what the plain formula's error is
    found = verify_rows(out, problem.q, problem.k, problem.v, **problem.options, n_rows=n_rows, seed=seed)
    assert found.passed, found


@pytest.mark.parametrize("is_causal", [False, True])
def test_verify_rows_finds_the_error_that_float64_finds(monkeypatch: pytest.MonkeyPatch, is_causal: bool) -> None:
    monkeypatch.setattr(cqs.oracle, "_AREA", 1000)  # many blocks of keys
    monkeypatch.setattr(cqs.verify, "_MOST_ROWS", 30)
    rng = np.random.default_rng(1)
    q, k = (rng.standard_normal((2, n, 50, 8), dtype=np.float32) for n in (6, 3))
    out = cqs.attention(q, k, k, is_causal=is_causal)
    exact, _ = reference_attention(q, k, k, scale=8**-0.5, mask=cqs.masks.Causal() if is_causal else None)
    found = verify_rows(out, q, k, k, is_causal=is_causal, n_rows=None)
    assert found.n_rows == 2 * 6 * 50
    assert found.error == pytest.approx(abs(out - exact).max(), rel=1e-6)
    assert abs(out - exact)[found.worst] == pytest.approx(found.error, rel=1e-6)


def test_verify_rows_expects_infinities_and_nan_where_float64_has_them() -> None:
    q = np.random.default_rng(2).standard_normal((1, 20, 4))
    v = q.copy()
    v[0, 3, 1], v[0, 4, 2] = np.inf, np.nan
    out = cqs.attention(q, q, v)
    assert not np.isfinite(out[..., 1:3]).any()
    assert verify_rows(out, q, q, v).passed
    out[0, 7, 2] = 1
    assert verify_rows(out, q, q, v).n_broken == 1


def test_verify_rows_memory_does_not_grow_with_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cqs.oracle, "_AREA", 1 << 16)  # blocks of 512 KiB in float64
    k = np.random.default_rng(3).standard_normal((1, 100_000, 4), dtype=np.float32)
    q = k[:, :100]
    out = cqs.attention(q, k, k)
    tracemalloc.start()
    try:
        assert verify_rows(out, q, k, k).passed  # 64 rows: the scores would be 49 MiB
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


# rows that are checked because errors are there


@pytest.mark.parametrize("strategy", ["cqs", "tiles", "ring"])
@pytest.mark.parametrize("W", [2, 7, 13, 31])
def test_one_wrong_row_at_any_border_of_groups_is_found(strategy: str, W: int) -> None:
    q = np.random.default_rng(4).standard_normal((1, 200, 8), dtype=np.float32)
    plan = cqs.plan(q, q, q, workers=W, strategy=strategy)
    starts = {strip.query.start for task in plan.tasks() for strip in task.strips} - {0}
    out = cqs.attention(q, q, q, workers=W, strategy=strategy)
    assert starts or (strategy, W) == ("tiles", 2)  # which is a single row of tiles
    for start in starts:
        for row in (start - 1, start):
            wrong = out.copy()
            wrong[0, row, 2] += 1e-4
            assert verify_rows(wrong, q, q, q, n_rows=2, plan=plan).worst == (0, row, 2)
            if strategy != "tiles":
                assert not verify_rows(wrong, q, q, q, n_rows=2, workers=W).passed


def test_borders_of_kernel_calls_are_checked_too() -> None:
    plan = cqs.plan(*[(1, 1000, 8)] * 3, strategy="tiles", workers=1)
    grain = cqs.schedule.Grain(row_groups=1, rows=300, keys=300)
    streamed = cqs.Plan(plan.problem, "tiles", 1, None, grain, plan.setting)
    assert border_rows(1000, plan=streamed).tolist() == [249, 250, 499, 500, 749, 750]


def test_of_very_many_borders_some_are_checked() -> None:
    rows = border_rows(10**9, workers=10**6)
    assert 100 < len(rows) <= 128
    assert len(border_rows(10**6, plan=cqs.plan(*[(1, 10**6, 8)] * 3, workers=10**5, strategy="tiles"))) <= 128
    assert border_rows(10, workers=1).tolist() == border_rows(0, workers=7).tolist() == []


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (NoMask(), set()),
        (Causal(), set()),
        (Causal(10), {88, 89, 90}),
        (SlidingWindow(20), {19, 20, 21}),
        (PrefixLM(30), {29, 30}),
        (Documents((40, 60)), {39, 40}),
        (KeyLengths(50, 70), {69, 70}),
        (Dense(np.arange(100)[:, None] != 33), {32, 33, 34}),
    ],
    ids=str,
)
def test_rows_at_the_edges_of_masks(mask: Mask, expected: set[int]) -> None:
    bound = mask.bind((), 1, 100, 100).at((0,))
    assert expected <= set(edge_rows(bound, 100, 100).tolist())
    assert len(edge_rows(bound, 100, 100)) <= len(expected) + 4


def test_edges_of_masks_of_many_queries_are_bounded() -> None:
    mask = Documents(tuple([100] * 10_000))
    rows = edge_rows(mask.bind((), 1, 10**6, 10**6).at((0,)), 10**6, 10**6)
    assert 100 < len(rows) <= 192
    assert edge_rows(Causal(3), 10**9, 10**9).size == 0


# files, masks and scores


SCORES: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 2.0},
    "alibi": {"bias": ALiBi.standard(4), "is_causal": True},
    "bias": {"bias": np.random.default_rng(8).standard_normal((4, 1, 90)).astype("f4")},
    "bias of all": {"bias": np.random.default_rng(8).standard_normal((80, 90)).astype("f4")},
    "score_mod": {"score_mod": lambda s, b, h, q, k: s - 0.1 * (h + 1 + 3 * b) * abs(q - k)},
    "sink logits": {"sink_logits": np.arange(4, dtype="f4")},
    "all": {
        "softcap": 5.0,
        "bias": ALiBi.standard(4),
        "score_mod": lambda s, b, h, q, k: s * (1 + h) / 4,
        "sink_logits": np.float32([1, 2, 3, 4]),
        "mask": SlidingWindow(20, 3),
        "scale": 0.2,
    },
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_scores_and_masks_are_those_of_attention(name: str, batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    shapes = ((4, 80, 8), (2, 90, 8), (2, 90, 12))
    q, k, v = (rng.standard_normal((*batch, *shape), dtype=np.float32) for shape in shapes)
    out = cqs.attention(q, k, v, **SCORES[name])
    assert verify_rows(out, q, k, v, **SCORES[name], n_rows=10).passed
    assert not verify_rows(cqs.attention(q, k, v), q, k, v, **SCORES[name], n_rows=10).passed


def save(folder: Path, kind: str, **arrays: np.ndarray) -> dict[str, Any]:
    """Write arrays to files, and return what `verify_rows` may be given for them."""
    if kind == "npy":
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        return {name: folder / f"{name}.npy" for name in arrays}
    zarr = pytest.importorskip("zarr")
    stored: dict[str, Any] = {}
    for name, array in arrays.items():
        path = folder / f"{name}.zarr"
        stored[name] = zarr.create_array(path, data=array, chunks=(1, min(5000, array.shape[1]), array.shape[2]))
    return {name: folder / f"{name}.zarr" for name in arrays} if kind == "zarr paths" else stored


@pytest.mark.parametrize("kind", ["npy", "zarr paths", "zarr arrays"])
def test_files_are_verified_as_arrays_are(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(9)
    q, k, v = (rng.standard_normal(shape, dtype=np.float32) for shape in ((4, 300, 8), (2, 300, 8), (2, 300, 12)))
    out = cqs.attention(q, k, v, is_causal=True)
    stored = save(tmp_path, kind, q=q, k=k, v=v, out=out)
    in_memory = verify_rows(out, q, k, v, is_causal=True, workers=7)
    assert verify_rows(**stored, is_causal=True, workers=7) == in_memory
    assert in_memory.passed
    out[1, 85, 0] += 1e-4
    wrong = save(tmp_path, "npy", wrong=out)["wrong"]
    assert verify_rows(wrong, *(stored[n] for n in "qkv"), is_causal=True, workers=7, n_rows=2).worst == (1, 85, 0)


@pytest.mark.parametrize("kind", ["npy", "zarr paths"])
def test_files_are_verified_in_bounded_memory(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cqs.oracle, "_AREA", 1 << 16)  # blocks of 512 KiB in float64
    x = np.random.default_rng(3).standard_normal((2, 100_000, 16), dtype=np.float32)  # 12 MiB each
    stored = save(tmp_path, kind, q=x[:, :200], k=x, v=x, out=cqs.attention(x[:, :200], x, x))
    del x
    verify_rows(**stored, n_rows=2)  # what is imported
    tracemalloc.start()
    try:
        assert verify_rows(**stored, n_rows=50).passed
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


def test_what_cannot_be_verified_is_refused(tmp_path: Path) -> None:
    q = np.ones((1, 20, 4), np.float32)
    out = cqs.attention(q, q, q)
    with pytest.raises(SourceError, match="cannot be read"):
        verify_rows(tmp_path / "out.npy", q, q, q)
    with pytest.raises(ShapeError, match="`out` must have the result's shape"):
        verify_rows(out[:, :10], q, q, q)
    with pytest.raises(OptionError, match="`softcap`"):
        verify_rows(out, q, q, q, softcap=-1.0)
    with pytest.raises(ShapeError, match="`bias`"):
        verify_rows(out, q, q, q, bias=np.ones((20, 30), np.float32))
    with pytest.raises(ShapeError, match="`sink_logits`"):
        verify_rows(out, q, q, q, sink_logits=np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"workers": 0}, "`workers` must be a whole number of at least 1, got 0"),
        ({"workers": 2.5}, "`workers` must be a whole number of at least 1, got 2.5"),
        ({"plan": 3}, "`plan` must be a `Plan`, got int"),
        ({"seed": "x"}, "`seed` must be a whole number of at least 0, got 'x'"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0, got -1"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(chosen: dict[str, Any], message: str) -> None:
    x = np.ones((1, 9, 4), np.float32)
    with pytest.raises(OptionError, match=message):
        verify_rows(x, x, x, x, **chosen)
