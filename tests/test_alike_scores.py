"""Rows whose scores are all the same, and large: means of all values, however many workers share them."""

from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest
from job_cases import Breaking, BrokenOffError
from problems import DTYPES, ON_NUMPY
from slow_device import SlowDevice

import cqs
from cqs.engines import LocalEngine
from cqs.kernels import KERNELS
from cqs.schedule import Grain, Plan, Setting
from cqs.sources import ArraySource, NpySink
from cqs.testing import assert_exact
from cqs.tiler import Tiler
from cqs.worker import Worker

N = 331
SCORES = [600.0, 900.0, -900.0, 1e5, 1e9, 3e38, float(np.finfo(np.float32).min)]
LEAST = np.float32(np.finfo(np.float32).min)


def alike(score: float, dtype: Any = np.float32) -> tuple[np.ndarray, ...]:
    """Queries and keys whose products are all the same, and values that differ most between groups."""
    q, k = np.ones((1, N, 1), dtype), np.full((1, N, 1), score, dtype)
    v = np.stack([np.linspace(-1, 2, N), np.cos(np.arange(N))], axis=-1)[None].astype(dtype)
    return q, k, v


def error_of(out: Any, v: np.ndarray) -> float:
    return float(abs(np.asarray(out, np.longdouble) - v.astype(np.longdouble).mean(axis=1, keepdims=True)).max())


@pytest.mark.thinned(2)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kernel", ON_NUMPY)
def test_more_workers_are_as_exact_as_one(kernel: str, score: float, dtype: str) -> None:
    q, k, v = alike(score, DTYPES[dtype])
    eps = 2.0**-7 if dtype == "bfloat16" else float(np.finfo(dtype).eps)
    of_one = error_of(cqs.attention(q, k, v, scale=1.0, workers=1, kernel=kernel), v)
    for workers, strategy in ((3, "cqs"), (7, "cqs"), (31, "cqs"), (31, "tiles"), (5, "tree")):
        out, lse = cqs.attention(q, k, v, scale=1.0, workers=workers, strategy=strategy, kernel=kernel, return_lse=True)
        assert error_of(out, v) <= of_one + 2 * eps
        assert_exact(out, q, k, v, scale=1.0, lse=lse)


@pytest.mark.parametrize("scale", [0.125, 32**-0.5, 1e-3, 1e3])
@pytest.mark.parametrize("kernel", ON_NUMPY)
def test_whatever_the_scale(kernel: str, scale: float) -> None:
    for score in (900.0, 1e5, 1e9, 1e30):
        q, k, v = alike(score / scale)
        of_one = error_of(cqs.attention(q, k, v, scale=scale, workers=1, kernel=kernel), v)
        for workers in (7, 31):
            assert error_of(cqs.attention(q, k, v, scale=scale, workers=workers, kernel=kernel), v) <= of_one + 2e-7


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kernel", ["blockwise", "reference"])
def test_array_api(kernel: str, score: float) -> None:
    arrays = alike(score)
    there = [array_api_strict.asarray(x) for x in arrays]
    for workers in (1, 7, 31):
        out = cqs.attention(*there, scale=1.0, workers=workers, kernel=kernel)
        assert error_of(np.from_dlpack(out), arrays[2]) <= 2e-7


@pytest.mark.parametrize("kernel", ON_NUMPY)
def test_two_scores_that_are_near_each_other_are_told_apart(kernel: str) -> None:
    q, k, v = alike(900.0)
    k[:, ::3] += np.float32(2.0**-11)
    for workers in (1, 7, 31):
        assert_exact(cqs.attention(q, k, v, scale=1.0, workers=workers, kernel=kernel), q, k, v, scale=1.0)


def padded() -> tuple[list[np.ndarray], np.ndarray]:
    """Queries, keys, values, and a bias that hides some keys by -3.4e38, and from some queries all of them."""
    rng = np.random.default_rng(7)
    q, k = (rng.standard_normal((2, N, 8), dtype=np.float32) for _ in range(2))
    v = np.stack([alike(0)[2][0]] * 2)
    bias = np.zeros((N, N), np.float32)
    bias[:, 250:], bias[100:150], bias[300:] = LEAST, LEAST, LEAST
    return [q, k, v], bias


@pytest.mark.parametrize("workers", [1, 3, 7, 31])
@pytest.mark.parametrize("kernel", ON_NUMPY)
def test_rows_that_a_bias_hides_everything_from_are_means(kernel: str, workers: int) -> None:
    (q, k, v), bias = padded()
    out, lse = cqs.attention(q, k, v, bias=bias, workers=workers, kernel=kernel, return_lse=True)
    assert_exact(out, q, k, v, bias=bias, lse=lse)
    assert error_of(out[:, 100:150], v) <= 3e-7


@pytest.fixture(params=[900.0, float(LEAST)], ids=["900", "least"])
def qkv(request: pytest.FixtureRequest) -> tuple[np.ndarray, ...]:
    """Two heads of it."""
    return tuple(np.concatenate([x, x]) for x in alike(request.param))


