"""Write each notebook's `.ipynb` from its text: `python notebooks/pair.py`.

The text is a Python file in jupytext's percent format, and is what to edit. `jupytext --sync` does the same in both
directions; this needs nothing installed, and gives the same bytes every time: no outputs, and cells that are numbered.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Cell", "cells_of", "notebook_of", "texts"]

HERE = Path(__file__).parent
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_MARKER = re.compile(r'^# %%(?P<prose> \[markdown\])?(?: tags=\["(?P<tag>\w+)"\])?$')


class Cell(NamedTuple):
    """A cell: prose in Markdown, or code; exercises are tagged."""

    is_code: bool
    source: str
    tag: str = ""


def texts() -> list[Path]:
    """Return the text half of every notebook, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def cells_of(text: str) -> list[Cell]:
    """Split a text in percent format into cells; what stands before the first is jupytext's header."""
    cells: list[tuple[bool, str, list[str]]] = []
    for line in text.splitlines():
        if marker := _MARKER.match(line):
            cells.append((not marker["prose"], marker["tag"] or "", []))
        elif cells:
            is_code, _, lines = cells[-1]
            lines.append(line if is_code else line.removeprefix("#").removeprefix(" "))
    return [Cell(is_code, "\n".join(lines).strip("\n"), tag) for is_code, tag, lines in cells]


def notebook_of(text: str) -> str:
    """Return the notebook of a text, as JSON without outputs."""
    cells = [_json_of(number, cell) for number, cell in enumerate(cells_of(text))]
    metadata = {"jupytext": {"formats": "ipynb,py:percent"}, "kernelspec": _KERNEL}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _json_of(number: int, cell: Cell) -> dict[str, Any]:
    values: dict[str, Any] = {
        "cell_type": "code" if cell.is_code else "markdown",
        "id": f"cell-{number:02}",
        "metadata": {"tags": [cell.tag]} if cell.tag else {},
        "source": cell.source.splitlines(keepends=True),
    }
    return values | ({"execution_count": None, "outputs": []} if cell.is_code else {})


def main() -> None:
    """Write every notebook beside its text."""
    for path in texts():
        path.with_suffix(".ipynb").write_text(notebook_of(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
