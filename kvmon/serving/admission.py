"""Kernels that let the requests of the queue in, or say why not.

Invariant: a request that is not admitted changes nothing but its own place in its life (it waits, or it leaves). What
is asked about is what must fit by the policy for admission; what is taken is what the first step needs.
"""

from __future__ import annotations

from kvmon.allocators import run_pool
from kvmon.allocators.journal import ADMIT, COPY, COPY_FORK, COPY_PREFIX, ON, put3, put5
from kvmon.allocators.page_pool import queued_among
from kvmon.allocators.refusal import FinishReason, Outcome, Reason
from kvmon.allocators.run_pool import find_run, granted_units
from kvmon.jit import inner
from kvmon.serving.compaction import compact
from kvmon.serving.contiguous_memory import admit_block, block_tokens, with_lookahead
from kvmon.serving.host_tier import swap_in, swapped_tokens
from kvmon.serving.lifecycle import (
    end_request,
    full_units,
    full_window,
    leave_queue,
    note_failure,
    prompt_units,
    take_seat,
)
from kvmon.serving.paged_memory import admit_pages, chain_length, pages_for
from kvmon.serving.retention import FIRST, copy_region, find_region, give_up_regions
from kvmon.serving.state import (
    ADMIT_BY,
    AGAIN_HIT_TOKENS,
    AGAIN_LOOKUP_TOKENS,
    BUDGET,
    BY_CHUNK,
    BY_FULL,
    CAPACITY_UNITS,
    CHUNKED,
    COMPACTED_NOW,
    COMPACTION,
    COMPUTED,
    COPIED_TOKENS,
    DECODE,
    FORK_OF,
    HIT_TOKENS,
    HOST_UNITS,
    LOOKUP_TOKENS,
    NEED_AT_HEAD,
    NEVER_WAITS,
    PAGED,
    PHASE,
    PREFILL,
    PREFIX,
    RECLAIM_IDLE,
    REFUSE,
    RETAINED,
    RUNNING,
    SEAT,
    SPARE,
    START,
    TOTAL,
    UNIT_TOKENS,
    WAITING_AGAIN,
    WINDOW,
    WINDOW_FIRST,
    WINDOW_OWN,
    WINDOW_PAGES,
    Serving,
)
from kvmon.serving.supply import (
    allocatable_pages,
    beyond_promises,
    beyond_quota,
    over_quota,
    refusal_of_block,
    refusal_of_pages,
    watermark_says_no,
)
from kvmon.serving.window import extend_window, most_window_pages, window_free

__all__ = ["ADMITTED", "BLOCKED", "PASSED_OVER", "REMOVED", "admit"]

# What became of a request in the queue.
ADMITTED = 0
BLOCKED = 1  # it waits, and so does everybody behind it
REMOVED = 2
PASSED_OVER = 3  # it waits, those behind it need not

_NEVER_FITS = int(Reason.NEVER_FITS)
_PARTITION_FULL = int(Reason.PARTITION_FULL)
_POOL_STARVED = int(Reason.POOL_STARVED)
_WATERMARK = int(Reason.WATERMARK)
_WAITS = int(Outcome.WAITS)
_OUTCOME_REFUSED = int(Outcome.REFUSED)
_OUTCOME_ABORTED = int(Outcome.ABORTED)
_ERROR = int(FinishReason.ERROR)
_REFUSED = int(FinishReason.REFUSED)
_RUNS, _FREE = run_pool.RUNS, run_pool.FREE


@inner
def admit(serving: Serving, request: int, place: int, budget: int, prefill: int) -> int:
    """Admit the request `place` places behind the head of the queue, if there is memory and budget for its first
    tokens."""
    if serving.config[PAGED]:
        return _admit_pages(serving, request, place, budget, prefill)
    return _admit_block(serving, request, place, budget, prefill)


@inner
def _must_wait_for_budget(serving: Serving, tokens: int, budget: int, prefill: int) -> bool:
    """Whether an unchunked prompt of `tokens` has to wait for a step with more budget left; one that no step could take
    goes ahead as the only prefill of its step."""
    if serving.config[CHUNKED] or tokens <= budget:
        return False
    return bool(tokens <= serving.config[BUDGET] or prefill > 0)


