"""The scheduling half of a step: who computes how many tokens, and whose memory pays for it.

Continuous batching as vLLM's v1 scheduler does it: running requests first, in order of admission; then the queue,
first come first served, while token budget, seats and memory allow. A request that cannot grow preempts the youngest
(which is recomputed later), waits or is aborted. A step that preempted somebody, or in which somebody could not grow,
admits nobody.

Invariant: at the end `plan[:PLANNED]` is a subsequence of `running`, every planned token has room, and the sum of
planned tokens is at most the budget (one unchunked prompt that is longer than the budget excepted). Nothing is
computed here.
"""

from __future__ import annotations

from kvmon.allocators import page_pool, run_pool
from kvmon.allocators.journal import ADMIT, ON, put3
from kvmon.allocators.page_pool import queued_among
from kvmon.allocators.refusal import FinishReason, Outcome, Reason
from kvmon.allocators.run_pool import first_fit, run_at
from kvmon.jit import kernel
from kvmon.serving.contiguous_memory import admit_block, block_units, extend_block, relocate_block
from kvmon.serving.lifecycle import (
    end_request,
    leave_queue,
    leave_running,
    note_failure,
    preempt_last,
    prompt_units,
    take_seat,
)
from kvmon.serving.paged_memory import admit_pages, chain_length, extend_pages, pages_for, register_full
from kvmon.serving.state import (
    AGAIN_HIT_TOKENS,
    AGAIN_LOOKUP_TOKENS,
    BUDGET,
    CAPACITY_UNITS,
    CHANGED,
    CHUNKED,
    COMPUTED,
    CONTEXT_TOKENS,
    DECODE,
    DECODE_TOKENS,
    DECODES,
    GROWTH,
    GROWTH_ABORT,
    GROWTH_WAIT,
    HIT_TOKENS,
    LOOKUP_TOKENS,
    NEED_AT_HEAD,
    NEXT_FULL,
    NOTED,
    PAGED,
    PAGES,
    PEAK_ACTIVE,
    PHASE,
    PLANNED,
    PREFILL,
    PREFILL_TOKENS,
    PREFIX,
    QUEUE_HEAD,
    QUEUED,
    REFUSE,
    ROOM,
    RUNNING,
    SEAT,
    SEATS,
    SPARE,
    START,
    TOKENS,
    TOTAL,
    UNIT_TOKENS,
    UNITS,
    WAITING_AGAIN,
    WATERMARK_UNITS,
    WHO,
    WHOLE_PROMPT,
    Serving,
)

__all__ = ["active_units", "schedule"]

_EXHAUSTED = int(Reason.EXHAUSTED)
_NO_RUN = int(Reason.NO_CONTIGUOUS_RUN)
_NEVER_FITS = int(Reason.NEVER_FITS)
_WATERMARK = int(Reason.WATERMARK)
_WAITS = int(Outcome.WAITS)
_PREEMPTED_OTHER = int(Outcome.PREEMPTED_OTHER)
_OUTCOME_REFUSED = int(Outcome.REFUSED)
_PREEMPTED_ITSELF = int(Outcome.PREEMPTED_ITSELF)
_OUTCOME_ABORTED = int(Outcome.ABORTED)
_ERROR = int(FinishReason.ERROR)
_REFUSED = int(FinishReason.REFUSED)
_POOL_QUEUED = page_pool.QUEUED
_POOL_FREE = run_pool.FREE
_POOL_RUNS = run_pool.RUNS

# What became of a running request that needed room.
_GROWN = 0
_STAYS = 1  # without tokens this step
_GONE = 2

# What became of the request at the head of the queue.
_ADMITTED = 0
_BLOCKED = 1
_REMOVED = 2


