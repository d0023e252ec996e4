"""Plans and what they are made of are values: small, lazy, written and read back, printed, pickled, compared."""

import gc
import json
import pickle
import time
import tracemalloc
import weakref
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cqs
from cqs.errors import CQSError, OptionError, QuorumError
from cqs.kernels import Region
from cqs.masks import Causal, Dense, Documents, NoMask
from cqs.problem import DTYPES, AttentionProblem
from cqs.quorum import CyclicQuorumSet, DifferenceCover
from cqs.schedule import Bundle, GridLayout, Group, Plan, QuorumLayout, Scheduler, Strip, Task, Tile
from cqs.units import plural


def problem_of(T: int, S: int | None = None, **changes) -> AttentionProblem:
    problem = AttentionProblem((2, 3), 4, 2, T, T if S is None else S, 8, 5, "float32", 0.5, NoMask())
    return replace(problem, **changes)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    T = draw(st.integers(0, 100))
    G = draw(st.integers(1, 4))
    problem = AttentionProblem(
        batch=tuple(draw(st.lists(st.integers(0, 3), max_size=3))),
        n_heads=G * draw(st.integers(1, 3)),
        n_kv_heads=G,
        n_queries=T,
        n_keys=draw(st.one_of(st.just(T), st.integers(0, 100))),
        width=draw(st.integers(1, 64)),
        value_width=draw(st.integers(1, 64)),
        dtype=draw(st.sampled_from(sorted(DTYPES))),
        scale=draw(st.floats(allow_nan=False, allow_infinity=False)),
        mask=draw(st.one_of(st.just(NoMask()), st.builds(Causal, st.integers(-50, 50)))),
    )
    return Scheduler(workers=draw(st.integers(1, 200))).plan(problem)


# Written and read back


@given(plan=plans())
def test_a_plan_written_as_json_comes_back_equal_with_equal_tasks(plan: Plan) -> None:
    back = Plan.from_json(plan.to_json())
    assert back == plan
    assert hash(back) == hash(plan)
    assert [back.task(i) for i in range(0, len(plan), 17)] == [plan.task(i) for i in range(0, len(plan), 17)]


def test_a_written_plan_holds_what_the_tasks_follow_from_and_not_the_tasks() -> None:
    plan = Scheduler(workers=200).plan(problem_of(10**6, mask=Causal()))
    assert len(plan.to_json()) < 1000
    assert json.loads(plan.to_json())["format"] == "cqs.plan/1"


def with_changes(**changes: object) -> str:
    """A written plan with some values replaced."""
    return json.dumps(json.loads(Scheduler(workers=7).plan(problem_of(50)).to_json()) | changes)


@pytest.mark.parametrize("format", ["cqs.plan/2", None, 1, "zarr"])
def test_a_plan_in_another_format_is_refused_with_that_format(format) -> None:
    with pytest.raises(OptionError, match=rf"a plan in the format cqs\.plan/1, got .*{format}"):
        Plan.from_json(with_changes(format=format))


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "7", "null", '{"format": "cqs.plan/1"}'])
def test_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"a plan in the format cqs\.plan/1, got"):
        Plan.from_json(text)


@pytest.mark.parametrize("change", [{"base": [0, 1, 4]}, {"base": []}, {"base": [0, 1, 3.5]}, {"workers": 8}], ids=str)
def test_a_plan_with_a_corrupted_cover_is_refused(change) -> None:
    with pytest.raises(QuorumError):
        Plan.from_json(with_changes(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"base": None},
        {"base": 7},
        {"problem": {}},
        {"problem": None},
        {"strategy": "ring"},
        {"strategy": "tiles"},
        {"workers": 0},
        {"workers": 7.5},
        {"workers": "7"},
        {"strategy": "tiles", "base": None, "workers": -3},
    ],
    ids=str,
)
def test_a_plan_whose_parts_do_not_fit_is_refused(change) -> None:
    with pytest.raises(CQSError):
        Plan.from_json(with_changes(**change))


@pytest.mark.parametrize("change", [{"n_queries": -3}, {"n_heads": 3}, {"width": 0}, {"dtype": "int8"}], ids=str)
def test_a_plan_of_a_problem_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    values = json.loads(Scheduler(workers=7).plan(AttentionProblem.of(*[np.zeros((2, 9, 4))] * 3)).to_json())
    with pytest.raises(CQSError):
        Plan.from_json(json.dumps(values | {"problem": values["problem"] | change}))


def test_a_plan_with_a_mask_of_an_unknown_kind_is_refused() -> None:
    values = json.loads(Scheduler(workers=7).plan(problem_of(50)).to_json())
    values["problem"]["mask"] = {"kind": "Spiral"}
    with pytest.raises(CQSError, match="mask"):
        Plan.from_json(json.dumps(values))


