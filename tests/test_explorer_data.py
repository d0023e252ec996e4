"""The explorer's data are what the library computes."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cqs

EXPLORER = Path(__file__).parents[1] / "docs" / "explorer"


def _load_export() -> ModuleType:
    spec = importlib.util.spec_from_file_location("explorer_export", EXPLORER / "export.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


export = _load_export()


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    _, _, value = export.DATA.read_text().partition("window.EXPLORER_DATA = ")
    return json.loads(value.rstrip().removesuffix(";"))


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_what_does_not_depend_on_workers_is_fresh(data):
    workers = data.pop("workers")
    assert data == _as_json(export.common())
    assert export.DATA.read_text() == export.script(data, workers)
    data["workers"] = workers


def test_every_base_is_the_librarys(data):
    assert [tuple(entry["base"]) for entry in data["workers"]] == [
        cqs.difference_cover(W).base for W in range(1, export.MOST_WORKERS + 1)
    ]


@pytest.mark.parametrize("W", [1, 2, 3, 7, 8, 13, 20, 31, 57, 133])
def test_searched_owners_are_fresh(data, W):
    assert data["workers"][W - 1] == _as_json(export.entry(W)), "run docs/explorer/export.py"


@pytest.mark.slow
@pytest.mark.parametrize("W", range(1, export.MOST_WORKERS + 1))
def test_every_searched_owner_is_fresh(data, W):
    assert data["workers"][W - 1] == _as_json(export.entry(W)), "run docs/explorer/export.py"


def test_masks_are_named_by_what_the_page_evaluates():
    assert export.mask_of("full") == cqs.masks.NoMask()
    assert export.mask_of("causal") == cqs.masks.Causal()
    for name in ("documents", "packed"):
        assert sum(export.MASKS[name]["documents"]) == export.N_TOKENS


def test_the_page_asks_for_nothing_from_elsewhere():
    for path in EXPLORER.iterdir():
        if path.suffix in {".js", ".html", ".css"}:
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert not any(word in text for word in ("http:", "https:", "fetch(", "XMLHttpRequest", "@import", "url("))
