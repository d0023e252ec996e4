"""The Tiler: partial results become the output, each tile exactly once."""

from collections import Counter

from cqs.backend import dtype_of, namespace_of, quiet_floats
from cqs.errors import DTypeError, TileError
from cqs.partial import Partial, merge_into
from cqs.problem import dtype_name
from cqs.schedule import Plan, Strip, Task
from cqs.sources import check_out
from cqs.types import Array
from cqs.worker import TaskResult

__all__ = ["Tiler"]


class Tiler:
    """Merges the results of a plan's tasks into the output, and refuses anything that would make it wrong.

    Parameters
    ----------
    plan : Plan
        Whose tasks are to come.
    out : array, `(*B, H, T, E)`
        Where the output is written, of the inputs' type or the accumulators'. While it has the accumulators' type it
        is itself the accumulator.
    sink_logits : array, `(*B, H, 1)`, optional
        Scores that take part in every softmax and have no value.

    Notes
    -----
    Results are merged in the order of their tasks, whatever order they come in: one that is early waits. So the output
    is bitwise the same for any engine. Beyond the output the Tiler holds the log-sum-exp, what waits, and for
    float16 and bfloat16 output an accumulator in float32.
    """

    def __init__(self, plan: Plan, out: Array, sink_logits: Array | None = None) -> None:
        problem = plan.problem
        check_out(out, problem)
        xp = namespace_of(out=out)
        dtype = dtype_of(xp, problem.accumulator_dtype)
        self._plan = plan
        self._xp = xp
        self._out = out
        accumulator = out if out.dtype == dtype else xp.empty(out.shape, dtype=dtype, device=out.device)
        accumulator[...] = 0
        self._sum = Partial(accumulator, xp.full(problem.lse_shape, -xp.inf, dtype=dtype, device=out.device))
        self._sink_logits = sink_logits
        self._waiting: dict[int, TaskResult] = {}
        self._next = 0  # the task whose result is merged next
        self._begun: set[int] = set()  # first queries of the groups that hold something already

    def add(self, result: TaskResult) -> None:
        """Take the result of one task. O(T E / sqrt(W)) a head.

        Raises
        ------
        TileError
            If the task is not of this plan, has tiles that the plan does not give it or lacks some, came before, or
            has a result of the wrong shape.
        DTypeError
            If a partial result is of another type than the accumulator, in which it would be rounded unnoticed.
        """
        self._check(result)
        self._waiting[result.task.index] = result
        while self._next in self._waiting:
            ready = self._waiting.pop(self._next)
            with quiet_floats():
                self._merge(ready)
            self._next += 1

    @property
    def n_added(self) -> int:
        """How many results have come."""
        return self._next + len(self._waiting)

    def result(self) -> Partial:
        """Return the output and its log-sum-exp, once every task has come.

        Raises
        ------
        TileError
            Naming a tile that never came.
        """
        if self._next < len(self._plan):
            n_missing = len(self._plan) - self.n_added
            what = _first_tile(self._plan.task(self._next))
            raise TileError(
                f"{n_missing} of {len(self._plan)} tasks never came, the first of them task {self._next} with {what}"
            )
        if self._sink_logits is not None:
            self._add_sinks(self._sink_logits)
            self._sink_logits = None
        if self._out is not self._sum.out:
            self._out[...] = self._xp.astype(self._sum.out, self._out.dtype)
        return Partial(self._out, self._sum.lse)

    def _add_sinks(self, logits: Array) -> None:
        """Give each softmax one more term, without a value."""
        xp, (out, lse) = self._xp, (self._sum.out, self._sum.lse)
        with quiet_floats():
            top = xp.maximum(lse, logits)
            shift = xp.where(top == -xp.inf, xp.zeros_like(top), top)
            total = shift + xp.log(xp.exp(lse - shift) + xp.exp(logits - shift))
            weight = xp.where(lse == -xp.inf, xp.zeros_like(lse), xp.exp(lse - total))
            out *= weight[..., None]
            lse[...] = xp.where(top == -xp.inf, top, total)

    def _merge(self, result: TaskResult) -> None:
        merged: list[tuple[Partial, Partial]] = []
        for strip, part in zip(result.task.strips, result.partials, strict=True):
            rows = slice(strip.query.start, strip.query.stop)
            total = Partial(self._sum.out[..., rows, :], self._sum.lse[..., rows])
            if rows.start in self._begun:
                merged.append((total, part))
            else:
                self._begun.add(rows.start)
                total.out[...], total.lse[...] = part.out, part.lse
        if merged:
            merge_into(self._xp, *zip(*merged, strict=True))

    def _check(self, result: TaskResult) -> None:
        index, n_tasks = result.task.index, len(self._plan)
        if not 0 <= index < n_tasks:
            raise TileError(f"task {index} with {_first_tile(result.task)} is foreign: the plan has {n_tasks} tasks")
        planned = self._plan.task(index)
        if result.task != planned:
            came, due = set(result.task.tiles), set(planned.tiles)
            for tile in result.task.tiles:
                if tile not in due:
                    raise TileError(f"{tile} is foreign: the plan does not give it to task {index}")
            doubled = next((tile for tile, n in Counter(result.task.tiles).items() if n > 1), None)
            missing = next((tile for tile in planned.tiles if tile not in came), None)
            what, fault = (doubled, "doubled") if doubled else (missing, "missing") if missing else ("a tile", "moved")
            raise TileError(f"{what} of task {index} is {fault}: the task is not the plan's")
        if index < self._next or index in self._waiting:
            raise TileError(f"task {index} with {_first_tile(planned)} came twice; each task is added once")
        for strip, partial in zip(planned.strips, result.partials, strict=False):
            self._check_partial(strip, partial)
        if len(result.partials) < len(planned.strips):
            tile = next(planned.strips[len(result.partials)].tiles)
            raise TileError(f"{tile} is missing from the result of task {index}")
        if len(result.partials) > len(planned.strips):
            raise TileError(f"task {index} has {len(planned.strips)} strips, but {len(result.partials)} results came")

    def _check_partial(self, strip: Strip, partial: Partial) -> None:
        tile, expected = next(strip.tiles), (*self._out.shape[:-2], len(strip.query), self._out.shape[-1])
        if tuple(partial.out.shape) != expected or tuple(partial.lse.shape) != expected[:-1]:
            raise TileError(f"the result for {tile} must have shape {expected}, got {tuple(partial.out.shape)}")
        dtype = dtype_name(self._sum.out)
        for name, array in (("out", partial.out), ("lse", partial.lse)):
            if dtype_name(array) != dtype:
                rule = f"have the accumulator's type, {dtype}, in the result for {tile}"
                remedy = "partial results are kept in `problem.accumulator_dtype`, whatever the inputs' type"
                raise DTypeError.of(name, rule, dtype_name(array), remedy)


def _first_tile(task: Task) -> str:
    return str(next(task.tiles, "no tile"))
