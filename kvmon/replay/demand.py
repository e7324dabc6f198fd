"""The demand of a recording: what the traffic asked for, independent of what the engine did with it.

    request         int64 (n)   number in the recording; n requests in the order of this demand
    arrived_ns      int64 (n)   when it came, on the engine's clock
    due_ns          int64 (n)   when the engine's queue had it: between the two steps between which it was recorded
    class_id, prompt            int64 (n)
    limit           int64 (n)   most tokens it may generate, -1 = not said
    intended        int64 (n)   tokens it was going to generate, -1 = only known when it ended by itself
    generated       int64 (n)   tokens it had when it ended, or when the recording did
    end             int64 (n)   FinishReason, -1 = it has not ended
    hang_up_ns      int64 (n)   after its arrival: its client hung up, or something else than memory ended it; 0 = no
    patience_ns     int64 (n)   how long its client waits, where whoever made the traffic said so; -1 = nobody did
    follows         int64 (n)   place (from 1) of the request whose end it waits for, 0 = it comes on its own
    pause_ns        int64 (n)   pause behind that end
    before          bool (n)    it was there when the recording began: what it had by then is not known
    offsets, hashes, hash_tokens    names of its pages, as in `serving.Workload`

A demand is *censored* where a run with other memory would have to know what the recording does not: how long an answer
would have become that was cut off, what a request had before the recording began, which tokens two prompts share within
one named page. `workload` makes it definite, in one of three ways (`Case`); both ends of the range are to be run.

Invariant: data of one life of one engine; nothing here runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from kvmon.adapters.described import Described
from kvmon.errors import InputError
from kvmon.events import FinishReason
from kvmon.replay.finer_pages import finer_names
from kvmon.serving import Workload
from kvmon.simulate import RecordedSteps

__all__ = ["Case", "Censored", "Demand", "Steps"]

Ints = npt.NDArray[np.int64]
_MOST_TOKENS = 1 << 30
_CUT_OFF = (int(FinishReason.ABORT), int(FinishReason.ERROR), int(FinishReason.REFUSED))


class Case(Enum):
    """How what is censored is taken.

    RECORDED    as it was: who hung up is cut off at the same time, answers that were cut off would have gone on
    LEAST       as little as it can have been: answers end where they were cut off, who was there before is left out,
                prompts share as much as their names allow
    MOST        as much as it can have been: answers go on to their limits, who was there before comes with its whole
                prompt, prompts share what their names show
    """

    RECORDED = "recorded"
    LEAST = "least"
    MOST = "most"


@dataclass(frozen=True)
class Steps:
    """Steps as the engine took them: int64 (n) each, ns, tokens, sequences, tokens of context read."""

    start_ns: Ints
    duration_ns: Ints
    prefill: Ints
    decode: Ints
    context: Ints

    def __len__(self) -> int:
        return len(self.start_ns)


@dataclass(frozen=True)
class Censored:
    """Requests of which something is not known, by what: they hung up, failed or were refused, had not ended, or were
    there before the recording began. A request counts once; those whose length was said beforehand do not count."""

    hung_up: int = 0
    failed: int = 0
    running: int = 0
    before: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.hung_up + self.failed + self.running + self.before


@dataclass(frozen=True)
class Demand:
    """See the module for the columns.

    steps           the engine's own steps
    engine          how it is configured; None, and `missing` says why, where it cannot be replayed at all
    begin_ns, end_ns    first and last moment of the recording
    numbered        requests have the places of their numbers in the recording
    unknown         requests that came within a gap of the recording, as far as their numbers tell
    missing         why this recording cannot be replayed, in one line; empty where it can
    gaps            what of the stream is lost, one line each
    assumptions     what a replay takes for granted, one line each
    """

    name: str
    request: Ints
    arrived_ns: Ints
    due_ns: Ints
    class_id: Ints
    prompt: Ints
    limit: Ints
    intended: Ints
    generated: Ints
    end: Ints
    hang_up_ns: Ints
    patience_ns: Ints
    follows: Ints
    pause_ns: Ints
    before: npt.NDArray[np.bool_]
    offsets: Ints
    hashes: npt.NDArray[np.uint64] = field(repr=False)
    hash_tokens: int
    steps: Steps = field(repr=False)
    engine: Described | None
    begin_ns: int
    end_ns: int
    numbered: bool = True
    unknown: int = 0
    missing: str = ""
    gaps: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.request)

    @property
    def closed_loop(self) -> bool:
        """Whether it is known who waits for whose end."""
        return bool(self.follows.any())

    @property
    def censored(self) -> Censored:
        """How many requests are not wholly known."""
        known = (self.intended > 0) & ~self.before
        cut = ~known & ~self.before
        return Censored(
            hung_up=int((cut & (self.hang_up_ns > 0)).sum()),
            failed=int((cut & (self.hang_up_ns == 0) & np.isin(self.end, _CUT_OFF)).sum()),
            running=int((cut & (self.end < 0)).sum()),
            before=int(self.before.sum()),
        )

    def finer(self, page_tokens: int) -> bool:
        """Whether pages of `page_tokens` are smaller than what the names of the recording tell apart."""
        return bool(self.hash_tokens > page_tokens and self.hash_tokens % page_tokens == 0)

    def recorded_steps(self) -> RecordedSteps:
        """The engine's own steps, to be taken one by one."""
        return RecordedSteps(self.steps.start_ns, self.steps.duration_ns, self.end_ns)

    def described(self) -> Described:
        """How the engine is configured. Raises InputError with what is missing where this cannot be replayed."""
        if self.missing or self.engine is None:
            raise InputError(f"{self.name} cannot be replayed: {self.missing}")
        return self.engine

    def workload(self, case: Case, *, page_tokens: int = 0) -> Workload:
        """The demand as a workload that can be run.

        `page_tokens`: the pages of a prefix cache it will meet, which may be smaller than a name tells. Raises
        InputError where nothing can be replayed, or nothing is left.
        """
        longest = self.described().scheduler.max_model_len
        keep = np.flatnonzero(~self.before) if case is Case.LEAST else np.arange(len(self))
        if not len(keep):
            raise InputError(f"{self.name} cannot be replayed: nobody came after the recording began")
        seen = np.maximum(self.generated, 1)
        limit = np.where(self.limit > 0, self.limit, self._longest_answer(longest))
        ended = np.isin(self.end, (FinishReason.STOP, FinishReason.LENGTH, FinishReason.UNKNOWN))
        guess = np.where(ended, seen, seen if case is Case.LEAST else np.maximum(limit, seen))
        output = np.where(self.intended > 0, self.intended, guess)
        limit = np.where((self.limit < 0) & ended, output, limit)
        waits = np.where(self.patience_ns >= 0, self.patience_ns, self.hang_up_ns)
        place = np.zeros(len(self) + 1, np.int64)
        place[keep + 1] = np.arange(1, len(keep) + 1)
        follows = place[self.follows]
        arrival = np.where(follows > 0, self.pause_ns, self.due_ns)
        hashes, counts, step = self.hashes, np.diff(self.offsets), self.hash_tokens
        if case is Case.LEAST and page_tokens and self.finer(page_tokens):
            hashes, counts = finer_names(hashes, counts, self.prompt, step, page_tokens)
            step = page_tokens
        kept = np.zeros(len(self), np.bool_)
        kept[keep] = True
        return Workload(
            arrival_ns=arrival[keep],
            prompt_tokens=_tokens(self.prompt[keep]),
            output_tokens=_tokens(output[keep]),
            token_limit=_tokens(np.maximum(limit, 1)[keep]),
            class_id=self.class_id[keep].astype(np.int32),
            hash_offsets=np.concatenate([[0], np.cumsum(counts[keep])]).astype(np.int64),
            hashes=hashes[np.repeat(kept, counts)],
            hash_tokens=step if len(hashes) else 0,
            name=self.name,
            follows=follows[keep].astype(np.int32),
            abort_ns=np.maximum(waits, 0)[keep],
            drawn_as=self.request[keep],
        )

    def _longest_answer(self, longest: int | None) -> Ints:
        """What a request without a limit may generate: what the model's length leaves, or the longest answer seen."""
        most = max(int(self.generated.max(initial=1)), int(self.intended.max(initial=1)))
        return np.maximum(longest - self.prompt, 1) if longest is not None else np.full(len(self), most)


def _tokens(values: Ints) -> npt.NDArray[np.int32]:
    return np.clip(values, 1, _MOST_TOKENS).astype(np.int32)
