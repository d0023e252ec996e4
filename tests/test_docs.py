"""The docs say what happens: blocks run, outputs are those that are printed, links lead somewhere, names are covered.

The site itself is built by `python docs/build.py`, which fails on any warning of MkDocs.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from posixpath import normpath

import pytest

import cqs
import cqs.types

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))  # where `building` is

from building.blocks import agrees, blocks_of, run_page, with_outputs  # noqa: E402
from building.lessons import lesson_names, page_of  # noqa: E402
from building.numpydoc import markdown_of  # noqa: E402
from building.reference import CHAPTERS, anchors, chapter_page  # noqa: E402
from building.site import run_mkdocs  # noqa: E402
from building.sources import collect, linked  # noqa: E402

PAGES = sorted(DOCS.rglob("*.md"))
UPDATE = "run `python docs/build.py --outputs`, and read what changed"


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text of each page as MkDocs gets it, without the outputs of lessons; other files without text."""
    folder = tmp_path_factory.mktemp("site") / "docs"
    collect(folder, runs=False)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") if path.suffix == ".md" else ""
        for path in paths
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_runs_and_prints_what_the_page_says(page: Path) -> None:
    for block, printed in run_page(page):
        if block.output is None:
            assert not printed.strip(), f"line {block.line} prints what the page does not show: {printed}"
        else:
            assert agrees(block.output, printed), f"line {block.line} prints {printed}; {UPDATE}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = blocks_of(text)
    assert len(blocks) == len(re.findall(r"^ *```py", text, flags=re.M)), "a block is indented, or not closed"
    assert len(re.findall("not run:", text)) == sum(block.reason is not None for block in blocks)
    for block in blocks:
        assert block.reason is None or len(block.reason.split()) >= 4, (
            f"line {block.line}: {block.reason!r} says little"
        )
        compile(block.code, str(page), "exec")


