"""The strategies side by side: what each would hold, move, compute and take."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from cqs.cli.wording import in_options
from cqs.errors import CQSError
from cqs.schedule import Plan, Rates, Scheduler
from cqs.units import format_bytes, format_count

__all__ = ["alternatives", "comparison_json", "comparison_table", "format_duration"]

_YEAR = 365.25 * 86400


def alternatives(scheduler: Scheduler, picked: Plan) -> dict[str, Plan | CQSError]:
    """Return the plan of each strategy that a run could take, or the error that says why it cannot."""
    found: dict[str, Plan | CQSError] = {}
    for name in ("cqs", "tiles") if picked.problem.n_queries == picked.problem.n_keys else ("tiles",):
        try:
            is_picked = name == picked.strategy
            found[name] = picked if is_picked else replace(scheduler, strategy=name).plan(picked.problem)
        except CQSError as error:
            found[name] = error
    return {picked.strategy: picked} | found


def comparison_table(
    found: Mapping[str, Plan | CQSError], picked: Plan, rates: Rates, why: str = ""
) -> tuple[list[list[str]], list[str]]:
    """Return rows of a table with a column for each strategy, the first row its head; and remarks.

    Parameters
    ----------
    found : mapping
        Of `alternatives`.
    picked : Plan
        The one that a run would take.
    rates : Rates
        Of the machine, for the predicted times.
    why : str
        Why the picked one was taken, for the case that another would be faster.
    """
    plans = {name: plan for name, plan in found.items() if isinstance(plan, Plan)}
    rows = [["", *(f"{name} (picked)" if name == picked.strategy else name for name in plans)]]
    cells = [_cells(plan, rates) for plan in plans.values()]
    rows += [[name, *(cell[name] for cell in cells)] for name in cells[0]]
    remarks = [
        f"{name} cannot: {in_options(str(error))}" for name, error in found.items() if isinstance(error, CQSError)
    ]
    return rows, remarks + _reason(plans, picked, rates, why)


def _cells(plan: Plan, rates: Rates) -> dict[str, str]:
    p, t = plan.problem, plan.traffic
    cover = "" if plan.base is None or plan.workers == 1 else f", each with {len(plan.base)} groups"
    return {
        "W": f"{plan.workers:,}{cover}",
        "tasks": f"{len(plan):,}",
        "bytes held": f"{format_bytes(plan.projected_bytes)} at most",
        "bytes read": format_bytes(t.read),
        "bytes spilled": format_bytes(t.spilled),
        "bytes written": format_bytes(t.written),
        "bytes moved": format_bytes(t.moved),
        "work": f"{format_count(p.flops(p.n_pairs))}FLOP",
        "predicted time": format_duration(plan.seconds(rates)),
    }


def _reason(plans: Mapping[str, Plan], picked: Plan, rates: Rates, why: str) -> list[str]:
    """Say how much the other strategy would cost, and whether it would be the better one at these rates."""
    remarks = []
    for name, other in plans.items():
        if name != picked.strategy:
            times, ours = other.traffic.moved / max(picked.traffic.moved, 1), picked.seconds(rates)
            ratio = other.seconds(rates) / max(ours, 1e-12)
            remarks.append(f"{name} would move {_times(times, 'many bytes')}, and take {_times(ratio, 'long')}.")
            if ratio < 0.99:
                faster = f"At these rates {name} would be faster: ask for it with --strategy {name}"
                remarks.append(f"{faster} ({why})." if why else f"{faster}.")
    return remarks


def _times(ratio: float, what: str) -> str:
    return f"as {what}" if f"{ratio:.3g}" == "1" else f"{ratio:.3g} times as {what}"


def comparison_json(found: Mapping[str, Plan | CQSError], picked: Plan, rates: Rates) -> dict[str, Any]:
    """Return the comparison as JSON values."""
    strategies: dict[str, Any] = {}
    for name, plan in found.items():
        if isinstance(plan, CQSError):
            strategies[name] = {"error": in_options(str(plan))}
            continue
        p = plan.problem
        strategies[name] = {
            "workers": plan.workers,
            "n_tasks": len(plan),
            "projected_bytes": plan.projected_bytes,
            "footprint": asdict(plan.footprint),
            "traffic": asdict(plan.traffic) | {"moved": plan.traffic.moved},
            "flop": p.flops(p.n_pairs),
            "seconds": plan.seconds(rates),
        }
    return {"picked": picked.strategy, "rates": asdict(rates), "strategies": strategies}


def format_duration(seconds: float) -> str:
    """Write a duration that may be long, with three digits.

    >>> format_duration(75), format_duration(7200), format_duration(1e6), format_duration(2e10)
    ('75 s', '2 h', '11.6 days', '634 years')
    """
    for scale, unit in ((_YEAR, "years"), (86400, "days"), (3600, "h")):
        if seconds >= scale * (2 if unit != "h" else 1):
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
