"""The second half of a step: what was computed counts, samples are drawn, finished requests leave.

Invariant: after `commit` the plan is empty, every request in `running` has computed tokens <= total <= its stop, and
the averages have grown by the duration of the step. What is averaged is the state while the step ran: memory as
scheduled, tokens as computed by its end, before finished requests give back theirs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvmon.allocators import page_pool
from kvmon.allocators.hashing import draw
from kvmon.allocators.journal import FIRST_TOKEN, ON, PROGRESS, STEP, put1, put2, put8
from kvmon.allocators.refusal import FinishReason
from kvmon.jit import inner, kernel
from kvmon.serving.averages import average
from kvmon.serving.claims import claim
from kvmon.serving.lifecycle import end_request, leave_queue, leave_running
from kvmon.serving.paged_memory import pages_for
from kvmon.serving.state import (
    ACCEPTANCE,
    ACCEPTED_TOKENS,
    ADMIT_BY,
    BUDGET,
    BY_FULL,
    CAPACITY_UNITS,
    CLAIMS_NS,
    COMPUTED,
    COMPUTED_TOKENS,
    CONTEXT_TOKENS,
    DECODE,
    DECODE_TOKENS,
    DONE,
    DRAFT_TOKENS,
    DRAWN_AS,
    FIRST_TOKEN_NS,
    FORK_OF,
    HELD_PAGES,
    HOST_UNITS,
    INTENDED,
    LEVELS,
    LOOKAHEAD,
    NEED_AT_HEAD,
    NOW,
    PAGED,
    PARKED,
    PHASE,
    PLANNED,
    PREFILL_TOKENS,
    PROMPT,
    QUEUE_HEAD,
    QUEUED,
    QUOTAS,
    REFUSE,
    REGION_UNITS,
    REGIONS,
    RETAINED,
    RUNNING,
    SEATS,
    STEPS,
    STOP,
    TOKENS,
    TOTAL,
    UNIT_TOKENS,
    WHO,
    WINDOW,
    WINDOW_HELD,
    WRITTEN_TOKENS,
    Serving,
)

__all__ = ["abort", "commit", "room_for_step"]

_STOP = int(FinishReason.STOP)
_LENGTH = int(FinishReason.LENGTH)
_ABORT = int(FinishReason.ABORT)
_DRAFT = 9  # what is drawn
_DEFERRED = page_pool.DEFERRED


@kernel
def commit(serving: Serving, start_ns: int, duration_ns: int, stopped: npt.NDArray[np.uint8]) -> None:
    """Close the step in hand.

    `stopped` is empty (requests end by their intended length or limit alone) or holds one byte for each planned
    request: not 0 when its new token ended it.
    """
    live = serving.live
    facts = serving.facts
    tally = serving.tally
    plan = serving.plan
    journal_on = serving.journal.state[ON]
    end_ns = start_ns + duration_ns
    planned = tally[PLANNED]
    if journal_on and planned < tally[RUNNING]:
        _write_standstill(serving)
    finished = 0
    written = 0
    for k in range(planned):
        request = plan[k, WHO]
        tokens = plan[k, TOKENS]
        if tokens > 1 and live[request, PHASE] == DECODE:
            tokens = _verified(serving, request, tokens)
        computed = live[request, COMPUTED] + tokens
        live[request, COMPUTED] = computed
        written += tokens
        if journal_on and (live[request, PHASE] != DECODE or tokens > 1):
            put2(serving.journal, PROGRESS, request, computed)
        plan[k, TOKENS] = 0  # from here on: 1 when the request ends with this step
        if computed >= live[request, TOTAL]:
            live[request, TOTAL] = computed + 1
            if live[request, PHASE] != DECODE and computed == facts[request, PROMPT]:
                facts[request, FIRST_TOKEN_NS] = end_ns
                if journal_on:
                    put1(serving.journal, FIRST_TOKEN, request)
            live[request, PHASE] = DECODE
            if computed + 1 >= live[request, STOP] or (stopped.size > 0 and stopped[k] != 0):
                plan[k, TOKENS] = 1
                finished += 1
    tally[WRITTEN_TOKENS] += written
    tally[COMPUTED_TOKENS] += tally[PREFILL_TOKENS] + tally[DECODE_TOKENS]
    tally[NOW] = end_ns
    average(serving, duration_ns)
    if finished:
        for k in range(planned):
            if plan[k, TOKENS]:
                request = plan[k, WHO]
                output = live[request, TOTAL] - facts[request, PROMPT]
                by_length = output < facts[request, INTENDED] or facts[request, INTENDED] == 0
                if stopped.size > 0 and stopped[k] != 0:
                    by_length = False
                end_request(serving, request, _LENGTH if by_length else _STOP)
        _close_gaps(serving)
    tally[PLANNED] = 0
    tally[STEPS] += 1
    if journal_on:
        if serving.config[CLAIMS_NS]:
            claim(serving)
        put8(
            serving.journal,
            STEP,
            start_ns,
            duration_ns,
            tally[PREFILL_TOKENS],
            tally[DECODE_TOKENS],
            tally[CONTEXT_TOKENS],
            tally[RUNNING],
            tally[QUEUED],
            tally[NEED_AT_HEAD],
        )


@inner
def _write_standstill(serving: Serving) -> None:
    """PROGRESS with its unchanged number for every running decode that the plan leaves out."""
    k = 0
    for i in range(serving.tally[RUNNING]):
        request = serving.running[i]
        if k < serving.tally[PLANNED] and serving.plan[k, WHO] == request:
            k += 1
        elif serving.live[request, PHASE] == DECODE:
            put2(serving.journal, PROGRESS, request, serving.live[request, COMPUTED])


@inner
def _close_gaps(serving: Serving) -> None:
    kept = 0
    for i in range(serving.tally[RUNNING]):
        request = serving.running[i]
        if serving.live[request, PHASE] != DONE:
            serving.running[kept] = request
            kept += 1
    serving.tally[RUNNING] = kept


@inner
def _verified(serving: Serving, request: int, tokens: int) -> int:
    """Tokens of a decoding request that stand after `tokens` - 1 drafts were verified: the one that was sure, and
    drafts up to the first that is not accepted, or to the request's end."""
    tally = serving.tally
    computed = serving.live[request, COMPUTED]
    tally[DRAFT_TOKENS] += tokens - 1
    most = min(tokens, serving.live[request, STOP] - 1 - computed)
    stand = 1
    while (
        stand < most and draw(serving.facts[request, DRAWN_AS], _DRAFT, computed + stand) < serving.config[ACCEPTANCE]
    ):
        stand += 1
    tally[ACCEPTED_TOKENS] += stand - 1
    return int(stand)


