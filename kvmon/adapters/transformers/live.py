"""The requests that wait or run: their numbers in the recording, and the records of their lives.

The engine knows requests by names that clients choose; a recording has numbers from 1 in their place. A request that
is offloaded comes back as another object under the same name: it keeps its number.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

from kvmon.adapters.classes import class_rule
from kvmon.events.kinds import FinishReason
from kvmon.probe import PageHasher, StreamProbe

__all__ = ["CLASSED_BY", "Live", "Requests"]

CLASSED_BY: dict[str, Callable[[Any], int]] = {"length": lambda state: len(state.initial_tokens)}
"""What requests can be classed by."""

_PAGES_A_STEP = 64  # prompt pages that are named in a step, so that its length is bounded
_OLDEST_NS = 3_600_000_000_000  # an arrival further back than this is no time of this clock


class Live:
    """One request; `refused` says that its wait was told, `preempted` that it lost its memory and waits again."""

    __slots__ = ("arrived_ns", "class_id", "ended", "limit", "lookup", "name", "number", "preempted", "prompt",
                 "refused", "running", "started", "state")  # fmt: skip

    def __init__(self, number: int, name: str, state: Any, arrived_ns: int, class_id: int) -> None:
        self.number, self.name, self.state, self.arrived_ns, self.class_id = number, name, state, arrived_ns, class_id
        self.prompt = len(state.initial_tokens)
        limit = state.max_new_tokens
        self.limit: int | None = int(limit) if isinstance(limit, int) and 0 <= limit < 1 << 31 else None
        self.lookup: tuple[int, int] | None = None
        self.running = self.preempted = self.refused = self.started = self.ended = False


class Requests:
    """All of them; `counting` are the names of those that a reader lets grow by a token with every step."""

    def __init__(
        self, probe: StreamProbe, directory: Path, page_tokens: int, class_by: str, clock: Callable[[], int]
    ) -> None:
        self._probe, self._clock, self._page_tokens = probe, clock, page_tokens
        self._hasher = PageHasher(directory)
        self._class_of = class_rule(class_by, CLASSED_BY)
        self._pages_left = _PAGES_A_STEP
        self._last = 0
        self.by_name: dict[str, Live] = {}
        self.by_number: dict[int, Live] = {}
        self.counting: set[str] = set()
        self.forks: list[Live] = []
        self.changes = 0

    def begin_step(self) -> None:
        """Pages may be named again."""
        self._pages_left = _PAGES_A_STEP

    def find(self, name: str) -> Live | None:
        """The live request of this name."""
        return self.by_name.get(name)

    # -- its life --

    def waits(self, state: Any) -> None:
        """A request joined the queue: a new one, or one that lost its memory."""
        known = self.by_name.get(state.request_id)
        if known is not None and known.preempted:
            known.state = state
            return
        if known is not None:  # two clients chose one name: the engine mixes them up too
            self.finish(known, FinishReason.UNKNOWN)
        self._new(state.request_id, state, self._arrival(state))

    def fork(self, parent: Live, name: str) -> Live:
        """A child that shares its parent's memory and runs at once; its own state is there when the update is over."""
        child = self._new(name, parent.state, self._clock())
        self.forks.append(child)
        self.admit(child)
        return child

    def admit(self, one: Live) -> None:
        """It runs from the coming batch on; what the prefix cache had for it is told with it."""
        one.running, one.preempted = True, False
        self._probe.admitted(one.number)
        if one.lookup is not None:
            hit, asked = one.lookup
            one.lookup = None
            self._probe.cache_hit(one.number, hit, asked)

    def preempt(self, one: Live, lost: int) -> None:
        """It loses its memory, and `lost` tokens have to be computed again."""
        one.running, one.preempted, one.refused = False, True, False
        self.counting.discard(one.name)
        self.changes += 1
        self._probe.preempted(one.number, lost)

    def finish(self, one: Live, reason: FinishReason) -> None:
        """It ended."""
        one.ended = True
        self.by_name.pop(one.name, None)
        self.by_number.pop(one.number, None)
        self.counting.discard(one.name)
        self.changes += 1
        self._probe.finished(one.number, int(reason), _generated(one.state))

    def finish_as(self, one: Live, state: Any) -> None:
        """It ended as its state says."""
        status = getattr(state.status, "name", "")
        if status == "FINISHED":
            last = state.generated_tokens[-1] if state.generated_tokens else None
            reason = FinishReason.STOP if last in state._eos_token_ids else FinishReason.LENGTH
        else:
            reason = FinishReason.ERROR if status == "FAILED" else FinishReason.ABORT
        one.state = state
        self.finish(one, reason)

    def finish_all(self, reason: FinishReason) -> None:
        """Nobody waits or runs any more."""
        for one in list(self.by_name.values()):
            self.finish(one, reason)

    def found(self, state: Any, running: bool) -> Live:
        """A request that was there before the recording."""
        one = self._new(state.request_id, state, self._arrival(state))
        one.started = state.generated_len() > 0
        if running:
            self.admit(one)
        return one

    # -- what is told of it --

    def _new(self, name: str, state: Any, arrived_ns: int) -> Live:
        self._last += 1
        self.changes += 1
        one = Live(self._last, name, state, arrived_ns, self._class_of(state))
        self.by_name[name] = self.by_number[one.number] = one
        self._probe.arrived(one.number, arrived_ns, one.prompt, class_id=one.class_id, limit=one.limit)
        if self._pages_left > 0 and self._hasher.available:
            words = self._hasher.words(self._pages(state.initial_tokens), self._pages_left)
            self._pages_left -= len(words) // 2
            if words:
                self._probe.hashes(one.number, self._page_tokens, words)
        return one

    def _arrival(self, state: Any) -> int:
        """When a client handed it over: the engine's clock is the monotonic one of the machine, where that fits."""
        now = self._clock()
        created = getattr(state, "created_time", None)
        if self._clock is time.monotonic_ns and isinstance(created, float):
            at = int(created * 1e9)
            if now - _OLDEST_NS < at <= now:
                return at
        return now

    def _pages(self, tokens: list[int]) -> Iterator[bytes]:
        """One name a full page, which depends on everything before it; it never leaves the hasher unkeyed."""
        size, before = self._page_tokens, b""
        for first in range(0, len(tokens) - size + 1, size):
            before = blake2b(before + array("q", tokens[first : first + size]).tobytes(), digest_size=16).digest()
            yield before


def _generated(state: Any) -> int:
    """Tokens that were generated, those before a soft reset included: they are part of its prompt since."""
    again = len(state.initial_tokens) - state._true_initial_tokens if state._true_initial_tokens else 0
    return int(state.generated_len()) + max(again, 0)
