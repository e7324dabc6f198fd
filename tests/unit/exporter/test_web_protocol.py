"""Clients that are slow, greedy, or make no sense, over real sockets; the server goes on and says nothing of them."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmon.exporter.app import create_app
from kvmon.exporter.server import HttpServer, ServerConfig
from kvmon.exporter.web.address import Address
from kvmon.exporter.web.gate import Gate
from kvmon.exporter.web.protocol import MAX_HEADER_BYTES

REQUEST = b"GET /metrics HTTP/1.1\r\nHost: exporter\r\n\r\n"
LARGE = b"x 1\n" * 1_000_000
LIMIT = 0.6  # seconds for a request, and for taking an answer


class Server:
    """A running server; its page may be made large, and be held back."""

    def __init__(self, **limits: object) -> None:
        self.page = b"x 1\n"
        self.may_answer = threading.Event()
        self.may_answer.set()
        app = create_app(self.render, lambda: (True, "up"), lambda: (True, "ready"), "1")
        config = ServerConfig(
            listen=(Address("127.0.0.1", 0),),
            stop_timeout=1,
            **{"request_timeout": LIMIT, "write_timeout": LIMIT, **limits},  # type: ignore[arg-type]
        )
        self.http = HttpServer(Gate(app, None), config)
        self.thread = threading.Thread(target=self.http.run)
        self.thread.start()

    def render(self, *asked: object) -> bytes:
        """The page, once it may be."""
        self.may_answer.wait(10)
        return self.page

    def connect(self) -> socket.socket:
        """A client."""
        client = socket.create_connection(self.http.addresses[0], timeout=5)  # type: ignore[arg-type]
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def works(self) -> bool:
        """Whether a normal client is served."""
        with self.connect() as client:
            client.sendall(REQUEST[:-2] + b"Connection: close\r\n\r\n")
            return answers(client).startswith(b"HTTP/1.1 200")

    def connections(self) -> int:
        """How many there are."""
        return len(self.http._server._guests)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers; they end with the test."""
    running: list[Server] = []

    def start(**limits: object) -> Server:
        running.append(Server(**limits))
        return running[-1]

    yield start
    for server in running:
        server.may_answer.set()
        server.http.stop()
        server.thread.join(10)
        assert not server.thread.is_alive()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """A server with the limits above."""
    return serve()


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    """A server for tests that leave it as it was."""
    server = Server()
    yield server
    server.http.stop()
    server.thread.join(10)


