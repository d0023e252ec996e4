"""The layers: a file imports from its own layer and from lower ones, never from higher ones."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cqs

ROOT = Path(cqs.__file__).parent

# Lowest first. A name is a module of `cqs`, or a package with all that is in it.
LAYERS = (
    ("errors", "checks", "units", "types", "machine", "once", "events"),
    ("quorum",),
    ("masks", "problem"),
    ("schedule",),
    ("backend",),
    ("cuda",),
    ("scores",),
    ("partial",),
    ("kernels",),
    ("sources",),
    ("reading",),
    ("staging",),
    ("computing",),
    ("worker",),
    ("sums", "in_order"),
    ("tiler",),
    ("engines",),
    ("options",),
    ("jobs", "backward"),
    ("progress", "trace", "oracle", "oracle_backward", "adversarial", "verify", "testing", "plot"),
    ("placing",),
    ("call",),
    ("api",),
    ("autograd", "jax", "sharing", "maps"),
    ("huggingface",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
HEIGHTS = {name: height for height, names in enumerate(LAYERS) for name in names}

FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def layer_of(module: str) -> str:
    """The name in the table that stands for a module: 'kernels' for 'cqs.kernels.region', '__init__' for 'cqs'."""
    return module.split(".")[1] if "." in module else "__init__"


def module_of(path: Path) -> str:
    """The module that a file of the package is: 'cqs.kernels' for 'kernels/__init__.py'."""
    parts = ["cqs", *path.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, module) for whatever of `cqs` a source imports, anywhere in it."""
    package = ["cqs", *path.parent.parts]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from cqs import masks` may mean the module `cqs.masks`, or a name that `cqs/__init__.py` defines
            names = [f"cqs.{a.name}" if module == "cqs" and a.name in HEIGHTS else module for a in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "cqs")


def upward_imports(source: str, path: Path) -> list[str]:
    """Describe every import in a source that points up the layers, or to something that is not in the table."""
    own = layer_of(module_of(path))
    found = []
    for line, module in imported(source, path):
        layer = layer_of(module)
        if layer not in HEIGHTS:
            found.append(f"{path}:{line} imports {module}, which is not in the table of layers")
        elif HEIGHTS[layer] > HEIGHTS[own]:
            found.append(f"{path}:{line} in {own!r} imports {module}, from {layer!r} above it")
    return found


def test_every_name_in_the_table_is_there_once() -> None:
    assert len(HEIGHTS) == sum(map(len, LAYERS))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_is_in_the_table_and_imports_nothing_from_above(path: Path) -> None:
    assert layer_of(module_of(path)) in HEIGHTS, f"{path} has no layer: give it one in the table of this test"
    assert upward_imports((ROOT / path).read_text(encoding="utf-8"), path) == []


def test_no_two_packages_or_modules_need_each_other() -> None:
    needs: dict[str, set[str]] = {}
    for path in FILES:
        own = layer_of(module_of(path))
        layers = {layer_of(module) for _, module in imported((ROOT / path).read_text(encoding="utf-8"), path)}
        needs.setdefault(own, set()).update(layers - {own})
    assert [(a, b) for a in needs for b in needs[a] if a < b and a in needs.get(b, ())] == []


# The checker itself


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/new.py", "from cqs.api import attention"),
        ("kernels/new.py", "import cqs.tiler"),
        ("kernels/new.py", "import numpy, cqs.engines.engine as e"),
        ("kernels/new.py", "import cqs"),
        ("kernels/new.py", "from cqs import attention"),
        ("kernels/new.py", "from cqs import tiler"),
        ("kernels/new.py", "from .. import tiler"),
        ("kernels/new.py", "from ..tiler import Tiler"),
        ("kernels/new.py", "def late():\n    from cqs.worker import Worker"),
        ("kernels/new.py", "if TYPE_CHECKING:\n    from cqs.worker import Worker"),
        ("kernels/deep/new.py", "from ...worker import Worker"),
        ("quorum/__init__.py", "from cqs.schedule import group"),
        ("errors.py", "from . import masks"),
        ("errors.py", "from cqs.nowhere import something"),
        ("__init__.py", "from cqs.cli import main"),
    ],
)
def test_an_upward_import_is_caught(path: str, source: str) -> None:
    (message,) = upward_imports(source, Path(path))
    assert message.startswith(path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/new.py", "from cqs.kernels.region import Region\nfrom cqs.kernels import blocks"),
        ("kernels/new.py", "from .region import Region\nfrom . import region\nfrom ..partial import Partial"),
        ("kernels/new.py", "from cqs import errors, masks\nimport cqs.backend.arrays"),
        ("kernels/new.py", "import numpy\nfrom numpy import api\nfrom concurrent.futures import Executor"),
        ("problem.py", "from cqs.masks import Mask"),
        ("cli/run.py", "import cqs\nfrom cqs.api import attention\nfrom cqs import attention"),
        ("__init__.py", "from cqs import masks\nfrom .api import attention"),
    ],
)
def test_an_import_from_the_same_layer_or_below_is_not(path: str, source: str) -> None:
    assert upward_imports(source, Path(path)) == []


def test_a_file_outside_of_the_table_is_caught() -> None:
    assert layer_of(module_of(Path("extras.py"))) not in HEIGHTS
    assert layer_of(module_of(Path("extras/deep/__init__.py"))) not in HEIGHTS
