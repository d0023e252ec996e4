"""A plan in a few numbers, for people and as JSON."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from cqs.errors import OptionError
from cqs.masks import NoMask
from cqs.schedule import Plan, Traffic
from cqs.trace import Counters
from cqs.units import format_bytes, format_count

__all__ = ["LoadSummary", "cut_of", "moved", "plan_json", "plan_rows", "summarize"]

_MOST_TILES = 250_000  # tasks are all counted if they have no more tiles, about a second's work; else some
_SAMPLE = 16
_FEW = 4  # of tasks that have very many tiles each
_MOST_A_TASK = 10_000
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
    """Look at the tasks of a plan: at all of a block of heads, or if they are very many at some, spread evenly.

    Blocks of heads are cut alike, and the last may only be smaller.
    """
    n_tasks, W, p = len(plan), plan.workers, plan.problem
    a_task = W if plan.strategy in ("cqs", "ring") else 1  # tiles
    n_chosen = W if W * a_task <= _MOST_TILES else min(W, _SAMPLE if a_task <= _MOST_A_TASK else _FEW)
    chosen = [i * (W - 1) // max(n_chosen - 1, 1) for i in range(n_chosen)]
    counts = [(plan.load(t), plan.held_bytes(t), plan.partial_bytes(t)) for t in map(plan.task, chosen)]
    loads, held, partial = zip(*counts, strict=True)
    whole = p.input_bytes(p.n_queries, p.n_keys)
    return LoadSummary(
        n_tasks, n_tasks if n_chosen == W else n_chosen, min(loads), max(loads), max(held), whole, max(partial)
    )


def plan_json(plan: Plan, summary: LoadSummary) -> dict[str, Any]:
    """Return the plan as `Plan.to_json` writes it, and its summary as "loads".

    A mask that is an array, which `to_json` refuses, is described in words; of that no plan can be made again.
    """
    try:
        values = json.loads(plan.to_json())
    except OptionError:
        bare = replace(plan, problem=replace(plan.problem, mask=NoMask()))
        values = json.loads(bare.to_json())
        values["problem"]["mask"] = str(plan.problem.mask)
    return {**values, "loads": asdict(summary)}


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
        ("cut", cut_of(plan)),
        ("work", f"{format_count(p.flops(p.n_pairs))}FLOP, {p.n_pairs:,} pairs a head"),
        ("a task computes", _range(s.least_pairs, s.most_pairs) + " pairs a head" + counted),
        ("a task reads", f"{format_bytes(s.held_bytes)} at most{share}"),
        ("a task returns", f"{format_bytes(s.partial_bytes)} at most"),
        ("memory", f"{format_bytes(plan.projected_bytes)} at most: {plan.footprint}"),
        *([("kernel", plan.computed_by)] if plan.computed_by else []),
    ]


def moved(bytes_of: Traffic | Counters) -> str:
    """Return the bytes that a plan moves, or that a run has moved, in words."""
    spilled = f"spilled {format_bytes(bytes_of.spilled)}, " if bytes_of.spilled else ""
    return f"read {format_bytes(bytes_of.read)}, {spilled}wrote {format_bytes(bytes_of.written)}"


def cut_of(plan: Plan) -> str:
    """Return how a plan cuts the problem, in words."""
    if len(plan) == 1:
        return "1 task, which computes everything"
    W, of_heads = plan.workers, ""
    if len(plan) > W:
        of_heads = f" for each of {len(plan) // W:,} blocks of heads"
    if plan.base is None:
        kind = {"tiles": "a grid of rectangles", "ring": "a ring of key groups", "tree": "a tree over key groups"}
        return f"{W:,} tasks{of_heads}, {kind[plan.strategy]}"
    base = f" (base {' '.join(map(str, plan.base))})" if len(plan.base) <= _LONGEST_BASE else ""
    return f"{W:,} tasks{of_heads}, each with {len(plan.base)} of {W:,} groups{base}"


def _range(least: int, most: int) -> str:
    if least == most:
        return f"{least:,}"
    return f"{least:,} to {most:,}"
