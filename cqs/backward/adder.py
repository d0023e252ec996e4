"""The Tiler of the backward pass: what tasks add to the gradients is summed up, each task exactly once."""

from cqs.backend import dtype_of, namespace_of, quiet_floats
from cqs.backward.bias import BiasShape
from cqs.backward.gradients import Gradients, GradientsWithBias
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
    bias : array, optional
        The bias, if its gradient is asked for.
    """

    def __init__(self, plan: Plan, like: Array, bias: Array | None = None) -> None:
        self._plan, self._xp = plan, namespace_of(like=like)
        p: AttentionProblem = plan.problem
        dtype = dtype_of(self._xp, p.accumulator_dtype)
        self._dq, self._dk, self._dv = (
            self._xp.zeros(shape, dtype=dtype, device=like.device) for shape in p.input_shapes.values()
        )
        self._bias, self._shape = bias, None if bias is None else BiasShape.of(bias, p)
        self._dbias: Array = None  # until the first result comes
        self._results = InOrder[GradientResult](plan, self._sum)

    def add(self, result: GradientResult) -> None:
        """Take the result of one task. O((T D + S D + S E) / sqrt(W)) a head, and for a bias O(T S / W).

        Raises
        ------
        TileError
            If the task is not of this plan, or came before.
        """
        with quiet_floats():
            self._results.add(result)

    def result(self) -> Gradients | GradientsWithBias:
        """Return the gradients, in the inputs' type, and that of the bias in its own, once every task has come.

        Raises
        ------
        TileError
            Naming a task that never came.
        """
        self._results.check_complete()
        dtype = dtype_of(self._xp, self._plan.problem.dtype)
        with quiet_floats():  # a gradient may be too large for 16 bits
            found = Gradients(*(self._xp.astype(x, dtype, copy=False) for x in (self._dq, self._dk, self._dv)))
            if self._bias is None:
                return found
            dbias = self._xp.reshape(self._dbias, tuple(self._bias.shape))
            return GradientsWithBias(*found, self._xp.astype(dbias, self._bias.dtype, copy=False))

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
        if self._shape is not None:
            self._sum_bias(self._shape, result)

    def _sum_bias(self, shape: BiasShape, result: GradientResult) -> None:
        if len(self._plan) == 1 and len(result.bias) == 1 and tuple(result.bias[0].shape) == shape.whole:
            assert all(here == there for here, there in shape.places(result.task.bundles[0]))
            self._dbias = result.bias[0]
            return
        if self._dbias is None:
            self._dbias = self._xp.zeros(shape.whole, dtype=self._dq.dtype, device=self._dq.device)
        total = self._dbias[(*shape.heads(result.task.heads), ...)]
        for bundle, part in zip(result.task.bundles, result.bias, strict=True):
            for here, there in shape.places(bundle):
                total[(..., *there)] += part[(..., *here)]
