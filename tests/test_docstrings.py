"""Docstrings: every example gives what it says, and everything public has one."""

import doctest
import importlib
import inspect
import pkgutil
from types import FunctionType, ModuleType

import pytest

import cqs

MODULES = ["cqs", *sorted(m.name for m in pkgutil.walk_packages(cqs.__path__, "cqs.") if "__main__" not in m.name)]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples_of(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]


def documented(doc: str | None) -> bool:
    return bool(doc and doc.strip())


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_say(name: str) -> None:
    runner, said = doctest.DocTestRunner(optionflags=FLAGS), []
    for test in examples_of(importlib.import_module(name)):
        runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


def test_there_are_examples_where_a_reader_starts() -> None:
    assert sum(len(examples_of(importlib.import_module(name))) for name in MODULES) >= 10
    for value in (cqs.attention, cqs.plan, cqs.difference_cover, cqs.CyclicQuorumSet, cqs.DifferenceCover):
        assert ">>>" in value.__doc__


@pytest.mark.parametrize("name", cqs.__all__)
def test_a_public_name_has_a_docstring_of_its_own(name: str) -> None:
    value = getattr(cqs, name)
    assert documented(value.__doc__)
    # a dataclass without one is given its signature by Python
    assert not (inspect.isclass(value) and value.__doc__.startswith(f"{name}("))


@pytest.mark.parametrize("name", cqs.__all__)
def test_public_names_are_importable_and_sorted(name: str) -> None:
    assert hasattr(cqs, name)
    assert list(cqs.__all__) == sorted(cqs.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_and_all_that_is_public_in_it_have_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    assert documented(module.__doc__)
    missing = []
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if not inspect.isclass(value) and not inspect.isroutine(value):
            continue
        if not documented(value.__doc__) or value.__doc__.startswith(f"{public}("):
            missing.append(public)
        if inspect.isclass(value):
            missing += [f"{public}.{member}" for member in undocumented_members(value)]
    assert missing == []


def undocumented_members(cls: type) -> list[str]:
    """Public methods and properties that the class defines itself and says nothing about."""
    kinds = (FunctionType, property, classmethod, staticmethod)
    members = {name: value for name, value in vars(cls).items() if isinstance(value, kinds)}
    return [name for name, value in members.items() if not name.startswith("_") and not documented(value.__doc__)]
