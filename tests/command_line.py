"""What the tests of the command line have in common; its fixtures are in `conftest`."""

from collections.abc import Callable
from pathlib import Path

Run = Callable[..., tuple[int, str, str]]
INPUTS = ["q.npy", "k.npy", "v.npy"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("cqs: error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
