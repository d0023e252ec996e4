"""Dividing tasks: the same tiles in smaller tasks, and what a worker does when memory runs out."""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_schedule import plans, window

import cqs
from cqs.errors import OptionError
from cqs.events import Event, TaskRetried, TileDone
from cqs.kernels import KERNELS, KeyChunk, numpy_threads, registry
from cqs.masks import Causal, Mask, SlidingWindow
from cqs.partial import Partial
from cqs.schedule import HeadBlock, Plan, Task, divide
from cqs.sources import ArraySource
from cqs.testing import assert_exact
from cqs.worker import Worker


def pairs(plan: Plan, tasks: Sequence[Task]) -> np.ndarray:
    """How often each query-key pair is in a tile of the tasks."""
    times = np.zeros((plan.problem.n_queries, plan.problem.n_keys), int)
    for task in tasks:
        for tile in task.tiles:
            times[window(tile)] += 1
    return times


def leaves(task: Task, depth: int) -> list[Task]:
    parts = divide(task)
    return (
        list(parts) if depth == 0 or len(parts) == 1 else [leaf for part in parts for leaf in leaves(part, depth - 1)]
    )


# The same tiles


@given(plan=plans(), data=st.data())
def test_the_parts_own_the_pairs_of_the_task_each_once(plan: Plan, data: st.DataObject) -> None:
    task = plan.task(data.draw(st.integers(0, len(plan) - 1)))
    if not task.bundles:
        return
    workers = data.draw(st.one_of(st.none(), st.integers(1, 20)))
    parts = divide(task, workers) if workers is not None else leaves(task, data.draw(st.integers(0, 4)))
    np.testing.assert_array_equal(pairs(plan, parts), pairs(plan, [task]))
    assert all(part.index == task.index and part.heads == task.heads for part in parts)
    assert all(part.bundles for part in parts)


@given(plan=plans(), data=st.data())
def test_a_part_of_two_has_fewer_tokens_until_there_is_one_pair(plan: Plan, data: st.DataObject) -> None:
    task = plan.task(data.draw(st.integers(0, len(plan) - 1)))
    for _ in range(20):
        if not task.bundles:
            return
        parts = divide(task)
        if len(parts) == 1:
            assert sum(map(len, task.query_groups)) == sum(map(len, task.key_groups)) == 1
            return
        held = [sum(map(len, (*part.query_groups, *part.key_groups))) for part in (*parts, task)]
        assert max(held[:-1]) < held[-1]
        task = data.draw(st.sampled_from(parts))


def test_a_quorum_set_divides_a_task_among_workers_that_hold_less() -> None:
    task = cqs.plan(*[(1, 7000, 8)] * 3, workers=1).task(0)
    parts = divide(task, workers=7)
    assert len(parts) == 7
    for part in parts:
        assert sum(len(tile.query) * len(tile.key) for tile in part.tiles) == 7000**2 // 7
        assert sum(map(len, {*part.query_groups, *part.key_groups})) == 3000


def test_the_results_of_the_parts_join_to_that_of_the_task() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 90, 8)) for _ in range(3))
    plan = cqs.plan(q, k, v, workers=7, is_causal=True)
    worker = Worker(plan.problem, ArraySource(q, k, v), KERNELS["reference"].attend)
    for task in plan.tasks():
        whole = worker.run(task)
        for parts in (divide(task), divide(task, workers=3)):
            joined = worker.join(task, [worker.run(part) for part in parts])
            for a, b in zip(whole.partials, joined.partials, strict=True):
                np.testing.assert_allclose(a.out, b.out, rtol=1e-12, atol=1e-14)
                np.testing.assert_allclose(a.lse, b.lse, rtol=1e-12)


# When memory runs out


