"""Accepts connections, and lets them agree on TLS, until they speak HTTP.

A client that has connected and says nothing costs a socket here and no more: what TLS needs is taken once it begins to
speak, and is a fifth of what asyncio would take. The certificate is asked for anew for each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from asyncio import sslproto
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from kvmon.exporter.web.connections import Connections, Guest, Phase
from kvmon.exporter.web.protocol import PatientProtocol, Welcome

__all__ = ["Door", "Tls"]

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY_SECONDS = 0.2
# asyncio reads TLS into a buffer of 256 KiB for each connection, which a server of small requests has no use for: with
# this one a connection costs 56 KB instead of 285. A record of TLS has 16 KiB.
_TLS_BUFFER_BYTES = 32 * 1024


class Tls(NamedTuple):
    """How to agree on TLS, and who is welcome once that is done."""

    context: ssl.SSLContext
    welcome: Welcome | None


class Door:
    """Accepts on a socket while `run` runs. `tls`: asked for each connection; None is plain HTTP."""

    def __init__(
        self,
        sock: socket.socket,
        connections: Connections,
        make_protocol: Callable[[Guest, Welcome | None], PatientProtocol],
        tls: Callable[[], Tls] | None,
        handshake_seconds: float,
    ) -> None:
        sock.setblocking(False)
        sslproto.SSLProtocol.max_size = _TLS_BUFFER_BYTES  # type: ignore[attr-defined]
        self._socket = sock
        self._connections = connections
        self._make_protocol = make_protocol
        self._tls = tls
        self._handshake_seconds = handshake_seconds
        self._arrivals: set[_Arrival] = set()  # asyncio alone would let their tasks be collected

    async def run(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._socket)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._connections.make_room()
                    await asyncio.sleep(_RETRY_SECONDS)
                elif error.errno in (errno.EBADF, errno.EINVAL):
                    raise
                continue  # the client has gone again
            arrival = _Arrival(sock, loop)
            self._connections.admit(arrival)
            arrival.task = loop.create_task(self._let_in(arrival))
            arrival.task.add_done_callback(partial(self._let_in_or_gone, arrival))
            self._arrivals.add(arrival)
            await asyncio.sleep(0)  # one at a time: a crowd at the door does not delay who is inside

    async def _let_in(self, arrival: _Arrival) -> None:
        try:
            await arrival.speaks()
            tls = self._tls() if self._tls is not None else None
            protocol = self._make_protocol(arrival, tls.welcome if tls is not None else None)
            await arrival.becomes(protocol, tls.context if tls is not None else None, self._handshake_seconds)
        except OSError as error:  # it went, took too long, or speaks no TLS
            # asyncio's frame holds the error that holds the frame, and with both the buffers of the connection.
            error.__traceback__ = None

    def _let_in_or_gone(self, arrival: _Arrival, task: asyncio.Task[None]) -> None:
        self._arrivals.discard(arrival)
        self._connections.leave(arrival)
        arrival.close()


class _Arrival:
    """A connection that does not speak HTTP yet."""

    phase = Phase.ARRIVING
    progress = 0
    known = False

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._socket = sock
        self._handed_over = False
        self._loop = loop
        self.task: asyncio.Task[None] | None = None

    async def speaks(self) -> None:
        """Wait for a first byte, or the end."""
        first = self._loop.create_future()
        self._loop.add_reader(self._socket, _set, first)
        try:
            await first
        finally:
            self._loop.remove_reader(self._socket)

    async def becomes(self, protocol: asyncio.Protocol, context: ssl.SSLContext | None, seconds: float) -> None:
        """Give the socket to asyncio, which closes it from now on. Raises OSError where TLS is not agreed on."""
        self._handed_over = True
        timeout = seconds if context is not None else None
        await self._loop.connect_accepted_socket(
            lambda: protocol, self._socket, ssl=context, ssl_handshake_timeout=timeout
        )

    def hang_up(self) -> None:
        """Close it soon."""
        if self._handed_over:
            # asyncio does not close what is cancelled before its handshake has begun, but what has ended.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        if self.task is not None:
            self.task.cancel()

    def close(self) -> None:
        """Close it, unless it is asyncio's; its task, which remembers how it ended, goes with everything in it."""
        self.task = None
        if not self._handed_over:
            self._socket.close()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
