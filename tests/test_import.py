"""Importing cqs is cheap: it loads no library that was not asked for, and takes little longer than NumPy alone."""

import ast
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import cqs

HEAVY = ("cupy", "torch", "dask", "zarr", "matplotlib", "sympy", "rich", "ml_dtypes", "numba", "scipy")
MOST_SECONDS = 0.1  # beyond what NumPy takes


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    # compiled files are kept, as they are of what is installed, wherever the environment of the tests keeps them
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def seconds_to_import(module: str) -> float:
    """CPU time of the importing thread: other processes do not count, nor do BLAS threads, which spin meanwhile."""
    code = "from time import thread_time; start = thread_time(); import {}; print(thread_time() - start)"
    return float(run(code.format(module)))


def test_import_loads_no_heavy_library() -> None:
    everything = "[getattr(cqs, name) for name in cqs.__all__]"
    loaded = json.loads(run(f"import cqs, json, sys; {everything}; print(json.dumps(sorted(sys.modules)))"))
    assert "cqs.api" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_attention_and_a_plan_load_no_heavy_library() -> None:
    code = "import cqs, json, numpy, sys; x = numpy.ones((1, 50, 4)); cqs.attention(x, x, x, workers=7); "
    loaded = json.loads(run(code + "str(cqs.plan(x, x, x)); print(json.dumps(sorted(sys.modules)))"))
    assert [name for name in HEAVY if name in loaded] == []


@pytest.mark.parametrize("heavy", HEAVY)
def test_import_works_where_a_heavy_library_is_missing(heavy: str) -> None:
    assert run(f"import sys; sys.modules[{heavy!r}] = None; import cqs; print(cqs.__version__)").strip()


def test_names_are_imported_when_they_are_asked_for() -> None:
    """And are those that type checkers are told."""
    assert run("import cqs, sys; print([name for name in sys.modules if name.startswith('cqs')])") == "['cqs']\n"
    told = {}
    for block in ast.parse(Path(cqs.__file__).read_text()).body:
        for line in block.body if isinstance(block, ast.If) else ():
            if isinstance(line, ast.ImportFrom):
                told |= {alias.name: line.module for alias in line.names}
    assert sorted(told) == sorted(cqs.__all__)
    for name, module in told.items():
        there = f"cqs.{name}" if module == "cqs" else module
        home = import_module(there)
        assert getattr(cqs, name) is (home if module == "cqs" else getattr(home, name))


def test_import_takes_at_most_a_tenth_of_a_second_longer_than_numpy() -> None:
    for module in ("numpy", "cqs"):  # writes what is compiled, and warms the disk's cache
        seconds_to_import(module)
    numpy, ours = [], []
    for n in range(15):  # in turn, and the least of each: other work only ever adds to it
        numpy.append(seconds_to_import("numpy"))
        ours.append(seconds_to_import("cqs"))
        if n >= 4 and min(ours) - min(numpy) <= MOST_SECONDS:
            break
    assert min(ours) - min(numpy) <= MOST_SECONDS


def test_modules_that_the_docs_name_are_there_when_they_are_asked_for() -> None:
    code = "import cqs; print([getattr(cqs, name).__name__ for name in ('plot', 'testing', 'trace', 'verify')])"
    assert run(code).strip() == "['cqs.plot', 'cqs.testing', 'cqs.trace', 'cqs.verify']"
    with pytest.raises(AttributeError, match="module 'cqs' has no attribute 'attenton'"):
        cqs.attenton  # noqa: B018


def test_completion_shows_what_is_public_alone() -> None:
    shown = set(dir(cqs))
    assert {*cqs.__all__, "testing", "verify", "plot", "__version__"} <= shown
    assert not shown & {"api", "call", "checks", "placing", "import_module", "TYPE_CHECKING"}
