"""A real browser for tests: Debian's Chromium, headless, and what a page did in it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

# Without a network its own services would only fill the log; as root it has no sandbox to start.
_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass
class Visit:
    """An open page, what it wrote to the console as a warning or worse, and the addresses that it asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def chromium() -> str:
    """The path of Chromium; without it the test skips, and fails where CI is set."""
    found = shutil.which("chromium")
    if found is None:
        message = "chromium is missing: run 'apt-get install chromium' or 'make test' as root"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@contextlib.contextmanager
def visit(address: str, *, dark: bool = False, width: int = 1280, height: int = 900) -> Iterator[Visit]:
    """Open an address in a browser of its own, which is gone at the end of the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(_OPTIONS))
        try:
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
            )
            seen = Visit(page)
            page.on("console", lambda said: seen.complaints.append(said.text) if said.type != "log" else None)
            page.on("pageerror", lambda error: seen.complaints.append(str(error)))
            page.on("request", lambda request: seen.requests.append(request.url))
            page.goto(address)
            yield seen
        finally:
            browser.close()


@contextlib.contextmanager
def visit_file(path: Path, **options: bool | int) -> Iterator[Visit]:
    """The same for a file."""
    with visit(path.resolve().as_uri(), **options) as seen:  # type: ignore[arg-type]
        yield seen
