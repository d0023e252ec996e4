"""The explorer in a headless Chromium, as fixtures.

They want Debian's packages chromium and chromium-driver; without them tests are skipped, and say so.
"""

import shutil
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_explorer_data import EXPLORER

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
_ALONE = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
_QUIET = "--disable-component-update --disable-sync --disable-dev-shm-usage"


class Page:
    """The explorer in a browser, and what the tests ask of it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, view: str = "", address: str = (EXPLORER / "index.html").as_uri()) -> "Page":
        self.driver.get("about:blank")  # another hash alone would not load the page anew
        self.driver.get(f"{address}#{view}")
        is_ready = "return document.readyState === 'complete' && window.explorer !== undefined"
        end = time.monotonic() + 20
        while not self.run(is_ready) and time.monotonic() < end:
            time.sleep(0.02)
        return self

    def emulate(self, width: int = 1280, height: int = 1000, dark: bool = False, calm: bool = False) -> "Page":
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        return self

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    @property
    def state(self) -> dict[str, Any]:
        return self.run("return explorer.state()")

    @property
    def figures(self) -> dict[str, Any]:
        return self.run("return explorer.figures()")

    def at(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def text(self, name: str) -> str:
        return self.run("return document.getElementById(arguments[0]).textContent", name)

    def press(self, *keys: str) -> None:
        """Type keys to whatever has the focus."""
        self.actions().send_keys(*keys).perform()

    def actions(self) -> Any:
        """Return a chain of what mouse and keyboard do."""
        from selenium.webdriver import ActionChains

        return ActionChains(self.driver)

    @property
    def focused(self) -> str:
        active = "const at = document.activeElement; "
        return self.run(active + "return at.id || at.dataset.w || at.getAttribute('aria-label') || at.tagName")

    def colours(self) -> np.ndarray:
        """Return the colour of each tile near its upper left corner, `(W, W, 3)`, as it is on the screen."""
        script = """
            const { margin, cell } = explorer.figures().picture, { W } = explorer.state();
            const canvas = document.getElementById("matrix"), pen = canvas.getContext("2d"), colours = [];
            const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
            const inside = Math.floor(cell / 8);
            for (let g = 0; g < W; g++)
              for (let h = 0; h < W; h++) {
                const start = 4 * ((margin + g * cell + inside) * canvas.width + margin + h * cell + inside);
                colours.push([data[start], data[start + 1], data[start + 2]]);
              }
            return colours;"""
        W = self.state["W"]
        return np.array(self.run(script)).reshape(W, W, 3)

    def colours_along(self, g: int, h: int) -> np.ndarray:
        """Return the colours of a tile from left to right near its upper edge, `(cell, 3)`."""
        script = """
            const [g, h] = arguments, { margin, cell } = explorer.figures().picture;
            const pen = document.getElementById("matrix").getContext("2d"), inside = Math.floor(cell / 8);
            return Array.from(pen.getImageData(margin + h * cell, margin + g * cell + inside, cell, 1).data);"""
        return np.array(self.run(script, g, h)).reshape(-1, 4)[:, :3]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="no Selenium: pip install 'cqs-attention[test]'")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*_ALONE.split(), *_QUIET.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any) -> Iterator[Page]:
    page = Page(browser).emulate()
    yield page
    assert browser.get_log("browser") == []
