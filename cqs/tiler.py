"""The Tiler: partial results become the output, each tile exactly once."""

from collections import Counter
from math import prod
from pathlib import Path
from time import perf_counter

import numpy as np

from cqs.backend import dtype_of, is_numpy, namespace_of, quiet_floats
from cqs.checks import check_listener
from cqs.errors import DTypeError, OptionError, TileError
from cqs.events import BytesWritten, Emit, ResultMerged
from cqs.kernels import KERNELS
from cqs.partial import LogSum, Partial, merge_weights
from cqs.problem import DTYPES, bytes_of, dtype_name
from cqs.schedule import UNSEEN_BYTES, HeadBlock, Plan, Strip, Task
from cqs.sources import ArraySink, Sink, check_out
from cqs.sums import InMemory, InPlace, Spilled, Sums
from cqs.types import Array, Namespace
from cqs.worker import TaskResult

__all__ = ["Tiler"]

_BROUGHT_BYTES = 64 << 20  # of complete rows that are brought back from a device at a time


class Tiler:
    """Merges the results of a plan's tasks into the output, and refuses anything that would make it wrong.

    Parameters
    ----------
    plan : Plan
        Whose tasks are to come.
    out : array `(*B, H, T, E)`, or Sink
        Where the output is written, of the inputs' type or the accumulators'. An array of the accumulators' type is
        itself the accumulator. To a sink each row is written once, when it is complete.
    sink_logits : array, `(*B, H, 1)`, optional
        Scores that take part in every softmax and have no value; needed if the plan was made with them.
    emit : function, optional
        Told of every `cqs.events.Event`.

    Notes
    -----
    Results are merged in the order of their tasks, whatever order they come in: one that is early waits. So the output
    is bitwise the same for any engine. Beyond the output the Tiler holds the log-sum-exp, what waits, and sums that are
    not complete, unless they are in the output: of all rows of a block of heads, or as the plan says in a scratch file.
    """

    def __init__(self, plan: Plan, out: Array | Sink, sink_logits: Array | None = None, emit: Emit = None) -> None:
        if not isinstance(plan, Plan):
            raise OptionError.of("plan", "be a `Plan`", type(plan).__name__, "make one by `cqs.plan` or `Scheduler`")
        check_listener("emit", emit)
        if plan.setting.has_sink_logits is not (sink_logits is not None):
            rule = "be given" if sink_logits is None else "be left out"
            remedy = "the plan was made with them" if sink_logits is None else "the plan was made without them"
            raise OptionError.of("sink_logits", rule, "none" if sink_logits is None else "some", remedy)
        problem = plan.problem
        self._sink: Sink = out if isinstance(out, (ArraySink, Sink)) else ArraySink(out)
        if isinstance(self._sink, ArraySink):
            check_out(self._sink.array, problem)
            like = self._sink.array
        else:
            like = np.empty(0)
        xp = namespace_of(out=like)
        dtype = dtype_of(xp, problem.accumulator_dtype)
        self._plan = plan
        self._xp = xp
        self._dtype = dtype
        wide = problem.accumulator_dtype
        self._result_dtypes = {"out": (wide, plan.result_dtype), "lse": (wide,), "rest": (wide,)}
        self._device = like.device
        self._emit = emit
        is_in_place = isinstance(self._sink, ArraySink) and like.dtype == dtype and not plan.keeps_sums_on_device
        keeps_lse = plan.setting.keeps_lse or (is_in_place and not plan.completes_each)
        self._lse = xp.full(problem.lse_shape, -xp.inf, dtype=dtype, device=like.device) if keeps_lse else None
        self._sums = None if plan.completes_each else self._new_sums(is_in_place)
        self._sink_logits = sink_logits
        self._waiting: dict[int, TaskResult] = {}
        self._next = 0  # the task whose result is merged next

    def add(self, result: TaskResult) -> None:
        """Take the result of one task, whose arrays are the Tiler's from then on. O(T E / sqrt(W)) a head.

        Raises
        ------
        TileError
            If it is no result of a task, or the task is not of this plan, has tiles that the plan does not give it or
            lacks some, came before, has a result of the wrong shape, or was computed without the changes of scores
            (softcap, bias, `score_mod`) that the plan was made with.
        DTypeError
            If a partial result is of another type than the accumulator, in which it would be rounded unnoticed.
        SinkError
            If rows cannot be written.
        """
        if not isinstance(result, TaskResult):
            remedy = "give what `Worker.run` returns for a task of the plan"
            raise TileError.of("result", "be a `TaskResult`", type(result).__name__, remedy)
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
        """Return the output and its log-sum-exp, once every task has come; None for one that the plan does not keep.

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
        rest = self._sums.total.rest if isinstance(self._sums, InPlace) else None
        return Partial(self._sink.finish(), self._lse, rest)

    def _new_sums(self, is_in_place: bool) -> Sums:
        problem, merge = self._plan.problem, KERNELS[self._plan.setting.kernel].merge
        if is_in_place:
            assert isinstance(self._sink, ArraySink)
            return InPlace(merge, self._xp, Partial(self._sink.array, self._lse))
        if self._plan.setting.is_spilled and not self._plan.setting.devices:
            path = getattr(self._sink, "path", None)
            return Spilled(
                merge, problem.out_shape, np.dtype(problem.accumulator_dtype), path and str(Path(path).parent)
            )
        return InMemory(merge, self._xp, problem.out_shape, self._dtype, self._device)

    def _merge(self, result: TaskResult) -> None:
        task, start = result.task, perf_counter()
        complete = self._plan.completes(task.index)
        spilled = 0 if self._sums is None else self._sums.add(task.heads, task.strips, result.partials)
        if self._emit is not None:
            arrays = (x for p in result.partials for x in (p.out, p.lse, p.rest))
            n_bytes = sum(bytes_of(x) for x in arrays if x is not None)
            self._emit(ResultMerged(task=task.index, start=start, n_bytes=n_bytes, spilled_bytes=spilled))
        if self._sums is None:
            self._pass_on(result, complete)
        elif complete:
            for rows, partial, n_bytes in self._sums.take(task.heads, complete):
                self._bring(task, rows, partial, n_bytes)
                del partial  # before the next is read

    def _pass_on(self, result: TaskResult, complete: range) -> None:
        """Write the rows of a task that completes its own, and those of them that see nothing."""
        first = complete.start
        for strip, partial in zip(result.task.strips, result.partials, strict=True):
            self._finish_unseen(result.task, range(first, strip.query.start))
            self._bring(result.task, strip.query.tokens, partial)
            first = strip.query.stop
        self._finish_unseen(result.task, range(first, complete.stop))

    def _finish_unseen(self, task: Task, rows: range) -> None:
        step = self._rows_at_once(task.heads)
        for start in range(rows.start, rows.stop, step):
            part = range(start, min(start + step, rows.stop))
            shape = (*self._leading(task.heads), len(part), self._plan.problem.value_width)
            self._finish(task, part, Partial.empty(self._xp, shape, self._dtype, self._device))

    def _bring(self, task: Task, rows: range, partial: Partial, spilled: int = 0) -> None:
        """Bring complete rows to where the output is, if they are on a device, some at a time, and finish them."""
        if not is_numpy(self._xp) or is_numpy(namespace_of(lse=partial.lse)):
            self._finish(task, rows, partial, spilled)
            return
        step = max(_BROUGHT_BYTES // max(prod(partial.out.shape) // max(len(rows), 1) * 8, 1), 1)
        for first in range(0, len(rows), step):
            part = slice(first, min(first + step, len(rows)))
            here = partial.at(..., part)
            here = Partial(self._rounded(here.out), here.lse, here.rest).on_host()
            self._finish(task, rows[part], here)

    def _rounded(self, out: Array) -> Array:
        """Round complete rows on the device that has them, if nothing is added to them on the host."""
        dtype = dtype_name(self._sink)
        if self._sink_logits is not None or dtype != self._plan.problem.dtype:
            return out
        xp = namespace_of(out=out)
        rounded: Array = xp.astype(out, dtype_of(xp, dtype), copy=False)
        return rounded

    def _finish(self, task: Task, rows: range, partial: Partial, spilled: int = 0) -> None:
        """Take complete rows to where they belong."""
        start, heads = perf_counter(), task.heads
        lead = None if heads is None else heads.of_queries
        if self._sink_logits is not None:
            _add_sinks(self._xp, partial, self._sink_logits[(*((...,) if lead is None else lead), slice(None))])
        if self._lse is not None and not isinstance(self._sums, InPlace):
            self._lse[(*((...,) if lead is None else lead), slice(rows.start, rows.stop))] = partial.lse
        n_bytes = 0
        if not isinstance(self._sums, InPlace):
            self._sink.write(lead, rows.start, rows.stop, partial.out)
        if self._emit is not None:
            n_rows = len(rows) * prod(self._leading(heads))
            n_bytes = n_rows * self._plan.problem.value_width * _itemsize(self._sink)
            self._emit(BytesWritten(task=task.index, start=start, n_bytes=n_bytes, spilled_bytes=spilled))

    def _leading(self, heads: HeadBlock | None) -> tuple[int, ...]:
        return self._plan.problem.lse_shape[:-1] if heads is None else (len(heads.queries),)

    def _rows_at_once(self, heads: HeadBlock | None) -> int:
        row_bytes = prod(self._leading(heads)) * self._plan.problem.value_width * 8
        return max(UNSEEN_BYTES // max(row_bytes, 1), 1)

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
        if result.has_scores is not self._plan.setting.has_scores:
            ours, theirs = ("with", "without") if result.has_scores else ("without", "with")
            what = f"task {index} was computed {ours} a change of scores, and planned {theirs}"
            raise TileError(f"{what}; give `Worker` the `scores` that the plan was made for")
        if index < self._next or index in self._waiting:
            raise TileError(f"task {index} with {_first_tile(planned)} came twice; each task is added once")
        leading = self._leading(planned.heads)
        for strip, partial in zip(planned.strips, result.partials, strict=False):
            self._check_partial(strip, partial, leading)
        if len(result.partials) < len(planned.strips):
            tile = next(planned.strips[len(result.partials)].tiles)
            raise TileError(f"{tile} is missing from the result of task {index}")
        if len(result.partials) > len(planned.strips):
            raise TileError(f"task {index} has {len(planned.strips)} strips, but {len(result.partials)} results came")

    def _check_partial(self, strip: Strip, partial: Partial, leading: tuple[int, ...]) -> None:
        expected = (*leading, len(strip.query), self._plan.problem.value_width)
        sums = partial.lse if partial.rest is None else partial.rest  # of which CuPy's results have none
        if tuple(partial.out.shape) != expected or not tuple(partial.lse.shape) == tuple(sums.shape) == expected[:-1]:
            shapes = ", ".join(f"{tuple(x.shape)}" for x in (partial.out, partial.lse, sums))
            rule = f"have an output of shape {expected} and log-sum-exps of shape {expected[:-1]}"
            raise TileError(f"the result for {next(strip.tiles)} must {rule}, got {shapes}")
        for name, array in (("out", partial.out), ("lse", partial.lse), ("rest", sums)):
            if dtype_name(array) not in self._result_dtypes[name]:
                dtype = self._plan.problem.accumulator_dtype
                rule = f"have the accumulator's type, {dtype}, in the result for {next(strip.tiles)}"
                remedy = "partial results are kept in `problem.accumulator_dtype`, whatever the inputs' type"
                raise DTypeError.of(name, rule, dtype_name(array), remedy)


def _first_tile(task: Task) -> str:
    return str(next(task.tiles, "no tile"))


def _add_sinks(xp: Namespace, partial: Partial, logits: Array) -> None:
    """Give each softmax one more term, without a value; in place."""
    weight, _, merged = merge_weights(xp, LogSum(partial.lse, partial.rest), LogSum(logits, None))
    out, lse = partial.out, partial.lse
    out *= weight[..., None]
    lse[...] = merged.lse
    if partial.rest is not None:
        partial.rest[...] = merged.rest


def _itemsize(sink: Sink) -> int:
    return DTYPES[dtype_name(sink)][0]
