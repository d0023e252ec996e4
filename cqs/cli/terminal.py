"""Printing to stdout: tables and JSON. Here rich is imported when it is needed."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

__all__ = ["print_columns", "print_json", "print_table", "print_text", "print_verdict", "status", "stdout_console"]

_UNLIMITED = 10_000  # columns; a file or a pipe has no width


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    print(json.dumps(values, indent=2, allow_nan=False))


def print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print a title, and below it names and values in two columns."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name, style="dim"), Text(value))
    print_text(Text(title, style="bold"), Padding(table, (0, 0, 0, 2)))


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a head, and names in its first column."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for n, row in enumerate(rows):
        table.add_row(*(Text(cell, style="dim" if i == 0 else "bold" if n == 0 else "") for i, cell in enumerate(row)))
    print_text(Padding(table, (0, 0, 0, 2)))


def print_verdict(text: str, good: bool) -> None:
    """Print what it all comes to, in green or in red."""
    from rich.text import Text

    print_text(Text(text, style="bold green" if good else "bold red"))


def print_text(*parts: Any) -> None:
    """Print rich renderables, without colours and trailing blanks where stdout is not a terminal."""
    from rich.text import Text

    console = stdout_console()
    with console.capture() as captured:
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, (str, Text)))  # lines are left to the terminal to wrap
    text = captured.get()
    if not console.is_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    sys.stdout.write(text)  # not by rich, which ends the process itself when a pipe breaks


def status(text: str) -> Any:
    """Return a context that says on stderr, if that is a terminal, what takes time, until it has been done."""
    from rich.console import Console

    console = Console(stderr=True)
    return console.status(text) if console.is_terminal else nullcontext()


def stdout_console() -> Any:
    """Return a rich console for stdout, as wide as it needs to be where that is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _UNLIMITED
    return console
