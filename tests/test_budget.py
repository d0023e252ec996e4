"""A memory budget: what is measured is at most what was projected, which is at most the budget."""

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from budgets import MIB, Call, calls, filling_calls, measured
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

import cqs
from cqs.engines import LocalEngine
from cqs.errors import BudgetError, OptionError
from cqs.masks import Causal, Documents, Mask, SlidingWindow
from cqs.schedule import Setting, budget, traffic
from cqs.testing import assert_exact
from cqs.units import parse_bytes


@pytest.fixture(scope="module", autouse=True)
def libraries_are_loaded() -> None:
    """Modules that are imported when they are first needed are not what a call holds."""
    x = np.zeros((1, 10, 4), np.float32)
    cqs.attention(x, x, x, memory="16 MiB", mask=SlidingWindow(2) & Causal())


def holds_what_it_says(call: Call) -> None:
    with tempfile.TemporaryDirectory() as directory:
        try:
            plan, peak = measured(call, Path(directory))
        except BudgetError:
            assume(False)
    assert peak <= plan.projected_bytes, plan.footprint
    assert plan.projected_bytes <= call.options["memory"]


@given(call=calls())
@settings(max_examples=15, phases=[Phase.generate])
def test_the_peak_is_at_most_the_projection_and_that_at_most_the_budget(call: Call) -> None:
    holds_what_it_says(call)


@pytest.mark.slow
@given(call=calls(most_tokens=9000, most_scores=3e8))
@settings(max_examples=400)
def test_the_peak_is_at_most_the_projection_of_larger_problems(call: Call) -> None:
    holds_what_it_says(call)


LARGE = {  # whose projection is of the order of its budget
    "tiles": ((1, 65536, 64), SlidingWindow(500), 72, {"strategy": "tiles"}),
    "cqs": ((2, 65536, 64), SlidingWindow(200), 80, {"strategy": "cqs"}),
    "tiles of wide heads": ((4, 12000, 128), SlidingWindow(2000), 70, {"strategy": "tiles"}),
    "a new output": ((8, 12000, 128), SlidingWindow(500), 100, {"out": "new"}),
    "causal": ((16, 6000, 128), Causal(), 72, {"workers": 7}),
    "a mask of two": ((1, 262144, 32), SlidingWindow(500, 0) & Causal(), 128, {"out": "new"}),
}


@pytest.mark.parametrize("name", LARGE)
def test_above_64_mib_the_projection_is_at_most_one_and_a_half_times_the_peak(name: str, tmp_path: Path) -> None:
    shape, mask, mib, options = LARGE[name]
    options = {"memory": mib * MIB, "mask": mask, "engine": LocalEngine(2)} | options
    plan, peak = measured(Call((shape,) * 3, "float32", True, options.pop("out", "file"), options), tmp_path)
    assert peak <= plan.projected_bytes <= mib * MIB
    assert plan.projected_bytes <= 1.5 * peak, plan.footprint


@pytest.mark.parametrize("out", ["new", "given", "file"])
@pytest.mark.parametrize("heads", [2, 1500])
def test_rows_that_see_nothing_are_made_a_few_at_a_time(heads: int, out: str) -> None:
    T = 16_140 // heads
    options = {"memory": 64 * MIB, "mask": Causal(-T - 5), "strategy": "tiles", "engine": LocalEngine(2)}
    holds_what_it_says(Call(((heads, T, 64),) * 3, "float64", False, out, options))


@pytest.mark.slow
@given(call=filling_calls())
@settings(max_examples=80, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_of_any_call_that_holds_64_mib_the_projection_is_at_most_one_and_a_half_times_the_peak(call: Call) -> None:
    with tempfile.TemporaryDirectory() as directory:
        inputs, options = call.arguments(Path(directory))
        try:
            assume(cqs.plan(*inputs, **options).projected_bytes > 64 * MIB)
        except BudgetError:
            assume(False)
        del inputs, options
        plan, peak = measured(call, Path(directory))
    assert peak <= plan.projected_bytes <= call.options["memory"]
    assert plan.projected_bytes <= 1.5 * peak, plan.footprint


@given(call=calls(most_tokens=1500))
@settings(max_examples=25, phases=[Phase.generate])
def test_a_budget_that_is_named_as_the_least_works(call: Call) -> None:
    with tempfile.TemporaryDirectory() as directory:
        inputs, options = call.arguments(Path(directory))
        with pytest.raises(BudgetError) as refused:
            cqs.plan(*inputs, **(options | {"memory": 1000}))
        named = re.search(r"must be at least ([\d.]+ [KMG]iB)", str(refused.value))
        assert named, str(refused.value)
        least = parse_bytes("memory", named[1])
        assert cqs.plan(*inputs, **(options | {"memory": least})).projected_bytes <= least
        less = int(least * 0.98) - 110_000  # which is more than what rounding up to a tenth of a MiB adds
        with pytest.raises(BudgetError):
            cqs.plan(*inputs, **(options | {"memory": max(less, 1)}))


@pytest.mark.parametrize("W", [1, 2, 3, 7, 21, 43, 57, 111, 157, 211, 273])
def test_the_size_of_a_cover_is_known_without_making_it(W: int) -> None:
    """43, 111, 157 and 211 are q^2 + q + 1 for a q that is no prime power: there is no perfect cover."""
    assert budget.cover_size(W) == cqs.difference_cover(W).size


@given(call=calls(most_tokens=700, most_scores=2e6), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, phases=[Phase.generate])
def test_the_result_is_exact_under_any_budget(call: Call, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal(shape).astype(call.dtype) for shape in call.shapes)
    options = call.options | {"memory": call.options["memory"] % (12 * MIB), "return_lse": True}
    with tempfile.TemporaryDirectory() as directory:
        inputs, made = call.arguments(Path(directory))
        for i, array in enumerate((q, k, v)):
            if call.is_staged:
                np.save(inputs[i], array)
            else:
                inputs[i] = array
        try:
            out, lse = cqs.attention(*inputs, **(made | options))
        except BudgetError:
            assume(False)
        scores = {name: options[name] for name in ("softcap", "bias", "score_mod") if name in options}
        assert_exact(out, q, k, v, lse=lse, mask=options["mask"], **scores)


def test_the_same_plan_gives_the_same_bits_from_files_and_on_any_number_of_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((4, 1500, 32), dtype=np.float32) for _ in range(3)]
    paths = [tmp_path / f"{name}.npy" for name in "qkv"]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    for strategy in ("cqs", "tiles"):
        outputs = {
            cqs.attention(*paths, workers=7, strategy=strategy, memory="64 MiB", engine=LocalEngine(n)).tobytes()
            for n in (1, 2, 3)
        }
        assert len(outputs) == 1