@inner
def _admit_pages(serving: Serving, request: int, place: int, budget: int, prefill: int) -> int:
    """Admit with the pages of the first tokens, counting what the prefix cache, the host tier or a fork's parent
    holds."""
    config = serving.config
    tally = serving.tally
    unit_tokens = config[UNIT_TOKENS]
    total = serving.live[request, TOTAL]
    row = serving.table[serving.spare[tally[SPARE] - 1]]
    kept = swapped_tokens(serving, request) if config[HOST_UNITS] else 0
    hits = 0
    revived = 0
    parent = _parent(serving, request) if serving.facts[request, FORK_OF] else 0
    if parent < 0:
        return PASSED_OVER
    if parent:
        hits = (total - 1) // unit_tokens
        for i in range(hits):
            row[i] = serving.table[serving.live[parent, SEAT], i]
    elif config[PREFIX] and kept == 0:
        # The last token is always computed: its logits give the next one. So its page is never a hit.
        hits = chain_length(serving, request, row, (total - 1) // unit_tokens)
        revived = queued_among(serving.pages, row, 0, hits)
    computed = total - 1 if parent else max(hits * unit_tokens, kept)
    tokens = total - computed
    if _must_wait_for_budget(serving, tokens, budget, prefill):
        return BLOCKED
    if config[CHUNKED]:
        tokens = min(tokens, budget)
    end = with_lookahead(serving, request, computed + tokens)
    fresh = pages_for(end, unit_tokens) - hits
    first = max(computed - config[WINDOW] + 1, 0) // unit_tokens
    windowed = pages_for(end, unit_tokens) - first if config[WINDOW] else 0
    asked = fresh
    asked_window = windowed
    most = prompt_units(serving, request)
    most_window = most_window_pages(serving, total) if config[WINDOW] else 0
    if config[ADMIT_BY] != BY_CHUNK:
        asked = max(pages_for(with_lookahead(serving, request, total), unit_tokens) - hits, fresh)
        asked_window = max(most_window, windowed)
    own = config[WINDOW_OWN]
    if not own:
        asked += asked_window
    full = 0
    promised = 0
    if config[ADMIT_BY] == BY_FULL:
        full = full_units(serving, request)
        asked = max(asked, full - hits)
        if own:
            asked_window = max(asked_window, full_window(serving, request))
            for i in range(tally[RUNNING]):
                promised += full_window(serving, serving.running[i])
    # Content that is hit is among what could be allocated, unless only empty pages are.
    need = asked + revived
    supply = allocatable_pages(serving)
    if config[RECLAIM_IDLE] and tally[RUNNING] > 0:
        supply += revived
    pool = 1
    reason = 0
    if max(asked + hits, most) > config[CAPACITY_UNITS]:
        reason = _NEVER_FITS
    elif own and max(asked_window, most_window) > own:
        reason = _POOL_STARVED
        need = max(asked_window, most_window)
        pool = 2
    elif over_quota(serving, request, asked + hits):
        reason = _PARTITION_FULL
    elif need > supply:
        reason = refusal_of_pages(serving, need)
    elif own and asked_window > window_free(serving):
        reason = _POOL_STARVED
        need = asked_window
        pool = 2
    elif own and promised + asked_window > own:
        reason = _WATERMARK
        need = asked_window
        pool = 2
    else:
        reason = watermark_says_no(serving, need, supply, full)
    if reason:
        hopeless = (
            reason == _NEVER_FITS
            or (reason == _POOL_STARVED and need > own)
            or beyond_quota(serving, request, max(asked + hits, most))
            or beyond_promises(serving, full)
        )
        return _turn_away(serving, request, place, need, reason, pool, hopeless)
    leave_queue(serving, place)
    found = computed if parent else hits * unit_tokens
    _write_admission(serving, request, found, total if config[PREFIX] and kept == 0 else 0)
    take_seat(serving, request, computed)
    admit_pages(serving, request, hits, fresh, parent > 0)
    if parent:
        _copy_last_page(serving, request, parent, hits)
    if kept:
        swap_in(serving, request, True)
    if config[WINDOW]:
        seat = serving.live[request, SEAT]
        serving.held[seat, WINDOW_FIRST] = first
        serving.held[seat, WINDOW_PAGES] = first
        extend_window(serving, request, end)
    return ADMITTED


@inner
def _parent(serving: Serving, request: int) -> int:
    """The running request whose pages a fork can have now; -1 while that one's prompt is still being computed, 0 when
    the fork has to find its tokens like anybody else (its parent ended or gave its memory back, or a window group's
    pages are not shared)."""
    live = serving.live
    parent = serving.facts[request, FORK_OF]
    if serving.config[WINDOW] or live[request, PHASE] == WAITING_AGAIN:
        return 0
    if live[parent, PHASE] not in (PREFILL, DECODE):
        return 0
    return int(parent) if live[parent, COMPUTED] >= live[request, TOTAL] - 1 else -1


@inner
def _copy_last_page(serving: Serving, request: int, parent: int, full: int) -> None:
    """Copy on write: the fork writes behind the `full` pages it shares, so it gets a page of its own with what its
    parent's has up to there."""
    tokens = serving.live[request, COMPUTED] - full * serving.config[UNIT_TOKENS]
    if tokens == 0:
        return
    serving.tally[COPIED_TOKENS] += tokens
    if serving.journal.state[ON]:
        here = serving.table[serving.live[request, SEAT], full]
        there = serving.table[serving.live[parent, SEAT], full]
        put5(serving.journal, COPY, request, there, here, tokens, COPY_FORK)


@inner
def _admit_block(serving: Serving, request: int, place: int, budget: int, prefill: int) -> int:
    """Admit with the whole contiguous block, copying the prefix from a region or from the host tier."""
    config = serving.config
    runs = serving.runs
    total = serving.live[request, TOTAL]
    kept = swapped_tokens(serving, request) if config[HOST_UNITS] else 0
    if _must_wait_for_budget(serving, total - kept, budget, prefill):
        return BLOCKED
    asked = block_tokens(serving, request, with_lookahead(serving, request, total))
    need = granted_units(runs, (asked + config[UNIT_TOKENS] - 1) // config[UNIT_TOKENS])
    if config[RETAINED] and serving.tally[RUNNING] == 0 and need <= config[CAPACITY_UNITS]:
        give_up_regions(serving, need)
    at = find_run(runs, need)
    region = find_region(serving, request) if config[RETAINED] and kept == 0 else -1
    full = full_units(serving, request) if config[ADMIT_BY] == BY_FULL else 0
    free = runs.tally[_FREE]
    reason = 0
    if max(need, full) > config[CAPACITY_UNITS]:
        reason = _NEVER_FITS
    elif over_quota(serving, request, max(need, full)):
        reason = _PARTITION_FULL
    elif free < need:
        reason = refusal_of_block(serving, need)
    else:
        reason = watermark_says_no(serving, need, free, full)
        if at == runs.tally[_RUNS]:
            # Blocks are moved only for somebody who gets in.
            if config[COMPACTION] and not serving.tally[COMPACTED_NOW] and not reason:
                compact(serving)
                at = find_run(runs, need)
            else:
                reason = refusal_of_block(serving, need)
    if reason:
        hopeless = reason == _NEVER_FITS or beyond_quota(serving, request, max(need, full))
        return _turn_away(serving, request, place, need, reason, 1, hopeless)
    leave_queue(serving, place)
    computed = kept
    if region >= 0:
        # At least one token is computed: its logits give the next one.
        computed = min(copy_region(serving, region), total - 1)
    _write_admission(serving, request, computed if region >= 0 else 0, total if config[RETAINED] and kept == 0 else 0)
    take_seat(serving, request, computed)
    admit_block(serving, request, at, need, asked)
    if region >= 0 and serving.journal.state[ON]:
        here = serving.held[serving.live[request, SEAT], START]
        put5(serving.journal, COPY, request, serving.apart[region, FIRST], here, computed, COPY_PREFIX)
    if kept:
        swap_in(serving, request, True)
    return ADMITTED


@inner
def _turn_away(serving: Serving, request: int, place: int, need: int, reason: int, pool: int, hopeless: bool) -> int:
    """The request does not fit: let it wait, refuse it, or abort what can never fit."""
    if place == 0:
        serving.tally[NEED_AT_HEAD] = need
    if hopeless and not serving.config[NEVER_WAITS]:
        note_failure(serving, request, need, reason, _OUTCOME_ABORTED, 0, pool)
        leave_queue(serving, place)
        end_request(serving, request, _ERROR)
    elif serving.config[REFUSE]:
        note_failure(serving, request, need, reason, _OUTCOME_REFUSED, 0, pool)
        leave_queue(serving, place)
        end_request(serving, request, _REFUSED)
    else:
        note_failure(serving, request, need, reason, _WAITS, 0, pool)
        return PASSED_OVER if reason == _PARTITION_FULL else BLOCKED
    if place == 0:
        serving.tally[NEED_AT_HEAD] = 0
    return REMOVED


@inner
def _write_admission(serving: Serving, request: int, hit_tokens: int, lookup_tokens: int) -> None:
    """Count the lookup where there was one, the first one apart from those after a preemption, and write ADMIT."""
    tally = serving.tally
    found = hit_tokens if lookup_tokens else 0
    if serving.live[request, PHASE] == WAITING_AGAIN:
        tally[AGAIN_LOOKUP_TOKENS] += lookup_tokens
        tally[AGAIN_HIT_TOKENS] += found
    else:
        tally[LOOKUP_TOKENS] += lookup_tokens
        tally[HIT_TOKENS] += found
    serving.live[request, PHASE] = PREFILL
    if serving.journal.state[ON]:
        put3(serving.journal, ADMIT, request, hit_tokens, lookup_tokens)
