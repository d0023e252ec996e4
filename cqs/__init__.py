"""Exact softmax attention over long sequences, cut by cyclic quorum sets into equal, independent tasks.

>>> import numpy as np, cqs
>>> q = k = v = np.ones((2, 100, 8), dtype=np.float32)
>>> cqs.attention(q, k, v, workers=7).shape
(2, 100, 8)

Data flows one way: `AttentionProblem` -> `Scheduler` -> `Plan` -> `Task` -> `Worker` -> `Partial` -> `Tiler` -> output.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from cqs import engines, errors, events, kernels, masks, quorum, scores
from cqs.api import attention, plan
from cqs.errors import CQSError
from cqs.partial import Partial, merge
from cqs.problem import AttentionProblem
from cqs.quorum import CyclicQuorumSet, DifferenceCover, difference_cover
from cqs.schedule import Plan, Scheduler, Strip, Task, Tile, default_workers, divide
from cqs.sources import ArraySource
from cqs.tiler import Tiler
from cqs.worker import TaskResult, Worker

if TYPE_CHECKING:
    from cqs import plot as plot
    from cqs import testing as testing
    from cqs import trace as trace
    from cqs import verify as verify

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
    "errors",
    "events",
    "kernels",
    "masks",
    "merge",
    "plan",
    "quorum",
    "scores",
]

# public modules that a call of `attention` does without: imported when they are first asked for
_LATER = ("plot", "testing", "trace", "verify")

if not TYPE_CHECKING:  # or every name would seem to be there

    def __getattr__(name: str) -> ModuleType:
        if name in _LATER:
            return import_module(f"cqs.{name}")
        raise AttributeError(f"module 'cqs' has no attribute {name!r}", name=name, obj=import_module("cqs"))


def __dir__() -> list[str]:
    return sorted([*__all__, *_LATER, "__version__"])
