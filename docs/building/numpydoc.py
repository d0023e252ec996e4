"""Docstrings in numpydoc's form, as Markdown."""

import inspect
import re
import textwrap

__all__ = ["markdown_of", "summary_of"]

_FIELDS = ("Parameters", "Returns", "Yields", "Raises", "Attributes", "Warns")
_HEADING = re.compile(r"^(?P<title>[A-Z][A-Za-z ]+)\n-{3,}\n", flags=re.M)


def summary_of(doc: str | None) -> str:
    """Return the first sentence or paragraph of a docstring, on one line."""
    return _inline(" ".join(inspect.cleandoc(doc or "").split("\n\n")[0].split()))


def markdown_of(doc: str | None) -> str:
    """Return a docstring as Markdown, with its sections in bold."""
    pieces = _HEADING.split(inspect.cleandoc(doc or ""))
    parts = [_prose(pieces[0])]
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        content = _fields(body) if title in _FIELDS else _prose(body)
        parts.append(f"**{title}**\n\n{content}")
    return "\n\n".join(part for part in parts if part.strip())


def _inline(text: str) -> str:
    """Return text with roles of reStructuredText as Markdown has them, and a sign of multiplication as such."""
    parts = re.split(r"(`[^`]*`|(?<!\w)\*[A-Z][^*]*\*)", text)
    parts[::2] = [re.sub(r"(?<=[\w)])\*(?=[\w(])", r"\*", part) for part in parts[::2]]
    text = "".join(parts)
    text = re.sub(r":math:`([^`]*)`", r"$\1$", text)
    return re.sub(r":(?:func|class|meth|mod):`~?([^`]*)`", r"`\1`", text)


def _prose(text: str) -> str:
    """Return paragraphs, with formulas and examples set as such."""
    parts = []
    for paragraph in re.split(r"\n\n+(?! {4})", text.strip("\n")):
        if paragraph.startswith(".. math::"):
            latex = paragraph.removeprefix(".. math::").strip()
            parts.append("$$\n" + " ".join(latex.split()) + "\n$$")
        elif paragraph.startswith("===="):  # a table of reStructuredText
            parts.append(f"```text\n{paragraph}\n```")
        elif paragraph.startswith(">>>"):
            parts.append(f"```pycon\n{paragraph.rstrip()}\n```")
        elif paragraph.strip():
            head, examples, rest = paragraph.partition("\n>>>")
            parts.append(_inline(head))
            if examples:
                parts.append(f"```pycon\n>>>{rest.rstrip()}\n```")
    return "\n\n".join(parts)


def _fields(body: str) -> str:
    """Return a list of names, types and what they mean."""
    items: list[tuple[str, list[str]]] = []
    after = ""
    for line in body.strip("\n").splitlines():
        if line and not line[0].isspace():
            items.append((line, []))
        elif items:
            items[-1][1].append(line)
    lines = []
    for head, rest in items:
        text = _inline(" ".join(textwrap.dedent("\n".join(rest)).split()))
        if not text and " " in head and ":" not in head:
            after += f"\n{head}"  # a closing remark
            continue
        name, _, kind = (part.strip() for part in head.partition(" : "))
        kind = f" ({_inline(kind)})" if kind else ""
        lines.append(f"- **{name}**{kind}: {text}" if text else f"- **{name}**{kind}")
    return "\n".join(lines) + (f"\n\n{_inline(after.strip())}" if after else "")
