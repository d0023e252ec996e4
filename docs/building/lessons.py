"""Notebooks as pages: every cell is run, in this process, and followed by what it shows."""

import ast
import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

__all__ = ["lesson_names", "page_of"]

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
_DPI = 120


def lesson_names() -> list[str]:
    """Return the names of the notebooks in order."""
    return sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.py"))


def page_of(name: str, folder: Path, is_run: bool = True) -> str:
    """Return a notebook as Markdown; its pictures are written to a folder."""
    if str(NOTEBOOKS) not in sys.path:
        sys.path.insert(0, str(NOTEBOOKS))  # where notebooks find `checks`
    import pair

    namespace: dict[str, Any] = {"__name__": name}
    parts = []
    for number, cell in enumerate(pair.cells_of((NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8"))):
        if not cell.is_code:
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        if is_run:
            parts += _shown(cell.source, f"{name}, cell {number}", namespace)
            parts += _pictures(f"{name}-{number:02}", folder)
    parts.insert(1, f"*To work through this page, open `notebooks/{name}.ipynb`. What follows a cell is what it gave.*")
    return "\n\n".join(parts) + "\n"


def _shown(source: str, where: str, namespace: dict[str, Any]) -> list[str]:
    """Run a cell, and return what it prints and the value of its last line, as Jupyter shows them."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, where, "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), where, "eval"), namespace)
    shown = [_text(printed.getvalue())] if printed.getvalue().strip() else []
    if value is not None:
        shown.append(_value(value))
    return shown


def _value(value: Any) -> str:
    """Return a value in the first of the forms that it has: as HTML, as a formula, or as text."""
    for method, block in (("_repr_html_", _html), ("_repr_latex_", _formula)):
        rich = getattr(value, method, None)
        shown = rich() if rich is not None else None
        if shown is not None:
            return block(shown)
    return _text(repr(value))


def _text(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def _html(html: str) -> str:
    """Put HTML into a block of its own, which may have no empty line."""
    return "<div>\n" + re.sub(r"\n\s*\n", "\n", html) + "\n</div>"


def _formula(latex: str) -> str:
    """Put LaTeX, which comes between dollars, into a block of its own."""
    inner = latex.strip().strip("$").strip().removeprefix(r"\displaystyle").strip()
    return f"$$\n{' '.join(inner.split())}\n$$"


def _pictures(name: str, folder: Path) -> list[str]:
    """Save the figures that are open, and close them."""
    from matplotlib import pyplot as plt

    links = []
    for number in plt.get_fignums():
        figure = plt.figure(number)
        path = folder / f"{name}-{number}.png"
        figure.savefig(path, dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
        titles = [" ".join(ax.get_title().split()) for ax in figure.axes if ax.get_title()]
        links.append(f"![{'; '.join(titles) or 'What the cell draws'}]({path.name})")
    plt.close("all")
    return links
