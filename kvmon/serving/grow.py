"""Kernels that make room for a running request, by the policy for growth.

Invariant: a request either has room for all the tokens it was asked about, or nothing of its own changed. A victim that
stood in the plan of this step leaves it, and `tally[TAKEN_BACK]` counts the running requests before the one that grows
which are gone.
"""

from __future__ import annotations

import numpy as np

from kvmon.allocators import run_pool
from kvmon.allocators.refusal import FinishReason, Outcome, Reason
from kvmon.allocators.run_pool import find_run, granted_units, grows_in_place
from kvmon.jit import inner
from kvmon.serving.compaction import compact
from kvmon.serving.contiguous_memory import block_tokens, extend_block, relocate_block
from kvmon.serving.lifecycle import end_request, leave_running, note_failure, preempt
from kvmon.serving.paged_memory import extend_pages, pages_for
from kvmon.serving.state import (
    ADMIT_BY,
    BY_FULL,
    CAPACITY_UNITS,
    CLASS,
    COMPACTED_NOW,
    COMPACTION,
    DECODES,
    GROWTH,
    GROWTH_ABORT,
    GROWTH_WAIT,
    LEVELS,
    NOTED,
    PAGED,
    PAGES,
    PLANNED,
    PRIORITY,
    QUOTAS,
    ROOM,
    RUNNING,
    SEAT,
    START,
    TAKEN_BACK,
    TOKENS,
    UNIT_TOKENS,
    UNITS,
    WHO,
    WINDOW,
    WINDOW_FIRST,
    WINDOW_OWN,
    WINDOW_PAGES,
    Serving,
)
from kvmon.serving.supply import beyond_quota, growable_pages, over_quota, refusal_of_block, refusal_of_pages
from kvmon.serving.window import extend_window, window_free, window_lacks

__all__ = ["GONE", "GROWN", "STAYS", "grow"]

# What became of a running request that needed room.
GROWN = 0
STAYS = 1  # without tokens this step
GONE = 2

_NEVER_FITS = int(Reason.NEVER_FITS)
_PARTITION_FULL = int(Reason.PARTITION_FULL)
_POOL_STARVED = int(Reason.POOL_STARVED)
_WAITS = int(Outcome.WAITS)
_PREEMPTED_OTHER = int(Outcome.PREEMPTED_OTHER)
_PREEMPTED_ITSELF = int(Outcome.PREEMPTED_ITSELF)
_OUTCOME_ABORTED = int(Outcome.ABORTED)
_ERROR = int(FinishReason.ERROR)
_RUNS, _FREE = run_pool.RUNS, run_pool.FREE

# Why growth is not possible: need * 256 + bits.
_REASON = 0x1F
_OTHER_POOL = 0x20  # the window group's own pool is short
_HOPELESS = 0x40  # not even for a request that is alone


@inner
def grow(serving: Serving, index: int, request: int, tokens: int) -> int:
    """Make room for `tokens` in all in the memory of the running request at `index`, by the policy for growth."""
    while True:
        need = _try_pages(serving, request, tokens) if serving.config[PAGED] else _try_block(serving, request, tokens)
        if need == 0:
            serving.live[request, NOTED] = 0
            return GROWN
        reason = need & _REASON
        pool = 2 if need & _OTHER_POOL else 1
        hopeless = need & _HOPELESS != 0
        need >>= 8
        policy = serving.config[GROWTH]
        if hopeless or policy == GROWTH_ABORT:
            note_failure(serving, request, need, reason, _OUTCOME_ABORTED, 1, pool)
            end_request(serving, request, _ERROR)
            leave_running(serving, index)
            return GONE
        if policy == GROWTH_WAIT:
            note_failure(serving, request, need, reason, _WAITS, 1, pool)
            return STAYS
        place = _victim(serving, request, reason)
        itself = place == index
        note_failure(serving, request, need, reason, _PREEMPTED_ITSELF if itself else _PREEMPTED_OTHER, 1, pool)
        victim = preempt(serving, place)
        if itself:
            return GONE
        serving.live[victim, NOTED] = 0
        if place < index:
            index -= 1
            serving.tally[TAKEN_BACK] += 1
            _unplan(serving, victim)


