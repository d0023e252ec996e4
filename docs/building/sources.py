"""The sources of the site: pages written by hand, lessons, and the reference, side by side in one folder."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from building.blocks import with_outputs
from building.lessons import NOTEBOOKS, lesson_names, page_of
from building.reference import CHAPTERS, anchors, chapter_page, overview_page

__all__ = ["collect"]

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
_KEPT = {".svg", ".png", ".json", ".html", ".js", ".css"}
_FENCE = re.compile(r"(^```.*?^```$)", flags=re.M | re.S)
_LINK = re.compile(r"\]\((?!https?:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)]*)?\)")
_NAME = re.compile(r"(?<!\[)`(?P<name>cqs(?:\.\w+)+)(?P<call>\([^`]*\))?`(?!\])")


def collect(target: Path, runs: bool = True) -> None:
    """Write every page to a new folder, as MkDocs wants them; if it `runs`, with what their code prints and draws.

    Links that point to a notebook in the project point to its page, those to the benchmarks' files to copies, and names
    such as `cqs.attention` to the reference.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(DOCS.rglob("*")):
        place = path.relative_to(DOCS)
        if path.suffix == ".md":
            text = with_outputs(path) if runs else path.read_text(encoding="utf-8")
            _write(target / place, linked(text, f"docs/{place.as_posix()}"))
        elif path.suffix in _KEPT:
            _copy(path, target / place)
    for path in sorted((ROOT / "benchmarks").rglob("*")):
        if path.suffix in (".json", ".py"):
            _copy(path, target / path.relative_to(ROOT))
    _write_lessons(target / "notebooks", runs)
    _write_reference(target / "api")


def linked(text: str, source: str) -> str:
    """Return a page of the project with its links as they are in the site, and links on the library's names."""
    here = str(PurePosixPath(source).parent)
    page = _place(source)
    where = anchors()

    def link(found: re.Match[str]) -> str:
        to = _place(normpath(f"{here}/{found['path']}"))
        return f"]({relpath(to, PurePosixPath(page).parent)}{found['anchor'] or ''})"

    def name(found: re.Match[str]) -> str:
        if found["name"] not in where:
            return found[0]
        return f"[{found[0]}]({relpath(where[found['name']], PurePosixPath(page).parent)})"

    parts = _FENCE.split(text)
    parts[::2] = [_outside_headings(_NAME, name, _LINK.sub(link, part)) for part in parts[::2]]
    return "".join(parts)


def _place(source: str) -> str:
    """Return where in the site a file of the project is."""
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    if source == "notebooks/README.md":
        return "notebooks/index.md"
    if source.startswith("notebooks/") and source.endswith(".ipynb"):
        return str(PurePosixPath(source).with_suffix(".md"))
    return source


def _outside_headings(pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str], text: str) -> str:
    lines = text.split("\n")
    return "\n".join(line if line.startswith("#") else pattern.sub(replace, line) for line in lines)


def _write_lessons(folder: Path, is_run: bool) -> None:
    folder.mkdir()
    _write(folder / "index.md", linked((NOTEBOOKS / "README.md").read_text(encoding="utf-8"), "notebooks/README.md"))
    if is_run:
        import matplotlib as mpl

        mpl.use("agg")
    for name in lesson_names():
        _write(folder / f"{name}.md", linked(page_of(name, folder, is_run), f"notebooks/{name}.ipynb"))


def _write_reference(folder: Path) -> None:
    _write(folder / "index.md", overview_page())
    for chapter in CHAPTERS:
        _write(folder / f"{chapter.slug}.md", chapter_page(chapter))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)
