"""The schedule: tasks that together cover every visible pair once, in even parts, bundled without changing them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqs.errors import OptionError
from cqs.masks import Causal, NoMask
from cqs.problem import AttentionProblem
from cqs.quorum import CyclicQuorumSet, difference_cover
from cqs.schedule import (
    BLOCK_BYTES,
    BalancedLayout,
    Bundle,
    GridLayout,
    Group,
    Layout,
    Plan,
    QuorumLayout,
    Scheduler,
    Task,
    Tile,
    default_workers,
    group,
)

PERFECT = (1, 3, 7, 13, 21, 31, 57, 73, 91, 133, 183, 273, 307, 381, 553)


def problem_of(T: int, S: int, mask=None) -> AttentionProblem:
    return AttentionProblem((2,), 4, 2, T, S, 8, 5, "float32", 0.5, NoMask() if mask is None else mask)


@st.composite
def plans(draw: st.DrawFn, most_tokens: int = 90, most_workers: int = 100) -> Plan:
    T = draw(st.integers(0, most_tokens))
    strategy = draw(st.sampled_from(["cqs", "tiles", "auto"]))
    S = T if strategy == "cqs" else draw(st.one_of(st.just(T), st.integers(0, most_tokens)))
    mask = draw(st.one_of(st.just(NoMask()), st.builds(Causal, st.integers(-most_tokens, most_tokens))))
    workers = draw(st.integers(1, most_workers))
    return Scheduler(workers=workers, strategy=strategy).plan(problem_of(T, S, mask))


def visible(problem: AttentionProblem) -> np.ndarray:
    """Which query sees which key, pair by pair."""
    shape = problem.n_queries, problem.n_keys
    return np.tri(*shape, problem.mask.offset, bool) if isinstance(problem.mask, Causal) else np.ones(shape, bool)


def window(tile: Tile) -> tuple[slice, slice]:
    return slice(tile.query.start, tile.query.stop), slice(tile.key.start, tile.key.stop)


def seen_keys(sees: np.ndarray, tile: Tile) -> Group:
    """The keys of a tile, from the first to the last that any of its queries sees."""
    keys = tile.key.start + np.flatnonzero(sees[window(tile)].any(axis=0))
    return Group(tile.key.index, int(keys[0]), int(keys[-1]) + 1)


def tiles_of(layout: Layout, i: int) -> list[Tile]:
    return [tile for strip in layout.strips(i) for tile in strip.tiles]


def layout_of(plan: Plan) -> Layout:
    """What a plan's tasks have to be made of."""
    T, S, W, mask = plan.problem.n_queries, plan.problem.n_keys, plan.workers, plan.problem.mask
    if plan.base is None:
        return GridLayout(T, S, W)
    quorums = CyclicQuorumSet(W)
    is_even = mask.hides_nothing or mask == Causal()
    return QuorumLayout(T, quorums) if is_even else BalancedLayout(T, quorums, mask)


# Every pair once


@given(plan=plans())
def test_the_tiles_of_all_tasks_cover_every_visible_pair_once(plan: Plan) -> None:
    sees = visible(plan.problem)
    times = np.zeros(sees.shape, dtype=int)
    for task in plan.tasks():
        for tile in task.tiles:
            assert sees[window(tile)].any(), f"{tile} is scheduled though nothing in it is visible"
            times[window(tile)] += 1
    assert times.max(initial=0) <= 1
    assert (times[sees] == 1).all()


@given(plan=plans())
def test_loads_count_the_visible_pairs_and_add_up_to_the_problem(plan: Plan) -> None:
    sees = visible(plan.problem)
    counted = [sum(int(sees[window(tile)].sum()) for tile in task.tiles) for task in plan.tasks()]
    assert plan.loads() == counted
    assert sum(counted) == plan.problem.n_pairs == sees.sum()


@given(plan=plans())
def test_a_task_has_the_tiles_of_its_layout_that_are_visible_in_order(plan: Plan) -> None:
    sees, layout = visible(plan.problem), layout_of(plan)
    assert len(plan) == layout.n_tasks == plan.workers
    for i, task in enumerate(plan.tasks()):
        assert task.index == i
        planned = [tile for tile in tiles_of(layout, i) if sees[window(tile)].any()]
        if plan.base is None:  # of a rectangle only the keys that are seen are read
            planned = [Tile(tile.query, seen_keys(sees, tile)) for tile in planned]
        assert list(task.tiles) == planned