@kernel
def schedule(serving: Serving) -> None:
    """Choose the tokens of one step and give them room; the result stands in `plan` and `tally`."""
    live = serving.live
    tally = serving.tally
    running = serving.running
    plan = serving.plan
    budget = serving.config[BUDGET]
    planned = 0
    prefill = 0
    decode = 0
    context = 0
    admits = True
    tally[CHANGED] = 0
    tally[NEED_AT_HEAD] = 0
    i = 0
    while i < tally[RUNNING] and budget > 0:
        request = running[i]
        computed = live[request, COMPUTED]
        tokens = min(live[request, TOTAL] - computed, budget)
        end = computed + tokens
        if end > live[request, ROOM]:
            fate = _grow(serving, i, request, end)
            if fate != _GROWN:
                admits = False
                if fate == _STAYS:
                    i += 1
                continue
        if end >= live[request, NEXT_FULL]:
            register_full(serving, request, end)
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
    if tally[CHANGED]:
        admits = False
    while admits and budget > 0 and tally[QUEUED] > 0 and tally[RUNNING] < serving.config[SEATS]:
        request = serving.waiting[tally[QUEUE_HEAD]]
        if serving.config[PAGED]:
            fate = _admit_pages(serving, request, budget, prefill)
        else:
            fate = _admit_block(serving, request, budget, prefill)
        if fate == _REMOVED:
            continue
        if fate == _BLOCKED:
            break
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


@kernel
def active_units(serving: Serving) -> int:
    """Units that some request holds."""
    if serving.config[PAGED]:
        return int(serving.config[CAPACITY_UNITS] - serving.pages.tally[_POOL_QUEUED])
    return int(serving.config[CAPACITY_UNITS] - serving.runs.tally[_POOL_FREE])


@kernel
def _grow(serving: Serving, index: int, request: int, tokens: int) -> int:
    """Make room for `tokens` in all in the memory of the running request at `index`, by the policy for growth."""
    while True:
        need = _try_to_grow(serving, request, tokens)
        if need == 0:
            serving.live[request, NOTED] = 0
            return _GROWN
        if serving.config[PAGED]:
            too_large = pages_for(tokens, serving.config[UNIT_TOKENS]) > serving.config[CAPACITY_UNITS]
            reason = _EXHAUSTED
        else:
            too_large = need > serving.config[CAPACITY_UNITS]
            reason = _EXHAUSTED if serving.runs.tally[_POOL_FREE] < need else _NO_RUN
        policy = serving.config[GROWTH]
        if too_large or policy == GROWTH_ABORT:
            note_failure(serving, request, need, _NEVER_FITS if too_large else reason, _OUTCOME_ABORTED, 1)
            end_request(serving, request, _ERROR)
            leave_running(serving, index)
            return _GONE
        if policy == GROWTH_WAIT:
            note_failure(serving, request, need, reason, _WAITS, 1)
            return _STAYS
        last = index == serving.tally[RUNNING] - 1
        note_failure(serving, request, need, reason, _PREEMPTED_ITSELF if last else _PREEMPTED_OTHER, 1)
        victim = preempt_last(serving)
        if last:
            return _GONE
        serving.live[victim, NOTED] = 0


@kernel
def _try_to_grow(serving: Serving, request: int, tokens: int) -> int:
    """Grow to `tokens` if that is possible; returns 0, or the units that would have to be free at once."""
    seat = serving.live[request, SEAT]
    if serving.config[PAGED]:
        fresh = pages_for(tokens, serving.config[UNIT_TOKENS]) - serving.held[seat, PAGES]
        if fresh > serving.pages.tally[_POOL_QUEUED]:
            return int(fresh)
        extend_pages(serving, request, fresh)
        return 0
    units = block_units(serving, request, tokens)
    have = serving.held[seat, UNITS]
    runs = serving.runs.tally[_POOL_RUNS]
    at = run_at(serving.runs, serving.held[seat, START] + have)
    if at < runs and serving.runs.lengths[at] >= units - have:
        extend_block(serving, request, at, units - have)
        return 0
    at = first_fit(serving.runs, units)
    if at < runs:
        relocate_block(serving, request, at, units)
        return 0
    return units


@kernel
def _must_wait_for_budget(serving: Serving, tokens: int, budget: int, prefill: int) -> bool:
    """Whether an unchunked prompt of `tokens` has to wait for a step with more budget left; one that no step could take
    goes ahead as the only prefill of its step."""
    if serving.config[CHUNKED] or tokens <= budget:
        return False
    return bool(tokens <= serving.config[BUDGET] or prefill > 0)


