"""Telling how far a run has come."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol, TypeAlias

from cqs.errors import OptionError
from cqs.events import Emit, Event, ResultLoaded, TileDone
from cqs.schedule import Plan, Task
from cqs.schedule.grain import head_block
from cqs.units import format_count

__all__ = ["Progress", "Report", "RunBar", "progress_bar", "reporting", "run_bar"]

_MOST_COUNTED = 500  # tasks that are looked at one by one to say how much work there is in all
_SAMPLE = 16
_LEAST_SECONDS = 0.05  # between two changes of what is shown


class Report(Protocol):
    """What a call tells about itself while it runs."""

    @property
    def emit(self) -> Emit:
        """What is to be told of events, if anything."""

    def start(self, plan: Plan, n_tasks: int | None = None) -> None:
        """Be told what will be done: all tasks of a plan, or so many of them."""

    def __call__(self, done: int, total: int) -> None:
        """Be told that so many tasks of so many in all are done."""


# None or False: silence. True: a bar on stderr. A function: called with (tasks done, tasks in all).
Progress: TypeAlias = "bool | Callable[[int, int], None] | RunBar | None"


@dataclass(frozen=True, slots=True)
class _Told:
    """A report that calls a function after each task, and passes events on."""

    call: Callable[[int, int], None]
    emit: Emit

    def start(self, plan: Plan, n_tasks: int | None = None) -> None:
        """Do nothing."""

    def __call__(self, done: int, total: int) -> None:
        """Call the function."""
        self.call(done, total)


@contextmanager
def reporting(progress: Progress, emit: Emit = None) -> Iterator[Report]:
    """Give the report that the arguments `progress=` and `on_event=` mean, and clean up after it.

    Raises
    ------
    OptionError
        If `progress` is neither a bool nor a function.
    """
    if isinstance(progress, RunBar):
        progress.listener = emit
        yield progress
    elif callable(progress):
        yield _Told(progress, emit)
    elif progress is None or progress is False:
        yield _Told(lambda done, total: None, emit)
    elif progress is True:
        with run_bar(is_lasting=True) as bar:
            bar.listener = emit
            yield bar
    else:
        rule = "be True, False or a function of (tasks done, tasks in all)"
        raise OptionError.of("progress", rule, repr(progress), "use `progress=True` for a bar")


class RunBar:
    """A bar that moves with every kernel call, with tasks, rate and remaining time; made by `run_bar`.

    Parameters
    ----------
    bar, row
        Of rich.
    """

    def __init__(self, bar: Any, row: Any) -> None:
        self.listener: Emit = None
        self._bar, self._row = bar, row
        self._lock = threading.Lock()
        self._work: _Work | None = None
        self._tasks = ""
        self._done = self._resumed = 0
        self._started = self._shown = perf_counter()

    def start(self, plan: Plan, n_tasks: int | None = None) -> None:
        """Take note of how much there is to do, and begin to count time."""
        n_tasks = len(plan) if n_tasks is None else n_tasks
        self._work = _Work.of(plan, n_tasks)
        self._tasks = f"0/{n_tasks:,} tasks"
        self._done, self._resumed, self._started = 0, 0, perf_counter()
        self._bar.reset(self._row, total=max(self._work.total, 1), tasks=self._tasks, rate="")

    def emit(self, event: Event) -> None:
        """Move on by what a kernel call computed, or an earlier run, and pass the event on."""
        if isinstance(event, TileDone | ResultLoaded) and self._work is not None:
            done = self._work.of_call(event) if isinstance(event, TileDone) else self._work.of_task(event.task)
            with self._lock:
                self._done = min(self._done + done, self._work.total)
                self._resumed += done if isinstance(event, ResultLoaded) else 0
            self._show()
        if self.listener is not None:
            self.listener(event)

    def __call__(self, done: int, total: int) -> None:
        """Count tasks."""
        with self._lock:
            self._tasks = f"{done:,}/{total:,} tasks"
            if self._work is not None and done == total:
                self._done = self._work.total
        self._show(is_last=done == total)

    def _show(self, is_last: bool = False) -> None:
        now = perf_counter()
        with self._lock:
            if self._work is None or (now - self._shown < _LEAST_SECONDS and not is_last):
                return
            self._shown, done, tasks = now, self._done, self._tasks
            rate = (done - self._resumed) * self._work.flops / max(self._work.total, 1) / max(now - self._started, 1e-9)
        completed = max(done, 1) if is_last else done
        self._bar.update(self._row, completed=completed, tasks=tasks, rate=f"{format_count(rate)}FLOP/s")


@dataclass(frozen=True, slots=True)
class _Work:
    """How much a plan computes: pairs of its kernel calls, over all heads; and multiplications and additions."""

    plan: Plan
    total: int
    flops: int

    @classmethod
    def of(cls, plan: Plan, n_tasks: int) -> "_Work":
        """Count the tasks, or if they are very many some that are spread evenly, and take the share of so many."""
        p, W = plan.problem, plan.workers
        chosen = range(W) if W <= _MOST_COUNTED else [(2 * i + 1) * W // (2 * _SAMPLE) for i in range(_SAMPLE)]
        area = sum(_area(plan.task(i)) for i in chosen)
        total = area * W // len(chosen) * p.n_batch_heads
        is_counted = p.mask.hides_nothing or p.mask.has_edges  # else counting evaluates the mask pair by pair
        flops = p.flops(p.n_pairs) if is_counted else 2 * total * (p.width + p.value_width)
        n = max(len(plan), 1)
        return cls(plan, total * n_tasks // n, flops * n_tasks // n)

    def of_call(self, event: TileDone) -> int:
        """Return the pairs of one kernel call."""
        return event.n_rows * event.n_columns * self._n_heads(event.task)

    def of_task(self, i: int) -> int:
        """Return the pairs of all kernel calls of a task."""
        return _area(self.plan.task(i)) * self._n_heads(i)

    def _n_heads(self, i: int) -> int:
        heads = head_block(self.plan.problem, self.plan.grain.kv_heads, i // self.plan.workers)
        return self.plan.problem.n_batch_heads if heads is None else len(heads.queries)


def _area(task: Task) -> int:
    return sum(sum(len(strip.query) for strip in bundle.strips) * sum(map(len, bundle.keys)) for bundle in task.bundles)


@contextmanager
def run_bar(label: str = "computing", *, is_lasting: bool = False, is_quiet: bool = False) -> Iterator[RunBar]:
    """Show a bar for one call of `cqs.attention` on stderr while inside; see `progress_bar` for the arguments."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[tasks]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with _bar(columns, is_lasting, is_quiet) as bar:
        yield RunBar(bar, bar.add_task(label, total=None, tasks="", rate=""))


@contextmanager
def progress_bar(
    label: str, total: int | None = None, *, is_lasting: bool = False, is_quiet: bool = False
) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr while inside; gives the function (done, in all) that moves it.

    Parameters
    ----------
    label : str
        What is counted.
    total : int, optional
        How many there are in all, where that is known before the first is done.
    is_lasting : bool
        Leave the finished bar where it is, and write it to a stderr that is no terminal, too. By default it is erased,
        and shown in a terminal only.
    is_quiet : bool
        Show nothing.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    time = TimeRemainingColumn(elapsed_when_finished=True)
    with _bar((TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), time), is_lasting, is_quiet) as bar:
        row = bar.add_task(label, total=total)
        yield lambda done, total: bar.update(row, completed=done, total=total)


@contextmanager
def _bar(columns: tuple[Any, ...], is_lasting: bool, is_quiet: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    is_hidden = is_quiet or not (is_lasting or console.is_terminal)
    # stdout is left alone: it may be a pipe that others write to meanwhile
    with Bar(*columns, console=console, disable=is_hidden, transient=not is_lasting, redirect_stdout=False) as bar:
        yield bar
