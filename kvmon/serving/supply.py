"""Kernels that ask what memory there is, and name the reason when it is not enough.

Invariant: nothing changes here. Every reason follows from the numbers that the failure is written with: exhausted means
need > free + evictable, no contiguous run means free >= need > largest, all others that the memory is there and a rule
keeps it.
"""

from __future__ import annotations

from kvmon.allocators import page_pool, run_pool
from kvmon.allocators.page_pool import used_pages
from kvmon.allocators.refusal import Reason
from kvmon.jit import inlined, inner
from kvmon.serving.state import (
    ADMIT_BY,
    BY_FULL,
    CAPACITY_UNITS,
    CLASS,
    COMMITTED_UNITS,
    PAGED,
    QUOTA_HELD,
    QUOTA_MOST,
    QUOTAS,
    RECLAIM_IDLE,
    REGION_UNITS,
    RUNNING,
    WATERMARK_UNITS,
    Serving,
)

__all__ = [
    "active_units",
    "allocatable_pages",
    "beyond_promises",
    "beyond_quota",
    "growable_pages",
    "over_quota",
    "refusal_of_block",
    "refusal_of_pages",
    "watermark_says_no",
]

_EXHAUSTED = int(Reason.EXHAUSTED)
_NO_RUN = int(Reason.NO_CONTIGUOUS_RUN)
_NOT_RECLAIMED = int(Reason.EVICTABLE_NOT_RECLAIMED)
_ALL_PINNED = int(Reason.ALL_PINNED)
_WATERMARK = int(Reason.WATERMARK)
_QUEUED, _EVICTABLE, _IDLE_PINNED = page_pool.QUEUED, page_pool.EVICTABLE, page_pool.IDLE_PINNED
_PIN_CAP, _DEFERRED, _LEAKED = page_pool.PIN_CAP, page_pool.DEFERRED, page_pool.LEAKED_PAGES
_FREE = run_pool.FREE


@inlined
def active_units(serving: Serving) -> int:
    """Units that somebody refers to, regions that stay behind not counted."""
    if serving.config[PAGED]:
        return used_pages(serving.pages)
    return int(serving.config[CAPACITY_UNITS] - serving.runs.tally[_FREE] - serving.tally[REGION_UNITS])


@inner
def allocatable_pages(serving: Serving) -> int:
    """Pages that could be given now, evicting content where the policy allows it at this moment."""
    tally = serving.pages.tally
    if serving.config[RECLAIM_IDLE] and serving.tally[RUNNING] > 0:
        return int(tally[_QUEUED] - tally[_EVICTABLE])
    return int(tally[_QUEUED])


@inner
def refusal_of_pages(serving: Serving, need: int) -> int:
    """Why `need` pages, more than are allocatable, are not there."""
    tally = serving.pages.tally
    if need <= tally[_QUEUED]:
        return _NOT_RECLAIMED
    if need <= tally[_QUEUED] + tally[_IDLE_PINNED]:
        return _ALL_PINNED
    return _EXHAUSTED


@inner
def refusal_of_block(serving: Serving, need: int) -> int:
    """Why a block of `need` units that no run holds is not there."""
    return _EXHAUSTED if serving.runs.tally[_FREE] < need else _NO_RUN


@inner
def over_quota(serving: Serving, request: int, more: int) -> bool:
    """Whether the class of `request` may not hold `more` units in addition."""
    if not serving.config[QUOTAS]:
        return False
    place = min(serving.facts[request, CLASS], 63)
    most = serving.tally[QUOTA_MOST + place]
    return bool(most >= 0 and serving.tally[QUOTA_HELD + place] + more > most)


@inner
def beyond_quota(serving: Serving, request: int, units: int) -> bool:
    """Whether `units` are more than the class of `request` may ever hold."""
    if not serving.config[QUOTAS]:
        return False
    most = serving.tally[QUOTA_MOST + min(serving.facts[request, CLASS], 63)]
    return bool(0 <= most < units)


@inner
def watermark_says_no(serving: Serving, need: int, supply: int, full: int) -> int:
    """The watermark's reason when admitting `need` of `supply` units would break a promise: the share that stays free
    while anything runs, or what running requests may become together with `full` units of this one. 0 when not."""
    tally = serving.tally
    if tally[RUNNING] > 0 and supply - need < serving.config[WATERMARK_UNITS]:
        return _WATERMARK
    if serving.config[ADMIT_BY] == BY_FULL:
        kept = tally[REGION_UNITS]
        if serving.config[PAGED]:
            kept = serving.pages.tally[_PIN_CAP] + serving.pages.tally[_DEFERRED] + serving.pages.tally[_LEAKED]
        if tally[COMMITTED_UNITS] + full > serving.config[CAPACITY_UNITS] - kept:
            return _WATERMARK
    return 0


@inner
def growable_pages(serving: Serving) -> int:
    """Pages that a running request could be given now: as `allocatable_pages`, but content never stands in the way of
    the only running request, nor of what admission promised."""
    if serving.tally[RUNNING] == 1 or serving.config[ADMIT_BY] == BY_FULL:
        return int(serving.pages.tally[_QUEUED])
    return allocatable_pages(serving)


@inner
def beyond_promises(serving: Serving, full: int) -> bool:
    """Whether `full` pages are more than can ever be promised, because pins may take the rest of the pool."""
    if serving.config[ADMIT_BY] != BY_FULL or not serving.config[PAGED]:
        return False
    return bool(full > serving.config[CAPACITY_UNITS] - serving.pages.tally[_PIN_CAP])
