"""Every control of the explorer works by mouse and by keyboard, on a phone, and for those who do not see it."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from test_explorer_data import export

import cqs

pytest_plugins = ["explorer_page"]
keys = pytest.importorskip("selenium.webdriver.common.keys", reason="no Selenium: pip install 'cqs-attention[test]'")
Keys = keys.Keys
ALL = Keys.CONTROL + "a" + Keys.NULL  # selects what is in a field


# ---- controls ----


def test_every_control_works_by_mouse(page):
    page.open("W=8&worker=3&done=5&d=2")
    for name, change in {
        "W-more": {"W": 9}, "W-less": {"W": 8}, "worker-more": {"worker": 4}, "worker-less": {"worker": 3},
        "d-more": {"d": 3}, "d-less": {"d": 2}, "show-worker": {"show": "worker"}, "show-all": {"show": "all"},
        "first": {"done": 0}, "forward": {"done": 1, "worker": 0}, "last": {"done": 8, "worker": 7},
        "back": {"done": 7, "worker": 6},
    }.items():  # fmt: skip
        page.at(name).click()
        assert change.items() <= page.state.items(), name
    for W in (7, 13, 31, 57, 73, 91, 133):
        button = page.driver.find_element("css selector", f"[data-w='{W}']")
        button.click()
        assert page.state["W"] == page.state["done"] == W
        assert button.get_attribute("aria-pressed") == "true"
    for mask, parts in export.MASKS.items():
        page.at("mask").find_element("xpath", f"option[.='{parts['label']}']").click()
        assert page.state["mask"] == mask
    page.at("done").click()  # in its middle
    assert 55 <= page.state["done"] <= 78
    page.driver.find_element("tag name", "summary").click()
    assert len(page.driver.find_elements("css selector", "#differences tr")) == 66
    assert page.at("differences").is_displayed()


def test_a_tile_that_is_clicked_names_and_chooses_its_owner(page):
    page.emulate(height=1600).open("W=13&worker=0")
    picture, canvas = page.figures["picture"], page.at("matrix")
    middle = [picture["margin"] + (g + 0.5) * picture["cell"] - canvas.size["width"] / 2 for g in (2, 9)]
    chain = page.actions()
    chain.move_to_element_with_offset(canvas, round(middle[1]), round(middle[0])).click().perform()
    owner = cqs.CyclicQuorumSet(13).owner(2, 9)
    assert (page.state["cursor"], page.state["worker"]) == ([2, 9], owner)
    assert f"Query group 2, key group 9: owned by worker {owner}" in page.text("tile")


def test_a_tile_that_is_cut_names_its_parts_and_its_stripes_choose_their_owners(page):
    page.emulate(height=1600).open("W=4&mask=documents")
    parts = export.parts_of(4, "documents")
    (g, h), own = next((tile, own) for tile, own in parts.items() if len(own) == 2)
    picture, canvas = page.figures["picture"], page.at("matrix")
    first, last = export.keys_of(4, h)
    for part in own:
        along = h + ((part.start + part.stop) / 2 - first) / (last - first)
        x, y = (picture["margin"] + at * picture["cell"] - canvas.size["width"] / 2 for at in (along, g + 0.5))
        page.actions().move_to_element_with_offset(canvas, round(x), round(y)).click().perform()
        assert (page.state["cursor"], page.state["worker"]) == ([g, h], part.owner)
    told = ", ".join(f"worker {part.owner} owns {part.start} to {part.stop - 1}" for part in own)
    assert f"Query group {g}, key group {h}: cut by its keys, of which {told}, held together by" in page.text("tile")
    assert page.text("tile").endswith("; computed.")
    page.run("document.getElementById('matrix').focus()")
    for part in own:  # the last is chosen, and the first comes after it
        page.press(Keys.ENTER)
        assert page.state["worker"] == part.owner
    page.at("first").click()
    assert page.text("tile").endswith("; not computed yet.")
    for _ in range(min(part.owner for part in own) + 1):
        page.at("forward").click()
    assert page.text("tile").endswith("; computed in part.")


def test_every_control_works_by_keyboard(page):
    page.open("W=8&worker=3&done=5&d=2")
    seen: list[str] = []

    def tab_to(name: str) -> None:
        while page.focused != name:
            page.press(Keys.TAB)
            seen.append(page.focused)
            assert len(seen) < 60, f"{name} is not reached: {seen}"

    def check(name: str, keys: str, **change: Any) -> None:
        tab_to(name)
        page.press(keys)
        assert change.items() <= page.state.items(), (name, page.state)

    check("W-less", Keys.ENTER, W=7)
    check("W", Keys.ARROW_UP, W=8)
    page.driver.switch_to.active_element.send_keys(ALL, "31")
    assert page.state["W"] == 31
    check("W-more", Keys.SPACE, W=32)
    check("13", Keys.ENTER, W=13)
    check("mask", Keys.ARROW_DOWN, mask="causal")
    check("worker-less", Keys.ENTER, worker=2)
    check("worker", Keys.ARROW_UP, worker=3)
    check("worker-more", Keys.ENTER, worker=4)
    check("show-all", Keys.ARROW_DOWN, show="worker")
    page.press(Keys.ARROW_UP)
    assert page.state["show"] == "all"
    check("first", Keys.ENTER, done=0)
    check("back", Keys.ENTER, done=0)  # it keeps the focus where there is nothing to do
    check("forward", Keys.ENTER, done=1, worker=0)
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert page.state["done"] == 2
    check("last", Keys.ENTER, done=13)
    check("done", Keys.ARROW_LEFT, done=12, worker=11)
    page.press(Keys.HOME)
    assert page.state["done"] == 0
    tab_to("matrix")
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ENTER)
    assert (page.state["cursor"], page.state["worker"]) == ([1, 1], cqs.CyclicQuorumSet(13).owner(1, 1))
    page.press(Keys.ESCAPE)
    assert page.state["cursor"] is None
    check("d-less", Keys.ENTER, d=1)
    check("d", Keys.ARROW_UP, d=2)
    check("d-more", Keys.ENTER, d=3)
    tab_to("SUMMARY")
    page.press(Keys.ENTER)
    assert page.at("differences").is_displayed()
    tab_to("Table of differences")  # what scrolls can be reached, too


def test_arrow_keys_step_wherever_they_mean_nothing_else(page):
    page.open("W=7&done=0")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert page.state["done"] == 2
    page.press(Keys.END)
    assert page.state["done"] == 7
    page.press(Keys.HOME)
    assert page.state["done"] == 0


def test_numbers_that_are_typed_are_brought_into_range(page):
    page.open("W=13")
    for name, typed, value in (("W", "500", 133), ("worker", "900", 132), ("d", "0", 1), ("W", "1", 1)):
        page.at(name).send_keys(ALL, typed, Keys.TAB)
        assert page.state[name] == value
        assert page.at(name).get_attribute("value") == str(value)
    assert (page.state["worker"], page.state["d"]) == (0, 0)


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_it_plays_pauses_and_stops_at_the_end(page):
    page.open("W=7")
    page.at("play").click()
    assert page.text("play") == "Pause"
    assert page.at("summary").get_attribute("aria-live") == "off"  # a step each second is too much to listen to
    assert _wait(lambda: page.state["done"] >= 2, 10)
    page.at("play").click()
    assert (page.text("play"), page.state["isPlaying"]) == ("Play", False)
    assert page.at("summary").get_attribute("aria-live") == "polite"
    page.at("play").click()
    assert _wait(lambda: page.state["done"] == 7, 15)
    assert _wait(lambda: not page.state["isPlaying"], 2)


def test_it_plays_calmly_where_less_motion_is_asked_for(page):
    page.emulate(calm=True).open("W=133")
    page.at("play").click()
    started = time.monotonic()
    assert _wait(lambda: page.state["done"] == 2, 20)
    assert time.monotonic() - started > 1.5  # a task a second, where it is some seven otherwise
    page.at("play").click()


# ---- for everybody ----


@pytest.mark.parametrize("width", [320, 360])
@pytest.mark.parametrize("W", [1, 31, 133])
def test_a_phone_has_nothing_to_scroll_sideways(page, width, W):
    page.emulate(width, 740).open(f"W={W}&mask=packed&worker={W - 1}")
    page.run("document.querySelector('details').open = true")
    assert page.run("return document.documentElement.scrollWidth") <= width
    assert page.run("return document.getElementById('matrix').getBoundingClientRect().right") <= width
    small = page.run("""
        return [...document.querySelectorAll("button, select, input:not([type=radio])")]
          .filter((e) => e.getBoundingClientRect().height < (e.type === "range" ? 16 : 24)).map((e) => e.id)""")
    assert small == []


_CONTRASTS = """
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgb = (colour) => {
      canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
      return canvas.getImageData(0, 0, 1, 1).data;
    };
    const linear = (v) => (v / 255 <= 0.04045 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    const light = (colour) => {
      const [r, g, b] = [...rgb(colour)].map(linear);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (a, b) => {
      const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
      return (high + 0.05) / (low + 0.05);
    };
    const ground = (e) => {
      for (; e; e = e.parentElement) {
        const colour = getComputedStyle(e).backgroundColor;
        if (rgb(colour)[3] > 0) return colour;
      }
      return "white";
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const e = walker.currentNode.parentElement;
      const text = walker.currentNode.textContent.trim();
      if (!text || ["SCRIPT", "NOSCRIPT"].includes(e.tagName)) continue;
      const style = getComputedStyle(e);
      found.push([text, contrast(e.closest("svg") ? style.fill : style.color, ground(e))]);
    }
    const page = ground(document.body), theme = getComputedStyle(document.documentElement);
    const graphic = ["accent", "second", "focus", "line", "ink", "muted"];
    return [found, graphic.map((name) => [name, contrast(theme.getPropertyValue("--" + name), page)])];
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrasts_are_those_of_wcag_aa(page, dark):
    page.emulate(dark=dark).open("W=13&worker=2&done=6")
    texts, graphics = page.run(_CONTRASTS)
    assert len(texts) > 80
    assert [each for each in texts if each[1] < 4.5] == []
    assert [each for each in graphics if each[1] < 3] == []


def test_every_control_and_picture_has_a_role_and_a_name(page):
    page.open("W=13&worker=2")
    page.run("document.querySelector('details').open = true")
    named = "button, select, input, canvas, svg[role], [role=region], [role=group], fieldset, a, form"
    elements = page.driver.find_elements("css selector", named)
    assert len(elements) > 25
    assert [e.get_attribute("outerHTML")[:80] for e in elements if not e.accessible_name.strip()] == []
    assert {name: page.at(name).aria_role for name in ("matrix", "done", "mask", "W", "play")} == {
        "matrix": "application", "done": "slider", "mask": "combobox", "W": "spinbutton", "play": "button",
    }  # fmt: skip
    assert {page.at(name).aria_role for name in ("circle", "loads")} <= {"img", "image"}
    assert page.run("return document.documentElement.lang") == "en"
    ids = page.run("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(set(ids)) == len(ids)
    headings = page.run("return [...document.querySelectorAll('h1, h2, h3, h4')].map((e) => e.tagName)")
    assert headings.count("H1") == 1
    assert set(headings) == {"H1", "H2"}
    pointed = page.run("""
        return [...document.querySelectorAll("[aria-labelledby], [aria-describedby], label[for]")]
          .flatMap((e) => ["aria-labelledby", "aria-describedby", "for"].map((name) => e.getAttribute(name)))
          .filter(Boolean).flatMap((ids) => ids.split(" ")).filter((id) => !document.getElementById(id))""")
    assert pointed == []


def test_the_chosen_worker_is_told_to_who_cannot_see(page):
    page.open("W=13&worker=2")
    summary = page.at("summary")
    assert (summary.aria_role, summary.get_attribute("aria-live")) == ("status", "polite")
    page.at("worker-more").click()
    assert page.text("summary").startswith("Worker 3 holds 4 of 13 groups (")
    assert "visible pairs" in page.text("summary")
    assert page.at("circle").accessible_name.startswith("Quorum of worker 3")
    page.at("back").click()
    assert page.at("done").get_attribute("aria-valuetext").startswith("12 of 13 tasks done")
