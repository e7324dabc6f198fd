"""Sentences with numbers in them: what a refused allocation and the condition of an engine mean.

One place, so that the same event reads the same in `kvmon top`, in the demo and in a report. Nothing here computes.
"""

from __future__ import annotations

from datetime import datetime, timezone

from kvmon.events import FAILURE_REASONS, Contiguity, FailureOutcome
from kvmon.replay import Refusal
from kvmon.state import Failure
from kvmon.units import format_count, format_duration

__all__ = ["condition_words", "failure_sentence", "refusal_sentence", "wall_time"]

_OUTCOMES = {
    FailureOutcome.UNKNOWN: "",
    FailureOutcome.WAITS: "it waits",
    FailureOutcome.PREEMPTED_ANOTHER: "another request was preempted for it",
    FailureOutcome.REFUSED: "it was refused",
    FailureOutcome.PREEMPTED_ITSELF: "it was preempted itself",
    FailureOutcome.ABORTED: "it was aborted",
}


def failure_sentence(failure: Failure, capacity: int) -> str:
    """What was asked, what there was, why that was not enough and what came of it; numbers in units."""
    who = "a request" if failure.request is None else f"request {failure.request}"
    adjacent = " adjacent" if failure.contiguity is Contiguity.REQUIRED else ""
    asked = f"{who} needed {format_count(failure.need)}{adjacent} unit{'s' * (failure.need != 1)}"
    outcome = _OUTCOMES[failure.outcome]
    return f"{asked}: {_why(failure, capacity)}" + (f"; {outcome}" if outcome else "")


def refusal_sentence(refusal: Refusal, *, contiguous: bool) -> str:
    """The same of one that was read back from a recording; `contiguous` is what its pool demands."""
    failure = Failure(
        time_ns=refusal.time_ns,
        request=refusal.request,
        need=refusal.need,
        contiguity=Contiguity.REQUIRED if contiguous else Contiguity.NONE,
        free=refusal.free,
        evictable=refusal.evictable,
        largest=refusal.largest,
        reason=FAILURE_REASONS[refusal.reason],
        outcome=refusal.outcome,
    )
    said = failure_sentence(failure, refusal.capacity)
    return f"{said[0].upper()}{said[1:]}."


def _why(failure: Failure, capacity: int) -> str:
    free = f"{format_count(failure.free)} were free"
    if failure.evictable:
        free += f" and {format_count(failure.evictable)} evictable"
    if failure.reason == "no_contiguous_run" and failure.largest is not None:
        return f"{free}, but the largest free block was {format_count(failure.largest)}"
    if failure.reason == "never_fits":
        return f"the pool has {format_count(capacity)}, so it can never fit"
    if failure.reason == "exhausted":
        return free if failure.free or failure.evictable else "none was free"
    return f"{free} ({failure.reason})"


def condition_words(
    condition: str, silent_seconds: float | None, last_event_wall_ns: int | None, moment: str | None = None
) -> str:
    """The condition of an engine for people; a dead one is dated, so that the words stay true, and so is `moment`."""
    if moment is not None:
        return f"at {moment}"
    when = "" if last_event_wall_ns is None else f" since {wall_time(last_event_wall_ns)}"
    if condition == "dead":
        return f"dead{when}, last state"
    if condition == "ended":
        return f"ended{when}, last state"
    if condition == "stalled" and silent_seconds is not None:
        return f"stalled: work pending, silent for {format_duration(silent_seconds)}"
    if condition == "unseen":
        return "alive or dead cannot be seen: run as the engine's user"
    return condition


def wall_time(wall_ns: int) -> str:
    """`2026-11-23 08:45:04 UTC` for nanoseconds since 1970."""
    return datetime.fromtimestamp(wall_ns // 1_000_000_000, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