class Failing:
    """The NumPy kernel, which runs out of memory at some of its calls."""

    def __init__(self, fails: Callable[[int, Any], bool]) -> None:
        self.fails = fails
        self.n_calls = 0
        self.n_pairs = 0  # that were computed and are wanted

    def __call__(self, q: Any, chunks: Sequence[KeyChunk], **options: Any) -> Partial:
        number, self.n_calls = self.n_calls, self.n_calls + 1
        if self.fails(number, (q.shape[-2], sum(chunk.k.shape[-2] for chunk in chunks))):
            raise MemoryError(f"call {number}")
        region = options["region"]
        owned = itertools.product(enumerate(region.queries), enumerate(region.keys))
        self.n_pairs += sum(len(rows) * len(keys) for (i, rows), (j, keys) in owned if (i, j) not in region.foreign)
        return numpy_threads.attend(q, chunks, **options)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Failing]:
    """Put a kernel in the table that fails."""

    def use(fails: Callable[[int, Any], bool]) -> Failing:
        kernel = Failing(fails)
        row = registry.KERNELS["numpy"]
        monkeypatch.setitem(registry.KERNELS, "numpy", replace(row, attend=kernel))
        return kernel

    return use


WAYS: dict[str, dict[str, Any]] = {
    "cqs": {"workers": 7},
    "cqs, small groups": {"workers": 31},
    "tiles": {"workers": 5, "strategy": "tiles"},
    "cqs from files": {"workers": 7, "memory": "16 MiB", "is_on_disk": True},
    "tiles from files": {"workers": 3, "strategy": "tiles", "memory": "7 MiB", "is_on_disk": True},
}
MASKS = {"full": None, "causal": Causal(), "window": SlidingWindow(60, 20)}


class Case:
    """Arrays, and a call of them that may fail."""

    def __init__(self, way: str, mask: Mask | None, directory: Path) -> None:
        rng = np.random.default_rng(3)
        self.arrays = [rng.standard_normal((2, 400, 16), dtype=np.float32) for _ in range(3)]
        self.options = {"mask": mask, "kernel": "numpy"} | WAYS[way]
        self.inputs: list[Any] = self.arrays
        if self.options.pop("is_on_disk", False):
            self.inputs = [directory / f"{name}.npy" for name in "qkv"]
            for path, array in zip(self.inputs, self.arrays, strict=True):
                np.save(path, array)

    def run(self) -> tuple[np.ndarray, list[Event]]:
        events: list[Event] = []
        out = cqs.attention(*self.inputs, **self.options, engine=cqs.engines.LocalEngine(1), on_event=events.append)
        return out, events


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("way", WAYS)
def test_a_task_that_fails_is_divided_whichever_it_is(
    way: str, mask: Mask | None, tmp_path: Path, failing: Any
) -> None:
    case = Case(way, mask, tmp_path)
    n_calls = failing(lambda number, shape: False)
    case.run()
    for fault in range(n_calls.n_calls):
        failing(lambda number, shape, fault=fault: number == fault)
        out, events = case.run()
        assert_exact(out, *case.arrays, mask=mask)
        assert [event.depth for event in events if isinstance(event, TaskRetried)] == [1]


@pytest.mark.parametrize("most", [60, 13, 1])
@pytest.mark.parametrize("way", WAYS)
def test_a_task_is_divided_again_until_it_fits(way: str, most: int, tmp_path: Path, failing: Any) -> None:
    case = Case(way, Causal(), tmp_path)
    if most == 1:  # every pair by itself takes long
        case.arrays = [array[:, :24] for array in case.arrays]
        case.inputs = case.arrays
    failing(lambda number, shape: max(shape) > most)
    out, events = case.run()
    assert_exact(out, *case.arrays, is_causal=True)
    assert all(max(event.n_rows, event.n_columns) <= most for event in events if isinstance(event, TileDone))
    assert most > 13 or max(event.depth for event in events if isinstance(event, TaskRetried)) > 1


@pytest.mark.parametrize("way", WAYS)
def test_the_same_faults_give_the_same_bits(way: str, tmp_path: Path, failing: Any) -> None:
    case, outputs = Case(way, Causal(), tmp_path), set()
    for _ in range(2):
        rng = np.random.default_rng(1)
        failing(lambda number, shape, rng=rng: bool(rng.random() < 0.3))
        outputs.add(case.run()[0].tobytes())
    assert len(outputs) == 1


