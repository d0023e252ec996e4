"""Exact softmax attention over long sequences, cut by cyclic quorum sets into equal, independent tasks.

>>> import numpy as np, cqs
>>> q = k = v = np.ones((2, 100, 8), dtype=np.float32)
>>> cqs.attention(q, k, v, workers=7).shape
(2, 100, 8)

Data flows one way: `AttentionProblem` -> `Scheduler` -> `Plan` -> `Task` -> `Worker` -> `Partial` -> `Tiler` -> output.
"""

from cqs import engines, events, kernels, masks, quorum
from cqs.api import attention, plan
from cqs.errors import CQSError
from cqs.partial import Partial, merge
from cqs.problem import AttentionProblem
from cqs.quorum import CyclicQuorumSet, DifferenceCover, difference_cover
from cqs.schedule import Plan, Scheduler, Strip, Task, Tile, default_workers, divide
from cqs.sources import ArraySource
from cqs.tiler import Tiler
from cqs.worker import TaskResult, Worker

__version__ = "0.1.0"

__all__ = [
    "ArraySource",
    "AttentionProblem",
    "CQSError",
    "CyclicQuorumSet",
    "DifferenceCover",
    "Partial",
    "Plan",
    "Scheduler",
    "Strip",
    "Task",
    "TaskResult",
    "Tile",
    "Tiler",
    "Worker",
    "attention",
    "default_workers",
    "difference_cover",
    "divide",
    "engines",
    "events",
    "kernels",
    "masks",
    "merge",
    "plan",
    "quorum",
]