# Values

A_GROUP = Group(1, 3, 7)
A_STRIP = Strip(A_GROUP, (A_GROUP, Group(2, 7, 9)))
A_BUNDLE = Bundle((A_STRIP,), A_STRIP.keys, frozenset({(0, 1)}))
VALUES: dict[str, Callable[[], object]] = {
    "AttentionProblem": lambda: problem_of(50),
    "Bundle": lambda: replace(A_BUNDLE),
    "Causal": lambda: Causal(3),
    "CyclicQuorumSet": lambda: CyclicQuorumSet(7),
    "DifferenceCover": lambda: DifferenceCover(7, (0, 1, 3)),
    "GridLayout": lambda: GridLayout(10, 20, 3),
    "Group": lambda: Group(1, 3, 7),
    "NoMask": NoMask,
    "Plan": lambda: Scheduler(workers=7).plan(problem_of(50)),
    "QuorumLayout": lambda: QuorumLayout(10, CyclicQuorumSet(7)),
    "Region": lambda: Region((range(3),), (range(4), range(9, 12)), Causal(1), frozenset({(0, 1)})),
    "Scheduler": lambda: Scheduler(workers=7, strategy="tiles"),
    "Strip": lambda: replace(A_STRIP),
    "Task": lambda: Task(3, (A_BUNDLE,)),
    "Tile": lambda: Tile(A_GROUP, Group(2, 7, 9)),
}


@pytest.mark.parametrize("name", VALUES)
def test_it_is_frozen(name: str) -> None:
    value = VALUES[name]()
    for field in fields(value):
        with pytest.raises(FrozenInstanceError):
            setattr(value, field.name, None)
        with pytest.raises(FrozenInstanceError):
            delattr(value, field.name)
    with pytest.raises((AttributeError, TypeError)):
        value.something_else = 1


@pytest.mark.parametrize("name", VALUES)
def test_it_is_equal_and_hashes_the_same_when_made_again_and_after_pickling(name: str) -> None:
    value, again = VALUES[name](), VALUES[name]()
    assert value is not again
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        back = pickle.loads(pickle.dumps(value, protocol))
        assert type(back) is type(value)
        assert {value, again, back} == {value}


@pytest.mark.parametrize("name", VALUES)
def test_it_differs_from_every_other_value(name: str) -> None:
    others = [VALUES[other]() for other in VALUES if other != name]
    assert VALUES[name]() not in [*others, None, 7]


@pytest.mark.parametrize("name", VALUES)
def test_it_prints_as_what_it_is(name: str) -> None:
    value = VALUES[name]()
    assert repr(value).startswith(f"{name}(")
    assert str(value)
    if name != "CyclicQuorumSet":  # its arguments are not its fields
        names = {"NoMask": NoMask, "Causal": Causal} | {n: getattr(cqs.schedule, n) for n in cqs.schedule.__all__}
        names |= {n: getattr(cqs, n) for n in ("AttentionProblem", "DifferenceCover")} | {"Region": Region}
        if name != "QuorumLayout":
            assert eval(repr(value), names) == value


@given(plan=plans())
def test_plans_and_their_tasks_survive_pickling(plan: Plan) -> None:
    back = pickle.loads(pickle.dumps(plan))
    assert back == plan
    assert pickle.loads(pickle.dumps(plan.task(0))) == plan.task(0) == back.task(0)


@given(plan=plans())
def test_any_plan_prints_its_tasks_and_its_problem(plan: Plan) -> None:
    p, text = plan.problem, str(plan)
    assert text.startswith(f"Plan: {plural(len(plan), 'task')}, ")
    assert f"q {(*p.batch, p.n_heads, p.n_queries, p.width)}" in text
    assert p.dtype in text
    assert str(p.mask) in text


def test_a_task_prints_its_groups_and_a_plan_no_more_than_fits() -> None:
    plan = cqs.plan(*[(4, 7000, 8)] * 3, workers=7)
    groups = "0, 1, 3"
    assert str(plan.task(0)) == f"task 0: 7 tiles, of the queries of groups {groups} and the keys of groups {groups}"
    assert len(str(cqs.plan(*[(1, 10**6, 8)] * 3, workers=10**5).task(0))) < 800
    many = cqs.plan(*[(1, 10**6, 8)] * 3, workers=10**4, mask=Documents([100] * 10**4))
    assert len(str(many)) < 2000


