"""The Tiler of a map: sums of tasks are added up, each task exactly once."""

import numpy as np

from cqs.in_order import InOrder
from cqs.maps.bins import Bins
from cqs.maps.kernel import Sums
from cqs.maps.worker import MapResult
from cqs.schedule import Plan

__all__ = ["MapAdder"]


class MapAdder:
    """Adds up the results of a plan's tasks, in the order of the tasks, whatever order they come in.

    Parameters
    ----------
    plan : Plan
        Whose tasks are to come.
    bins : two of Bins
        Of queries and of keys.
    """

    def __init__(self, plan: Plan, bins: tuple[Bins, Bins]) -> None:
        p = plan.problem
        self._sizes = bins[0].sizes
        self._sums = np.zeros((*p.batch, p.n_heads, *map(len, bins)))
        self._results = InOrder[MapResult](plan, self._sum)

    def add(self, result: MapResult) -> None:
        """Take the result of one task.

        Raises
        ------
        TileError
            If the task is not of this plan, or came before.
        """
        self._results.add(result)

    def result(self) -> Sums:
        """Return the map, `(*B, H, rows, columns)`, once every task has come.

        Raises
        ------
        TileError
            Naming a task that never came.
        """
        self._results.check_complete()
        return self._sums / self._sizes[:, None]

    def _sum(self, result: MapResult) -> None:
        self._sums[..., result.rows[:, None], result.columns] += result.sums
