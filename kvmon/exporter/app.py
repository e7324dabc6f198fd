"""The exporter's web application: metrics, landing page, health and readiness, runbooks.

It knows HTTP and nothing about metrics: what to serve comes in as functions. Scrapes are rendered one after the other
in a worker thread, so that two of them never meet and a slow one never delays `/-/healthy`.
"""

from __future__ import annotations

import asyncio
import gzip
import html
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from kvmon.errors import ConfigError
from kvmon.exporter.negotiation import OPENMETRICS, TEXT, accepts_gzip, prefers_openmetrics
from kvmon.exporter.web.gate import ANONYMOUS
from kvmon.exporter.web.look import HTML_HEADERS, page
from kvmon.exporter.web.runbooks import RUNBOOKS_PATH, Runbooks

__all__ = ["HEALTHY_PATH", "READY_PATH", "Link", "Render", "Status", "create_app"]

HEALTHY_PATH = "/-/healthy"
READY_PATH = "/-/ready"
_LOG = logging.getLogger(__name__)
# Exposition text shrinks to about a tenth; more effort than this buys little and costs scrape time.
_GZIP_LEVEL = 4
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class Render(Protocol):
    """Renders the exposition, as OpenMetrics or as Prometheus' text format.

    `collect` and `exclude` are what a scrape asks for (`collect[]`, `exclude[]`); ConfigError for what cannot be asked.
    """

    def __call__(self, openmetrics: bool, collect: Sequence[str] = ..., exclude: Sequence[str] = ..., /) -> bytes:
        """The page as of now."""


Status = Callable[[], tuple[bool, str]]
"""Whether it is so, and one line that says why."""


class Link(NamedTuple):
    """A line of the landing page."""

    address: str
    title: str
    description: str


def create_app(
    render: Render,
    health: Status,
    ready: Status,
    version: str,
    *,
    links: Sequence[Link] = (),
    telemetry_path: str = "/metrics",
    max_requests: int = 40,
) -> Starlette:
    """The application that serves `render()` at `telemetry_path`.

    `health` and `ready` decide between 200 and 503 at `/-/healthy` and `/-/ready`. `max_requests` scrapes may be in
    progress or waiting; one more is answered 503, 0 is no limit. Raises ConfigError for a path that cannot be served.
    """
    _check_path(telemetry_path)
    if max_requests < 0:
        raise ConfigError(f"the limit of concurrent scrapes is {max_requests}: give 0 (no limit) or more")
    scrapes = _Scrapes(render, max_requests)
    own = (
        Link(telemetry_path, "Metrics", "for Prometheus"),
        Link(HEALTHY_PATH, "Health", "is the exporter alive"),
        Link(READY_PATH, "Readiness", "are there numbers to serve"),
        Link(RUNBOOKS_PATH, "Runbooks", "what to do when an alert fires"),
    )
    landing = _landing_page(version, (*own, *links))
    runbooks = Runbooks(version)

    return Starlette(
        routes=[
            Route("/", lambda request: _html(landing)),
            Route(telemetry_path, scrapes.answer),
            Route(HEALTHY_PATH, _status_endpoint(health)),
            Route(READY_PATH, _status_endpoint(ready)),
            Route(RUNBOOKS_PATH, lambda request: _html(runbooks.index())),
            Route(RUNBOOKS_PATH + "{name}", lambda request: _html(runbooks.page(request.path_params["name"]))),
        ],
        exception_handlers={404: _not_found},
    )


class _Scrapes:
    """Answers scrapes one at a time and turns away what exceeds the limit."""

    def __init__(self, render: Render, limit: int) -> None:
        self._render = render
        self._limit = limit
        self._present = 0
        self._turn = asyncio.Lock()

    async def answer(self, request: Request) -> Response:
        """The exposition, in the format and encoding that the client accepts."""
        if self._limit and self._present >= self._limit:
            return _plain(f"{self._present} scrapes are in progress, the limit: try again later", 503)
        self._present += 1
        try:
            async with self._turn:
                return await run_in_threadpool(self._answer, request)
        except ConfigError as error:
            return _plain(str(error), 400)
        except Exception as error:
            _LOG.exception("the metrics could not be rendered")
            return _plain(f"the metrics could not be rendered ({type(error).__name__}): see the exporter's log", 500)
        finally:
            self._present -= 1

    def _answer(self, request: Request) -> Response:
        openmetrics = prefers_openmetrics(request.headers.get("accept", ""))
        asked = request.query_params
        body = self._render(openmetrics, asked.getlist("collect[]"), asked.getlist("exclude[]"))
        headers = {"Vary": "Accept, Accept-Encoding", "Cache-Control": "no-store", **_SECURITY}
        if accepts_gzip(request.headers.get("accept-encoding", "")):
            body = gzip.compress(body, _GZIP_LEVEL, mtime=0)
            headers["Content-Encoding"] = "gzip"
        headers["Content-Type"] = OPENMETRICS if openmetrics else TEXT
        return Response(body, headers=headers)


def _status_endpoint(status: Status) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        fine, reason = status()
        if getattr(request.state, ANONYMOUS, False):
            reason = "yes" if fine else "no"
        return _plain(reason, 200 if fine else 503)

    return answer


async def _not_found(request: Request, error: Exception) -> Response:
    detail = error.detail if isinstance(error, HTTPException) else "Not Found"
    return _plain(f"{detail}: see / for what is served here", 404)


def _html(text: str | None) -> Response:
    if text is None:
        raise HTTPException(404)
    return HTMLResponse(text, headers=HTML_HEADERS)


def _plain(text: str, status: int) -> Response:
    return PlainTextResponse(text + "\n", status, headers={"Cache-Control": "no-store", **_SECURITY})


def _check_path(path: str) -> None:
    if not path.startswith("/") or path == "/" or any(character in path for character in "?#{} "):
        raise ConfigError(f"'{path}' cannot be the telemetry path: give one such as /metrics")
    if path in (HEALTHY_PATH, READY_PATH) or f"{path}/".startswith(RUNBOOKS_PATH):
        raise ConfigError(f"'{path}' is taken by the exporter itself: give another telemetry path")


def _landing_page(version: str, links: Sequence[Link]) -> str:
    rows = "\n".join(
        f'<li><a href="{html.escape(link.address)}">{html.escape(link.title)}</a> '
        f"<span>{html.escape(link.description)}</span></li>"
        for link in links
    )
    lead = "Watches the KV-cache allocator of LLM inference engines."
    body = f'<h1>kvmon exporter</h1>\n<p class="lead">{lead}</p>\n<ul class="links">\n{rows}\n</ul>'
    return page("kvmon exporter", body, version)