@pytest.mark.parametrize(
    ("memory", "expected"),
    [("64 MiB", 64 << 20), ("64mb", 64_000_000), ("1.5 GiB", 3 << 29), (" 2k ", 2000), ("12", 12), (77, 77)],
)
def test_budgets_are_read_with_their_units(memory: object, expected: int) -> None:
    assert parse_bytes("memory", memory) == expected


@pytest.mark.parametrize("memory", ["", "MiB", "12 XB", "-3 MiB", "1e3", "i", "5 ib", -1, 2.5, True, [1]])
def test_budgets_that_are_none_are_refused(memory: object) -> None:
    x = np.zeros((1, 10, 4))
    with pytest.raises(OptionError, match=r"`memory` must be a number of bytes, got .*'64 MiB'"):
        cqs.attention(x, x, x, memory=memory)


def test_a_budget_that_is_too_small_says_what_would_do_and_how() -> None:
    x = np.zeros((4, 4000, 64), np.float32)
    with pytest.raises(BudgetError, match=r"at least [\d.]+ MiB .*got 1\.0 MiB; raise it, or give `out=`"):
        cqs.attention(x, x, x, memory="1 MiB")
    with pytest.raises(BudgetError, match=r"got 5\.0 MiB; raise it, or leave `workers` out"):
        cqs.attention(x, x, x, memory="5 MiB", workers=1)


def test_the_least_works_where_fewer_tasks_would_not_hold_more() -> None:
    """What is held does not shrink with every further task, so that a search for the fewest may miss what fits."""
    shapes = [(2, 3722, 8)] * 3
    with pytest.raises(BudgetError) as refused:
        cqs.plan(*shapes, dtype="float16", memory="64 KiB")
    least = parse_bytes("memory", re.search(r"at least ([\d.]+ \w+)", str(refused.value))[1])
    assert cqs.plan(*shapes, dtype="float16", memory=least).projected_bytes <= least


@pytest.mark.parametrize("in_flight", [1, 192])
def test_a_machine_of_many_threads_is_planned_for_with_few_candidates(in_flight: int) -> None:
    problem = cqs.plan(*[(32, 100_000, 128)] * 3, dtype="float16").problem
    families = list(budget._families(problem, ("cqs", "tiles"), Setting(threads=192, in_flight=in_flight)))
    assert len({family.at(1).setting.threads for family in families}) == 9  # 192, 128, 64, ... 1
    assert any(family.at(1).setting.threads == 192 for family in families)


@pytest.mark.parametrize("tokens", [10**6, 10**9])
def test_more_heads_move_no_more_than_each_head_by_itself(tokens: int) -> None:
    from cqs.schedule import Scheduler

    setting = Setting(threads=2, in_flight=1, is_staged=True, output="sink", keeps_lse=False)
    one, eight = (
        Scheduler(strategy="tiles", memory="1 GiB", setting=setting).plan(cqs.plan(*[(h, tokens, 64)] * 3).problem)
        for h in (1, 8)
    )
    assert eight.traffic.moved <= 8 * one.traffic.moved


def test_ring_and_tree_are_not_planned_under_a_budget() -> None:
    x = np.zeros((1, 10, 4))
    with pytest.raises(OptionError, match=r"`strategy` must be 'cqs', 'tiles' or 'auto' under a budget, got 'ring'"):
        cqs.attention(x, x, x, memory="1 GiB", strategy="ring")


def test_auto_takes_the_strategy_that_is_predicted_to_be_faster() -> None:
    from cqs.schedule import Scheduler

    setting = Setting(threads=2, in_flight=1, is_staged=True, output="sink", keeps_lse=False)
    problem = cqs.plan(*[(1, 262144, 64)] * 3).problem
    for memory in ("16 MiB", "64 MiB", "256 MiB"):
        scheduler = Scheduler(memory=memory, setting=setting)
        plans = scheduler.alternatives(problem)
        assert set(plans) == {"cqs", "tiles"}
        chosen = scheduler.plan(problem)
        assert chosen.seconds() <= 1.02 * min(plan.seconds() for plan in plans.values())


@pytest.mark.parametrize(
    "mask", [Documents([33] * 3000), ~SlidingWindow(20_000, 20_000)], ids=["documents", "not near"]
)
def test_planning_asks_a_mask_little_however_many_tasks_there_may_be(
    mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    reached = traffic._reached
    monkeypatch.setattr(traffic, "_reached", lambda *given: asked.append(1) or reached(*given))
    cqs.plan(*[(2, 99_000, 8)] * 3, mask=mask, memory="8 MiB")
    assert 100 < len(asked) < 30_000
