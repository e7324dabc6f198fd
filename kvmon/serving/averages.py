"""The kernel that adds a step to the averages over time.

What is averaged is the state while the step ran: memory as scheduled, tokens as computed by its end, before finished
requests give back theirs. Shares of active slots count while anything is active; shares of the whole pool (those of
PagedAttention's figure 2) while somebody waits, when the pool is as full as its policy can make it.

Invariant: nothing but `averages` changes.
"""

from __future__ import annotations

from kvmon.allocators import run_pool
from kvmon.allocators.run_pool import largest_run
from kvmon.jit import inlined
from kvmon.serving.state import (
    ACTIVE_NS,
    ASKED,
    CAPACITY_UNITS,
    COMPUTED,
    FRAGMENTATION,
    FRAGMENTED_NS,
    FULL_BATCH,
    FULL_FREE,
    FULL_NEVER_USED,
    FULL_NS,
    FULL_USED_LATER,
    FULL_WRITTEN,
    HELD_PAGES,
    LOOKAHEAD,
    PAGED,
    QUEUED,
    RESERVED,
    RUNNING,
    SEAT,
    STOP,
    TAIL,
    UNIT_TOKENS,
    UTILIZATION,
    WINDOW,
    WINDOW_OWN,
    WRITTEN_TOKENS,
    Serving,
)
from kvmon.serving.supply import active_units

__all__ = ["average"]

_POOL_FREE = run_pool.FREE


@inlined
def average(serving: Serving, duration_ns: int) -> None:
    """Add a step of `duration_ns` to every average."""
    config = serving.config
    tally = serving.tally
    averages = serving.averages
    unit_tokens = config[UNIT_TOKENS]
    slots = active_units(serving) * unit_tokens
    if slots == 0:
        return
    tail = 0 * slots
    reserved = 0 * slots
    if config[PAGED]:
        # Only full pages are shared, so every unfilled slot belongs to one request.
        tail = tally[HELD_PAGES] * unit_tokens - tally[WRITTEN_TOKENS]
        if config[LOOKAHEAD]:
            reserved = tail
            tail = 0 * slots
            for i in range(tally[RUNNING]):
                tail += -serving.live[serving.running[i], COMPUTED] % unit_tokens
            reserved -= tail
        if config[WINDOW] and not config[WINDOW_OWN]:
            # The window group ends where the other one ends, with as many unfilled slots.
            tail *= 2
            reserved *= 2
        written = slots - tail - reserved
    else:
        if unit_tokens > 1:
            for i in range(tally[RUNNING]):
                tail += -serving.live[serving.running[i], COMPUTED] % unit_tokens
        written = tally[WRITTEN_TOKENS]
        reserved = tally[HELD_PAGES] * unit_tokens - written - tail
        free = serving.runs.tally[_POOL_FREE]
        if free > 0:
            averages[FRAGMENTED_NS] += duration_ns
            averages[FRAGMENTATION] += duration_ns * (1.0 - largest_run(serving.runs) / free)
    averages[ACTIVE_NS] += duration_ns
    averages[TAIL] += duration_ns * (tail / slots)
    averages[UTILIZATION] += duration_ns * (written / slots)
    averages[RESERVED] += duration_ns * (reserved / slots)
    if tally[QUEUED] > 0:
        _average_full(serving, duration_ns, tail, reserved)


@inlined
def _average_full(serving: Serving, duration_ns: int, tail: int, reserved: int) -> None:
    """Where the memory of the whole pool is while it is as full as it gets.

    A contiguous block splits into written, used later (up to the request's end) and never used; what the placement
    rounds up is nobody's wish and counts as free. Pages in use split into written, those for the next drafts, and their
    unfilled rest.
    """
    config = serving.config
    tally = serving.tally
    averages = serving.averages
    later = 0 * tail
    never = 0 * tail
    if config[PAGED]:
        never = tail
        later = reserved
        written = active_units(serving) * config[UNIT_TOKENS] - tail - reserved
    else:
        written = tally[WRITTEN_TOKENS]
        for i in range(tally[RUNNING]):
            request = serving.running[i]
            computed = serving.live[request, COMPUTED]
            asked = max(serving.held[serving.live[request, SEAT], ASKED], computed)
            final = min(max(serving.live[request, STOP], computed), asked)
            later += final - computed
            never += asked - final
    averages[FULL_NS] += duration_ns
    averages[FULL_WRITTEN] += duration_ns * float(written)
    averages[FULL_USED_LATER] += duration_ns * float(later)
    averages[FULL_NEVER_USED] += duration_ns * float(never)
    averages[FULL_FREE] += duration_ns * float(config[CAPACITY_UNITS] * config[UNIT_TOKENS] - written - later - never)
    averages[FULL_BATCH] += duration_ns * float(tally[RUNNING])
