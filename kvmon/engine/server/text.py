"""The text of one answer as its tokens come, cut where a stop text is complete.

Invariant: what is given never contains a stop text nor the beginning of one that may still complete; joined, it is the
same however the tokens were bundled. The answer ends at the stop text that completes first, the longest of them where
several complete with the same character.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvmon.engine.tokenizer import Decoder

__all__ = ["AnswerText"]


class AnswerText:
    """`stopped` once a stop text was complete: nothing is given any more."""

    def __init__(self, decoder: Decoder, stops: Sequence[str]) -> None:
        self._decoder = decoder
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain with this token."""
        return "" if self.stopped else self._certain(self._decoder.push(token))

    def finish(self) -> str:
        """The rest, once no token follows."""
        if self.stopped:
            return ""
        certain = self._certain(self._decoder.finish())
        rest, self._held = self._held, ""
        return certain + rest

    def _certain(self, piece: str) -> str:
        if not self._stops:
            return piece
        text = self._held + piece
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        kept = max(_open_end(text, stop) for stop in self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _open_end(text: str, stop: str) -> int:
    """Characters at the end of `text` that a stop text begins with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
