"""From a problem to a plan: groups of tokens, tasks, and what they cost. Integers only."""

from cqs.schedule.bundle import bundles
from cqs.schedule.layout import GridLayout, QuorumLayout
from cqs.schedule.plan import Plan
from cqs.schedule.scheduler import Scheduler, default_workers
from cqs.schedule.task import Group, Strip, Task, Tile, group, key_groups

__all__ = [
    "GridLayout",
    "Group",
    "Plan",
    "QuorumLayout",
    "Scheduler",
    "Strip",
    "Task",
    "Tile",
    "bundles",
    "default_workers",
    "group",
    "key_groups",
]
