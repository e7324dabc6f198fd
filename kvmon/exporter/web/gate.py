"""What stands between a request and the application: size, rate, password, and the headers of the answer.

The order is that of exporter-toolkit: what costs least comes first. Health and readiness are told to everybody, as a
status without the words: a probe's credentials stand in a pod that cannot be changed while it runs, so that a password
that rotates would have a healthy exporter killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, MutableMapping
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvmon.exporter.web.auth import Passwords, Verdict, credentials
from kvmon.exporter.web.config import Rate, WebConfig

__all__ = ["ANONYMOUS", "Gate"]

ANONYMOUS = "anonymous"
"""In the state of a request: nobody knows who asks, so no more is told than yes or no."""
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="kvmon", charset="UTF-8"'}


class Gate:
    """An application before `app`. `config`: the web configuration as of now; `open_paths` ask for no password."""

    def __init__(
        self,
        app: ASGIApp,
        config: Callable[[], WebConfig] | None,
        open_paths: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._config = config
        self._open = frozenset(open_paths)
        self._passwords = Passwords()
        self._bucket = _Bucket(clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer."""
        if self._config is not None:
            config = self._config()
            send = _with_headers(send, config.headers)
            refusal = _refuse_body(scope) or await self._refuse(scope, config)
        else:
            refusal = _refuse_body(scope)
        await (refusal or self._app)(scope, receive, send)

    async def _refuse(self, scope: Scope, config: WebConfig) -> ASGIApp | None:
        if scope["path"] in self._open:
            scope.setdefault("state", {})[ANONYMOUS] = bool(config.users)
            return None
        if config.rate is not None and not self._bucket.take(config.rate):
            return _answer("too many requests: ask less often", 429)
        if not config.users:
            return None
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        pair = credentials(given[0]) if len(given) == 1 else None
        if pair is None:
            return _answer("a name and a password are needed", 401, _CHALLENGE)
        verdict = await self._passwords.check(config.users, *pair)
        if verdict is Verdict.BUSY:
            return _answer("too many passwords are being checked: try again", 503, {"Retry-After": "1"})
        return None if verdict is Verdict.RIGHT else _answer("the name or the password is wrong", 401, _CHALLENGE)


class _Bucket:
    """A token bucket: it fills by one at each interval, up to the burst."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rate: Rate | None = None
        self._tokens = 0.0
        self._filled_at = 0.0

    def take(self, rate: Rate) -> bool:
        """Whether there was one to take."""
        now = self._clock()
        if rate != self._rate:
            self._rate, self._tokens = rate, float(rate.burst)
        else:
            self._tokens = min(rate.burst, self._tokens + (now - self._filled_at) / rate.interval)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _refuse_body(scope: Scope) -> ASGIApp | None:
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            return _answer("a request here has no body: leave it out", 413, {"Connection": "close"})
    return None


def _with_headers(send: Send, headers: dict[bytes, bytes]) -> Send:
    if not headers:
        return send

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            _set(message, headers)
        await send(message)

    return sending


def _set(message: MutableMapping[str, Any], headers: dict[bytes, bytes]) -> None:
    kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in headers]
    message["headers"] = [*kept, *headers.items()]


def _answer(text: str, status: int, headers: dict[str, str] | None = None) -> ASGIApp:
    return PlainTextResponse(text + "\n", status, {"Cache-Control": "no-store", **(headers or {})})
