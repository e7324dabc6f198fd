"""Where the server listens, what it refuses, and how it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmon.errors import ConfigError, SystemRefused
from kvmon.exporter.app import create_app
from kvmon.exporter.server import HttpServer, ServerConfig
from kvmon.exporter.web.address import DEFAULT_PORT, Address, parse_address

ANY_PORT = Address("127.0.0.1", 0)
# Serves on a free port, prints it, and reports how `run` ended. A scrape takes half a second.
PROCESS = """
import sys, time
from kvmon.exporter.app import create_app
from kvmon.exporter.server import HttpServer, ServerConfig
from kvmon.exporter.web.address import Address
def render(openmetrics, collect, exclude):
    print("scraping", flush=True)
    time.sleep(0.5)
    return b"kvmon_engine_up 1\\n"
app = create_app(render, lambda: (True, "up"), lambda: (True, "ready"), "1")
server = HttpServer(app, ServerConfig(listen=(Address("127.0.0.1", 0),)))
print(server.addresses[0].port, flush=True)
try:
    server.run()
except KeyboardInterrupt:
    sys.exit(130)
"""


def make(*listen: Address, request_timeout: float = 10.0) -> HttpServer:
    """A server of an application that is always well."""
    app = create_app(lambda *asked: b"x 1\n", lambda: (True, "up"), lambda: (True, "ready"), "1")
    return HttpServer(app, ServerConfig(listen=listen, stop_timeout=1, request_timeout=request_timeout))


@pytest.fixture
def running(request: pytest.FixtureRequest) -> Iterator[HttpServer]:
    """A server in a thread, on a free port, that waits 0.3 s for a request."""
    server = make(ANY_PORT, ANY_PORT, request_timeout=0.3)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
    server.stop()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9000", Address("127.0.0.1", 9000)),
        ("localhost:0", Address("localhost", 0)),
        (":10490", Address("", 10490)),
        ("[::1]:80", Address("::1", 80)),
    ],
)
def test_an_address_reads_as_it_is_written(text: str, address: Address) -> None:
    """Each form of an address is parsed, and printed the same way."""
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "9000", "host", "host:", "host:port", "host:65536", "::1:80", "host:-1", "host:²"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """Anything else is a ConfigError that shows the forms."""
    with pytest.raises(ConfigError, match="write HOST:PORT"):
        parse_address(text)


@given(st.from_regex(r"[a-z0-9.-]{0,20}", fullmatch=True), st.integers(0, 65535))
def test_every_address_survives_printing(host: str, port: int) -> None:
    """Parsing what an address prints gives the address."""
    assert parse_address(str(Address(host, port))) == Address(host, port)


def test_the_default_is_loopback_alone() -> None:
    """Nobody outside this machine reaches the exporter unless asked to."""
    assert ServerConfig().listen == (Address("127.0.0.1", DEFAULT_PORT),)


def test_a_port_in_use_is_one_clear_line() -> None:
    """A taken port is a SystemRefused that names the address and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(SystemRefused, match="the port is in use: stop what uses it or give another") as refused:
            make(ANY_PORT, address)
    assert str(address) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_foreign_address_is_refused() -> None:
    """An address of another machine, and no address at all, are errors."""
    with pytest.raises(SystemRefused, match="no such address"):
        make(Address("192.0.2.1", 0))
    with pytest.raises(ConfigError, match="no address"):
        make()


def test_an_unknown_host_is_refused() -> None:
    """A name that does not resolve is a SystemRefused."""
    with pytest.raises(SystemRefused, match="the host is unknown"):
        make(Address("no-such-host.invalid", 0))


def test_it_listens_on_every_address(running: HttpServer) -> None:
    """With two addresses both answer."""
    first, second = running.addresses
    assert first.port != second.port
    for address in (first, second):
        assert httpx.get(f"http://{address}/metrics").text == "x 1\n"


def test_it_listens_on_every_interface_for_an_empty_host() -> None:
    """`:PORT` is reached over IPv4 loopback."""
    server = make(Address("", 0))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert httpx.get(f"http://127.0.0.1:{server.addresses[0].port}/-/healthy").text == "up\n"
    finally:
        server.stop()
        thread.join(5)


def test_a_silent_client_is_cut_off_and_does_not_block_others(running: HttpServer) -> None:
    """A client that sends nothing, or half a request, loses its connection; meanwhile others are served."""
    address = running.addresses[0]
    with socket.create_connection(address) as silent, socket.create_connection(address) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
        assert httpx.get(f"http://{address}/metrics").status_code == 200
        for client in (silent, slow):
            client.settimeout(5)
            assert client.recv(1) == b""


def test_a_scrape_does_not_wait_for_an_acknowledgement(running: HttpServer) -> None:
    """Headers and body leave at once: the median of ten scrapes is far below the 40 ms of a delayed acknowledgement."""
    seconds = []
    with httpx.Client(base_url=f"http://{running.addresses[0]}") as client:
        for _ in range(10):
            start = time.perf_counter()
            client.get("/metrics")
            seconds.append(time.perf_counter() - start)
    assert sorted(seconds)[5] < 0.020


def test_a_connection_is_kept_between_scrapes(running: HttpServer) -> None:
    """A client that has made a request keeps its connection past the limit for the first one."""
    with httpx.Client(base_url=f"http://{running.addresses[0]}") as client:
        client.get("/metrics")
        first = client._transport._pool.connections[0]  # type: ignore[attr-defined]
        time.sleep(0.5)
        assert client.get("/metrics").status_code == 200
        assert client._transport._pool.connections == [first]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_the_scrape_in_progress_finish(number: signal.Signals, code: int) -> None:
    """SIGTERM is a normal end and Ctrl-C an interrupt; both answer the scrape that they meet."""
    with subprocess.Popen([sys.executable, "-c", PROCESS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        answers: list[httpx.Response] = []
        scrape = threading.Thread(target=lambda: answers.append(httpx.get(f"http://127.0.0.1:{port}/metrics")))
        scrape.start()
        assert process.stdout.readline() == "scraping\n"
        process.send_signal(number)
        scrape.join(5)
        assert process.wait(5) == code
    assert [answer.text for answer in answers] == ["kvmon_engine_up 1\n"]
