"""What serving generated text needs of HTTP: bodies of bounded size, clients that hang up, streams of events.

Invariant: work for a client that is gone is cancelled at once; a server that is told to end says so to clients that
still wait. It knows ASGI and nothing of engines.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvmon.engine.server.api_error import ApiError, stopping, to_json
from kvmon.engine.server.responses import event

__all__ = [
    "ClientGone",
    "EventStream",
    "body_of",
    "error_response",
    "json_response",
    "while_connected",
]

_Result = TypeVar("_Result")
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class ClientGone(Exception):
    """The client hung up: there is nobody to answer."""


def json_response(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A body as JSON."""
    return Response(to_json(body), status, {**_HEADERS, **(headers or {})}, "application/json")


def error_response(error: ApiError) -> Response:
    """What a refused request is answered."""
    return json_response(error.body(), error.status, {"Retry-After": "1"} if error.status == 429 else None)


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request. Raises ApiError where it is larger than `most` bytes, before it is read to its end."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise ApiError(f"the body is larger than {most} bytes: send less", status=413, code="body_too_large")
        parts.append(part)
    return b"".join(parts)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of `work`, which is cancelled when the client hangs up: then ClientGone is raised.

    A cancellation from outside is the server's end, and becomes an ApiError that says so.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    except asyncio.CancelledError:
        raise stopping() from None
    finally:
        gone.cancel()
        task.cancel()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events as they are made. `ended` is called once no more are wanted, for whatever reason."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], ended: Callable[[], None]) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._events, self._ended = events, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; an error in mid-stream is the last event."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await while_connected(receive, self._send(send))
        except ClientGone:
            return
        except ApiError as error:
            await send({"type": "http.response.body", "body": event(error.body()), "more_body": True})
        finally:
            self._ended()
        await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Send) -> None:
        async for part in self._events:
            await send({"type": "http.response.body", "body": part, "more_body": True})
