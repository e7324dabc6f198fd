"""One answer of a request: tokens of the engine in, text and a reason to end out.

Invariant: an answer ends once; the tokens it counts are those up to its end, however many the engine made meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvmon.engine import Output
from kvmon.engine.server.api_error import ApiError, stopping
from kvmon.engine.server.protocol import Request
from kvmon.engine.server.service import Planned
from kvmon.engine.server.text import AnswerText
from kvmon.engine.tokenizer import Tokenizer

__all__ = ["Answer", "answers_to"]


class Answer:
    """`finish`: None while it goes on, then why it ended (`stop` or `length`). `cut`: a stop text ended it, and the
    engine does not know."""

    def __init__(self, text: AnswerText, echo: str) -> None:
        self._text = text
        self.echo = echo
        self.tokens = 0
        self.finish: str | None = None
        self.cut = False

    def take(self, output: Output) -> str:
        """The text that is certain with an output. Raises ApiError where the engine gave the request up."""
        pieces = []
        for token in output.tokens:
            if self.finish is not None:
                return ""
            self.tokens += 1
            pieces.append(self._text.push(token))
            if self._text.stopped:
                self.finish, self.cut = "stop", output.finish is None
                return "".join(pieces)
        if output.finish is not None and self.finish is None:
            if output.finish not in ("stop", "length"):
                raise _given_up(output)
            pieces.append(self._text.finish())
            self.finish = "stop" if self._text.stopped else output.finish
        return "".join(pieces)


def answers_to(request: Request, plans: Sequence[Planned], tokenizer: Tokenizer) -> list[Answer]:
    """The answers of a request: `n` for each prompt, in this order."""
    return [
        Answer(AnswerText(tokenizer.decoder(plan.tokens), request.stop), plan.echo)
        for plan in plans
        for _ in range(request.n)
    ]


def _given_up(output: Output) -> ApiError:
    if output.finish == "error":
        return ApiError(output.error or "the engine gave the request up", code="generation_failed")
    return stopping()