def test_a_tile_prints_its_tokens() -> None:
    assert str(Tile(Group(1, 3, 7), Group(2, 7, 9))) == "tile (1, 2): queries 3..6, keys 7..8"


# What a task costs


@given(plan=plans())
def test_bytes_are_those_of_the_arrays_that_a_task_reads_and_returns(plan: Plan) -> None:
    p = plan.problem
    itemsize = {"float64": 8, "float32": 4}.get(p.dtype, 2)
    for i in range(0, len(plan), 13):
        task = plan.task(i)
        n_queries = len({t for tile in task.tiles for t in tile.query.tokens})
        n_keys = len({t for tile in task.tiles for t in tile.key.tokens})
        q, k, v = ((*p.batch, *rest) for rest in read_shapes(p, n_queries, n_keys))
        assert plan.held_bytes(task) == itemsize * sum(int(np.prod(shape)) for shape in (q, k, v))
        out = (*p.batch, p.n_heads, n_queries, p.value_width)
        assert plan.partial_bytes(task) == max(itemsize, 4) * int(np.prod(out) + 2 * np.prod(out[:-1]))


def read_shapes(p: AttentionProblem, n_queries: int, n_keys: int) -> list[tuple[int, int, int]]:
    """Heads, tokens and width of the queries, keys and values."""
    G = p.n_kv_heads
    return [(p.n_heads, n_queries, p.width), (G, n_keys, p.width), (G, n_keys, p.value_width)]


# Laziness


@pytest.mark.parametrize("options", [{}, {"memory": "8 MiB"}, {"strategy": "tiles"}], ids=str)
def test_nothing_keeps_the_mask_of_a_call_that_is_over(options: dict[str, Any]) -> None:
    x = np.ones((1, 300, 8), np.float32)
    array = np.tri(300, dtype=bool)
    mask = weakref.ref(array)
    cqs.attention(x, x, x, workers=7, mask=Dense(array), **options)
    del array
    gc.collect()
    assert mask() is None


def cost(run: Callable[[], object]) -> tuple[float, int]:
    """Seconds of this thread's CPU and peak bytes of a call, each measured in a call of its own."""
    start = time.thread_time()
    run()
    seconds = time.thread_time() - start
    tracemalloc.start()
    try:
        run()
        return seconds, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LARGE = {
    "300 workers": lambda mask: Scheduler(workers=300).plan(problem_of(10**6, mask=mask)),
    "a million workers": lambda mask: Scheduler(workers=10**6, strategy="tiles").plan(problem_of(10**8, mask=mask)),
}


@pytest.mark.parametrize("mask", [NoMask(), Causal(), Causal(-5)], ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_a_plan_for_many_workers_is_made_and_asked_without_making_its_tasks(name: str, mask) -> None:
    plan = LARGE[name](mask)
    W = len(plan)
    not_yet_asked = iter([W - 1, W // 2])  # a task that was just asked for is remembered
    steps = {
        "plan": lambda: LARGE[name](mask),
        "length": lambda: [len(plan) for _ in range(1000)],
        "first task": lambda: next(plan.tasks()),
        "text": lambda: str(plan),
        "json": lambda: Plan.from_json(plan.to_json()),
        "pickle": lambda: pickle.loads(pickle.dumps(plan)),
        "task": lambda: plan.task(next(not_yet_asked)),
    }
    for step, run in steps.items():
        seconds, peak_bytes = cost(run)
        assert seconds < 0.5, step
        assert peak_bytes < 2**20, step


def test_going_through_many_tasks_keeps_few_of_them() -> None:
    plan = Scheduler(workers=200).plan(problem_of(10**6))
    one = cost(lambda: plan.task(150))[1]
    tracemalloc.start()
    try:
        for _ in plan.tasks():
            pass
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 100 * max(one, 2**14)


def test_the_same_call_again_has_the_same_plan_and_another_has_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(n: int = 100, **options: Any) -> Plan:
        return cqs.plan(*[(2, n, 8)] * 3, **options)

    first = plan(mask=Causal(), memory="64 MiB")
    assert plan(is_causal=True, memory=64 << 20) is first
    others = [plan(99, is_causal=True, memory="64 MiB"), plan(memory="64 MiB"), plan(is_causal=True), plan(workers=7)]
    assert len({first, *others}) == 5
    assert plan(mask=np.eye(100, dtype=bool)) is not plan(mask=np.eye(100, dtype=bool))  # whose array would live on
    many = plan(100_000)
    monkeypatch.setattr("cqs.schedule.remembered.available_cpus", lambda: 61)
    monkeypatch.setattr("cqs.schedule.scheduler.available_cpus", lambda: 61)
    assert plan(100_000).workers > many.workers
