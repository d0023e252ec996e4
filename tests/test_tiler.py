"""The Tiler takes each tile once, in any order, and says which one is wrong."""

from dataclasses import replace
from functools import cache
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqs.errors import CQSError, DTypeError, TileError
from cqs.kernels import KERNELS
from cqs.masks import Causal, NoMask
from cqs.partial import Partial
from cqs.problem import AttentionProblem
from cqs.schedule import Bundle, Plan, Scheduler, Strip, Task
from cqs.sources import ArraySource
from cqs.testing import assert_exact
from cqs.tiler import Tiler
from cqs.worker import TaskResult, Worker

T = 60


def arrays(xp: Any = np, dtype: str = "float32", n_keys: int = T) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    shapes = (2, T, 6), (1, n_keys, 6), (1, n_keys, 4)
    return tuple(xp.asarray(rng.standard_normal(shape).astype(dtype)) for shape in shapes)


@cache
def planned(workers: int, mask=None, dtype: str = "float32", n_keys: int = T) -> Plan:
    return Scheduler(workers).plan(AttentionProblem.of(*arrays(dtype=dtype, n_keys=n_keys), mask=mask))


@cache
def results_of(plan: Plan, xp: Any = np) -> list[TaskResult]:
    """What the plan's tasks give."""
    source = ArraySource(*arrays(xp, plan.problem.dtype, plan.problem.n_keys))
    worker = Worker(plan.problem, source, KERNELS["blockwise"].attend)
    return [worker.run(task) for task in plan.tasks()]


def tiler_of(plan: Plan, xp: Any = np, dtype: str | None = None) -> Tiler:
    """A Tiler whose output holds NaN where nothing was written."""
    return Tiler(plan, xp.full(plan.problem.out_shape, xp.nan, dtype=getattr(xp, dtype or plan.problem.dtype)))


def tiled(plan: Plan, results: list[TaskResult], xp: Any = np, dtype: str | None = None) -> tuple[bytes, bytes]:
    tiler = tiler_of(plan, xp, dtype)
    for result in results:
        tiler.add(result)
    return tuple(np.from_dlpack(array).tobytes() for array in (tiler.result().out, tiler.result().lse))


PLANS = {
    "cqs": lambda: planned(7),
    "cqs, causal": lambda: planned(12, Causal()),
    "more tasks than tokens": lambda: planned(91, Causal(-3)),
    "tiles": lambda: planned(11, n_keys=40),
    "float16": lambda: planned(7, dtype="float16"),
    "float64": lambda: planned(13, dtype="float64"),
}


# Order


@pytest.mark.parametrize("name", PLANS)
@given(data=st.data())
def test_any_order_of_results_gives_bitwise_the_same_output(name: str, data: st.DataObject) -> None:
    plan = PLANS[name]()
    shuffled = data.draw(st.permutations(range(len(plan))))
    results = results_of(plan)
    assert tiled(plan, [results[i] for i in shuffled]) == in_order(name)


@cache
def in_order(name: str) -> tuple[bytes, bytes]:
    plan = PLANS[name]()
    return tiled(plan, results_of(plan))


@given(order=st.permutations(range(7)))
def test_any_order_gives_bitwise_the_same_output_on_other_libraries(order: list[int]) -> None:
    plan, xp = planned(7), array_api_strict
    results = results_of(plan, xp)
    assert tiled(plan, [results[i] for i in order], xp) == tiled(plan, results_of(plan, xp), xp)


def test_results_are_left_as_they_are() -> None:
    plan = planned(7)
    before = [(p.out.copy(), p.lse.copy()) for result in results_of(plan) for p in result.partials]
    assert tiled(plan, results_of(plan)) == tiled(plan, results_of(plan))
    after = [(p.out, p.lse) for result in results_of(plan) for p in result.partials]
    for arrays_before, arrays_after in zip(before, after, strict=True):
        assert np.array_equal(arrays_before[0], arrays_after[0])
        assert np.array_equal(arrays_before[1], arrays_after[1])


@pytest.mark.parametrize("name", PLANS)
def test_the_output_is_exact(name: str) -> None:
    plan = PLANS[name]()
    tiler, mask = tiler_of(plan), plan.problem.mask
    for result in results_of(plan):
        tiler.add(result)
    merged = tiler.result()
    q, k, v = arrays(dtype=plan.problem.dtype, n_keys=plan.problem.n_keys)
    assert_exact(merged.out, q, k, v, mask=None if mask == NoMask() else mask, lse=merged.lse)