@kernel
def _admit_pages(serving: Serving, request: int, budget: int, prefill: int) -> int:
    """Admit the head of the queue with the pages of its first tokens, counting what the prefix cache holds."""
    config = serving.config
    tally = serving.tally
    live = serving.live
    unit_tokens = config[UNIT_TOKENS]
    total = live[request, TOTAL]
    row = serving.table[serving.spare[tally[SPARE] - 1]]
    hits = 0
    revived = 0
    if config[PREFIX]:
        # The last token is always computed: its logits give the next one. So its page is never a hit.
        hits = chain_length(serving, request, row, (total - 1) // unit_tokens)
        revived = queued_among(serving.pages, row, 0, hits)
    computed = hits * unit_tokens
    tokens = total - computed
    if _must_wait_for_budget(serving, tokens, budget, prefill):
        return _BLOCKED
    if config[CHUNKED]:
        tokens = min(tokens, budget)
    fresh = pages_for(computed + tokens, unit_tokens) - hits
    need = revived + fresh
    if config[WHOLE_PROMPT]:
        need = revived + pages_for(total, unit_tokens) - hits
    supply = serving.pages.tally[_POOL_QUEUED]
    reason = 0
    if pages_for(total, unit_tokens) > config[CAPACITY_UNITS]:
        reason = _NEVER_FITS
    elif need > supply:
        reason = _EXHAUSTED
    elif tally[RUNNING] > 0 and supply - need < config[WATERMARK_UNITS]:
        reason = _WATERMARK
    if reason:
        return _turn_away(serving, request, need, reason)
    leave_queue(serving, 0)
    _write_admission(serving, request, computed, total if config[PREFIX] else 0)
    take_seat(serving, request, computed)
    admit_pages(serving, request, hits, fresh)
    return _ADMITTED


@kernel
def _admit_block(serving: Serving, request: int, budget: int, prefill: int) -> int:
    """Admit the head of the queue with its whole contiguous block."""
    config = serving.config
    runs = serving.runs
    if _must_wait_for_budget(serving, serving.live[request, TOTAL], budget, prefill):
        return _BLOCKED
    need = block_units(serving, request, serving.live[request, TOTAL])
    free = runs.tally[_POOL_FREE]
    at = first_fit(runs, need)
    reason = 0
    if need > config[CAPACITY_UNITS]:
        reason = _NEVER_FITS
    elif at == runs.tally[_POOL_RUNS]:
        reason = _EXHAUSTED if free < need else _NO_RUN
    elif serving.tally[RUNNING] > 0 and free - need < config[WATERMARK_UNITS]:
        reason = _WATERMARK
    if reason:
        return _turn_away(serving, request, need, reason)
    leave_queue(serving, 0)
    _write_admission(serving, request, 0, 0)
    take_seat(serving, request, 0)
    admit_block(serving, request, at, need)
    return _ADMITTED


@kernel
def _turn_away(serving: Serving, request: int, need: int, reason: int) -> int:
    """The head of the queue does not fit: let it wait, refuse it, or abort what can never come back."""
    serving.tally[NEED_AT_HEAD] = need
    if reason == _NEVER_FITS:
        note_failure(serving, request, need, reason, _OUTCOME_ABORTED, 0)
        leave_queue(serving, 0)
        end_request(serving, request, _ERROR)
    elif serving.config[REFUSE]:
        note_failure(serving, request, need, reason, _OUTCOME_REFUSED, 0)
        leave_queue(serving, 0)
        end_request(serving, request, _REFUSED)
    else:
        note_failure(serving, request, need, reason, _WAITS, 0)
        return _BLOCKED
    serving.tally[NEED_AT_HEAD] = 0
    return _REMOVED


@kernel
def _write_admission(serving: Serving, request: int, hit_tokens: int, lookup_tokens: int) -> None:
    """Count the lookup, the first one apart from those after a preemption, and write ADMIT."""
    tally = serving.tally
    if serving.live[request, PHASE] == WAITING_AGAIN:
        tally[AGAIN_LOOKUP_TOKENS] += lookup_tokens
        tally[AGAIN_HIT_TOKENS] += hit_tokens
    else:
        tally[LOOKUP_TOKENS] += lookup_tokens
        tally[HIT_TOKENS] += hit_tokens
    serving.live[request, PHASE] = PREFILL
    if serving.journal.state[ON]:
        put3(serving.journal, ADMIT, request, hit_tokens, lookup_tokens)
