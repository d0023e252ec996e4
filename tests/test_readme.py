"""What the README and the docs show is what happens."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md"]  # tests/test_docs.py has the others


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), namespace)  # blocks of a page continue each other


def test_the_readme_has_two_set_up_commands_of_one_line() -> None:
    commands = blocks(ROOT / "README.md", "sh")
    assert len(commands) == 2
    assert all(command.count("\n") == 1 for command in commands)


def test_pictures_and_links_inside_the_project_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_the_picture_of_ownership_shows_the_owners() -> None:
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot as plt

    from cqs import CyclicQuorumSet
    from cqs.plot import ownership_matrix

    quorums = CyclicQuorumSet(13)
    axes = ownership_matrix(quorums)
    shown = np.full((13, 13), -1)
    for text in axes.texts:
        h, g = text.get_position()
        shown[int(g), int(h)] = int(text.get_text())
    np.testing.assert_array_equal(shown, quorums.ownership())
    assert len(ownership_matrix(quorums, worker=2).texts) == 13
    assert not ownership_matrix(CyclicQuorumSet(57)).texts
    plt.close("all")