@pytest.mark.parametrize("out_dtype", ["float16", "float32"])
def test_the_result_may_be_asked_for_twice(out_dtype: str) -> None:
    plan = planned(7, dtype="float16")
    tiler = tiler_of(plan, dtype=out_dtype)
    for result in results_of(plan):
        tiler.add(result)
    first = tiler.result()
    before = first.out.copy(), first.lse.copy()
    second = tiler.result()
    assert second.out is first.out
    assert first.out.dtype == out_dtype
    assert np.array_equal(second.out, before[0])
    assert np.array_equal(second.lse, before[1])


@pytest.mark.parametrize("workers", [1, 7, 91])
def test_rows_that_no_tile_touches_are_zero_with_lse_minus_infinity(workers: int) -> None:
    plan = planned(workers, Causal(-20))
    tiler = tiler_of(plan)
    for result in results_of(plan):
        tiler.add(result)
    partial = tiler.result()
    assert (partial.out[:, :20] == 0).all()
    assert (partial.lse[:, :20] == -np.inf).all()
    assert np.isfinite(partial.lse[:, 20:]).all()
    assert (partial.out[:, 20:] != 0).all()


def test_a_plan_without_any_visible_pair_gives_zeros() -> None:
    plan = planned(7, Causal(-T))
    tiler = tiler_of(plan)
    for task in plan.tasks():
        tiler.add(TaskResult(task, ()))
    assert (tiler.result().out == 0).all()
    assert (tiler.result().lse == -np.inf).all()


# What is refused


def refuses(plan: Plan, bad: TaskResult, match: str, after: int = 0, error: type[CQSError] = TileError) -> None:
    """The result is refused with that message, and does no harm: the right ones give the right output afterwards."""
    results, tiler = results_of(plan), tiler_of(plan)
    for result in results[:after]:
        tiler.add(result)
    with pytest.raises(error, match=match):
        tiler.add(bad)
    for result in results[after:]:
        tiler.add(result)
    merged = tiler.result()
    assert (merged.out.tobytes(), merged.lse.tobytes()) == tiled(plan, results_of(plan))


def words(tile: object) -> str:
    """A pattern for the tile's name, as it is printed."""
    return str(tile).replace("(", r"\(").replace(")", r"\)").replace(".", r"\.")


def with_strips(result: TaskResult, strips: list[Strip], partials: tuple[Partial, ...] | None = None) -> TaskResult:
    """The result, as if its task had other strips."""
    bundles = tuple(Bundle((strip,), strip.keys, frozenset()) for strip in strips)
    return TaskResult(Task(result.task.index, bundles), result.partials if partials is None else partials)


@given(missing=st.sets(st.integers(0, 12), min_size=1), data=st.data())
def test_missing_tasks_are_named_by_the_first_tile_that_never_came(missing: set[int], data: st.DataObject) -> None:
    plan = planned(13)
    tiler, results = tiler_of(plan), results_of(plan)
    for i in data.draw(st.permutations(sorted(set(range(13)) - missing))):
        tiler.add(results[i])
    first = next(plan.task(min(missing)).tiles)
    expected = rf"{len(missing)} of 13 tasks never came.* task {min(missing)} with {words(first)}"
    with pytest.raises(TileError, match=expected):
        tiler.result()
    for i in missing:
        tiler.add(results[i])
    assert np.isfinite(tiler.result().out).all()


@pytest.mark.parametrize("index", [0, 3, 6])
def test_a_task_that_comes_twice_is_refused_by_its_first_tile(index: int) -> None:
    plan = planned(7)
    first = words(next(plan.task(index).tiles))
    refuses(plan, results_of(plan)[index], f"task {index} with {first} came twice", after=index + 1)
    results, tiler = results_of(plan), tiler_of(plan)
    tiler.add(results[6])  # which waits for the others
    with pytest.raises(TileError, match=r"task 6 with tile .* came twice"):
        tiler.add(results_of(plan)[6])


@pytest.mark.parametrize("index", [-1, 7, 12])
def test_a_task_that_the_plan_does_not_have_is_refused_by_its_first_tile(index: int) -> None:
    plan = planned(7)
    result = results_of(plan)[2]
    foreign = TaskResult(replace(result.task, index=index), result.partials)
    refuses(plan, foreign, f"task {index} with {words(next(result.task.tiles))} is foreign")


def test_a_task_of_another_plan_is_refused_by_the_tile_that_does_not_belong() -> None:
    other = results_of(planned(13))[3]
    refuses(planned(7), other, f"{words(next(other.task.tiles))} is foreign: the plan does not give it to task 3")


def test_the_tiles_of_one_task_under_the_number_of_another_are_refused() -> None:
    plan = planned(7)
    one, two = results_of(plan)[1:3]
    tile = next(tile for tile in two.task.tiles if tile not in set(one.task.tiles))
    refuses(plan, TaskResult(replace(two.task, index=1), two.partials), f"{words(tile)} is foreign")