@pytest.mark.parametrize("way", WAYS)
def test_nothing_that_was_computed_is_computed_again(way: str, tmp_path: Path, failing: Any) -> None:
    case, rng = Case(way, None, tmp_path), np.random.default_rng(2)
    kernel = failing(lambda number, shape: bool(rng.random() < 0.3))
    _, events = case.run()
    assert any(isinstance(event, TaskRetried) for event in events)
    plan = cqs.plan(*case.inputs, **case.options)
    assert kernel.n_pairs == 400 * 400 * (len(plan) // plan.workers)


def test_it_is_logged(tmp_path: Path, failing: Any, caplog: pytest.LogCaptureFixture) -> None:
    failing(lambda number, shape: number == 2)
    with caplog.at_level(logging.WARNING, "cqs"):
        Case("cqs", None, tmp_path).run()
    (record,) = caplog.records
    assert "ran out of memory and is divided (depth 1): MemoryError('call 2')" in record.getMessage()


def test_without_room_for_one_pair_the_error_says_so(tmp_path: Path, failing: Any) -> None:
    failing(lambda number, shape: True)
    with pytest.raises(MemoryError, match=r"no memory for tile \(0, 0\): queries 0\.\.0, keys 0\.\.0"):
        Case("cqs", None, tmp_path).run()


def test_other_errors_are_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(ArraySource):
        def queries(self, group: Any, heads: HeadBlock | None = None) -> Any:
            raise ValueError("broken")

    x = np.zeros((1, 20, 4))
    plan = cqs.plan(x, x, x, workers=3)
    with pytest.raises(ValueError, match="broken"):
        Worker(plan.problem, Broken(x, x, x), KERNELS["numpy"].attend).run(plan.task(0))


def test_what_was_computed_before_memory_ran_out_is_kept() -> None:
    x = np.random.default_rng(0).standard_normal((1, 7000, 4), dtype=np.float32)
    plan, calls = cqs.plan(x, x, x, workers=7, kernel="blockwise"), []
    assert len(plan.task(2).bundles) == 3

    def attend(q: Any, *given: Any, **options: Any) -> Any:
        calls.append(q)
        if len(calls) == 2:
            raise MemoryError("in the second bundle")
        return KERNELS["numpy"].attend(q, *given, **options)

    worker = Worker(plan.problem, ArraySource(x, x, x), attend, grain=plan.grain)
    found, whole = (w.run(plan.task(2)) for w in (worker, replace(worker, attend=KERNELS["numpy"].attend)))
    first = calls[0]
    assert sum(np.shares_memory(first, q) for q in calls) == 1
    for a, b in zip(found.partials, whole.partials, strict=True):
        np.testing.assert_allclose(a.out, b.out, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strategy", ["cqs", "tiles"])
@pytest.mark.parametrize("what", ["queries", "keys"])
def test_inputs_for_which_there_is_no_memory_are_read_in_parts(strategy: str, what: str, tmp_path: Path) -> None:
    class Full(ArraySource):
        is_staged = True

        def queries(self, group: Any, heads: HeadBlock | None = None) -> Any:
            if what == "queries" and len(group) > 20:
                raise MemoryError("queries")
            return super().queries(group, heads)

        def keys(self, group: Any, heads: HeadBlock | None = None) -> Any:
            if what == "keys" and len(group) > 20:
                raise MemoryError("keys")
            return super().keys(group, heads)

    case = Case(f"{strategy} from files", Causal(), tmp_path)
    plan = cqs.plan(*case.inputs, **case.options)
    out = np.empty_like(case.arrays[0])
    tiler = cqs.Tiler(plan, out)
    worker = Worker(plan.problem, Full(*case.arrays), KERNELS["numpy"].attend, grain=plan.grain)
    cqs.engines.LocalEngine(2).run(plan, worker, tiler.add)
    assert_exact(tiler.result().out, *case.arrays, is_causal=True)


@pytest.mark.parametrize("task", [None, 7, "0"])
def test_only_a_task_is_divided(task: object) -> None:
    with pytest.raises(OptionError, match=r"`task` must be a `Task`, got \w+; as in `cqs.divide\(plan.task\(0\)\)`"):
        cqs.divide(task)  # type: ignore[arg-type]
