"""Cumulative totals of a stream: what has been recorded since the engine's process began, as plain counts.

They stand in every segment's header, as they were when the segment began, so that a reader that starts late continues
the counters instead of beginning at zero. A slot never changes its meaning; new ones are appended. Only what the
probe knows without computing is here: counts of records and sums of their fields.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["MAX_POOLS", "POOL_SLOTS", "STREAM_SLOTS", "PoolTotal", "StreamTotal"]

MAX_POOLS = 16
"""Pools that one stream can hold; numbered from 1."""
POOL_SLOTS = 24
STREAM_SLOTS = 32


class PoolTotal(IntEnum):
    """Slots of one pool: units by kind (1 to 9 as `Kind`), then refused allocations by reason."""

    ALLOC = 1
    FREE = 2
    SHARE = 3
    UNSHARE = 4
    CACHE_INSERT = 5
    EVICT = 6
    PIN = 7
    UNPIN = 8
    DEFER = 9
    FAILED_FIRST = 10  # + FailureReason, up to 10 reasons
    RESETS = 20
    MIGRATIONS = 21
    MOVED_TOKENS = 22


class StreamTotal(IntEnum):
    """Slots of the stream."""

    STEPS = 0
    FRAMES = 1
    STEP_NS = 2
    PREFILL_TOKENS = 3
    DECODE_TOKENS = 4
    ARRIVED = 5
    ADMITTED = 6
    PREEMPTED = 7
    LOST_TOKENS = 8  # tokens to be computed again after preemptions
    LOOKUP_TOKENS = 9
    HIT_TOKENS = 10
    PROMPT_TOKENS = 11
    OUTPUT_TOKENS = 12
    ERRORS = 13
    FINISHED_FIRST = 16  # + FinishReason, up to 8 reasons
