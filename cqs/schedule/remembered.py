"""Plans that are asked for again and again, as by every layer of a model, are made once."""

from functools import lru_cache

from cqs.machine import available_cpus
from cqs.problem import AttentionProblem
from cqs.schedule.plan import Plan
from cqs.schedule.scheduler import Scheduler

__all__ = ["forget_plans", "planned"]


def planned(scheduler: Scheduler, problem: AttentionProblem) -> Plan:
    """Return `scheduler.plan(problem)`, the same plan as before if it is one of the last few.

    Not of a mask that is an array or a function: what lives on with a plan is to be small.
    """
    is_small = problem.mask.has_edges
    return _planned(scheduler, problem, available_cpus()) if is_small else scheduler.plan(problem)


@lru_cache(maxsize=16)
def _planned(scheduler: Scheduler, problem: AttentionProblem, n_cpus: int) -> Plan:
    return scheduler.plan(problem)


def forget_plans() -> None:
    """Make every plan anew, for whoever changes what plans follow from."""
    _planned.cache_clear()