@given(plan=plans())
def test_a_task_holds_the_groups_of_its_tiles_and_no_others(plan: Plan) -> None:
    for task in plan.tasks():
        assert set(task.query_groups) == {tile.query for tile in task.tiles}
        assert set(task.key_groups) == {tile.key for tile in task.tiles}
        assert len(set(task.query_groups)) == len(task.query_groups) == len(task.strips)
        assert list(task.key_groups) == sorted(set(task.key_groups), key=lambda key: key.start)


# Groups and grids


@given(n_groups=st.integers(1, 400), n_tokens=st.integers(0, 10**6))
def test_groups_cut_the_tokens_in_order_and_evenly(n_groups: int, n_tokens: int) -> None:
    groups = [group(g, n_groups, n_tokens) for g in range(n_groups)]
    sizes = [len(g) for g in groups]
    assert [g.index for g in groups] == list(range(n_groups))
    assert (groups[0].start, groups[-1].stop) == (0, n_tokens)
    assert all(before.stop == after.start for before, after in pairwise(groups))
    assert max(sizes) - min(sizes) <= 1
    assert all(len(g.tokens) == len(g) and g.tokens[:1] == range(g.start, g.start + min(len(g), 1)) for g in groups)


@given(T=st.integers(0, 10**5), S=st.integers(0, 10**5), W=st.integers(1, 300))
def test_grid_rectangles_have_equal_areas_up_to_the_rounding_of_their_sides(T: int, S: int, W: int) -> None:
    layout = GridLayout(T, S, W)
    tiles = [tile for i in range(W) for tile in tiles_of(layout, i)]
    assert len(tiles) == W
    assert sum(len(tile.query) * len(tile.key) for tile in tiles) == T * S
    assert len({tile.query for tile in tiles}) == layout.n_rows
    for tile in tiles:
        c = sum(other.query == tile.query for other in tiles)  # rectangles in its row
        height, width = c * T / W, S / c
        assert abs(len(tile.query) * len(tile.key) - T * S / W) < height + width + 1


@pytest.mark.parametrize("W", [*range(1, 41), 97, 100, 199, 200])
def test_grid_rectangles_of_long_sequences_differ_by_at_most_one_percent(W: int) -> None:
    for T, S in ((100_000, 100_000), (20_000, 500_000)):
        areas = [len(tile.query) * len(tile.key) for i in range(W) for tile in tiles_of(GridLayout(T, S, W), i)]
        assert max(areas) <= 1.01 * min(areas)


@pytest.mark.parametrize("W", [4, 7, 16, 23, 100, 199])
def test_grid_rectangles_are_nearly_square(W: int) -> None:
    for i in range(W):
        (tile,) = tiles_of(GridLayout(10_000, 10_000, W), i)
        assert 1 / 2 <= len(tile.query) / len(tile.key) <= 2


# Bundles


def owns(bundle: Bundle) -> np.ndarray:
    """Which (strip, key group) of the bundle's rectangle the task owns."""
    return np.array([[key in strip.keys for key in bundle.keys] for strip in bundle.strips])


@given(plan=plans(most_tokens=3000, most_workers=60), is_skipping=st.booleans(), data=st.data())
def test_bundles_span_their_strips(plan: Plan, is_skipping: bool, data: st.DataObject) -> None:
    plan = replace(plan, setting=replace(plan.setting, kernel="numpy" if is_skipping else "blockwise"))
    task = plan.task(data.draw(st.integers(0, len(plan) - 1)))
    assert tuple(strip for bundle in task.bundles for strip in bundle.strips) == task.strips
    for bundle in task.bundles:
        assert bundle.strips
        assert {key for strip in bundle.strips for key in strip.keys} == set(bundle.keys)
        assert list(bundle.keys) == sorted(set(bundle.keys), key=lambda key: key.start)
        own = owns(bundle)
        assert bundle.foreign == {(int(i), int(j)) for i, j in np.argwhere(~own)}
        rows, columns = [len(strip.query) for strip in bundle.strips], [len(key) for key in bundle.keys]
        area = np.multiply.outer(rows, columns)
        if not is_skipping:
            assert area[own].sum() >= 0.75 * area.sum()


def planned(n_tokens: int, kernel: str, **changes) -> Plan:
    plan = Scheduler(workers=31).plan(replace(problem_of(n_tokens, n_tokens), **changes))
    return replace(plan, setting=replace(plan.setting, kernel=kernel))


def bundles_of(plan: Plan) -> list[Bundle]:
    return [bundle for task in plan.tasks() for bundle in task.bundles]


def test_bundles_of_small_strips_are_worth_a_call_and_large_strips_stay_alone() -> None:
    small = bundles_of(planned(2048, "blockwise"))
    assert max(len(bundle.strips) for bundle in small) > 2
    assert any(bundle.foreign for bundle in small)
    for bundle in small:
        assert sum(len(strip.query) for strip in bundle.strips) <= 512
        assert sum(map(len, bundle.keys)) <= 1024
    large = bundles_of(planned(31_000, "blockwise"))
    assert all(len(bundle.strips) == 1 and not bundle.foreign for bundle in large)


