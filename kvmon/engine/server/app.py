"""The web application: OpenAI's completions, chats and models, and health.

It knows HTTP and the protocol; the engine is behind the bridge. Invariant: every answer that is no success is OpenAI's
error object; a request ends in the engine when its client is gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from kvmon.engine.server.answer import answers_to
from kvmon.engine.server.api_error import ApiError, quoted, stopping
from kvmon.engine.server.bridge import Bridge, Ticket
from kvmon.engine.server.fields import parse_json
from kvmon.engine.server.http import (
    ClientGone,
    EventStream,
    body_of,
    error_response,
    json_response,
    while_connected,
)
from kvmon.engine.server.protocol import Request, parse_chat, parse_completion
from kvmon.engine.server.responses import DONE, Envelope, event, model_list, model_object, usage
from kvmon.engine.server.service import Planned, Service

__all__ = ["MOST_BYTES", "create_app"]

MOST_BYTES = 16 << 20
"""Largest body of a request."""

_LOG = logging.getLogger(__name__)
_Parse = Callable[[Mapping[str, Any]], Request]


def create_app(
    service: Service, bridge: Bridge, *, max_waiting: int | None = None, most_bytes: int = MOST_BYTES
) -> Starlette:
    """The application. While `max_waiting` answers or more wait for memory, another request gets 429; None: it waits.

    `most_bytes`: the largest body of a request.
    """
    front = _Front(service, bridge, max_waiting, most_bytes)
    app = Starlette(
        routes=[
            Route("/v1/completions", front.answering(parse_completion), methods=["POST"]),
            Route("/v1/chat/completions", front.answering(parse_chat), methods=["POST"]),
            Route("/v1/models", front.models),
            Route("/v1/models/{model:path}", front.model),
            Route("/health", front.health),
        ],
        exception_handlers={ApiError: _refused, HTTPException: _not_served, Exception: _broken},
    )
    app.router.redirect_slashes = False
    return app


class _Front:
    """The endpoints."""

    def __init__(self, service: Service, bridge: Bridge, max_waiting: int | None, most_bytes: int) -> None:
        self._service, self._bridge = service, bridge
        self._max_waiting, self._most_bytes = max_waiting, most_bytes
        self._since = int(time.time())

    async def health(self, _: HttpRequest) -> Response:
        """Whether the engine lives, and how much it has to do."""
        if self._bridge.failure is not None:
            return json_response({"status": "failed"}, 503)
        limits = self._bridge.limits
        return json_response(
            {
                "status": "ok",
                "running": self._bridge.running,
                "waiting": self._bridge.waiting,
                "capacity_tokens": limits.capacity_tokens,
                "max_model_len": limits.max_model_len,
            }
        )

    async def models(self, _: HttpRequest) -> Response:
        """The one model."""
        return json_response(model_list([self._model()]))

    async def model(self, request: HttpRequest) -> Response:
        """The one model, by its name."""
        if request.path_params["model"] != self._service.model:
            raise ApiError(
                f"there is no model {quoted(request.path_params['model'])} here: ask for {self._service.model}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return json_response(self._model())

    def answering(self, parse: _Parse) -> Callable[[HttpRequest], Any]:
        """The endpoint that generates for requests which `parse` reads."""

        async def endpoint(http: HttpRequest) -> Response:
            try:
                body = await body_of(http, self._most_bytes)
                # A long text takes a while to tokenise, and other streams go on meanwhile.
                request, plans = await run_in_threadpool(self._read, parse, body)
                self._refuse_overload()
                ticket = await while_connected(http.receive, self._bridge.submit(plans, request.prompt_param))
                if request.stream:
                    events = self._events(request, plans, ticket)
                    return EventStream(events, ended=lambda: self._bridge.abort(ticket))
                try:
                    return json_response(await while_connected(http.receive, self._whole(request, plans, ticket)))
                finally:
                    self._bridge.abort(ticket)
            except (ClientGone, ClientDisconnect):
                return Response(status_code=400)  # nobody reads it
            except asyncio.CancelledError:
                raise stopping() from None

        return endpoint

    def _read(self, parse: _Parse, body: bytes) -> tuple[Request, list[Planned]]:
        request = parse(parse_json(body))
        return request, self._service.plan(request, self._bridge.limits)

    def _refuse_overload(self) -> None:
        waiting = self._bridge.waiting
        if self._max_waiting is not None and waiting >= self._max_waiting:
            raise ApiError(f"{waiting} requests wait for memory: try again later", status=429, code="overloaded")

    async def _whole(self, request: Request, plans: list[Planned], ticket: Ticket) -> dict[str, Any]:
        """The body of an answer in one piece."""
        answers = answers_to(request, plans, self._service.tokenizer)
        texts: list[list[str]] = [[] for _ in answers]
        while any(answer.finish is None for answer in answers):
            index, output = await ticket.next()
            texts[index].append(answers[index].take(output))
            if answers[index].cut:
                self._bridge.abort(ticket, index)
        return Envelope.new(request, self._service.model).whole(
            ["".join(pieces) for pieces in texts], answers, _prompt_tokens(plans)
        )

    async def _events(self, request: Request, plans: list[Planned], ticket: Ticket) -> AsyncIterator[bytes]:
        """The events of a stream."""
        envelope = Envelope.new(request, self._service.model)
        answers = answers_to(request, plans, self._service.tokenizer)
        prompt_tokens = _prompt_tokens(plans)

        def told(chunk: dict[str, Any]) -> bytes:
            return event({**chunk, "usage": usage(prompt_tokens, answers)} if request.usage_always else chunk)

        for index, answer in enumerate(answers):
            opening = envelope.opening(index, answer.echo)
            if opening is not None:
                yield told(opening)
        while any(answer.finish is None for answer in answers):
            index, output = await ticket.next()
            answer = answers[index]
            if answer.finish is not None:
                continue  # made before the engine knew of the stop text
            text = answer.take(output)
            if answer.cut:
                self._bridge.abort(ticket, index)
            if text or answer.finish is not None:
                yield told(envelope.chunk(index, text, answer.finish))
        if request.usage_at_end:
            yield event({**envelope.usage_chunk(), "usage": usage(prompt_tokens, answers)})
        yield DONE

    def _model(self) -> dict[str, Any]:
        return model_object(self._service.model, self._since, self._bridge.limits.max_model_len)


def _prompt_tokens(plans: list[Planned]) -> int:
    return sum(len(plan.tokens) for plan in plans)


async def _refused(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _not_served(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        refusal = ApiError(f"{request.method} does not go here: use {allowed}", status=405, code="method_not_allowed")
    else:
        message = f"nothing is served at {quoted(request.url.path)}: the API is under /v1"
        refusal = ApiError(message, status=error.status_code, code="unknown_path")
    response = error_response(refusal)
    response.headers.update(error.headers or {})
    return response


async def _broken(_: HttpRequest, error: Exception) -> Response:
    _LOG.error("a request could not be answered (%s)", type(error).__name__)
    return error_response(ApiError(f"the server failed ({type(error).__name__}): see its log", status=500))
