"""The site: MkDocs, and formulas as MathML, which browsers show by themselves: no script, no font, no network."""

import re
import subprocess
import sys
from html import unescape
from pathlib import Path

__all__ = ["run_mkdocs", "write_mathml"]

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<kind>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>', flags=re.S
)


def run_mkdocs(folder: Path) -> int:
    """Build the site that a folder's `mkdocs.yml` describes, show what is wrong, and return the exit code.

    Not with `--quiet`: then MkDocs does not count warnings, and nothing fails.
    """
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        print(done.stdout)
    return done.returncode


def write_mathml(site: Path) -> int:
    """Replace the LaTeX in every page of a site by MathML; return the number of formulas."""
    from latex2mathml.converter import convert

    def formula(found: re.Match[str]) -> str:
        display = "block" if found["kind"] == "[" else "inline"
        return convert(" ".join(unescape(found["latex"]).split()), display=display)

    n_formulas = 0
    for page in site.rglob("*.html"):
        text, n = _FORMULA.subn(formula, page.read_text(encoding="utf-8"))
        if n:
            page.write_text(text, encoding="utf-8")
        n_formulas += n
    return n_formulas
