"""Telling how far a run has come."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from cqs.errors import OptionError

__all__ = ["Progress", "progress_bar", "reporting"]

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
        with progress_bar("tasks", is_lasting=True) as report:
            yield report
    else:
        rule = "be True, False or a function of (tasks done, tasks in all)"
        raise OptionError.of("progress", rule, repr(progress), "use `progress=True` for a bar")


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
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    time = TimeRemainingColumn(elapsed_when_finished=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), time
    is_hidden = is_quiet or not (is_lasting or console.is_terminal)
    # stdout is left alone: it may be a pipe that others write to meanwhile
    with Bar(*columns, console=console, disable=is_hidden, transient=not is_lasting, redirect_stdout=False) as bar:
        row = bar.add_task(label, total=total)
        yield lambda done, total: bar.update(row, completed=done, total=total)
