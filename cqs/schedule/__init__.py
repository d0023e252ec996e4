"""From a problem to a plan: groups of tokens, tasks, and what they cost. Integers only."""

from cqs.schedule.layout import BalancedLayout, GridLayout, Layout, QuorumLayout
from cqs.schedule.plan import Plan
from cqs.schedule.scheduler import Scheduler, default_workers
from cqs.schedule.task import Bundle, Group, Strip, Task, Tile, group

__all__ = [
    "BalancedLayout",
    "Bundle",
    "GridLayout",
    "Group",
    "Layout",
    "Plan",
    "QuorumLayout",
    "Scheduler",
    "Strip",
    "Task",
    "Tile",
    "default_workers",
    "group",
]