@kernel
def abort(serving: Serving, request: int) -> bool:
    """End a waiting or running request between two steps; False when it has ended already."""
    tally = serving.tally
    for i in range(tally[RUNNING]):
        if serving.running[i] == request:
            end_request(serving, request, _ABORT)
            leave_running(serving, i)
            return True
    mask = serving.waiting.size - 1
    for i in range(tally[QUEUED]):
        if serving.waiting[(tally[QUEUE_HEAD] + i) & mask] == request:
            leave_queue(serving, i)
            end_request(serving, request, _ABORT)
            return True
    return False


@kernel
def room_for_step(serving: Serving) -> int:
    """Upper bound of the journal words that the next schedule and commit can write.

    Every page held may be given back; every page of a request that may be admitted may be shared or taken, assigned,
    registered and given back; each request on a seat leaves at most one entry of each other kind, and each one in the
    queue may be turned away.
    """
    tally = serving.tally
    config = serving.config
    running = tally[RUNNING]
    words = 160 * (config[SEATS] + running + 1) + 32 * tally[QUEUED] + 64
    unit_tokens = config[UNIT_TOKENS]
    if config[PAGED]:
        growth = config[BUDGET] // unit_tokens
        if config[LEVELS] or config[QUOTAS]:
            # Tokens of somebody who is taken back go to others, who may be taken back, too.
            growth = 0
            for i in range(running):
                live = serving.live[serving.running[i]]
                growth += min(live[TOTAL] - live[COMPUTED], config[BUDGET]) // unit_tokens
        growth += 2 * running * (2 + 2 * config[LOOKAHEAD] // unit_tokens)
        words += 2 * tally[HELD_PAGES] + 4 * growth
        if config[WINDOW]:
            words += 3 * tally[WINDOW_HELD] + 4 * growth
        words += serving.pages.tally[_DEFERRED] + 3 * tally[PARKED]
    else:
        # A region that stays behind names its units three times, and once more when it is given up.
        if config[RETAINED]:
            words += 4 * tally[HELD_PAGES] + tally[REGION_UNITS] + 16 * tally[REGIONS]
        # A host block is named once when it is copied out (its block is held) and once when it is copied back.
        if config[HOST_UNITS]:
            words += tally[HELD_PAGES] + config[HOST_UNITS]
        if not config[RETAINED]:
            return int(words)
    # Those that may be turned away or passed over take no seat, so they are counted beside those behind them.
    turned_away = config[REFUSE] or config[QUOTAS] or config[WINDOW] or config[ADMIT_BY] == BY_FULL
    mask = serving.waiting.size - 1
    places = config[SEATS] - running
    i = 0
    while i < tally[QUEUED] and places > 0:
        request = serving.waiting[(tally[QUEUE_HEAD] + i) & mask]
        pages = pages_for(serving.live[request, TOTAL] + 2 * config[LOOKAHEAD], unit_tokens)
        words += 11 * pages if config[WINDOW] else 7 * pages
        # A fork may be passed over while its parent computes.
        if not (turned_away or serving.facts[request, FORK_OF]) and pages <= config[CAPACITY_UNITS]:
            places -= 1
        i += 1
    return int(words)
