"""The exporter's HTTP server: listens, serves an ASGI application, and ends in order.

Sockets are bound before anything else starts, so that a taken port is one clear error. A client that owes something is
cut off at a deadline, and one more client always gets in; SIGTERM and SIGINT let the scrapes in progress finish. It
serves any application and knows none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from kvmon.exporter.resident import trim
from kvmon.exporter.web.address import (
    DEFAULT_PORT,
    Address,
    Listener,
    UnixAddress,
    listen_on,
)
from kvmon.exporter.web.connections import Connections, Guest, Phase
from kvmon.exporter.web.crowd import Crowd
from kvmon.exporter.web.door import Door, Tls
from kvmon.exporter.web.protocol import MAX_HEADER_BYTES, PatientProtocol, Welcome

__all__ = ["HttpServer", "ServerConfig"]

_LEAVING_SECONDS = 2.0  # for a client to notice that it was hung up on


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How to serve. Durations in seconds.

    `listen`: one socket each. `request_timeout`: for agreeing on TLS, for the headers of each request from their first
    byte, or from connecting, to the last, and for its body. `write_timeout`: for a client to take more of an answer.
    `idle_timeout`: between two requests. `stop_timeout`: for scrapes in progress when the server ends.
    `max_connections`: one more is taken in and another that waits is let go; where all are being served, it is answered
    503.
    """

    listen: tuple[Address | UnixAddress, ...] = (Address("127.0.0.1", DEFAULT_PORT),)
    request_timeout: float = 10.0
    write_timeout: float = 30.0
    idle_timeout: int = 75
    stop_timeout: int = 5
    max_connections: int = 512


class HttpServer:
    """Serves an application until a signal or `stop` ends it."""

    def __init__(
        self,
        app: ASGIApp,
        config: ServerConfig,
        *,
        listeners: list[Listener] | None = None,
        tls: Callable[[], Tls] | None = None,
    ) -> None:
        """Bind the sockets, or take `listeners` that are bound. `tls`: asked at each connection; None is plain HTTP.

        Raises SystemRefused where an address is taken, forbidden or not this machine's; ConfigError for no address.
        """
        self._listeners = listen_on(config.listen) if listeners is None else listeners
        for name in ("uvicorn.error", "asyncio"):
            logging.getLogger(name).addFilter(_is_about_the_server)
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=PatientProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=config.max_connections + 1,
                timeout_keep_alive=config.idle_timeout,
                timeout_graceful_shutdown=config.stop_timeout,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            ),
            config,
            tls,
        )

    @property
    def addresses(self) -> list[Address | UnixAddress]:
        """Where it listens, with the port that the system chose for port 0."""
        return [listener.address for listener in self._listeners]

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT (then KeyboardInterrupt) or `stop`; outside the main thread until `stop`."""
        try:
            with _sigterm_is_a_normal_end():
                self._server.run(sockets=[listener.socket for listener in self._listeners])
        finally:
            self.close()

    def close(self) -> None:
        """Give the addresses up; `run` has done so when it returns."""
        for listener in self._listeners:
            listener.close()

    def stop(self) -> None:
        """End `run` soon, from any thread."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn's server behind doors of its own, which know who waits and let go whose time is up."""

    def __init__(self, config: uvicorn.Config, limits: ServerConfig, tls: Callable[[], Tls] | None) -> None:
        super().__init__(config)
        patience = {
            Phase.ARRIVING: limits.request_timeout,
            Phase.ASKING: limits.request_timeout,
            Phase.SENDING: limits.request_timeout,
            Phase.TAKING: limits.write_timeout,
            Phase.LEAVING: _LEAVING_SECONDS,
        }
        self._guests = Connections(limits.max_connections, patience)
        self._crowd = Crowd()
        self._handshake_seconds = limits.request_timeout
        self._tls = tls
        self._doors: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the doors."""
        await self.lifespan.startup()
        self.servers = []  # asyncio's own, which have neither deadlines for TLS nor certificates that change
        for sock in sockets or []:
            door = Door(sock, self._guests, self._protocol, self._tls, self._handshake_seconds)
            self._doors.append(asyncio.create_task(door.run()))
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Look at the clock; ten times a second."""
        self._guests.look()
        if self._crowd.has_gone(len(self._guests)):
            await asyncio.get_running_loop().run_in_executor(None, trim)
        for door in self._doors:
            if door.done():
                door.result()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the doors, send away who waits, and let who is served finish."""
        for door in self._doors:
            door.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await door
        self._guests.let_waiting_go()
        await super().shutdown(sockets)

    def _protocol(self, arrival: Guest, welcome: Welcome | None) -> PatientProtocol:
        return PatientProtocol(
            self._guests,
            arrival,
            welcome,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )


def _is_about_the_server(record: logging.LogRecord) -> bool:
    """Whether it is no mere warning: uvicorn warns of every client that makes no sense, asyncio of every word that was
    on its way to one that hung up. Whoever likes could fill the log with them. With debug they may."""
    return record.levelno >= logging.ERROR or logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


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
