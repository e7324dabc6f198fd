"""The exporter's pages, over real HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from kvmon.errors import ConfigError
from kvmon.exporter.app import Link, create_app
from kvmon.exporter.server import HttpServer, ServerConfig
from kvmon.exporter.web.address import Address


class Source:
    """What an application serves, changed by the tests as they go."""

    def __init__(self) -> None:
        self.health = (True, "following 2 recordings")
        self.ready = (False, "converging: no complete sweep yet")
        self.failure: Exception | None = None
        self.asked: tuple[list[str], list[str]] = ([], [])
        self.together = 0
        self.most_together = 0
        self.entered = threading.Event()
        self.release = threading.Event()
        self.release.set()

    def render(self, openmetrics: bool, collect: Sequence[str] = (), exclude: Sequence[str] = ()) -> bytes:
        """A page that tells its format; it notes how many are rendered at once, and what was asked for last."""
        self.asked = list(collect), list(exclude)
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        self.entered.set()
        try:
            self.release.wait(5)
            if self.failure is not None:
                raise self.failure
            return b"kvmon_engine_up 1\n" + (b"# EOF\n" if openmetrics else b"")
        finally:
            self.together -= 1


@pytest.fixture
def source() -> Source:
    """A healthy source that is not ready."""
    return Source()


@pytest.fixture
def serve() -> Iterator[Callable[..., httpx.Client]]:
    """Serve an application on a free port and return a client for it; ends with the test."""
    running: list[tuple[HttpServer, threading.Thread, httpx.Client]] = []

    def start(source: Source, **options: object) -> httpx.Client:
        app = create_app(
            source.render,
            lambda: source.health,
            lambda: source.ready,
            "1.2.3",
            **options,  # type: ignore[arg-type]
        )
        server = HttpServer(app, ServerConfig(listen=(Address("127.0.0.1", 0),), stop_timeout=1))
        thread = threading.Thread(target=server.run)
        thread.start()
        client = httpx.Client(base_url=f"http://{server.addresses[0]}", headers={"Accept-Encoding": "identity"})
        running.append((server, thread, client))
        return client

    yield start
    for server, thread, client in running:
        client.close()
        server.stop()
        thread.join(5)
        assert not thread.is_alive()


def test_metrics_are_plain_text_by_default(serve: Callable[..., httpx.Client], source: Source) -> None:
    """Without an Accept header the page is Prometheus' text format, uncompressed."""
    answer = serve(source).get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "content-encoding" not in answer.headers
    assert answer.content == b"kvmon_engine_up 1\n"


def test_metrics_are_openmetrics_and_gzip_where_accepted(serve: Callable[..., httpx.Client], source: Source) -> None:
    """Format and encoding follow the headers, and caches are told so."""
    headers = {"Accept": "application/openmetrics-text; version=1.0.0", "Accept-Encoding": "gzip"}
    answer = serve(source).get("/metrics", headers=headers)
    assert answer.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["vary"] == "Accept, Accept-Encoding"
    assert answer.content == b"kvmon_engine_up 1\n# EOF\n"


def test_head_has_the_headers_and_no_body(serve: Callable[..., httpx.Client], source: Source) -> None:
    """HEAD answers like GET without the body."""
    client = serve(source)
    head, get = client.head("/metrics"), client.get("/metrics")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))


@pytest.mark.parametrize("path", ["/-/healthy", "/-/ready"])
def test_status_pages_follow_their_source(serve: Callable[..., httpx.Client], source: Source, path: str) -> None:
    """Healthy and ready answer 200 or 503, with the reason as text."""
    client = serve(source)
    name = path.rpartition("/")[2].replace("healthy", "health")
    for fine, reason in ((True, "all well"), (False, "no recording directory")):
        setattr(source, name, (fine, reason))
        answer = client.get(path)
        assert (answer.status_code, answer.text) == (200 if fine else 503, f"{reason}\n")


