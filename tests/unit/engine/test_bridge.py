"""The engine's thread and the web application in front of it, with an engine that does what a test wants."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import httpx
import pytest

from kvmon.engine import Engine, Output, Sampling
from kvmon.engine.server.app import create_app
from kvmon.engine.server.bridge import Bridge
from kvmon.engine.server.service import Service
from kvmon.engine.tokenizer import ByteTokenizer
from kvmon.errors import ConfigError, SystemRefused


class Puppet:
    """An engine that answers every request with the letter x, `seats` at a time."""

    vocabulary, max_model_len, capacity_tokens = 258, 1000, 1000

    def __init__(self, *, seats: int = 8, breaks_at: int = 0, refuses: str = "") -> None:
        self.seats, self.breaks_at, self.refuses = seats, breaks_at, refuses
        self.left: dict[int, int] = {}
        self.steps = self.added = self.aborted = 0
        self.threads: set[int] = set()
        self.closed = False

    has_work = property(lambda self: bool(self.left))
    running = property(lambda self: min(self.seats, len(self.left)))

    def add(self, prompt: tuple[int, ...], sampling: Sampling) -> list[int]:
        """Take a request, unless its text is the one that is refused."""
        if self.refuses and bytes(prompt[1:]).decode() == self.refuses:
            raise ConfigError("it needs 2,000 units and the pool has 1,000")
        numbers = list(range(self.added + 1, self.added + 1 + sampling.n))
        self.added += sampling.n
        self.left.update(dict.fromkeys(numbers, sampling.max_tokens))
        return numbers

    def step(self) -> list[Output]:
        """One token for everybody who has a seat."""
        self.threads.add(threading.get_ident())
        self.steps += 1
        time.sleep(0.001)
        if self.steps == self.breaks_at:
            raise RuntimeError("the device fell off")
        outputs = []
        for number in list(self.left)[: self.seats]:
            self.left[number] -= 1
            outputs.append(Output(number, (ord("x"),), finish=None if self.left[number] else "length"))
            if not self.left[number]:
                del self.left[number]
        return outputs

    def abort(self, request: int) -> bool:
        """Forget a request."""
        self.aborted += 1
        return self.left.pop(request, None) is not None

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


@contextmanager
def front(puppet: Puppet, **options: Any) -> Iterator[tuple[Bridge, httpx.ASGITransport, list[str]]]:
    """A running bridge, its application, and what it said about the engine's failure."""
    said: list[str] = []
    bridge = Bridge(lambda: cast(Engine, puppet), failed=lambda: said.append("failed"))
    bridge.start()
    app = create_app(Service("puppet", ByteTokenizer(), None), bridge, **options)
    try:
        yield bridge, httpx.ASGITransport(app), said
    finally:
        bridge.close()


