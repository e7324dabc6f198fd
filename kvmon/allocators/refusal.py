"""Refusals: why an allocator said no, as a value.

Invariant: a refusal is decided by the pure "ask" half of an allocator and holds the numbers that decided it, so that
fragmentation (F >= need > G) can be told from shortage afterwards without asking again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Contiguity", "FinishReason", "Outcome", "Reason", "Refusal"]


class Reason(IntEnum):
    """Why units could not be given; the names of the event stream, the numbers of the journal."""

    EXHAUSTED = 1
    NO_CONTIGUOUS_RUN = 2
    EVICTABLE_NOT_RECLAIMED = 3
    ALL_PINNED = 4
    NEVER_FITS = 5
    POOL_STARVED = 6
    PARTITION_FULL = 7
    WATERMARK = 8
    ACCOUNTING_ERROR = 9
    UNKNOWN = 10


class Contiguity(IntEnum):
    """What a request needs of its units."""

    NONE = 0
    PREFERRED = 1
    REQUIRED = 2


class Outcome(IntEnum):
    """What became of the request at its first refusal."""

    WAITS = 1
    PREEMPTED_OTHER = 2
    REFUSED = 3
    PREEMPTED_ITSELF = 4
    ABORTED = 5


class FinishReason(IntEnum):
    """Why a request ended."""

    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4
    REFUSED = 5


@dataclass(frozen=True)
class Refusal:
    """Need against supply in units at the moment of a refusal; `largest` is G, what could be granted without
    eviction."""

    reason: Reason
    need_units: int
    free_units: int
    evictable_units: int
    largest_units: int
    contiguity: Contiguity
