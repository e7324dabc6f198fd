"""Kernels of a request's life outside its memory: queue, seat, arrival, failure, preemption, end.

Invariant: a request is in exactly one of waiting, running or done; a FAIL is written once a wait; FINISH and PREEMPT
stand before the units they free. Nothing here decides: callers have asked, these act.
"""

from __future__ import annotations

from kvmon.allocators import page_pool, run_pool
from kvmon.allocators.journal import ARRIVE, FAIL, FINISH, ON, PREEMPT, put2, put4, put6, put8
from kvmon.allocators.refusal import FinishReason, Outcome, Reason
from kvmon.allocators.run_pool import largest_run
from kvmon.jit import kernel
from kvmon.serving.contiguous_memory import block_units, release_block
from kvmon.serving.paged_memory import pages_for, release_pages
from kvmon.serving.state import (
    ABORTED,
    ARRIVAL,
    ARRIVED,
    CAPACITY_UNITS,
    CHANGED,
    CLASS,
    COMPLETED,
    COMPUTED,
    DONE,
    ERRORS,
    INTENDED,
    LIMIT,
    LOST_TOKENS,
    MAX_LEN,
    NOTED,
    OUTPUT_TOKENS,
    PAGED,
    PHASE,
    PREEMPTIONS,
    PROMPT,
    QUEUE_HEAD,
    QUEUED,
    REFUSED,
    ROOM,
    RUNNING,
    SEAT,
    SPARE,
    STOP,
    TOTAL,
    UNIT_TOKENS,
    WAITING,
    WAITING_AGAIN,
    WRITTEN_TOKENS,
    Serving,
)

__all__ = [
    "arrive",
    "end_request",
    "leave_queue",
    "leave_running",
    "note_failure",
    "preempt_last",
    "prompt_units",
    "take_seat",
]

_NEVER_FITS = int(Reason.NEVER_FITS)
_OUTCOME_REFUSED = int(Outcome.REFUSED)
_STOP = int(FinishReason.STOP)
_LENGTH = int(FinishReason.LENGTH)
_ABORT = int(FinishReason.ABORT)
_ERROR = int(FinishReason.ERROR)
_REFUSED = int(FinishReason.REFUSED)
_POOL_QUEUED = page_pool.QUEUED
_POOL_EVICTABLE = page_pool.EVICTABLE
_POOL_FREE = run_pool.FREE


@kernel
def prompt_units(serving: Serving, request: int) -> int:
    """Units that `request` needs before its first token, nothing shared: pages of its tokens, or its whole block."""
    tokens = serving.live[request, TOTAL]
    if serving.config[PAGED]:
        return pages_for(tokens, serving.config[UNIT_TOKENS])
    return block_units(serving, request, tokens)


@kernel
def note_failure(serving: Serving, request: int, need: int, reason: int, outcome: int, mid_stream: int) -> None:
    """Count and write the failure of this wait, unless it is written already."""
    if serving.live[request, NOTED]:
        return
    serving.live[request, NOTED] = 1
    serving.reasons[mid_stream, reason] += 1
    if not serving.journal.state[ON]:
        return
    if serving.config[PAGED]:
        contiguity = 0
        evictable = serving.pages.tally[_POOL_EVICTABLE]
        free = serving.pages.tally[_POOL_QUEUED] - evictable
        largest = free
    else:
        contiguity = 2
        evictable = serving.runs.tally[_POOL_FREE] * 0
        free = serving.runs.tally[_POOL_FREE]
        largest = free * 0 + largest_run(serving.runs)
    put8(serving.journal, FAIL, request, need, contiguity, free, evictable, largest, reason, outcome)


@kernel
def end_request(serving: Serving, request: int, reason: int) -> None:
    """Write FINISH, free what the request holds and give up its seat. Its place in a list is the caller's to clear."""
    live = serving.live
    tally = serving.tally
    output = live[request, TOTAL] - serving.facts[request, PROMPT]
    if serving.journal.state[ON]:
        put4(serving.journal, FINISH, request, reason, output, serving.facts[request, INTENDED])
    if live[request, ROOM]:
        _give_up_seat(serving, request)
    live[request, PHASE] = DONE
    tally[CHANGED] = 1
    tally[OUTPUT_TOKENS] += output
    if reason in (_STOP, _LENGTH):
        tally[COMPLETED] += 1
    elif reason == _ABORT:
        tally[ABORTED] += 1
    elif reason == _ERROR:
        tally[ERRORS] += 1
    else:
        tally[REFUSED] += 1


