"""The scheduling half of a step: who computes how many tokens, and whose memory pays for it.

Continuous batching as vLLM's v1 scheduler does it: running requests first, in order of admission; then the queue,
first come first served within a level of priority, while token budget, seats and memory allow. A request that cannot
grow preempts the youngest of the least urgent level (recomputed or copied back later), waits or is aborted. A step that
preempted somebody, or in which somebody could not grow, admits nobody. A class at its quota is passed over in the
queue, and preempts its own.

Invariant: at the end `plan[:PLANNED]` is a subsequence of `running`, every planned token has room, and the sum of
planned tokens is at most the budget (one unchunked prompt that is longer than the budget excepted). Nothing is
computed here.
"""

from __future__ import annotations

from kvmon.allocators import page_pool
from kvmon.jit import kernel
from kvmon.serving.admission import ADMITTED, BLOCKED, REMOVED, admit
from kvmon.serving.contiguous_memory import longest_tokens, with_lookahead
from kvmon.serving.endings import end_transfers
from kvmon.serving.grow import GROWN, STAYS, grow
from kvmon.serving.lifecycle import prompt_units
from kvmon.serving.paged_memory import extend_pages, pages_for, register_full
from kvmon.serving.state import (
    BUDGET,
    CHANGED,
    CHUNKED,
    COMPACTED_NOW,
    COMPUTED,
    CONTEXT_TOKENS,
    DECODE,
    DECODE_TOKENS,
    DECODES,
    LEVELS,
    LOOKAHEAD,
    NEED_AT_HEAD,
    NEXT_FULL,
    NOTED,
    PAGED,
    PARKED,
    PEAK_ACTIVE,
    PHASE,
    PLANNED,
    PREFILL_TOKENS,
    QUEUE_HEAD,
    QUEUED,
    QUOTAS,
    RECLAIM_IDLE,
    ROOM,
    RUNNING,
    SEATS,
    TAKEN_BACK,
    TOKENS,
    TOTAL,
    UNIT_TOKENS,
    WHO,
    WINDOW,
    Serving,
)
from kvmon.serving.supply import active_units
from kvmon.serving.window import slide_window

__all__ = ["schedule"]

_QUEUED = page_pool.QUEUED


@kernel
def schedule(serving: Serving) -> None:
    """Choose the tokens of one step and give them room; the result stands in `plan` and `tally`."""
    live = serving.live
    tally = serving.tally
    running = serving.running
    plan = serving.plan
    lookahead = serving.config[LOOKAHEAD]
    windowed = serving.config[WINDOW]
    # With levels or quotas somebody that is planned may still be preempted for somebody behind it.
    taken_back = serving.config[LEVELS] or serving.config[QUOTAS]
    # In a plain pool of pages the next page is one look away; everything else asks its policy.
    plain = serving.config[PAGED] and not (windowed or serving.config[QUOTAS] or serving.config[RECLAIM_IDLE])
    unit_tokens = serving.config[UNIT_TOKENS]
    budget = serving.config[BUDGET]
    planned = 0
    prefill = 0
    decode = 0
    context = 0
    admits = True
    tally[CHANGED] = 0
    tally[NEED_AT_HEAD] = 0
    tally[COMPACTED_NOW] = 0
    if tally[PARKED]:
        end_transfers(serving)
    i = 0
    while i < tally[RUNNING] and budget > 0:
        request = running[i]
        computed = live[request, COMPUTED]
        sure = computed + min(live[request, TOTAL] - computed, budget)
        end = sure
        if lookahead and live[request, PHASE] == DECODE:
            # Drafts beyond the end of a request or of the budget are not verified.
            end = min(sure + lookahead, computed + budget, max(longest_tokens(serving, request) - 1, sure))
        if windowed:
            slide_window(serving, request)
        room = with_lookahead(serving, request, end) if lookahead else end
        lacking = room - live[request, ROOM]
        if plain and lacking > 0:
            fresh = pages_for(lacking, unit_tokens)
            if fresh <= serving.pages.tally[_QUEUED]:
                extend_pages(serving, request, fresh)
                live[request, NOTED] = 0
                lacking = 0
        if lacking > 0:
            tally[PLANNED] = planned
            fate = grow(serving, i, request, room)
            if tally[TAKEN_BACK]:
                # Somebody that was planned was preempted: the plan is what is left of it.
                i -= tally[TAKEN_BACK]
                tally[TAKEN_BACK] = 0
                planned = tally[PLANNED]
                budget = serving.config[BUDGET]
                prefill = 0
                decode = 0
                context = 0
                for k in range(planned):
                    tokens = plan[k, TOKENS]
                    budget -= tokens
                    context += live[plan[k, WHO], COMPUTED] + tokens
                    if plan[k, DECODES]:
                        decode += tokens
                    else:
                        prefill += tokens
            if fate != GROWN:
                admits = False
                if fate == STAYS:
                    i += 1
                continue
        if sure >= live[request, NEXT_FULL] and not taken_back:
            register_full(serving, request, sure)
        tokens = end - computed
        if live[request, PHASE] == DECODE:
            decode += tokens
            plan[planned, DECODES] = 1
        else:
            prefill += tokens
            plan[planned, DECODES] = 0
        plan[planned, WHO] = request
        plan[planned, TOKENS] = tokens
        context += end
        budget -= tokens
        planned += 1
        i += 1
    if taken_back:
        # Only now is it sure who computes: content of somebody whose tokens were taken back would never be there.
        for k in range(planned):
            request = plan[k, WHO]
            sure = min(live[request, COMPUTED] + plan[k, TOKENS], live[request, TOTAL])
            if sure >= live[request, NEXT_FULL]:
                register_full(serving, request, sure)
    if tally[CHANGED]:
        admits = False
    place = 0
    while admits and budget > 0 and place < tally[QUEUED] and tally[RUNNING] < serving.config[SEATS]:
        request = serving.waiting[(tally[QUEUE_HEAD] + place) & (serving.waiting.size - 1)]
        fate = admit(serving, request, place, budget, prefill)
        if fate == REMOVED:
            continue
        if fate == BLOCKED:
            break
        if fate != ADMITTED:
            place += 1
            continue
        tokens = live[request, TOTAL] - live[request, COMPUTED]
        if tokens > budget:
            if serving.config[CHUNKED]:
                tokens = budget
            else:
                budget = tokens
        end = live[request, COMPUTED] + tokens
        if end >= live[request, NEXT_FULL]:
            register_full(serving, request, end)
        plan[planned, WHO] = request
        plan[planned, TOKENS] = tokens
        plan[planned, DECODES] = 0
        prefill += tokens
        context += end
        budget -= tokens
        planned += 1
    if tally[QUEUED] > 0 and tally[NEED_AT_HEAD] == 0:
        tally[NEED_AT_HEAD] = prompt_units(serving, serving.waiting[tally[QUEUE_HEAD]])
    tally[PLANNED] = planned
    tally[PREFILL_TOKENS] = prefill
    tally[DECODE_TOKENS] = decode
    tally[CONTEXT_TOKENS] = context
    tally[PEAK_ACTIVE] = max(tally[PEAK_ACTIVE], active_units(serving))
