"""Requests of a scheduler under small numbers: arrivals, ends, classes, and the keyed names of their pages.

vLLM's request ids come from clients; they stay here. Prefix pages are named by keyed hashes of vLLM's own block hashes,
a bounded number a step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from kvmon.adapters.classes import class_rule
from kvmon.events.kinds import FinishReason
from kvmon.probe import PageHasher, StreamProbe

__all__ = ["Facts", "PageNames", "Requests", "finish_reason"]

_PAGES_A_STEP = 256
_LAST_PAGES = 64  # of what was generated, named when a request ends
_REASONS = {
    "FINISHED_STOPPED": FinishReason.STOP,
    "FINISHED_REPETITION": FinishReason.STOP,
    "FINISHED_LENGTH_CAPPED": FinishReason.LENGTH,
    "FINISHED_ABORTED": FinishReason.ABORT,
    "FINISHED_ERROR": FinishReason.ERROR,
    "FINISHED_IGNORED": FinishReason.REFUSED,
}


def finish_reason(request: Any) -> int:
    """Of a request that has ended, as events number it."""
    return int(_REASONS.get(request.status.name, FinishReason.UNKNOWN))


class PageNames:
    """Names pages of prompts, at most `_PAGES_A_STEP` a step; what is left of a long prompt follows in later steps."""

    def __init__(self, probe: StreamProbe, hasher: PageHasher, hash_tokens: int) -> None:
        self._probe, self._hasher, self._tokens = probe, hasher, hash_tokens
        self._left = _PAGES_A_STEP
        self._queue: deque[tuple[int, str, Any, int]] = deque()

    def of_prompt(self, number: int, request: Any) -> None:
        """Name the full pages of a prompt."""
        if request.block_hashes and self._hasher.available:
            self._queue.append((number, request.request_id, request, 0))
            self._work()

    def of_output(self, number: int, request: Any) -> None:
        """Name the last full pages of what was generated: the next turn of a conversation asks for them."""
        pages = request.block_hashes
        first = max(int(request.num_prompt_tokens) // self._tokens, len(pages) - _LAST_PAGES)
        if len(pages) > first and self._hasher.available:
            self._probe.hashes(number, self._tokens, self._hasher.words(pages[first:], _LAST_PAGES), first)

    def step(self, alive: Callable[[str], bool]) -> None:
        """A step is over: go on with what is left."""
        self._left = _PAGES_A_STEP
        if self._queue:
            self._queue = deque(entry for entry in self._queue if alive(entry[1]))
            self._work()

    def _work(self) -> None:
        while self._queue and self._left > 0:
            number, rid, request, first = self._queue.popleft()
            last = min(int(request.num_prompt_tokens) // self._tokens, len(request.block_hashes))
            count = min(last - first, self._left)
            if count > 0:
                pages = islice(request.block_hashes, first, first + count)
                self._probe.hashes(number, self._tokens, self._hasher.words(pages, count), first)
                self._left -= count
            if first + count < last:
                self._queue.appendleft((number, rid, request, first + count))


class Facts(NamedTuple):
    """What an audit says again of a request."""

    class_id: int
    arrived_ns: int


class Requests:
    """Live requests by vLLM's id, and what is said of each when it comes and when it goes.

    `prefilling` holds those that were admitted and have not answered yet. Nothing is said before `record_with`.
    """

    _probe: StreamProbe
    _pages: PageNames

    def __init__(self, directory: Path, scheduler: Any, class_by: str) -> None:
        self._scheduler = scheduler
        self.numbers: dict[str, int] = {}
        self.facts: dict[str, Facts] = {}
        self.prefilling: dict[str, Any] = {}
        self._last = 0
        self._hasher = PageHasher(directory)
        self._class_of = class_rule(
            class_by,
            {
                "length": lambda request: request.num_prompt_tokens,
                "priority": lambda request: request.priority,
                "lora": lambda request: getattr(request.lora_request, "lora_int_id", None),
                "salt": self._salt,
            },
        )

    def _salt(self, request: Any) -> bytes | None:
        """Its keyed hash: the salt itself is kept nowhere."""
        salt = request.cache_salt
        return None if salt is None else self._hasher.words([salt.encode()], 1).tobytes()

    def record_with(self, probe: StreamProbe) -> None:
        """Say everything from now on to `probe`."""
        scheduler = self._scheduler
        tokens = int(getattr(scheduler, "hash_block_size", 0) or scheduler.block_size)
        self._probe, self._pages = probe, PageNames(probe, self._hasher, tokens)

    def adopt(self) -> None:
        """Know the requests that the scheduler had before; an audit says what they are."""
        for request in list(self._scheduler.requests.values()):
            if not request.status.name.startswith("FINISHED"):
                self._number(request)

    def arrive(self, request: Any) -> None:
        """A request is in the queue; a further part of one that is there already is no arrival."""
        if request.request_id in self.numbers or request.request_id not in self._scheduler.requests:
            return
        number = self._number(request)
        facts = self.facts[request.request_id]
        self._probe.arrived(
            number,
            facts.arrived_ns,
            int(request.num_prompt_tokens),
            class_id=facts.class_id,
            limit=request.max_tokens,
        )
        self._pages.of_prompt(number, request)

    def end(self, request: Any) -> None:
        """A request is about to give its blocks back."""
        rid = request.request_id
        number = self.numbers.get(rid)
        if number is None:
            return
        if self.prefilling.pop(rid, None) is not None and request.num_output_tokens:
            self._probe.first_token(number)
        self._pages.of_output(number, request)
        self._probe.finished(number, finish_reason(request), int(request.num_output_tokens))
        del self.numbers[rid], self.facts[rid]

    def step(self) -> None:
        """A step is over."""
        self._pages.step(self.numbers.__contains__)

    def _number(self, request: Any) -> int:
        self._last += 1
        rid = request.request_id
        self.numbers[rid] = self._last
        self.facts[rid] = Facts(self._class_of(request), time.monotonic_ns())
        return self._last
