"""The faults a fold can find: what cannot happen in an allocator that keeps its own rules, each with its permanent
number.

A fault names the event at which it shows: frame, word in the frame, time, pool, unit and request. Folding goes on
after a fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["EXPLANATIONS", "Fault", "FaultKind"]


class FaultKind(IntEnum):
    """What was found."""

    ALLOC_IN_USE = 1
    ALLOC_DEFERRED = 2
    DOUBLE_FREE = 3
    FREE_REFERENCED = 4
    SHARE_FREE = 5
    UNIT_OUT_OF_RANGE = 6
    CONTENT_OF_FREE_UNIT = 7
    EVICT_WITHOUT_CONTENT = 8
    PIN_WITHOUT_CONTENT = 9
    UNPIN_NOT_PINNED = 10
    DEFER_SHARED = 11
    ASSIGN_UNHELD = 12
    UNOWNED = 13
    UNKNOWN_REQUEST = 14
    REQUEST_TWICE = 15
    ADMIT_NOT_WAITING = 16
    PREEMPT_NOT_RUNNING = 17
    TOKENS_BEYOND_UNITS = 18
    UNKNOWN_POOL = 19
    AUDIT_MISMATCH = 20
    CLAIMS_DRIFT = 21
    RESIDUAL = 22
    FRAME_MISSING = 23
    TIME_BACKWARDS = 24
    DAMAGED_FRAME = 25
    CAPACITY_BELOW_USE = 26
    RECORDS_LOST = 27
    RELOCATION_OVERLAP = 28


EXPLANATIONS: dict[FaultKind, str] = {
    FaultKind.ALLOC_IN_USE: "allocated while still referenced: two owners overlap",
    FaultKind.ALLOC_DEFERRED: "allocated while a transfer still holds it",
    FaultKind.DOUBLE_FREE: "given back with no reference left: double free",
    FaultKind.FREE_REFERENCED: "freed while others still refer to it",
    FaultKind.SHARE_FREE: "shared although it is free and holds no content",
    FaultKind.UNIT_OUT_OF_RANGE: "no such unit in this pool",
    FaultKind.CONTENT_OF_FREE_UNIT: "content registered for a unit that nobody holds",
    FaultKind.EVICT_WITHOUT_CONTENT: "evicted although it holds no content",
    FaultKind.PIN_WITHOUT_CONTENT: "pinned although it holds no content",
    FaultKind.UNPIN_NOT_PINNED: "unpinned although it was not pinned",
    FaultKind.DEFER_SHARED: "deferred although not exactly one reference was left",
    FaultKind.ASSIGN_UNHELD: "assigned to a request although nobody holds it",
    FaultKind.UNOWNED: "units are held at the end of the step and no live request owns them",
    FaultKind.UNKNOWN_REQUEST: "an event names a request that never arrived or has ended",
    FaultKind.REQUEST_TWICE: "a request arrived that is already there",
    FaultKind.ADMIT_NOT_WAITING: "a request was admitted that was not waiting",
    FaultKind.PREEMPT_NOT_RUNNING: "a request was preempted that was not running",
    FaultKind.TOKENS_BEYOND_UNITS: "more tokens are written than the units of the request have slots",
    FaultKind.UNKNOWN_POOL: "an event names a pool that was never attached",
    FaultKind.AUDIT_MISMATCH: "the engine's own state differs from what its events add up to",
    FaultKind.CLAIMS_DRIFT: "the engine's own count differs from what its events add up to",
    FaultKind.RESIDUAL: "the engine's own numbers do not add up to the capacity",
    FaultKind.FRAME_MISSING: "frames are missing before this one",
    FaultKind.TIME_BACKWARDS: "time runs backwards",
    FaultKind.DAMAGED_FRAME: "the frame's checksum or structure is wrong",
    FaultKind.CAPACITY_BELOW_USE: "the pool shrank below what is in use",
    FaultKind.RECORDS_LOST: "the probe says that it lost records here",
    FaultKind.RELOCATION_OVERLAP: "the new block of a relocation overlaps the old one",
}
"""One sentence for each, for people."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault and where it is: `word` counts from the start of frame `frame`; `time_ns` is the frame's end."""

    kind: FaultKind
    frame: int
    word: int
    time_ns: int
    pool: int
    unit: int | None = None
    request: int | None = None
    value: int | None = None

    def __str__(self) -> str:
        """The fault in a line, as `kvmon verify` prints it."""
        parts = [f"frame {self.frame} word {self.word}: pool {self.pool}"]
        if self.unit is not None:
            parts.append(f"unit {self.unit}")
        if self.request is not None:
            parts.append(f"request {self.request}")
        text = f"{', '.join(parts)}: {self.kind.name.lower()}: {EXPLANATIONS[self.kind]}"
        return text if self.value is None else f"{text} ({self.value})"
