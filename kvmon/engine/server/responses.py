"""Bodies and chunks of answers, as OpenAI's interface has them.

Invariant: the only place that knows their fields; pure functions of what was generated.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvmon.engine.server.answer import Answer
from kvmon.engine.server.api_error import to_json
from kvmon.engine.server.protocol import Request

__all__ = ["DONE", "Envelope", "event", "model_list", "model_object", "usage"]

DONE = b"data: [DONE]\n\n"
"""The event that ends a stream."""


@dataclass(frozen=True)
class Envelope:
    """What every body and chunk of one answered request repeats."""

    request: Request
    model: str
    id: str
    created: int

    @staticmethod
    def new(request: Request, model: str) -> Envelope:
        """With an id of its own, and the time."""
        return Envelope(request, model, ("chatcmpl-" if request.chat else "cmpl-") + uuid.uuid4().hex, int(time.time()))

    def whole(self, texts: Sequence[str], answers: Sequence[Answer], prompt_tokens: int) -> dict[str, Any]:
        """The body of an answer in one piece."""
        choices = []
        for index, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish, "logprobs": None}
            if self.request.chat:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            else:
                choice["text"] = answer.echo + text
            choices.append(choice)
        return {**self._head("chat.completion"), "choices": choices, "usage": usage(prompt_tokens, answers)}

    def opening(self, index: int, echo: str) -> dict[str, Any] | None:
        """The first chunk of an answer: who speaks, or the prompt that it repeats; None where it has neither."""
        if self.request.chat:
            return self._chunk({"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})
        return self.chunk(index, echo, None) if echo else None

    def chunk(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        """More text of an answer, or its end, or both."""
        if self.request.chat:
            delta = {"content": text} if text else {}
            return self._chunk({"index": index, "delta": delta, "finish_reason": finish})
        return self._chunk({"index": index, "text": text, "finish_reason": finish})

    def usage_chunk(self) -> dict[str, Any]:
        """The chunk that only says how many tokens there were."""
        return {**self._head("chat.completion.chunk"), "choices": []}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        body = {**self._head("chat.completion.chunk"), "choices": [{**choice, "logprobs": None}]}
        return {**body, "usage": None} if self.request.usage_at_end else body

    def _head(self, chat_object: str) -> dict[str, Any]:
        kind = chat_object if self.request.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(prompt_tokens: int, answers: Sequence[Answer]) -> dict[str, int]:
    """How many tokens went in and came out, each prompt counted once."""
    made = sum(answer.tokens for answer in answers)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": made, "total_tokens": prompt_tokens + made}


def event(body: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + to_json(body) + b"\n\n"


def model_object(model: str, created: int, longest: int) -> dict[str, Any]:
    """What is known of a model."""
    return {"id": model, "object": "model", "created": created, "owned_by": "kvmon", "max_model_len": longest}


def model_list(models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A list of models."""
    return {"object": "list", "data": list(models)}
