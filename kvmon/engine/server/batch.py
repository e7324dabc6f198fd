"""Requests from a file, answered together: the same bodies, checks and answers as over HTTP, without a server.

Invariant: one result for each line, in its order, whatever became of it; the engine is empty at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvmon.engine import Engine, Output
from kvmon.engine.server.answer import Answer, answers_to
from kvmon.engine.server.api_error import ApiError
from kvmon.engine.server.fields import parse_json
from kvmon.engine.server.protocol import Request, parse_chat, parse_completion
from kvmon.engine.server.responses import Envelope
from kvmon.engine.server.service import Planned, Service, enter, limits_of

__all__ = ["run_batch"]

_NAMES = ("custom_id", "id")


@dataclass
class _Job:
    """One line: what it is called by its author, and what became of it."""

    name: dict[str, Any] = field(default_factory=dict)
    request: Request | None = None
    plans: list[Planned] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    texts: list[list[str]] = field(default_factory=list)
    error: ApiError | None = None

    @property
    def ended(self) -> bool:
        return self.error is not None or all(answer.finish is not None for answer in self.answers)


def run_batch(
    engine: Engine, service: Service, lines: Iterable[bytes], advance: Callable[[int], None]
) -> list[dict[str, Any]]:
    """A body of an answer, or an error object, for each line; with the line's own `custom_id` or `id`.

    `advance` is called with the number of lines that are done since the last call.
    """
    jobs: list[_Job] = []
    waiting: dict[int, tuple[_Job, int]] = {}
    for line in lines:
        jobs.append(job := _Job())
        try:
            _begin(job, line, engine, service, waiting)
        except ApiError as error:
            job.error = error
            advance(1)
    while waiting:
        for output in engine.step():
            if output.request in waiting:
                job, _ = waiting[output.request]
                _take(output, engine, waiting)
                if job.ended:
                    advance(1)
    return [_result(job, service) for job in jobs]


def _begin(job: _Job, line: bytes, engine: Engine, service: Service, waiting: dict[int, tuple[_Job, int]]) -> None:
    """Read a line and hand it to the engine. Raises ApiError, with nothing left in the engine."""
    body = parse_json(line)
    job.name = {name: body.pop(name) for name in _NAMES if name in body}
    request = _read(body)
    job.plans = service.plan(request, limits_of(engine))
    numbers = enter(engine, job.plans, request.prompt_param)
    job.request, job.answers = request, answers_to(request, job.plans, service.tokenizer)
    job.texts = [[] for _ in job.answers]
    waiting.update((number, (job, answer)) for answer, number in enumerate(numbers))


def _read(body: Mapping[str, Any]) -> Request:
    request = parse_chat(body) if "messages" in body else parse_completion(body)
    if request.stream:
        raise ApiError("a batch has no streams: leave stream out", param="stream")
    return request


def _take(output: Output, engine: Engine, waiting: dict[int, tuple[_Job, int]]) -> None:
    job, index = waiting[output.request]
    answer = job.answers[index]
    try:
        job.texts[index].append(answer.take(output))
    except ApiError as error:
        job.error = error
    if output.finish is not None:
        del waiting[output.request]
    elif answer.cut:
        engine.abort(output.request)
        del waiting[output.request]
    if job.error is not None:
        for number in [number for number, (other, _) in waiting.items() if other is job]:
            engine.abort(number)
            del waiting[number]


def _result(job: _Job, service: Service) -> dict[str, Any]:
    if job.error is not None or job.request is None:
        return {**job.name, **(job.error or ApiError("not answered", status=500)).body()}
    texts = ["".join(pieces) for pieces in job.texts]
    prompt_tokens = sum(len(plan.tokens) for plan in job.plans)
    return {**Envelope.new(job.request, service.model).whole(texts, job.answers, prompt_tokens), **job.name}
