"""A plan in a few numbers, for people and as JSON."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from cqs.schedule import Plan
from cqs.units import format_bytes, format_count

__all__ = ["LoadSummary", "plan_json", "plan_rows", "summarize"]

_MOST_TASKS = {"cqs": 500, "tiles": 5000}  # all are counted up to here, about a second's work; else some
_SAMPLE = 16
_LONGEST_BASE = 24


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """What the tasks of a plan have in common.

    Parameters
    ----------
    n_tasks, n_counted : int
        W, and how many of the tasks were looked at.
    least_pairs, most_pairs : int
        Visible (query, key) pairs of one head that a task computes.
    held_bytes, whole_bytes : int
        The most that a task reads of queries, keys and values, and all of them.
    partial_bytes : int
        The most that a task returns.
    """

    n_tasks: int
    n_counted: int
    least_pairs: int
    most_pairs: int
    held_bytes: int
    whole_bytes: int
    partial_bytes: int


def summarize(plan: Plan) -> LoadSummary:
    """Look at the tasks of a plan: at all, or if they are very many at 16 that are spread evenly."""
    n_tasks, p = len(plan), plan.problem
    spread = (i * (n_tasks - 1) // (_SAMPLE - 1) for i in range(_SAMPLE))
    chosen = range(n_tasks) if n_tasks <= _MOST_TASKS[plan.strategy] else spread
    counts = [(plan.load(t), plan.held_bytes(t), plan.partial_bytes(t)) for t in map(plan.task, chosen)]
    loads, held, partial = zip(*counts, strict=True)
    whole = p.input_bytes(p.n_queries, p.n_keys)
    return LoadSummary(n_tasks, len(counts), min(loads), max(loads), max(held), whole, max(partial))


def plan_json(plan: Plan, summary: LoadSummary) -> dict[str, Any]:
    """Return the plan as `Plan.to_json` writes it, and its summary as "loads"."""
    return {**json.loads(plan.to_json()), "loads": asdict(summary)}


def plan_rows(plan: Plan, summary: LoadSummary) -> list[tuple[str, str]]:
    """Return names and values of what matters about a plan."""
    p, s = plan.problem, summary
    mask = "" if p.mask.hides_nothing else f", {p.mask}"
    shapes = f"q {(*p.batch, p.n_heads, p.n_queries, p.width)}, k {(*p.batch, p.n_kv_heads, p.n_keys, p.width)}"
    shapes += f", v {(*p.batch, p.n_kv_heads, p.n_keys, p.value_width)}"
    share = f", {100 * s.held_bytes / s.whole_bytes:.3g}% of all {format_bytes(s.whole_bytes)}" if s.whole_bytes else ""
    counted = "" if s.n_counted == s.n_tasks else f" (counted in {s.n_counted} tasks of {s.n_tasks:,})"
    return [
        ("problem", f"{shapes}, {p.dtype}{mask}"),
        ("cut", _cut(plan)),
        ("work", f"{format_count(p.flops(p.n_pairs))}FLOP, {p.n_pairs:,} pairs a head"),
        ("a task computes", _range(s.least_pairs, s.most_pairs) + " pairs a head" + counted),
        ("a task reads", f"{format_bytes(s.held_bytes)} at most{share}"),
        ("a task returns", f"{format_bytes(s.partial_bytes)} at most"),
    ]


def _cut(plan: Plan) -> str:
    if len(plan) == 1:
        return "1 task, which computes everything"
    if plan.base is None:
        return f"{len(plan):,} tasks, a grid of rectangles"
    base = f" (base {' '.join(map(str, plan.base))})" if len(plan.base) <= _LONGEST_BASE else ""
    return f"{len(plan):,} tasks, each with {len(plan.base)} of {len(plan):,} groups{base}"


def _range(least: int, most: int) -> str:
    if least == most:
        return f"{least:,}"
    return f"{least:,} to {most:,}"