def test_the_landing_page_links_what_is_there(serve: Callable[..., httpx.Client], source: Source) -> None:
    """The landing page names the version and links every page; its text is escaped."""
    links = [Link("https://example.org/?a=1&b=2", "Manual <1>", "how to read it")]
    client = serve(source, telemetry_path="/kv", links=links)
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    for text in (
        'href="/kv"',
        'href="/-/healthy"',
        'href="/-/ready"',
        "Version 1.2.3",
        "Manual &lt;1&gt;",
        "a=1&amp;b=2",
    ):
        assert text in answer.text
    assert client.get("/kv").status_code == 200
    assert client.get("/metrics").status_code == 404


def test_unknown_paths_and_methods_are_refused_sanely(serve: Callable[..., httpx.Client], source: Source) -> None:
    """404 says where to look, 405 names what is allowed."""
    client = serve(source)
    missing = client.get("/metric")
    assert (missing.status_code, missing.text) == (404, "Not Found: see / for what is served here\n")
    wrong = client.post("/metrics")
    assert wrong.status_code == 405
    assert {method.strip() for method in wrong.headers["allow"].split(",")} == {"GET", "HEAD"}


def test_filters_reach_the_renderer(serve: Callable[..., httpx.Client], source: Source) -> None:
    """`collect[]` and `exclude[]` may be there several times; what the renderer refuses is a client error."""
    client = serve(source)
    assert client.get("/metrics", params={"collect[]": ["memory", "engine"]}).status_code == 200
    assert source.asked == (["memory", "engine"], [])
    client.get("/metrics", params={"exclude[]": "trust"})
    assert source.asked == ([], ["trust"])
    source.failure = ConfigError("there is no collector 'memry': give one of engine, memory")
    answer = client.get("/metrics", params={"collect[]": "memry"})
    assert (answer.status_code, answer.text) == (400, "there is no collector 'memry': give one of engine, memory\n")


def test_a_failing_renderer_is_a_500_and_the_next_scrape_works(
    serve: Callable[..., httpx.Client], source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in the renderer is answered in one line, logged, and forgotten."""
    client = serve(source)
    source.failure = KeyError("pool")
    answer = client.get("/metrics")
    assert answer.status_code == 500
    assert answer.text == "the metrics could not be rendered (KeyError): see the exporter's log\n"
    assert "could not be rendered" in caplog.text
    source.failure = None
    assert client.get("/metrics").status_code == 200


def test_scrapes_are_rendered_one_at_a_time_and_do_not_block_health(
    serve: Callable[..., httpx.Client], source: Source
) -> None:
    """Four scrapes at once never meet in the renderer, and health answers while they wait."""
    client = serve(source)
    source.release.clear()
    with ThreadPoolExecutor(4) as pool:
        scrapes = [pool.submit(client.get, "/metrics") for _ in range(4)]
        assert source.entered.wait(5)
        assert client.get("/-/healthy").status_code == 200
        source.release.set()
        assert [scrape.result(5).status_code for scrape in scrapes] == [200] * 4
    assert source.most_together == 1


def test_more_scrapes_than_the_limit_are_turned_away(serve: Callable[..., httpx.Client], source: Source) -> None:
    """Past `max_requests` a scrape is answered 503 at once, and the limit frees up again."""
    client = serve(source, max_requests=1)
    source.release.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.get, "/metrics")
        assert source.entered.wait(5)
        refused = client.get("/metrics")
        source.release.set()
        assert first.result(5).status_code == 200
    assert refused.status_code == 503
    assert "try again later" in refused.text
    assert client.get("/metrics").status_code == 200


@pytest.mark.parametrize("path", ["metrics", "/", "/-/ready", "/a b", "/{x}", ""])
def test_a_telemetry_path_that_cannot_be_served_is_refused(source: Source, path: str) -> None:
    """A path that is relative, taken or not plain is a ConfigError."""
    with pytest.raises(ConfigError, match="telemetry path"):
        create_app(source.render, lambda: source.health, lambda: source.ready, "1", telemetry_path=path)


def test_a_negative_limit_is_refused(source: Source) -> None:
    """A limit below 0 means nothing."""
    with pytest.raises(ConfigError, match="give 0"):
        create_app(source.render, lambda: source.health, lambda: source.ready, "1", max_requests=-1)
