"""The explorer loads by itself and pictures what `cqs.plan` says; `explorer_page` says which browser it wants."""

import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from test_explorer_data import EXPLORER, export

import cqs
from cqs.schedule.task import Task

pytest_plugins = ["explorer_page"]


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(EXPLORER)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()
    thread.join()
    server.server_close()


# ---- loading ----


@pytest.mark.parametrize("is_served", [False, True], ids=["file", "http"])
def test_loads_without_errors_and_asks_only_for_its_own_files(page, served, is_served):
    address = served if is_served else (EXPLORER / "index.html").as_uri()
    page.driver.get_log("performance")
    page.open("W=13", address)
    assert page.state["W"] == 13
    page.at("play").click()
    time.sleep(0.5)
    events = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    folder = address.removesuffix("index.html")
    own = {folder + path.name for path in EXPLORER.iterdir() if path.suffix in {".html", ".js", ".css"}}
    assert own <= {url.partition("#")[0] for url in asked}
    assert {url.partition("#")[0] for url in asked if not url.startswith(("data:", "about:", "chrome"))} == own


def test_a_view_can_be_linked(page):
    page.open("W=31&mask=window&worker=5&done=9&show=worker&d=4")
    expected = {"W": 31, "mask": "window", "worker": 5, "done": 9, "show": "worker", "d": 4}
    assert expected.items() <= page.state.items()
    page.at("worker-more").click()
    assert "worker=6" in page.driver.current_url
    before = page.state
    page.open(page.driver.current_url.partition("#")[2])
    assert page.state == before


@pytest.mark.parametrize("view", ["W=999&mask=none&worker=-3&done=x&show=&d=1e9", "W=0", "W=NaN&d=", "&&=", "%"])
def test_a_wrong_link_shows_something_in_range(page, view):
    state = page.open(view).state
    assert 1 <= state["W"] <= export.MOST_WORKERS
    assert 0 <= state["worker"] < state["W"]
    assert 0 <= state["done"] <= state["W"]
    assert state["mask"] in export.MASKS


# ---- the picture is the plan ----


def _choice(seed: int) -> tuple[int, str, int]:
    rng = np.random.default_rng([7, seed])
    W = int(rng.integers(1, export.MOST_WORKERS + 1))
    return W, list(export.MASKS)[seed % len(export.MASKS)], int(rng.integers(W))


_CUT = [(10, "packed", 2), (20, "documents", 3), (29, "window", 4)]  # some of their tiles are cut
_CHOICES = [*map(_choice, range(10)), *_CUT]


def _parts(W: int, mask: str) -> list[list[list[int]]]:
    """Return what is computed of each tile, row by row, as the page tells it."""
    found = export.parts_of(W, mask)
    return [[list(part) for part in found.get((g, h), [])] for g in range(W) for h in range(W)]


def _n_tiles(task: Task) -> int:
    """Count the tiles that a task has a part of."""
    return len({(tile.query.index, tile.key.index) for tile in task.tiles})


