"""Telling how far a run has come."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from cqs.errors import OptionError

__all__ = ["Progress", "reporting"]

# None or False: silence. True: a bar on stderr. A function: called with (tasks done, tasks in all).
Progress: TypeAlias = bool | Callable[[int, int], None] | None


@contextmanager
def reporting(progress: Progress) -> Iterator[Callable[[int, int], None]]:
    """Give the function that a `progress=` argument means, and clean up after it."""
    if callable(progress):
        yield progress
    elif progress is None or progress is False:
        yield lambda done, total: None
    elif progress is True:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = TextColumn("tasks"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Bar(*columns, console=Console(stderr=True)) as bar:
            row = bar.add_task("tasks", total=None)
            yield lambda done, total: bar.update(row, completed=done, total=total)
    else:
        rule = "be True, False or a function of (tasks done, tasks in all)"
        raise OptionError.of("progress", rule, repr(progress), "use `progress=True` for a bar")
