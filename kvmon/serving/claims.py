"""Kernels of what the engine says of itself: its own numbers of the pool, and errors of somebody else's memory.

The engine counts as engines do: what is in its free list (a page that was freed twice is there twice), what it could
evict, what its requests and pins hold (a leaked page is held by nobody it knows), what transfers hold.

Invariant: entries only; no kernel here changes memory.
"""

from __future__ import annotations

from kvmon.allocators import page_pool, run_pool
from kvmon.allocators.journal import CLAIMS, put5
from kvmon.jit import inner
from kvmon.serving.state import (
    CAPACITY_UNITS,
    CLAIMS_NS,
    DECODE_TOKENS,
    FAULTS_FROM,
    LEAKED_UNITS,
    NEXT_CLAIMS,
    NOW,
    PAGED,
    PREFILL_TOKENS,
    REGION_UNITS,
    TWICE_FREED,
    UNIT_TOKENS,
    WRONG_GAUGE,
    Serving,
)
from kvmon.serving.supply import active_units

__all__ = ["claim"]

_QUEUED, _EVICTABLE = page_pool.QUEUED, page_pool.EVICTABLE
_IDLE_PINNED, _DEFERRED = page_pool.IDLE_PINNED, page_pool.DEFERRED
_FREE = run_pool.FREE


@inner
def claim(serving: Serving) -> None:
    """State the engine's own numbers, if it is time to; the journal is on and has room."""
    tally = serving.tally
    config = serving.config
    if tally[NOW] < tally[NEXT_CLAIMS]:
        return
    tally[NEXT_CLAIMS] = tally[NOW] + config[CLAIMS_NS]
    capacity = config[CAPACITY_UNITS]
    protected = active_units(serving)
    if config[PAGED]:
        pool = serving.pages.tally
        available = pool[_QUEUED] - pool[_EVICTABLE] + tally[TWICE_FREED]
        evictable = pool[_EVICTABLE]
        protected += pool[_IDLE_PINNED] - tally[LEAKED_UNITS]
        in_flight = pool[_DEFERRED]
    else:
        protected += tally[REGION_UNITS]
        available = serving.runs.tally[_FREE]
        evictable = 0 * available
        in_flight = 0 * available
    used = protected + in_flight
    if config[WRONG_GAUGE] and tally[NOW] >= config[FAULTS_FROM]:
        used = min((tally[PREFILL_TOKENS] + tally[DECODE_TOKENS]) // config[UNIT_TOKENS], capacity)
    put5(serving.journal, CLAIMS, available, evictable, protected, in_flight, used * 1_000_000 // capacity)
