"""The Python blocks of a page: they run one after the other, and print what the page says they print.

A block is followed by the text that it prints, if the page shows that: a block of the language `text` right after it.
A block that cannot be run has a comment right before it, `<!-- not run: REASON -->`.
"""

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Block", "agrees", "blocks_of", "run_page", "with_outputs"]

ROOT = Path(__file__).parents[2]  # which blocks run in
_DECIMAL = re.compile(r"(\d+\.\d+)")
_TOLERANCE = 0.2

_BLOCK = re.compile(
    r"(?:^<!-- not run: *(?P<reason>[^\n]*?) *-->\n+)?"
    r"^```py(?:thon)?[^\n]*\n(?P<code>.*?)^```$"
    r"(?:\n+^```text\n(?P<output>.*?)^```$)?",
    flags=re.M | re.S,
)


@dataclass(frozen=True, slots=True)
class Block:
    """A Python block: its code, the text shown after it, and why it is not run, if it is not."""

    code: str
    line: int
    output: str | None
    reason: str | None


def blocks_of(text: str) -> list[Block]:
    """Return the Python blocks of a page in order."""
    return [
        Block(found["code"], text[: found.start("code")].count("\n") + 1, found["output"], found["reason"])
        for found in _BLOCK.finditer(text)
    ]


def agrees(said: str, printed: str) -> bool:
    """Return whether a page says what is printed: the same words and whole numbers, and decimals within a fifth.

    Decimals are sizes, ratios and predictions, which move a little with the library; the site shows what is printed.
    """
    ours, theirs = _DECIMAL.split(said), _DECIMAL.split(printed)
    if [" ".join(text.split()) for text in ours[::2]] != [" ".join(text.split()) for text in theirs[::2]]:
        return False
    pairs = zip(map(float, ours[1::2]), map(float, theirs[1::2]), strict=True)
    return all(abs(a - b) <= _TOLERANCE * max(a, b) for a, b in pairs)


def run_page(page: Path) -> list[tuple[Block, str]]:
    """Run the blocks of a page in one namespace; return each that was run, with what it printed."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    ran = []
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if block.reason is not None:
            continue
        code = "\n" * (block.line - 1) + block.code  # a traceback shows the line of the page
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, str(page), "exec"), namespace)
        ran.append((block, printed.getvalue()))
    return ran


def with_outputs(page: Path) -> str:
    """Return the text of a page, with what its blocks print now in place of what it says they print."""
    printed = {block.line: said for block, said in run_page(page)}
    text = page.read_text(encoding="utf-8")
    for found in reversed(list(_BLOCK.finditer(text))):
        line = text[: found.start("code")].count("\n") + 1
        if found["output"] is not None and line in printed:
            text = text[: found.start("output")] + printed[line] + text[found.end("output") :]
    return text
