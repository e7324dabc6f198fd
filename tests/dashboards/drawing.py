"""Draws dashboards with Grafana's own libraries in a headless Chromium, from what a Prometheus answered.

What is drawn is the shipped JSON: Grafana's transformations, field configuration, theme, time series, numbers and
tables; heatmaps and timelines of states, which are in no library of Grafana's, are drawn by stand-ins. Nothing leaves
the machine: the one page that is loaded is given to the browser by the test.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tests.dashboards.asking import Json, panels

__all__ = ["WIDTH", "Drawing", "drawing"]

WIDTH = 1600
_LINE = 38
_RENDER = Path(__file__).parent / "render"

# As root, without a network, and without what a browser does on its own.
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
_EMPTY = '<!doctype html><html><body style="margin:0"><div id="root"></div></body></html>'


class Drawing:
    """A page of the browser with one dashboard on it at a time; `script` is the bundle that draws."""

    def __init__(self, page: Page, script: Path) -> None:
        self.page, self._script = page, script
        self.complaints: list[str] = []
        page.route("**/*", lambda route: route.fulfill(body=_EMPTY, content_type="text/html"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def show(self, dashboard: Json, answers: dict[str, Any], begin_s: float, end_s: float, step_s: float) -> None:
        """Draw a dashboard; `answers` are by the title of a panel and the letter of a query."""
        page, shown = self.page, list(panels(dashboard))
        bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in shown)
        page.set_viewport_size({"width": WIDTH, "height": bottom * _LINE + 8})
        page.goto("http://dashboard.invalid/")
        page.add_style_tag(path=str(self._script.with_suffix(".css")))
        given = {"dashboard": dashboard, "answers": answers, "from": begin_s, "to": end_s, "step": step_s}
        page.evaluate("page => { window.page = page }", {**given, "width": WIDTH, "dark": True})
        page.add_script_tag(path=str(self._script))
        page.wait_for_function(f"window.drawn >= {len(shown)}", timeout=30_000)
        page.wait_for_timeout(300)  # legends are measured once more
        self.complaints += page.evaluate("window.failures")

    def text(self, title: str) -> str:
        """Everything that a panel says in words."""
        return self.page.locator(f'[data-panel="{title}"]').inner_text()

    def colours(self, title: str) -> set[str]:
        """Every colour that is on the canvases, shapes and backgrounds of a panel, as rrggbb; blends are left out."""
        found: list[str] = self.page.evaluate(_COLOURS, title)
        return set(found)

    def save(self, path: Path) -> None:
        """A picture of the whole page."""
        self.page.screenshot(path=str(path), full_page=True)


# Colours of at least thirty opaque pixels of a canvas, of the fills of an SVG, and of the styles of elements.
_COLOURS = """title => {
  const panel = document.querySelector(`[data-panel="${title}"]`);
  const found = new Set(), count = new Map();
  const hex = (...rgb) => rgb.map(part => part.toString(16).padStart(2, '0')).join('');
  for (const canvas of panel.querySelectorAll('canvas')) {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < data.length; at += 4) {
      if (data[at + 3] === 255) {
        const colour = (data[at] << 16) + (data[at + 1] << 8) + data[at + 2];
        count.set(colour, (count.get(colour) ?? 0) + 1);
      }
    }
  }
  for (const [colour, pixels] of count) {
    if (pixels >= 30) found.add(hex(colour >> 16, (colour >> 8) & 255, colour & 255));
  }
  for (const element of panel.querySelectorAll('*')) {
    const style = getComputedStyle(element);
    for (const text of [style.backgroundColor, style.color, style.fill]) {
      const rgb = text.match(/^rgb\\((\\d+), (\\d+), (\\d+)\\)$/);
      if (rgb) found.add(hex(...rgb.slice(1).map(Number)));
    }
  }
  return [...found];
}"""


@contextlib.contextmanager
def drawing(place: Path, packages: Path, chromium: Path) -> Iterator[Drawing]:
    """A browser that draws; `packages` is a node_modules, `place` takes the bundle."""
    script = place / "page.js"
    environment = {**os.environ, "NODE_PATH": str(packages)}
    subprocess.run(["node", _RENDER / "build.mjs", script], env=environment, check=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=list(_FLAGS))
        try:
            yield Drawing(browser.new_page(), script)
        finally:
            browser.close()