def assert_mean(out: Any, v: np.ndarray) -> None:
    assert error_of(np.asarray(out), v) <= 3e-7


ROADS: dict[str, Any] = {
    "in the output": dict,
    "head by head": lambda: {"mask": np.ones((2, N, N), bool)},
    "on a device": lambda: {"devices": [SlowDevice()]},
    "on two devices": lambda: {"devices": [SlowDevice(1), SlowDevice(2)]},
    "on three threads": lambda: {"engine": LocalEngine(3)},
}


@pytest.mark.parametrize("workers", [7, 31])
@pytest.mark.parametrize("road", ROADS)
def test_wherever_results_are_summed_up(qkv: tuple[np.ndarray, ...], road: str, workers: int) -> None:
    assert_mean(cqs.attention(*qkv, scale=1.0, workers=workers, **ROADS[road]()), qkv[2])


def test_results_of_other_processes(qkv: tuple[np.ndarray, ...], processes: Executor) -> None:
    assert_mean(cqs.attention(*qkv, scale=1.0, workers=7, engine=processes), qkv[2])


def test_results_of_a_job_that_was_broken_off(qkv: tuple[np.ndarray, ...], tmp_path: Path) -> None:
    options: dict[str, Any] = {"scale": 1.0, "workers": 7, "job": tmp_path / "run.job"}
    with pytest.raises(BrokenOffError):
        cqs.attention(*qkv, **options, engine=Breaking(LocalEngine(1), after=4))
    assert_mean(cqs.attention(*qkv, **options), qkv[2])


def computed(plan: Plan, qkv: tuple[np.ndarray, ...], out: Any) -> Any:
    """Run a plan, one task after the other."""
    kernel = KERNELS[plan.setting.kernel].attend
    worker, tiler = Worker(plan.problem, ArraySource(*qkv), kernel, grain=plan.grain), Tiler(plan, out)
    for task in plan.tasks():
        tiler.add(worker.run(task))
    return tiler.result().out


@pytest.mark.parametrize("kv_heads", [None, 1])
@pytest.mark.parametrize("is_spilled", [False, True], ids=["in memory", "in a scratch file"])
def test_sums_for_a_file(qkv: tuple[np.ndarray, ...], tmp_path: Path, is_spilled: bool, kv_heads: int | None) -> None:
    problem = cqs.AttentionProblem.of(*qkv, scale=1.0)
    setting = Setting(threads=1, in_flight=1, is_staged=True, output="sink", keeps_lse=False, is_spilled=is_spilled)
    plan = replace(cqs.Scheduler(13, "cqs", setting=setting).plan(problem), grain=Grain(kv_heads=kv_heads))
    computed(plan, qkv, NpySink.create(tmp_path / "out.npy", problem.out_shape, np.dtype(np.float32)))
    assert_mean(np.load(tmp_path / "out.npy"), qkv[2])


@pytest.mark.parametrize(("rows", "keys"), [(None, 50), (40, 50), (100, 7)])
def test_keys_that_stream_by(qkv: tuple[np.ndarray, ...], rows: int | None, keys: int) -> None:
    plan = cqs.plan(*qkv, scale=1.0, workers=3, strategy="tiles")
    plan = replace(plan, grain=Grain(rows=rows, keys=keys))
    assert_mean(computed(plan, qkv, np.empty_like(qkv[2])), qkv[2])


def test_parts_of_a_task_that_was_divided(qkv: tuple[np.ndarray, ...]) -> None:
    plan = cqs.plan(*qkv, scale=1.0, workers=3)
    worker, out = Worker(plan.problem, ArraySource(*qkv), KERNELS["numpy"].attend), np.empty_like(qkv[2])
    tiler = Tiler(plan, out)
    for task in plan.tasks():
        tiler.add(worker.join(task, [worker.run(part) for part in cqs.divide(task, workers=7)]))
    assert_mean(tiler.result().out, qkv[2])


def test_sink_logits_count_as_a_key(qkv: tuple[np.ndarray, ...]) -> None:
    q, k, v = qkv
    logits = np.full(2, k[0, 0, 0])
    out, lse = cqs.attention(q, k, v, scale=1.0, workers=7, sink_logits=logits, return_lse=True)
    assert_exact(out, q, k, v, scale=1.0, sink_logits=logits, lse=lse)
    assert error_of(out * np.float32((N + 1) / N), v) <= 4e-7


def test_results_of_halves_of_the_keys_merge(qkv: tuple[np.ndarray, ...]) -> None:
    """What a Tiler gives has a rest as well, where it was the sums' place."""
    halves = [(qkv[0], qkv[1][:, own], qkv[2][:, own]) for own in (slice(100), slice(100, N))]
    partials = []
    for half in halves:
        plan = cqs.plan(*half, scale=1.0, workers=5)
        worker = Worker(plan.problem, ArraySource(*half), KERNELS["numpy"].attend)
        tiler = Tiler(plan, np.empty_like(qkv[2]))
        for task in plan.tasks():
            tiler.add(worker.run(task))
        partials.append(tiler.result())
    assert_mean(cqs.merge(*partials).out, qkv[2])