def test_outputs_are_written_beside_their_blocks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 2\nprint(x)\n```\n\n```text\n1\n```\n\n<!-- not run: is there to fail -->\n"
        "```python\n1 / 0\n```\n\n```python\nprint(x + 1)\n```\n\n```text\n```\n\n```text\nof no block\n```\n"
    )
    assert [(block.line, block.output, block.reason) for block in blocks_of(page.read_text())] == [
        (2, "1\n", None),
        (12, None, "is there to fail"),
        (16, "", None),
    ]
    page.write_text(with_outputs(page))
    assert "```text\n2\n```" in page.read_text()
    assert "```text\n3\n```" in page.read_text()
    assert "of no block" in page.read_text()
    assert with_outputs(page) == page.read_text()


@pytest.mark.parametrize(
    ("printed", "is_same"),
    [("W = 7: 10.8 MiB", True), ("W =  7: 9.5 MiB", True), ("W = 8: 10.5 MiB", False), ("W = 7: 15.0 MiB", False)],
)
def test_outputs_agree_to_a_fifth(printed: str, is_same: bool) -> None:
    assert agrees("W = 7: 10.5 MiB\n", f"{printed}\n") == is_same
    assert not agrees("W = 7: 10.5 MiB\n", f"{printed} and 1.0\n")


def test_the_glossary_has_every_letter_of_the_legend() -> None:
    legend = re.findall(r"^`(\w)`", cqs.types.__doc__ or "", flags=re.M)
    rows = re.findall(r"^\| (\w) \|", (DOCS / "glossary.md").read_text(encoding="utf-8"), flags=re.M)
    assert len(legend) == 9
    assert rows == legend


def slug(heading: str) -> str:
    """The anchor that MkDocs gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text.encode("ascii", "ignore").decode()).strip().lower())


def outside_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def anchors_of(text: str) -> set[str]:
    headings = re.findall(r"^#+ +(.+?)(?: +\{#([\w.-]+)\})?$", outside_fences(text), flags=re.M)
    return {given or slug(heading) for heading, given in headings}


def links_of(text: str) -> Iterator[tuple[str, str]]:
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_fences(text)):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            yield path, anchor


def test_every_link_leads_to_a_page_and_every_anchor_to_a_heading(site: dict[str, str]) -> None:
    broken = []
    for page, text in site.items():
        for path, anchor in links_of(text):
            target = normpath(f"{page}/../{path}") if path else page
            if target not in site:
                broken.append(f"{page}: {path}")
            elif anchor and anchor not in anchors_of(site[target]):
                broken.append(f"{page}: {path}#{anchor}")
    assert broken == []
    assert sum(1 for text in site.values() for _ in links_of(text)) > 100


def test_links_of_the_sources_lead_to_files_of_the_project() -> None:
    for page in PAGES:
        for path, _ in links_of(page.read_text(encoding="utf-8")):
            assert not path or (page.parent / path).exists(), f"{name_of(page)} points to {path}"


def test_links_are_rewritten_for_the_site() -> None:
    text = "[a](../../notebooks/02_quorums.ipynb) [b](../x.md#y) `cqs.merge` `cqs.nothing`\n```\n`cqs.merge`\n```\n"
    assert linked(text, "docs/how-to/page.md") == (
        "[a](../notebooks/02_quorums.md) [b](../x.md#y) [`cqs.merge`](../api/running.md#cqs.merge) `cqs.nothing`\n"
        "```\n`cqs.merge`\n```\n"
    )


def test_pictures_of_lessons_stay_where_they_are() -> None:
    text = "![a](02_quorums-12-1.png) [b](03_scheduler.ipynb)"
    assert linked(text, "notebooks/02_quorums.ipynb") == "![a](02_quorums-12-1.png) [b](03_scheduler.md)"


LESSON = """# %% [markdown]
# # A lesson

# %%
from cqs import difference_cover

difference_cover(7)

# %%
import sympy

x = sympy.Symbol("x")
x / (1 + x)

# %%
import cqs

cqs.plan(*[(1, 70, 8)] * 3, workers=7)

# %%
print("said")
{"a": 1}
"""


def test_values_in_lessons_are_shown_as_formulas_html_or_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "notebooks")  # where `pair` is
    monkeypatch.setattr("building.lessons.NOTEBOOKS", tmp_path)
    (tmp_path / "01_lesson.py").write_text(LESSON, encoding="utf-8")
    shown = outside_fences(page_of("01_lesson", tmp_path))
    assert "\n\n$$\n\\{0, 1, 3\\} \\subset \\mathbb{Z}_7,\\quad m = 3 \\ge 3,\\quad \\text{perfect}\n$$\n\n" in shown
    assert "\n\n$$\n\\frac{x}{x + 1}\n$$\n\n" in shown
    assert "\n\n<div>\n<b>Plan: 7 tasks" in shown
    assert page_of("01_lesson", tmp_path).endswith("```text\nsaid\n```\n\n```text\n{'a': 1}\n```\n")


@pytest.mark.parametrize(
    ("text", "is_right"),
    [("# A\n\n[b](#a)\n", True), ("![b](b.png)\n", False), ("[b](b.md)\n", False), ("# A\n\n[b](#b)\n", False)],
)
def test_the_build_fails_if_a_link_leads_nowhere(tmp_path: Path, text: str, is_right: bool) -> None:
    pytest.importorskip("material")
    (tmp_path / "build" / "docs").mkdir(parents=True)
    (tmp_path / "build" / "docs" / "index.md").write_text(text)
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[0]
    (tmp_path / "mkdocs.yml").write_text(settings)
    assert (run_mkdocs(tmp_path) == 0) == is_right


@pytest.mark.parametrize("name", cqs.__all__)
def test_the_reference_covers_every_public_name(name: str) -> None:
    page = anchors()[f"cqs.{name}"]
    slugs = {f"api/{chapter.slug}.md": chapter for chapter in CHAPTERS}
    path, _, anchor = page.partition("#")
    assert f"{{#{anchor}}}" in chapter_page(slugs[path])


@pytest.mark.parametrize("module", ["masks", "quorum", "plot", "testing", "trace"])
def test_the_reference_covers_every_name_of_a_module(module: str) -> None:
    known = anchors()
    values = {getattr(cqs, name) for name in cqs.__all__ if getattr(getattr(cqs, name), "__hash__", None)}
    public = __import__(f"cqs.{module}", fromlist=["*"])
    missing = [
        name
        for name in public.__all__
        if f"cqs.{module}.{name}" not in known
        and callable(getattr(public, name))
        and getattr(public, name) not in values
    ]
    assert [name for name in missing if name != "mask_from_dict"] == []


def test_the_navigation_has_every_page(site: dict[str, str]) -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = set(re.findall(r"[\w/.-]+\.(?:md|html)", navigation))
    pages = {path for path in site if path.endswith(".md")}
    assert listed - {"explorer/index.html"} == pages, "mkdocs.yml lists the pages in order"
    assert {f"notebooks/{name}.md" for name in lesson_names()} <= listed


def test_docstrings_become_markdown() -> None:
    doc = """Do it.

    With :math:`x^2`.

    .. math::

        y = x

    Parameters
    ----------
    x : int, optional
        What is
        h*H/G, not `h*H`.
    a, b : array
        Two.

    Both are read.

    Raises
    ------
    ShapeError, DTypeError
        If not.

    Examples
    --------
    >>> 1 + 1
    2
    """
    assert markdown_of(doc) == (
        "Do it.\n\nWith $x^2$.\n\n$$\ny = x\n$$\n\n**Parameters**\n\n"
        "- **x** (int, optional): What is h\\*H/G, not `h*H`.\n- **a, b** (array): Two.\n\nBoth are read."
        "\n\n**Raises**\n\n- **ShapeError, DTypeError**: If not.\n\n"
        "**Examples**\n\n```pycon\n>>> 1 + 1\n2\n```"
    )
