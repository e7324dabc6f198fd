"""HTTP/1.1 as uvicorn speaks it with h11, made patient for so long and no longer.

uvicorn alone waits forever for a first request, for the rest of a later one, and for a client that does not read; it
answers headers that are too large like any other nonsense, and takes them when they come in one piece. Nothing here
knows what is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from kvmon.exporter.web.connections import Connections, Guest, Phase

__all__ = ["MAX_HEADER_BYTES", "PatientProtocol", "Welcome"]

MAX_HEADER_BYTES = 16 * 1024
"""Of a request's first line and headers together."""
_WRITE_BUFFER_BYTES = 64 * 1024

Welcome = Callable[[asyncio.Transport], bool]
"""Whether a connection that has just been made may ask for anything."""


class PatientProtocol(H11Protocol):
    """A connection; one of `connections`, in the place of `arrival`, from being made until it is lost."""

    def __init__(self, connections: Connections, arrival: Guest, welcome: Welcome | None, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._among = connections
        self._arrival = arrival
        self._welcome = welcome
        self.progress = 0
        self.known = False

    @property
    def phase(self) -> Phase:
        """What it is at now."""
        if self.transport.is_closing():
            return Phase.LEAVING
        if self.flow.write_paused:
            return Phase.TAKING
        if self._answering():
            return Phase.SENDING if self.conn.their_state is h11.SEND_BODY else Phase.SERVED
        if self.conn.their_state is h11.SEND_BODY:
            return Phase.ASKING
        return Phase.KEPT if self.known and not self.conn.trailing_data[0] else Phase.ASKING

    def hang_up(self) -> None:
        """Close it now, whatever is unsent."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Set it up, or hang up on whom it is not for."""
        transport.set_write_buffer_limits(_WRITE_BUFFER_BYTES)
        super().connection_made(transport)
        if not self._among.take_over(self._arrival, self) or not (self._welcome is None or self._welcome(transport)):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it, and what holds it: uvicorn lets a reset connection wait, with its buffers, for a next request."""
        self._among.leave(self)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came, never more than completes headers of the largest size: h11 takes all that come at once."""
        while data and not self.transport.is_closing():
            room = MAX_HEADER_BYTES + 1 - len(self.conn.trailing_data[0])
            size = room if room > 0 else MAX_HEADER_BYTES  # what lies there is of a request that waits for its turn
            try:
                super().data_received(data[:size])
            except h11.LocalProtocolError:  # nonsense behind a request that is being answered
                self.transport.abort()
            data = data[size:]

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, or too large for one, and close; a request in progress is given up."""
        if self._answering():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        too_large = len(self.conn.trailing_data[0]) > MAX_HEADER_BYTES
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if too_large else HTTPStatus.BAD_REQUEST
        body = (f"the headers are larger than {MAX_HEADER_BYTES} bytes\n" if too_large else f"{msg}\n").encode()
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        headers.append(("Connection", "close"))
        response = h11.Response(status_code=status, reason=status.phrase, headers=headers)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def on_response_complete(self) -> None:
        """Count it, and go on."""
        self.progress += 1
        self.known = True
        super().on_response_complete()

    def resume_writing(self) -> None:
        """Count what the client has taken."""
        self.progress += 1
        super().resume_writing()

    def _answering(self) -> bool:
        # Absent until the first request is complete, whatever the annotation says.
        cycle = getattr(self, "cycle", None)
        return cycle is not None and not cycle.response_complete
