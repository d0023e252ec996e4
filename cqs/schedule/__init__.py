"""From a problem to a plan: groups of tokens, tasks, and what they cost. Integers only."""

from cqs.schedule.bundling import SMALL_ROWS, worth_one_piece
from cqs.schedule.call_shape import LEAST_ROWS, CallShape
from cqs.schedule.cost import Rates
from cqs.schedule.cut import Cut
from cqs.schedule.divide import divide
from cqs.schedule.grain import BLOCK_BYTES, Grain, Setting
from cqs.schedule.layout import BalancedLayout, GridLayout, Layout, QuorumLayout, RingLayout, TreeLayout
from cqs.schedule.memory import UNSEEN_BYTES, WRITE_BYTES, Footprint, SlotBytes
from cqs.schedule.plan import Plan
from cqs.schedule.remembered import forget_plans, planned
from cqs.schedule.scheduler import Scheduler, default_workers
from cqs.schedule.scratch import (
    LEAST_SPLIT_LANES,
    MERGE_BLOCK,
    MOST_ITEMS,
    PANEL,
    TILE_KEYS,
    TILE_WIDTH,
    NumbaBlock,
    UnitShape,
    blockwise_block,
    careful_bytes,
    numba_block,
    numpy_rows,
    numpy_unit,
    scratch_bytes,
)
from cqs.schedule.task import Bundle, Group, HeadBlock, Read, Strip, Task, Tile, even_cuts, group, parts_of, reads
from cqs.schedule.traffic import Traffic

__all__ = [
    "BLOCK_BYTES",
    "LEAST_ROWS",
    "LEAST_SPLIT_LANES",
    "MERGE_BLOCK",
    "MOST_ITEMS",
    "PANEL",
    "SMALL_ROWS",
    "TILE_KEYS",
    "TILE_WIDTH",
    "UNSEEN_BYTES",
    "WRITE_BYTES",
    "BalancedLayout",
    "Bundle",
    "CallShape",
    "Cut",
    "Footprint",
    "Grain",
    "GridLayout",
    "Group",
    "HeadBlock",
    "Layout",
    "NumbaBlock",
    "Plan",
    "QuorumLayout",
    "Rates",
    "Read",
    "RingLayout",
    "Scheduler",
    "Setting",
    "SlotBytes",
    "Strip",
    "Task",
    "Tile",
    "Traffic",
    "TreeLayout",
    "UnitShape",
    "blockwise_block",
    "careful_bytes",
    "default_workers",
    "divide",
    "even_cuts",
    "forget_plans",
    "group",
    "numba_block",
    "numpy_rows",
    "numpy_unit",
    "parts_of",
    "planned",
    "reads",
    "scratch_bytes",
    "worth_one_piece",
]
