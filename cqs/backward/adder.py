"""The Tiler of the backward pass: what tasks add to the gradients is summed up, each task exactly once."""

from cqs.backend import dtype_of, namespace_of, quiet_floats
from cqs.backward.gradients import Gradients
from cqs.backward.worker import GradientResult
from cqs.in_order import InOrder
from cqs.problem import AttentionProblem
from cqs.schedule import HeadBlock, Plan
from cqs.types import Array

__all__ = ["GradientAdder"]


class GradientAdder:
    """Sums up the results of a plan's tasks, in the order of the tasks, whatever order they come in.

    Parameters
    ----------
    plan : Plan
        Whose tasks are to come.
    like : array
        Of the library and on the device that the gradients are to be of.
    """

    def __init__(self, plan: Plan, like: Array) -> None:
        self._plan, self._xp = plan, namespace_of(like=like)
        p: AttentionProblem = plan.problem
        dtype = dtype_of(self._xp, p.accumulator_dtype)
        self._dq, self._dk, self._dv = (
            self._xp.zeros(shape, dtype=dtype, device=like.device) for shape in p.input_shapes.values()
        )
        self._results = InOrder[GradientResult](plan, self._sum)

    def add(self, result: GradientResult) -> None:
        """Take the result of one task. O((T D + S D + S E) / sqrt(W)) a head.

        Raises
        ------
        TileError
            If the task is not of this plan, or came before.
        """
        with quiet_floats():
            self._results.add(result)

    def result(self) -> Gradients:
        """Return the gradients, in the inputs' type, once every task has come.

        Raises
        ------
        TileError
            Naming a task that never came.
        """
        self._results.check_complete()
        dtype = dtype_of(self._xp, self._plan.problem.dtype)
        with quiet_floats():  # a gradient may be too large for 16 bits
            return Gradients(*(self._xp.astype(x, dtype, copy=False) for x in (self._dq, self._dk, self._dv)))

    def _sum(self, result: GradientResult) -> None:
        heads: HeadBlock | None = result.task.heads
        of_queries = (...,) if heads is None else heads.of_queries
        of_keys = (...,) if heads is None else heads.of_keys
        for strip, dq in zip(result.task.strips, result.queries, strict=True):
            self._dq[(*of_queries, slice(strip.query.start, strip.query.stop), slice(None))] += dq
        for group, (dk, dv) in zip(result.task.key_groups, result.keys, strict=True):
            rows = slice(group.start, group.stop)
            self._dk[(*of_keys, rows, slice(None))] += dk
            self._dv[(*of_keys, rows, slice(None))] += dv
