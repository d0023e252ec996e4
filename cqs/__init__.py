"""Exact softmax attention over long sequences, cut by cyclic quorum sets into equal, independent tasks.

>>> import numpy as np, cqs
>>> q = k = v = np.ones((2, 100, 8), dtype=np.float32)
>>> cqs.attention(q, k, v, workers=7).shape
(2, 100, 8)

Data flows one way: `AttentionProblem` -> `Scheduler` -> `Plan` -> `Task` -> `Worker` -> `Partial` -> `Tiler` -> output.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cqs import (
        autograd,
        engines,
        errors,
        events,
        huggingface,
        jax,
        jobs,
        kernels,
        masks,
        plot,
        quorum,
        scores,
        testing,
        trace,
        verify,
    )
    from cqs.api import attention, plan
    from cqs.backward import attention_backward
    from cqs.errors import CQSError
    from cqs.maps import attention_map
    from cqs.partial import Partial, merge
    from cqs.problem import AttentionProblem
    from cqs.quorum import CyclicQuorumSet, DifferenceCover, difference_cover
    from cqs.schedule import Plan, Scheduler, Strip, Task, Tile, default_workers, divide
    from cqs.sharing import work
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
    "attention_backward",
    "attention_map",
    "autograd",
    "default_workers",
    "difference_cover",
    "divide",
    "engines",
    "errors",
    "events",
    "huggingface",
    "jax",
    "jobs",
    "kernels",
    "masks",
    "merge",
    "plan",
    "plot",
    "quorum",
    "scores",
    "testing",
    "trace",
    "verify",
    "work",
]

# Everything is imported when it is first asked for, so that `import cqs` alone costs next to nothing: the modules of
# the same names as public ones, and these names from others.
_MODULES = (
    "autograd", "engines", "errors", "events", "huggingface", "jax", "jobs", "kernels", "masks", "plot", "quorum",
    "scores", "testing", "trace", "verify",
)  # fmt: skip
_FROM = {
    "api": ("attention", "plan"),
    "backward": ("attention_backward",),
    "errors": ("CQSError",),
    "maps": ("attention_map",),
    "partial": ("Partial", "merge"),
    "problem": ("AttentionProblem",),
    "quorum": ("CyclicQuorumSet", "DifferenceCover", "difference_cover"),
    "schedule": ("Plan", "Scheduler", "Strip", "Task", "Tile", "default_workers", "divide"),
    "sharing": ("work",),
    "sources": ("ArraySource",),
    "tiler": ("Tiler",),
    "worker": ("TaskResult", "Worker"),
}
_WHERE = {name: module for module, names in _FROM.items() for name in names}

if not TYPE_CHECKING:  # or every name would seem to be there

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return import_module(f"cqs.{name}")
        if name not in _WHERE:
            raise AttributeError(f"module 'cqs' has no attribute {name!r}", name=name, obj=import_module("cqs"))
        found = globals()[name] = getattr(import_module(f"cqs.{_WHERE[name]}"), name)
        return found


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