def test_one_foreign_tile_among_the_right_ones_is_refused_by_name() -> None:
    plan = planned(7)
    result = results_of(plan)[0]
    *strips, last = result.task.strips
    foreign = next(key for key in plan.task(2).key_groups if key not in result.task.key_groups)
    more = with_strips(result, [*strips, Strip(last.query, (*last.keys, foreign))])
    refuses(plan, more, f"tile \\({last.query.index}, {foreign.index}\\): .* is foreign")


def test_a_missing_tile_is_refused_by_name() -> None:
    plan = planned(7)
    result = results_of(plan)[0]
    first, *strips = result.task.strips
    *_, gone = first.tiles
    less = with_strips(result, [Strip(first.query, first.keys[:-1]), *strips])
    refuses(plan, less, rf"{words(gone)} of task 0 is missing")


@pytest.mark.parametrize("is_whole_strip", [False, True])
def test_a_doubled_tile_is_refused_by_name(is_whole_strip: bool) -> None:
    plan = planned(7)
    result = results_of(plan)[0]
    *strips, last = result.task.strips
    if is_whole_strip:
        twice = with_strips(result, [*strips, last, last], (*result.partials, result.partials[-1]))
    else:
        twice = with_strips(result, [*strips, Strip(last.query, (*last.keys, last.keys[0]))])
    refuses(plan, twice, f"{words(next(last.tiles))} of task 0 is .*doubled")


@pytest.mark.parametrize("n_strips", [0, 1, 2])
def test_a_missing_strip_is_refused_by_its_first_tile(n_strips: int) -> None:
    plan = planned(7)
    result = results_of(plan)[4]
    less = TaskResult(result.task, result.partials[:n_strips])
    first = next(result.task.strips[n_strips].tiles)
    refuses(plan, less, f"{words(first)} is missing from the result of task 4", after=2)


def test_more_results_than_strips_are_refused() -> None:
    plan = planned(7)
    result = results_of(plan)[4]
    more = TaskResult(result.task, (*result.partials, result.partials[0]))
    refuses(plan, more, "task 4 has 3 strips, but 4 results came")


@pytest.mark.parametrize(
    "change",
    {
        "a row less": lambda p: Partial(p.out[:, 1:], p.lse[:, 1:]),
        "a head less": lambda p: Partial(p.out[1:], p.lse[1:]),
        "a column less": lambda p: Partial(p.out[..., 1:], p.lse),
        "a row of out less": lambda p: Partial(p.out[:, 1:], p.lse),
        "a row of lse less": lambda p: Partial(p.out, p.lse[:, 1:]),
        "a row of rest less": lambda p: Partial(p.out, p.lse, p.rest[:, 1:]),
        "an axis more": lambda p: Partial(p.out[None], p.lse[None]),
        "a single row, which would broadcast": lambda p: Partial(p.out[:, :1], p.lse[:, :1]),
        "an lse with a column": lambda p: Partial(p.out, p.lse[..., None]),
    }.items(),
    ids=lambda change: change[0],
)
def test_a_result_of_the_wrong_shape_is_refused_by_its_first_tile(change) -> None:
    plan = planned(7)
    result = results_of(plan)[2]
    first, second, *others = result.partials
    tile = next(result.task.strips[1].tiles)
    wrong = TaskResult(result.task, (first, change[1](second), *others))
    refuses(plan, wrong, f"the result for {words(tile)} must have an output of shape")


@pytest.mark.parametrize(("dtype", "wrong"), [("float32", "float64"), ("float64", "float32"), ("float16", "float16")])
@pytest.mark.parametrize("name", ["out", "lse", "rest"])
def test_a_result_of_another_type_than_the_accumulator_is_refused(name: str, dtype: str, wrong: str) -> None:
    plan = planned(7, dtype=dtype)
    result = results_of(plan)[2]
    first, second, *others = result.partials
    cast = replace(second, **{name: getattr(second, name).astype(wrong)})
    tile = next(result.task.strips[1].tiles)
    message = f"`{name}` must have the accumulator's type, float.., in the result for {words(tile)}, got {wrong}; "
    refuses(plan, TaskResult(result.task, (first, cast, *others)), message, error=DTypeError)


@pytest.mark.parametrize("shape", [(2, T, 5), (2, T + 1, 4), (1, T, 4), (T, 4)], ids=str)
def test_an_output_of_the_wrong_shape_or_type_is_refused_before_anything_comes(shape: tuple[int, ...]) -> None:
    with pytest.raises(CQSError, match=r"`out` must have the result's shape \(2, 60, 4\)"):
        Tiler(planned(7), np.zeros(shape, np.float32))
    with pytest.raises(CQSError, match="`out` must be of type float32, got int32"):
        Tiler(planned(7), np.zeros((2, T, 4), np.int32))