@pytest.mark.parametrize(("W", "mask", "worker"), _CHOICES)
def test_owners_loads_quorums_and_tokens_agree_with_the_plan(page, W, mask, worker):
    found = page.open(f"W={W}&mask={mask}&worker={worker}").figures
    plan, quorums = export.plan_of(W, mask), cqs.CyclicQuorumSet(W)
    assert found["parts"] == _parts(W, mask)
    assert (W, mask, worker) not in _CUT or any(len(own) > 1 for own in found["parts"])
    assert found["quorum"] == list(quorums.quorum(worker))
    sizes = [(g + 1) * export.N_TOKENS // W - g * export.N_TOKENS // W for g in range(W)]
    assert found["heldTokens"] == [sum(sizes[g] for g in quorums.quorum(i)) for i in range(W)]
    tasks = list(plan.tasks())
    assert found["loads"] == plan.loads()
    assert found["tiles"] == [_n_tiles(task) for task in tasks]
    assert found["readBytes"] == [plan.held_bytes(task) for task in tasks]
    assert found["returnedBytes"] == [plan.partial_bytes(task) for task in tasks]
    assert found["pairs"] == [list(quorums.cover.witness(d)) for d in range(1, W // 2 + 1)]


@pytest.mark.parametrize(("W", "mask", "worker"), _CHOICES)
@pytest.mark.parametrize("strategy", ["cqs", "tiles", "ring"])
def test_what_the_schemes_move_agrees_with_their_plans(page, W, mask, worker, strategy):
    W = min(W, 60)  # the ring's W^2 tiles take long to count one by one
    found = page.open(f"W={W}&mask={mask}").figures["schemes"][strategy]
    plan = export.plan_of(W, mask, strategy)
    moved, loads = plan.traffic, plan.loads()
    assert (found["read"], found["passed"]) == (moved.read, moved.passed)
    assert (found["results"], found["written"]) == (moved.results, moved.written)
    assert found["unevenness"] == pytest.approx(max(loads) * W / sum(loads), rel=1e-12)
    needed = [{*task.query_groups, *task.key_groups} for task in plan.tasks()]
    tokens = [len(set().union(*(group.tokens for group in groups))) for groups in needed]
    assert found["mostTokens"] == max(tokens)


@pytest.mark.parametrize("W", [7, 31, 133])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_tiles_have_the_colour_of_their_owner(page, W, dark):
    done, worker = W // 2, W // 2 - 1
    page.emulate(dark=dark).open(f"W={W}&done={done}&worker={worker}")
    palette = np.array(page.figures["picture"]["palette"])
    assert len(np.unique(palette, axis=0)) == W
    owners, colours = cqs.CyclicQuorumSet(W).ownership(), page.colours()
    unmarked = owners != worker
    empty = colours[(owners >= done) & unmarked]
    assert (empty == empty[0]).all()
    filled = (owners < done) & unmarked
    assert np.array_equal(colours[filled], palette[owners[filled]])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_tile_that_is_cut_has_stripes_in_the_colours_of_its_owners(page, dark):
    W, mask = 4, "documents"
    parts = {tile: own for tile, own in export.parts_of(W, mask).items() if len(own) > 1}
    assert parts
    for (g, h), own in parts.items():
        others = set(range(W)) - {part.owner for part in own}
        page.emulate(dark=dark).open(f"W={W}&mask={mask}&worker={min(others)}")
        palette, line = np.array(page.figures["picture"]["palette"]), page.colours_along(g, h)
        first, last = export.keys_of(W, h)
        for part in own:
            share = (part.stop - part.start) / (last - first)
            n_pixels = (line == palette[part.owner]).all(axis=1).sum()
            assert abs(n_pixels - share * len(line)) <= 2  # one is the gap
        middles = [(part.start + part.stop - 2 * first) * len(line) // (2 * (last - first)) for part in own]
        assert np.array_equal(line[middles], palette[[part.owner for part in own]])


@pytest.mark.parametrize(("W", "mask"), [(7, "full"), (8, "causal"), (13, "packed"), (8, "window")])
def test_a_step_is_a_task_and_a_tile_is_filled_with_the_last_of_its_parts(page, W, mask):
    page.open(f"W={W}&mask={mask}&done=0&worker=0")
    parts = export.parts_of(W, mask)
    last = [max(part.owner for part in own) for own in parts.values()]
    for i in range(W):
        page.at("forward").click()
        assert (page.state["done"], page.state["worker"]) == (i + 1, i)
        filled = sum(owner <= i for owner in last)
        assert f"{filled} of {len(parts)} tiles" in page.text("step")
    assert filled == len(parts)
    assert page.at("forward").get_attribute("aria-disabled") == "true"


def test_what_is_written_of_a_worker_is_the_plans(page):
    page.open("W=13&mask=window&worker=4")
    plan, words = export.plan_of(13, "window"), page.text("summary")
    task = plan.task(4)
    assert f"({', '.join(map(str, cqs.CyclicQuorumSet(13).quorum(4)))})" in words
    parts = [own for own in export.parts_of(13, "window").values() if 4 in {part.owner for part in own}]
    n_shared = sum(len({part.owner for part in own}) > 1 for own in parts)
    assert n_shared > 0
    assert f"{_n_tiles(task)} tiles, {n_shared} of them in part, with {plan.load(task):,} visible pairs" in words
    assert f"reads {cqs.units.format_bytes(plan.held_bytes(task))}" in words
    assert f"returns {cqs.units.format_bytes(plan.partial_bytes(task))}" in words
    assert page.text("cqs-read") == cqs.units.format_bytes(plan.traffic.read)


def test_what_is_written_of_a_worker_without_parts_of_tiles_tells_none(page):
    task = export.plan_of(13, "full").task(4)
    assert f"It owns {_n_tiles(task)} tiles with " in page.open("W=13&worker=4").text("summary")