@inner
def _victim(serving: Serving, request: int, reason: int) -> int:
    """Place in `running` of the youngest request of the least urgent level; under a quota of the same class."""
    tally = serving.tally
    facts = serving.facts
    found = tally[RUNNING] - 1
    if reason == _PARTITION_FULL:
        while facts[serving.running[found], CLASS] != facts[request, CLASS]:
            found -= 1
        return int(found)
    if serving.config[LEVELS]:
        for i in range(tally[RUNNING] - 1, -1, -1):
            if facts[serving.running[i], PRIORITY] > facts[serving.running[found], PRIORITY]:
                found = np.int64(i)
    return int(found)


@inner
def _unplan(serving: Serving, victim: int) -> None:
    plan = serving.plan
    kept = 0
    for k in range(serving.tally[PLANNED]):
        if plan[k, WHO] != victim:
            for column in (WHO, TOKENS, DECODES):
                plan[kept, column] = plan[k, column]
            kept += 1
    serving.tally[PLANNED] = kept


@inner
def _try_pages(serving: Serving, request: int, tokens: int) -> int:
    """Grow to `tokens` if that is possible; returns 0, or the pages that would have to be free at once, with the reason
    why they are not."""
    config = serving.config
    seat = serving.live[request, SEAT]
    wanted = pages_for(tokens, config[UNIT_TOKENS])
    fresh = max(wanted - serving.held[seat, PAGES], 0)
    windowed = window_lacks(serving, request, tokens) if config[WINDOW] else 0
    own = config[WINDOW_OWN]
    need = fresh if own else fresh + windowed
    if config[WINDOW]:
        window = serving.held[seat, WINDOW_PAGES] - serving.held[seat, WINDOW_FIRST] + windowed
        if own and window > own:
            return int(window << 8 | _HOPELESS | _OTHER_POOL | _POOL_STARVED)
        if not own:
            wanted += window
    if wanted > config[CAPACITY_UNITS]:
        return int(need << 8 | _HOPELESS | _NEVER_FITS)
    if need and config[QUOTAS] and config[ADMIT_BY] != BY_FULL and over_quota(serving, request, need):
        hopeless = _HOPELESS if beyond_quota(serving, request, wanted) else 0
        return int(need << 8 | hopeless | _PARTITION_FULL)
    if need > growable_pages(serving):
        return int(need << 8 | refusal_of_pages(serving, need))
    if own and windowed > window_free(serving):
        return int(windowed << 8 | _OTHER_POOL | _POOL_STARVED)
    extend_pages(serving, request, fresh)
    if config[WINDOW]:
        extend_window(serving, request, tokens)
    return 0


@inner
def _try_block(serving: Serving, request: int, tokens: int) -> int:
    """Grow to `tokens` if that is possible; returns 0, or the units of the block that was looked for, with the reason
    why there is none."""
    config = serving.config
    seat = serving.live[request, SEAT]
    if tokens <= serving.live[request, ROOM]:
        return 0
    asked = block_tokens(serving, request, tokens)
    units = granted_units(serving.runs, (asked + config[UNIT_TOKENS] - 1) // config[UNIT_TOKENS])
    have = serving.held[seat, UNITS]
    if config[QUOTAS] and config[ADMIT_BY] != BY_FULL and over_quota(serving, request, units - have):
        hopeless = _HOPELESS if beyond_quota(serving, request, units) else 0
        return int(units << 8 | hopeless | _PARTITION_FULL)
    while True:
        runs = serving.runs.tally[_RUNS]
        at = grows_in_place(serving.runs, serving.held[seat, START], have, units - have)
        if at < runs:
            extend_block(serving, request, at, units - have, asked)
            return 0
        at = find_run(serving.runs, units)
        if at < runs:
            relocate_block(serving, request, at, units, asked)
            return 0
        if units > config[CAPACITY_UNITS]:
            return int(units << 8 | _HOPELESS | _NEVER_FITS)
        if not config[COMPACTION] or serving.tally[COMPACTED_NOW] or serving.runs.tally[_FREE] < units:
            return int(units << 8 | refusal_of_block(serving, units))
        compact(serving)
