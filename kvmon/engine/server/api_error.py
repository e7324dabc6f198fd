"""What a request is answered when it cannot be served: a status and OpenAI's error object, drawn here alone.

Invariant: a message is one line, says what to do, and quotes at most a few characters of what the client sent.
"""

from __future__ import annotations

import json
from typing import Any

from kvmon.errors import KvmonError

__all__ = ["ApiError", "quoted", "stopping", "to_json", "too_long"]

_MOST_QUOTED = 40
_LONGEST_PARAM = 100


class ApiError(KvmonError):
    """A request that is refused. `param` names the parameter that is wrong, `code` the error for machines."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status
        self.param = param if param is None else param[:_LONGEST_PARAM]
        self.code = code

    def body(self) -> dict[str, Any]:
        """The error object of OpenAI's interface."""
        kind = {404: "not_found_error", 429: "rate_limit_error"}.get(self.status, "invalid_request_error")
        if self.status >= 500:
            kind = "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def too_long(message: str, param: str) -> ApiError:
    """The error of a request that this engine can never hold; `message` says what it needs and how much there is."""
    return ApiError(message, param=param, code="context_length_exceeded")


def stopping() -> ApiError:
    """What clients are told that a server which was told to end leaves without an answer."""
    return ApiError("the server is stopping: try again later", status=503, code="stopping")


def to_json(body: object) -> bytes:
    """A body as JSON in UTF-8. Half a surrogate pair, which a client can spell and UTF-8 cannot, stays spelled out."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")


def quoted(value: object) -> str:
    """A value of a request's body as it is shown in a message: JSON, ASCII, short."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= _MOST_QUOTED else f"{text[:_MOST_QUOTED]}..."
