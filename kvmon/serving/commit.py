"""The second half of a step: what was computed counts, samples are drawn, finished requests leave.

Invariant: after `commit` the plan is empty, every request in `running` has computed tokens <= total <= its stop, and
the averages have grown by the duration of the step. What is averaged is the state while the step ran: memory as
scheduled, tokens as computed by its end, before finished requests give back theirs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvmon.allocators import run_pool
from kvmon.allocators.journal import FIRST_TOKEN, ON, PROGRESS, STEP, put1, put2, put8
from kvmon.allocators.refusal import FinishReason
from kvmon.allocators.run_pool import largest_run
from kvmon.jit import kernel
from kvmon.serving.lifecycle import end_request, leave_queue, leave_running
from kvmon.serving.paged_memory import pages_for
from kvmon.serving.schedule import active_units
from kvmon.serving.state import (
    ACTIVE_NS,
    BUDGET,
    CAPACITY_UNITS,
    COMPUTED,
    COMPUTED_TOKENS,
    CONTEXT_TOKENS,
    DECODE,
    DECODE_TOKENS,
    DONE,
    FRAGMENTATION,
    FRAGMENTED_NS,
    HELD_PAGES,
    INTENDED,
    NEED_AT_HEAD,
    PAGED,
    PHASE,
    PLANNED,
    PREFILL_TOKENS,
    PROMPT,
    QUEUE_HEAD,
    QUEUED,
    REFUSE,
    RESERVED,
    RUNNING,
    SEATS,
    STEPS,
    STOP,
    TAIL,
    TOKENS,
    TOTAL,
    UNIT_TOKENS,
    UTILIZATION,
    WHO,
    WRITTEN_TOKENS,
    Serving,
)

__all__ = ["abort", "commit", "room_for_step"]

_STOP = int(FinishReason.STOP)
_LENGTH = int(FinishReason.LENGTH)
_ABORT = int(FinishReason.ABORT)
_POOL_FREE = run_pool.FREE


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
    first_token = serving.first_token
    end_ns = start_ns + duration_ns
    planned = tally[PLANNED]
    if journal_on and planned < tally[RUNNING]:
        _write_standstill(serving)
    finished = 0
    written = 0
    for k in range(planned):
        request = plan[k, WHO]
        tokens = plan[k, TOKENS]
        computed = live[request, COMPUTED] + tokens
        live[request, COMPUTED] = computed
        written += tokens
        if journal_on and live[request, PHASE] != DECODE:
            put2(serving.journal, PROGRESS, request, computed)
        plan[k, TOKENS] = 0  # from here on: 1 when the request ends with this step
        if computed == live[request, TOTAL]:
            live[request, TOTAL] = computed + 1
            if live[request, PHASE] != DECODE and computed == facts[request, PROMPT]:
                first_token[request] = end_ns
                if journal_on:
                    put1(serving.journal, FIRST_TOKEN, request)
            live[request, PHASE] = DECODE
            if computed + 1 >= live[request, STOP] or (stopped.size > 0 and stopped[k] != 0):
                plan[k, TOKENS] = 1
                finished += 1
    tally[WRITTEN_TOKENS] += written
    tally[COMPUTED_TOKENS] += written
    _average(serving, duration_ns)
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


@kernel
def _write_standstill(serving: Serving) -> None:
    """PROGRESS with its unchanged number for every running decode that the plan leaves out."""
    k = 0
    for i in range(serving.tally[RUNNING]):
        request = serving.running[i]
        if k < serving.tally[PLANNED] and serving.plan[k, WHO] == request:
            k += 1
        elif serving.live[request, PHASE] == DECODE:
            put2(serving.journal, PROGRESS, request, serving.live[request, COMPUTED])


@kernel
def _close_gaps(serving: Serving) -> None:
    kept = 0
    for i in range(serving.tally[RUNNING]):
        request = serving.running[i]
        if serving.live[request, PHASE] != DONE:
            serving.running[kept] = request
            kept += 1
    serving.tally[RUNNING] = kept


@kernel
def _average(serving: Serving, duration_ns: int) -> None:
    """Add the step to the integrals of tail, utilization, reservation and fragmentation, while anything is active."""
    tally = serving.tally
    unit_tokens = serving.config[UNIT_TOKENS]
    slots = active_units(serving) * unit_tokens
    if slots == 0:
        return
    averages = serving.averages
    if serving.config[PAGED]:
        # Only full pages are shared, so every unfilled slot belongs to one request.
        tail = tally[HELD_PAGES] * unit_tokens - tally[WRITTEN_TOKENS]
        written = slots - tail
        reserved = 0 * slots
    else:
        tail = 0 * slots
        if unit_tokens > 1:
            for i in range(tally[RUNNING]):
                tail += -serving.live[serving.running[i], COMPUTED] % unit_tokens
        written = tally[WRITTEN_TOKENS]
        reserved = slots - written - tail
        free = serving.runs.tally[_POOL_FREE]
        if free > 0:
            averages[FRAGMENTED_NS] += duration_ns
            averages[FRAGMENTATION] += duration_ns * (1.0 - largest_run(serving.runs) / free)
    averages[ACTIVE_NS] += duration_ns
    averages[TAIL] += duration_ns * (tail / slots)
    averages[UTILIZATION] += duration_ns * (written / slots)
    averages[RESERVED] += duration_ns * (reserved / slots)


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
    words = 80 * (config[SEATS] + running + 1) + 16 * tally[QUEUED]
    if not config[PAGED]:
        return int(words)
    unit_tokens = config[UNIT_TOKENS]
    words += tally[HELD_PAGES] + 4 * (config[BUDGET] // unit_tokens + 2 * running)
    mask = serving.waiting.size - 1
    places = config[SEATS] - running
    i = 0
    while i < tally[QUEUED] and places > 0:
        request = serving.waiting[(tally[QUEUE_HEAD] + i) & mask]
        pages = pages_for(serving.live[request, TOTAL], unit_tokens)
        words += 5 * pages
        # Those that may be turned away take no place, so they are counted beside those behind them.
        if not config[REFUSE] and pages <= config[CAPACITY_UNITS]:
            places -= 1
        i += 1
    return int(words)
