"""Results of tasks that come in any order are passed on in the order of the tasks, each exactly once."""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from cqs.errors import TileError
from cqs.schedule import Plan, Task

__all__ = ["InOrder"]


class _Result(Protocol):
    @property
    def task(self) -> Task:
        """What it is of."""


R = TypeVar("R", bound=_Result)


class InOrder(Generic[R]):
    """Passes on the results of a plan's tasks; one that is early waits. So sums have the same bits for any engine.

    Parameters
    ----------
    plan : Plan
        Whose tasks are to come.
    take : function
        Is given each result.
    """

    def __init__(self, plan: Plan, take: Callable[[R], None]) -> None:
        self._plan, self._take = plan, take
        self._waiting: dict[int, R] = {}
        self._next = 0

    def add(self, result: R) -> None:
        """Take the result of one task.

        Raises
        ------
        TileError
            If the task is not of this plan, or came before.
        """
        i = result.task.index
        if not 0 <= i < len(self._plan) or result.task != self._plan.task(i):
            raise TileError(f"task {i} is not of this plan; run the tasks that the plan gives")
        if i < self._next or i in self._waiting:
            raise TileError(f"task {i} came twice; each task is added once")
        self._waiting[i] = result
        while self._next in self._waiting:
            self._take(self._waiting.pop(self._next))
            self._next += 1

    def check_complete(self) -> None:
        """Refuse to go on before every task has come.

        Raises
        ------
        TileError
            Naming a task that never came.
        """
        n_missing = len(self._plan) - self._next - len(self._waiting)
        if n_missing:
            raise TileError(f"{n_missing} of {len(self._plan)} tasks never came, the first of them task {self._next}")