def ask(transport: httpx.ASGITransport, what: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Run what a client does."""

    async def main() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://puppet") as client:
            await what(client)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it is so."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def test_one_thread_has_the_engine_and_sleeps_without_work() -> None:
    """Requests are answered from a thread of the engine's own, which does nothing while there is nothing to do."""
    puppet = Puppet()
    with front(puppet) as (bridge, transport, _):

        async def client(http: httpx.AsyncClient) -> None:
            answers = await asyncio.gather(
                *(http.post("/v1/completions", json={"prompt": "a", "max_tokens": 5, "n": 2}) for _ in range(5))
            )
            assert {choice["text"] for one in answers for choice in one.json()["choices"]} == {"xxxxx"}
            steps = puppet.steps
            await asyncio.sleep(0.1)
            assert puppet.steps == steps
            health = (await http.get("/health")).json()
            assert (health["status"], health["running"], health["waiting"]) == ("ok", 0, 0)

        ask(transport, client)
        assert len(puppet.threads) == 1
        assert threading.get_ident() not in puppet.threads
    assert puppet.closed
    assert bridge.failure is None


def test_an_engine_that_breaks_fails_every_request_and_the_server() -> None:
    """Requests in progress and later ones get 500, a stream an error as its last event, /health 503."""
    puppet = Puppet(breaks_at=20)
    with front(puppet) as (bridge, transport, said):

        async def client(http: httpx.AsyncClient) -> None:
            body = {"prompt": "a", "max_tokens": 900}
            whole, stream = await asyncio.gather(
                http.post("/v1/completions", json=body), http.post("/v1/completions", json={**body, "stream": True})
            )
            assert whole.status_code == 500
            assert whole.json()["error"]["code"] == "engine_failed"
            assert stream.text.splitlines()[-2].startswith('data: {"error":')
            assert (await http.get("/health")).status_code == 503
            assert (await http.post("/v1/completions", json=body)).status_code == 500

        ask(transport, client)
        assert said == ["failed"]
        assert isinstance(bridge.failure, RuntimeError)


def test_an_engine_that_cannot_be_built_says_why() -> None:
    """Whatever building raised is raised where the server starts."""

    def build() -> Engine:
        raise SystemRefused("the device has no room for the pool: choose a smaller one")

    bridge = Bridge(build, failed=lambda: None)
    with pytest.raises(SystemRefused, match="no room"):
        bridge.start()
    bridge.close()


def test_overload_is_refused_while_enough_wait() -> None:
    """One runs, one waits, one more gets 429 and when to come back; afterwards there is room again."""
    puppet = Puppet(seats=1)
    with front(puppet, max_waiting=1) as (bridge, transport, _):

        async def client(http: httpx.AsyncClient) -> None:
            body = {"prompt": "a", "max_tokens": 200}
            first = asyncio.ensure_future(http.post("/v1/completions", json=body))
            await until(lambda: bridge.running == 1)
            second = asyncio.ensure_future(http.post("/v1/completions", json=body))
            await until(lambda: bridge.waiting == 1)
            third = await http.post("/v1/completions", json=body)
            assert third.status_code == 429
            assert third.headers["retry-after"] == "1"
            assert third.json()["error"]["code"] == "overloaded"
            assert [one.status_code for one in await asyncio.gather(first, second)] == [200, 200]
            assert (await http.post("/v1/completions", json={"prompt": "a"})).status_code == 200

        ask(transport, client)


def test_what_the_engine_refuses_is_refused_whole() -> None:
    """The engine's own words with status 400; nothing of the request stays behind."""
    puppet = Puppet(refuses="large")
    with front(puppet) as (bridge, transport, _):

        async def client(http: httpx.AsyncClient) -> None:
            answer = await http.post("/v1/completions", json={"prompt": ["small", "large"], "max_tokens": 900})
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
            assert "the pool has 1,000" in error["message"]
            assert (bridge.running, bridge.waiting, puppet.left) == (0, 0, {})

        ask(transport, client)


def test_a_stop_text_ends_one_answer_and_not_its_neighbours() -> None:
    """The engine is told at once, and what it made meanwhile is neither given nor counted."""
    puppet = Puppet()
    with front(puppet) as (_, transport, _said):

        async def client(http: httpx.AsyncClient) -> None:
            body = {"prompt": ["a", "b"], "max_tokens": 900, "stop": "xxx"}
            answer = (await http.post("/v1/completions", json=body)).json()
            assert [(one["text"], one["finish_reason"]) for one in answer["choices"]] == [("", "stop")] * 2
            assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}
            await until(lambda: not puppet.left)
            assert puppet.aborted == 2

        ask(transport, client)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_path"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions", 413, "body_too_large"),
    ],
)
def test_errors_of_http_are_openais_too(method: str, path: str, status: int, code: str) -> None:
    """Paths, methods and sizes that do not work are answered with an error object."""
    with front(Puppet(), most_bytes=100) as (_, transport, _said):

        async def client(http: httpx.AsyncClient) -> None:
            answer = await http.request(method, path, content=b" " * 101 if method == "POST" else None)
            assert answer.status_code == status
            assert answer.json()["error"]["code"] == code

        ask(transport, client)