def answers(client: socket.socket) -> bytes:
    """Everything until the server hangs up."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def seconds_until_hung_up(client: socket.socket, drip: bytes) -> float:
    """Send a byte every 50 ms until the server hangs up."""
    start = time.monotonic()
    client.settimeout(0.05)
    for byte in drip:
        try:
            client.sendall(bytes([byte]))
            if client.recv(65536) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - start


def test_a_byte_now_and_then_does_not_keep_a_connection(server: Server) -> None:
    """The first request has to be whole in time."""
    with server.connect() as client:
        assert LIMIT <= seconds_until_hung_up(client, REQUEST.replace(b"exporter", b"e" * 500)) < LIMIT + 2


def test_nor_does_it_after_a_first_request(server: Server) -> None:
    """A later one has as long, from its first byte; without one the connection is kept."""
    with server.connect() as client:
        for _ in range(2):
            client.sendall(REQUEST)
            answer = b""
            while not answer.endswith(b"x 1\n"):
                answer += client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(2 * LIMIT)
        assert LIMIT <= seconds_until_hung_up(client, REQUEST.replace(b"exporter", b"e" * 500)) < LIMIT + 2


@pytest.mark.parametrize("header", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
def test_a_body_is_refused_and_not_waited_for(server: Server, header: bytes) -> None:
    """413 and the end, before a byte of it."""
    with server.connect() as client:
        client.sendall(REQUEST[:-2] + header + b"\r\n\r\n")
        answer = answers(client)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()


def test_headers_that_are_too_large_are_refused(server: Server) -> None:
    """431, whether they come in one piece or in many, in one header, many, or the path; no more is read of them."""
    many = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 90) for number in range(200))
    for request in (
        REQUEST[:-2] + b"X: " + b"x" * MAX_HEADER_BYTES + b"\r\n\r\n",
        REQUEST[:-2] + many + b"\r\n",
        REQUEST.replace(b"metrics", b"m" * MAX_HEADER_BYTES),
        b"G" * (4 * MAX_HEADER_BYTES),
    ):
        for size in (len(request), 1000):
            with server.connect() as client:
                for start in range(0, min(len(request), MAX_HEADER_BYTES + 1), size):
                    client.sendall(request[start : start + size])
                assert answers(client).startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    with server.connect() as client:
        client.sendall(REQUEST[:-2] + b"X: " + b"x" * (MAX_HEADER_BYTES // 2) + b"\r\nConnection: close\r\n\r\n")
        assert answers(client).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "path",
    [
        b"/runbooks/../metrics",
        b"/runbooks/%2e%2e/%2e%2e/etc/passwd",
        b"/runbooks/..%2f..%2f..%2f..%2fetc%2fpasswd",
        b"/runbooks//etc/passwd",
        b"/../../etc/passwd",
        b"/%2e%2e/%2e%2e/etc/passwd",
        b"/runbooks/nothing",
        b"/runbooks/README.md%00",
        b"/metrics/../etc/passwd",
        b"/metrics%00",
        b"/%ff%fe",
        b"//",
    ],
)
def test_a_path_never_reaches_a_file(shared: Server, path: bytes) -> None:
    """404, and where to look."""
    with shared.connect() as client:
        client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = answers(client)
    assert answer.startswith(b"HTTP/1.1 404")
    assert answer.endswith(b"\r\n\r\nNot Found: see / for what is served here\n")


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"BREW"])
def test_other_methods_are_refused(shared: Server, method: bytes) -> None:
    """405 with what is allowed, on every page."""
    for path in (b"/", b"/metrics", b"/-/healthy", b"/runbooks/"):
        with shared.connect() as client:
            client.sendall(
                REQUEST.replace(b"GET", method).replace(b"/metrics", path)[:-2] + b"Connection: close\r\n\r\n"
            )
            answer = answers(client).lower()
        assert answer.startswith(b"http/1.1 405")
        assert b"allow: get, head" in answer or b"allow: head, get" in answer


def test_a_client_that_does_not_read_is_cut_off(server: Server) -> None:
    """What it has not taken is not kept for it; one that reads slowly and steadily gets everything."""
    server.page = LARGE
    with server.connect() as lazy, server.connect() as steady:
        for client in (lazy, steady):
            client.sendall(REQUEST[:-2] + b"Connection: close\r\n\r\n")
        taken = 0
        while part := steady.recv(200_000):
            taken += len(part)
            time.sleep(0.02)
        assert taken > len(LARGE)
        wait_until(lambda: server.connections() == 0)
        assert len(answers(lazy)) < len(LARGE)


def test_a_connection_more_replaces_one_that_waits(serve: Callable[..., Server]) -> None:
    """Twice as many as there may be: the first ones go, a scraper gets through, and the limit holds."""
    server = serve(max_connections=8, request_timeout=30.0)
    clients = [server.connect() for _ in range(16)]
    try:
        wait_until(lambda: server.connections() == 8)
        assert server.works()
        for client in clients[:8]:
            assert client.recv(1) == b""
        with pytest.raises(BlockingIOError):
            clients[15].setblocking(False)
            clients[15].recv(1)
    finally:
        for client in clients:
            client.close()


def test_when_all_are_served_one_more_is_told_so(serve: Callable[..., Server]) -> None:
    """503 for the one too many; those who were there get their answer."""
    server = serve(max_connections=2)
    server.may_answer.clear()
    with server.connect() as first, server.connect() as second:
        for client in (first, second):
            client.sendall(REQUEST)
        wait_until(lambda: server.connections() == 2)
        time.sleep(0.2)
        with server.connect() as third:
            third.sendall(REQUEST)
            assert answers(third).startswith(b"HTTP/1.1 503")
        server.may_answer.set()
        for client in (first, second):
            assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_nonsense_behind_a_request_ends_the_connection_quietly(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """While a request is being answered and after; nothing of it is an error of the server's."""
    with caplog.at_level(logging.ERROR):
        server.may_answer.clear()
        for nonsense in (b"\0" * 100, b"X" * (3 * MAX_HEADER_BYTES), REQUEST + b"\0"):
            with server.connect() as client:
                client.sendall(REQUEST + nonsense)
                time.sleep(0.1)
        with server.connect() as client:
            client.sendall(REQUEST[:-2] + b"Transfer-Encoding: chunked\r\n\r\nZZZ")
            assert answers(client).startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))
        server.may_answer.set()
        assert server.works()
    assert caplog.records == []


PIECES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [REQUEST, REQUEST[:-2], b"\r\n", b"Content-Length: 5\r\n\r\n", b"Content-Length: 5\r\n", b"0\r\n\r\n"]
    ),
    st.sampled_from([b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n\r\n", b"Upgrade: websocket\r\n"]),
    st.sampled_from(
        [b"HEAD / HTTP/1.0\r\n\r\n", b"Connection: upgrade\r\n\r\n", b"x" * 20_000, b"GET / HTTP/9\r\n\r\n"]
    ),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(PIECES, min_size=1, max_size=6), close=st.booleans())
def test_nothing_that_is_sent_is_an_error(
    shared: Server, caplog: pytest.LogCaptureFixture, pieces: list[bytes], close: bool
) -> None:
    """Any bytes in any pieces: the server goes on, and logs nothing that needs a person."""
    with caplog.at_level(logging.ERROR), closing(shared.connect()) as client:
        for piece in pieces:
            try:
                client.sendall(piece)
            except OSError:
                break
        if not close:
            client.settimeout(0.02)
            with suppress(OSError):
                client.recv(65536)
    assert shared.works()
    assert [record.getMessage() for record in caplog.records] == []


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until it is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