@kernel
def _give_up_seat(serving: Serving, request: int) -> None:
    live = serving.live
    tally = serving.tally
    if serving.config[PAGED]:
        release_pages(serving, request)
    else:
        release_block(serving, request)
    live[request, ROOM] = 0
    tally[WRITTEN_TOKENS] -= live[request, COMPUTED]
    serving.spare[tally[SPARE]] = live[request, SEAT]
    tally[SPARE] += 1


@kernel
def take_seat(serving: Serving, request: int, computed: int) -> None:
    """Seat a request on the top spare seat, last in `running`, with `computed` tokens already there."""
    tally = serving.tally
    tally[SPARE] -= 1
    serving.live[request, SEAT] = serving.spare[tally[SPARE]]
    serving.live[request, COMPUTED] = computed
    serving.live[request, NOTED] = 0
    tally[WRITTEN_TOKENS] += computed
    serving.running[tally[RUNNING]] = request
    tally[RUNNING] += 1


@kernel
def preempt_last(serving: Serving) -> int:
    """Take its memory from the youngest running request and put it at the front of the queue; returns it."""
    live = serving.live
    tally = serving.tally
    tally[RUNNING] -= 1
    victim = serving.running[tally[RUNNING]]
    if serving.journal.state[ON]:
        put2(serving.journal, PREEMPT, victim, live[victim, COMPUTED])
    _give_up_seat(serving, victim)
    tally[PREEMPTIONS] += 1
    tally[LOST_TOKENS] += live[victim, COMPUTED]
    tally[CHANGED] = 1
    live[victim, COMPUTED] = 0
    live[victim, PHASE] = WAITING_AGAIN
    mask = serving.waiting.size - 1
    tally[QUEUE_HEAD] = (tally[QUEUE_HEAD] - 1) & mask
    serving.waiting[tally[QUEUE_HEAD]] = victim
    tally[QUEUED] += 1
    return int(victim)


@kernel
def leave_running(serving: Serving, index: int) -> None:
    """Close the gap at `index` of `running`."""
    tally = serving.tally
    tally[RUNNING] -= 1
    for i in range(index, tally[RUNNING]):
        serving.running[i] = serving.running[i + 1]


@kernel
def leave_queue(serving: Serving, index: int) -> None:
    """Take the request `index` places behind the head out of `waiting`."""
    tally = serving.tally
    waiting = serving.waiting
    mask = waiting.size - 1
    head = tally[QUEUE_HEAD]
    for i in range(index, 0, -1):
        waiting[(head + i) & mask] = waiting[(head + i - 1) & mask]
    tally[QUEUE_HEAD] = (head + 1) & mask
    tally[QUEUED] -= 1


@kernel
def arrive(serving: Serving, request: int) -> None:
    """Let in a request whose facts are filled in: queue it, or refuse it at once when it could never fit."""
    facts = serving.facts
    live = serving.live
    tally = serving.tally
    prompt = facts[request, PROMPT]
    intended = facts[request, INTENDED]
    stop = prompt + facts[request, LIMIT]
    if intended:
        stop = min(stop, prompt + intended)
    longest = serving.config[MAX_LEN]
    if longest:
        stop = min(stop, longest)
    live[request, TOTAL] = prompt
    live[request, STOP] = stop
    live[request, PHASE] = WAITING
    tally[ARRIVED] += 1
    if serving.journal.state[ON]:
        put6(
            serving.journal,
            ARRIVE,
            request,
            facts[request, ARRIVAL],
            facts[request, CLASS],
            prompt,
            facts[request, LIMIT],
            intended,
        )
    need = prompt_units(serving, request)
    too_large = need > serving.config[CAPACITY_UNITS]
    if too_large:
        note_failure(serving, request, need, _NEVER_FITS, _OUTCOME_REFUSED, 0)
    # A prompt at the model's length is refused too, but memory is not why.
    if too_large or (longest and prompt >= longest):
        end_request(serving, request, _REFUSED)
        return
    serving.waiting[(tally[QUEUE_HEAD] + tally[QUEUED]) & (serving.waiting.size - 1)] = request
    tally[QUEUED] += 1
