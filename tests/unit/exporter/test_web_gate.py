"""What stands before the application: bodies, rate, passwords, headers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import bcrypt
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from kvmon.exporter.web.config import Rate, WebConfig
from kvmon.exporter.web.gate import ANONYMOUS, Gate

OPEN = WebConfig(tls=None, headers={}, users={}, rate=None, files=(), guards=frozenset(), notes=())
GUARDED = replace(OPEN, users={b"me": bcrypt.hashpw(b"secret", bcrypt.gensalt(4))})


class Clock:
    """Time, in the test's hands."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """The time now."""
        return self.now


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Says whether it knows who asks; it sets a header of its own."""
    anonymous = getattr(Request(scope).state, ANONYMOUS, False)
    response = PlainTextResponse("anonymous" if anonymous else "known", headers={"Content-Security-Policy": "own"})
    await response(scope, receive, send)


def ask(
    config: WebConfig | None, *requests: tuple[str, str, dict[str, object]], clock: Clock | None = None
) -> list[httpx.Response]:
    """The answers to requests (method, path, options), one after the other."""
    read: Callable[[], WebConfig] | None = (lambda: config) if config is not None else None
    gate = Gate(application, read, ("/-/healthy",), clock or Clock())

    async def all_of_them() -> list[httpx.Response]:
        transport = httpx.ASGITransport(gate)
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as client:
            return [await client.request(method, path, **options) for method, path, options in requests]  # type: ignore[arg-type]

    return asyncio.run(all_of_them())


def test_without_a_configuration_everybody_is_known() -> None:
    """And nothing is added."""
    (answer,) = ask(None, ("GET", "/metrics", {}))
    assert (answer.status_code, answer.text) == (200, "known")


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Basic bWU6d3Jvbmc=",
        "Basic eW91OnNlY3JldA==",
        "Basic bm9ib2R5",
        "Basic !",
        "Bearer bWU6c2VjcmV0",
    ],
)
def test_who_does_not_know_a_password_is_refused(authorization: str | None) -> None:
    """401 with a challenge, not to be cached; the words do not tell whether there is such a user."""
    headers = {"Authorization": authorization} if authorization else {}
    for path in ("/metrics", "/", "/none", "/-/healthy/", "/-//healthy"):
        (answer,) = ask(GUARDED, ("GET", path, {"headers": headers}))
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Basic realm="kvmon", charset="UTF-8"'
        assert answer.headers["cache-control"] == "no-store"
        assert answer.text in ("a name and a password are needed\n", "the name or the password is wrong\n")


def test_who_knows_it_is_let_in() -> None:
    """With the right pair, and only with one."""
    right = "Basic bWU6c2VjcmV0"
    (answer, twice) = ask(
        GUARDED,
        ("GET", "/metrics", {"auth": ("me", "secret")}),
        ("GET", "/metrics", {"headers": [("Authorization", right), ("Authorization", right)]}),
    )
    assert (answer.status_code, answer.text) == (200, "known")
    assert twice.status_code == 401


def test_a_probe_needs_no_password_and_is_told_less() -> None:
    """A password that rotates must not have a healthy exporter killed, nor a rate limit."""
    config = replace(GUARDED, rate=Rate(60, 1))
    answers = ask(config, *[("GET", "/-/healthy", {"headers": {"Authorization": "Basic old"}})] * 5)
    assert {(answer.status_code, answer.text) for answer in answers} == {(200, "anonymous")}
    (answer,) = ask(OPEN, ("GET", "/-/healthy", {}))
    assert answer.text == "known"


@pytest.mark.parametrize(
    "options", [{"content": b"x"}, {"content": b""}, {"headers": {"Transfer-Encoding": "chunked"}}]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_body_is_refused(method: str, options: dict[str, object]) -> None:
    """Before it is read, and before a password is looked at; one of no bytes is none."""
    (answer,) = ask(GUARDED, (method, "/metrics", options))
    assert answer.status_code == (401 if options.get("content") == b"" else 413)
    assert answer.headers.get("connection") == (None if answer.status_code == 401 else "close")


def test_a_rate_is_kept() -> None:
    """A burst at once, then one for each interval, and never more than a burst after a long rest."""
    clock = Clock()
    config = replace(OPEN, rate=Rate(2.0, 3))
    gate = Gate(application, lambda: config, (), clock)

    async def statuses(count: int) -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://exporter") as client:
            return [(await client.get("/metrics")).status_code for _ in range(count)]

    assert asyncio.run(statuses(5)) == [200, 200, 200, 429, 429]
    clock.now += 2
    assert asyncio.run(statuses(2)) == [200, 429]
    clock.now += 3600
    assert asyncio.run(statuses(4)) == [200, 200, 200, 429]


def test_headers_are_added_and_replace_those_of_the_application() -> None:
    """Once each, on refusals too."""
    config = replace(GUARDED, headers={b"x-frame-options": b"deny", b"content-security-policy": b"theirs"})
    for options, status in (({}, 401), ({"auth": ("me", "secret")}, 200), ({"content": b"x"}, 413)):
        (answer,) = ask(config, ("GET", "/metrics", options))
        assert answer.status_code == status
        assert answer.headers.get_list("x-frame-options") == ["deny"]
        assert answer.headers.get_list("content-security-policy") == ["theirs"]
