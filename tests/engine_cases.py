"""Problems, executors and sources for the tests of engines."""

import random
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

import cqs
from cqs.backend.blas import _controller
from cqs.engines import Accept, LocalEngine
from cqs.kernels import KERNELS
from cqs.schedule import Group, Plan
from cqs.sources import ArraySource
from cqs.worker import TaskResult, Worker

# Large enough that a task alone is shared out over threads, small enough to take a fraction of a second
PROBLEMS = {
    "many small tasks": {"shape": (2, 300, 8), "workers": 31},
    "even tasks": {"shape": (4, 900, 32), "workers": 6},
    "tasks on all threads": {"shape": (8, 1600, 64), "workers": 1},
    "a remainder on all threads": {"shape": (8, 1600, 64), "workers": 3},
}


def arrays(name: str) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(PROBLEMS[name]["shape"], dtype=np.float32) for _ in range(3)]


def output(name: str, engine: Any = None, is_causal: bool = True, **options: Any) -> tuple[bytes, bytes]:
    workers = PROBLEMS[name]["workers"]
    options |= {"engine": engine, "workers": workers, "is_causal": is_causal, "return_lse": True}
    out, lse = cqs.attention(*arrays(name), **options)
    return out.tobytes(), lse.tobytes()


@cache
def on_one_thread(name: str, is_causal: bool = True) -> tuple[bytes, bytes]:
    return output(name, LocalEngine(1), is_causal)


def planned(name: str = "many small tasks", source: type = ArraySource) -> tuple[Plan, Worker]:
    q, k, v = arrays(name)
    plan = cqs.plan(q, k, v, workers=PROBLEMS[name]["workers"])
    return plan, Worker(plan.problem, source(q, k, v), KERNELS["numpy"].attend)


class LazyFuture(Future):
    """Asks its executor to work when somebody wants the result."""

    def __init__(self, executor: "ShufflingExecutor") -> None:
        super().__init__()
        self._executor = executor

    def result(self, timeout: float | None = None) -> Any:
        self._executor.work()
        return super().result(timeout)


class ShufflingExecutor(Executor):
    """Finishes what was submitted in an order of its own, and no sooner than somebody waits for it."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._waiting: list[tuple[LazyFuture, Any, tuple]] = []
        self.finished: list[int] = []

    def submit(self, fn, /, *args) -> LazyFuture:
        future = LazyFuture(self)
        self._waiting.append((future, fn, args))
        return future

    def work(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._random.shuffle(waiting)
        for future, fn, args in waiting:
            self.finished.append(args[0].index)
            if not future.cancelled():
                future.set_result(fn(*args))


@dataclass
class ShuffledEngine:
    """An engine of one's own, which hands results back in any order."""

    seed: int

    def run(self, plan: Plan, worker: Worker, accept: Accept, tasks: Sequence[int] | None = None) -> None:
        indices = list(range(len(plan)) if tasks is None else tasks)
        random.Random(self.seed).shuffle(indices)
        for i in indices:
            accept(worker.run(plan.task(i)))


def results_of(engine: Any, **options: Any) -> list[TaskResult]:
    """Run the tasks of `planned(**options)`."""
    results: list[TaskResult] = []
    engine.run(*planned(**options), results.append)
    return results


class BrokenError(Exception):
    """What a broken source raises."""


class BrokenSource(ArraySource):
    """Fails on the groups from the twelfth."""

    def queries(self, group: Group) -> Any:
        if group.index >= 12:
            raise BrokenError(f"group {group.index}")
        return super().queries(group)


def blas_threads() -> list[int]:
    """Threads of the BLAS libraries that were there when the first call limited them; a test may load another later."""
    return [library["num_threads"] for library in _controller().info()]
