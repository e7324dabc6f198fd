"""The exporter's HTTP server: where it listens, how it ends, and what it does not put up with.

Sockets are bound before anything else starts, so that a taken port is one clear error. A client that connects and
sends no request is cut off; SIGTERM and SIGINT let the scrapes in progress finish. It serves any ASGI application and
knows none.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NamedTuple

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from kvmon.errors import ConfigError, SystemRefused

__all__ = ["DEFAULT_PORT", "Address", "HttpServer", "ServerConfig", "parse_address"]

DEFAULT_PORT = 10490
"""Prometheus' list of default ports has given away 9100 to 9999 whole and goes on from 10000 one by one; this is far
from both, and clear of Kubernetes' own agents (10248 to 10259) and of Thanos (10901 to 10912)."""


class Address(NamedTuple):
    """Where to listen; an empty host is every interface, port 0 any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        """As it is typed: `127.0.0.1:10490`, `[::1]:10490`, `:10490`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How to serve. Durations in seconds.

    `listen`: one socket each. `request_timeout`: from connecting to a complete first request. `idle_timeout`: between
    requests of a connection. `stop_timeout`: for scrapes in progress when the server ends. `max_connections`: a request
    on one more is answered 503.
    """

    listen: tuple[Address, ...] = (Address("127.0.0.1", DEFAULT_PORT),)
    request_timeout: float = 10.0
    idle_timeout: int = 75
    stop_timeout: int = 5
    max_connections: int = 256


def parse_address(text: str) -> Address:
    """An address from `HOST:PORT`, `[IPV6]:PORT` or `:PORT`.

    Raises ConfigError for anything else.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if colon and port.isascii() and port.isdigit() and int(port) <= 65535 and (bracketed or ":" not in host):
        return Address(host[1:-1] if bracketed else host, int(port))
    raise ConfigError(f"'{text}' is no address to listen on: write HOST:PORT, [IPV6]:PORT or :PORT for every interface")


class HttpServer:
    """Serves an application until a signal or `stop` ends it."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        """Bind the sockets.

        Raises SystemRefused where an address is taken, forbidden or not this machine's; ConfigError for no address.
        """
        if not config.listen:
            raise ConfigError("there is no address to listen on: give one, such as 127.0.0.1:10490")
        self._sockets = _bind_all(config.listen)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=_impatient(config.request_timeout),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=config.max_connections,
                timeout_keep_alive=config.idle_timeout,
                timeout_graceful_shutdown=config.stop_timeout,
            )
        )

    @property
    def addresses(self) -> list[Address]:
        """Where it listens, with the port that the system chose for port 0."""
        return [Address(*sock.getsockname()[:2]) for sock in self._sockets]

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT (then KeyboardInterrupt) or `stop`; outside the main thread until `stop`."""
        try:
            with _sigterm_is_a_normal_end():
                self._server.run(sockets=self._sockets)
        finally:
            for sock in self._sockets:
                sock.close()

    def stop(self) -> None:
        """End `run` soon, from any thread."""
        self._server.should_exit = True


@contextmanager
def _sigterm_is_a_normal_end() -> Iterator[None]:
    # uvicorn ends gracefully and then raises the signal again for the handler that was there before it.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ended(number: int, frame: FrameType | None) -> None:
        return None

    before = signal.signal(signal.SIGTERM, ended)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _impatient(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, which waits forever for a first request, made to wait `seconds`."""

    class ImpatientProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._deadline = asyncio.get_running_loop().call_later(seconds, self._give_up)

        def connection_lost(self, exc: Exception | None) -> None:
            self._deadline.cancel()
            super().connection_lost(exc)

        def _give_up(self) -> None:
            # Absent until the first request is complete, whatever the annotation says.
            if getattr(self, "cycle", None) is None and not self.transport.is_closing():
                self.transport.close()

    return ImpatientProtocol


def _bind_all(addresses: Sequence[Address]) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            sockets.append(_bind(address))
            # Accepted sockets inherit it. asyncio sets it only on sockets made with an explicit protocol, and headers
            # and body are two writes: without it every scrape waits 40 ms for a delayed acknowledgement.
            sockets[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bind(address: Address) -> socket.socket:
    try:
        if not address.host and socket.has_dualstack_ipv6():
            return socket.create_server(("", address.port), family=socket.AF_INET6, dualstack_ipv6=True)
        found = socket.getaddrinfo(address.host or "0.0.0.0", address.port, type=socket.SOCK_STREAM)
        family = min(entry[0] for entry in found)  # IPv4 first: where a name has both, that is what scrapers try
        target = next(entry[4] for entry in found if entry[0] == family)
        return socket.create_server((str(target[0]), address.port), family=family)
    except socket.gaierror as error:
        raise SystemRefused(f"cannot listen on {address}: the host is unknown ({error.strerror})") from None
    except OSError as error:
        advice = {
            errno.EADDRINUSE: "the port is in use: stop what uses it or give another",
            errno.EACCES: "no permission: give a port above 1023",
            errno.EADDRNOTAVAIL: "this machine has no such address: give one of its own, or :PORT for all",
        }.get(error.errno or 0, os.strerror(error.errno or 0))
        raise SystemRefused(f"cannot listen on {address}: {advice}") from None