def test_a_kernel_that_leaves_out_foreign_tiles_gets_as_many_strips_at_once_as_two_blocks_hold_of_queries() -> None:
    bundles = bundles_of(planned(31_000, "numpy"))
    row_bytes = 2 * 4 * 8 * 4  # batch, heads, width, float32
    most = 2 * BLOCK_BYTES // row_bytes
    assert {len(bundle.strips) for bundle in bundles} == {6}
    assert 6 * 1000 <= most < 31 * 1000
    assert {len(bundle.strips) for bundle in bundles_of(planned(31_000, "numpy", width=64))} == {2}


# How many workers


@given(n_tokens=st.integers(0, 10**6), n_cpus=st.integers(1, 400))
def test_default_workers_are_the_least_perfect_number_with_a_task_for_each_cpu(n_tokens: int, n_cpus: int) -> None:
    enough = [W for W in PERFECT if n_cpus <= W]
    with_large_groups = [W for W in PERFECT if W == 1 or n_tokens / W >= 256]
    W = default_workers(n_tokens, n_cpus)
    assert min(enough[0], with_large_groups[-1]) == W
    assert difference_cover(W).is_perfect


def test_default_workers_count_the_cpus_when_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cqs.schedule.scheduler.available_cpus", lambda: 14)
    assert default_workers(10**6) == default_workers(10**6, n_cpus=14) == 21
    assert len(Scheduler().plan(problem_of(10**6, 10**6))) == 21


# The Scheduler


def test_auto_takes_quorums_for_self_attention_and_a_grid_for_cross_attention() -> None:
    scheduler = Scheduler(workers=7)
    assert scheduler.plan(problem_of(50, 50)) == Scheduler(7, "cqs").plan(problem_of(50, 50))
    assert scheduler.plan(problem_of(50, 60)) == Scheduler(7, "tiles").plan(problem_of(50, 60))
    assert scheduler.plan(problem_of(50, 50)).base == difference_cover(7).base
    assert scheduler.plan(problem_of(50, 60)).base is None


@pytest.mark.parametrize("workers", [0, -1, 2.0, "7", True, [7]], ids=repr)
def test_workers_that_are_no_whole_number_of_at_least_one_are_refused(workers) -> None:
    with pytest.raises(OptionError, match=r"`workers` must be a whole number of at least 1, got"):
        Scheduler(workers=workers).plan(problem_of(50, 50))


def test_workers_may_be_any_kind_of_integer_and_are_kept_as_a_plain_one() -> None:
    plan = Scheduler(workers=np.int64(7)).plan(problem_of(50, 50))
    assert type(plan.workers) is int
    assert plan == Scheduler(workers=7).plan(problem_of(50, 50))


@pytest.mark.parametrize("strategy", ["rings", "", None, "CQS"], ids=repr)
def test_an_unknown_strategy_is_refused_with_those_there_are(strategy) -> None:
    with pytest.raises(OptionError, match=r"`strategy` must be one of auto, cqs, tiles, ring, tree, got"):
        Scheduler(workers=7, strategy=strategy).plan(problem_of(50, 50))


def test_quorums_for_cross_attention_are_refused() -> None:
    with pytest.raises(OptionError, match=r"50 and 60; .*strategy='tiles'"):
        Scheduler(workers=7, strategy="cqs").plan(problem_of(50, 60))


@pytest.mark.parametrize("W", [201, 223, 1000])
def test_any_number_of_workers_is_served_by_quorums_and_by_a_grid(W: int) -> None:
    for strategy in ("cqs", "tiles"):
        plan = Scheduler(workers=W, strategy=strategy).plan(problem_of(2 * W, 2 * W))
        assert len(plan) == W
        assert sum(plan.loads()) == 4 * W * W


@pytest.mark.parametrize("i", [-1, 7, 1000, 1.5, "1", None, True], ids=repr)
def test_a_task_that_the_plan_does_not_have_is_refused(i) -> None:
    with pytest.raises(OptionError, match=rf"`i` must be .*, got {i!r};"):
        Scheduler(workers=7).plan(problem_of(50, 50)).task(i)


def test_more_workers_than_tokens_leave_some_tasks_empty() -> None:
    plan = Scheduler(workers=31).plan(problem_of(5, 5))
    assert sum(plan.loads()) == 25
    assert any(task == Task(task.index, ()) for task in plan.tasks())
