"""Kernels of a request's life outside its memory: queue, seat, arrival, failure, preemption, end.

Invariant: a request is in exactly one of waiting, running or done; a FAIL is written once a wait; FINISH and PREEMPT
stand before the units they free. Nothing here decides: callers have asked, these act.
"""

from __future__ import annotations

from kvmon.allocators import page_pool, run_pool
from kvmon.allocators.journal import ARRIVE, FAIL, FINISH, ON, PREEMPT, USE_POOL, put1, put2, put4, put6, put8
from kvmon.allocators.refusal import Contiguity, FinishReason, Outcome, Reason
from kvmon.allocators.run_pool import largest_run
from kvmon.jit import inner, kernel
from kvmon.serving.contiguous_memory import block_units, longest_tokens, release_block
from kvmon.serving.host_tier import (
    find_host_run,
    put_host_block,
    refuse_swap,
    swap_in,
    swap_out,
    swapped_tokens,
)
from kvmon.serving.paged_memory import pages_for, release_pages
from kvmon.serving.retention import keep_region, units_to_keep
from kvmon.serving.state import (
    ABORTED,
    ADMIT_BY,
    ARRIVAL,
    ARRIVED,
    BY_FULL,
    CAPACITY_UNITS,
    CHANGED,
    CLASS,
    COMMITTED_UNITS,
    COMPLETED,
    COMPUTED,
    DONE,
    ENDED,
    ENDED_BEFORE,
    ERRORS,
    FRAGMENTED_FAILURES,
    FREE_AT_FAILURE,
    HOST_UNITS,
    INTENDED,
    LARGEST_AT_FAILURE,
    LEVELS,
    LIMIT,
    LOST_TOKENS,
    MAX_LEN,
    NEVER_WAITS,
    NOTED,
    OUTPUT_TOKENS,
    PAGED,
    PHASE,
    PREEMPTIONS,
    PRIORITY,
    PROMPT,
    QUEUE_HEAD,
    QUEUED,
    QUOTA_HELD,
    QUOTAS,
    REASONS,
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
    WINDOW,
    WINDOW_OWN,
    WINDOW_SPARE,
    WRITTEN_TOKENS,
    Serving,
)
from kvmon.serving.window import most_window_pages, release_window

__all__ = [
    "arrive",
    "end_request",
    "full_units",
    "full_window",
    "leave_queue",
    "leave_running",
    "note_failure",
    "preempt",
    "prompt_units",
    "take_seat",
]

_NEVER_FITS = int(Reason.NEVER_FITS)
_POOL_STARVED = int(Reason.POOL_STARVED)
_NO_RUN = int(Reason.NO_CONTIGUOUS_RUN)
_REQUIRED = int(Contiguity.REQUIRED)
_OUTCOME_REFUSED = int(Outcome.REFUSED)
_STOP = int(FinishReason.STOP)
_LENGTH = int(FinishReason.LENGTH)
_ABORT = int(FinishReason.ABORT)
_ERROR = int(FinishReason.ERROR)
_REFUSED = int(FinishReason.REFUSED)
_POOL_QUEUED = page_pool.QUEUED
_POOL_EVICTABLE = page_pool.EVICTABLE
_POOL_FREE = run_pool.FREE


@inner
def prompt_units(serving: Serving, request: int) -> int:
    """Units of its own pool that `request` needs before its first token, nothing shared: pages of its tokens in every
    group, or its whole block."""
    tokens = serving.live[request, TOTAL]
    if serving.config[PAGED]:
        pages = pages_for(tokens, serving.config[UNIT_TOKENS])
        if serving.config[WINDOW] and not serving.config[WINDOW_OWN]:
            pages += most_window_pages(serving, tokens)
        return pages
    return block_units(serving, request, tokens)


@kernel
def full_units(serving: Serving, request: int) -> int:
    """Units of its own pool that `request` holds at most if it becomes as long as it may."""
    config = serving.config
    tokens = max(longest_tokens(serving, request), serving.live[request, TOTAL])
    if config[PAGED]:
        pages = pages_for(tokens, config[UNIT_TOKENS])
        if config[WINDOW] and not config[WINDOW_OWN]:
            pages += most_window_pages(serving, tokens)
        return int(pages)
    return block_units(serving, request, tokens)


@inner
def full_window(serving: Serving, request: int) -> int:
    """Pages of the window group's own pool that `request` holds at most if it becomes as long as it may."""
    return most_window_pages(serving, max(longest_tokens(serving, request), serving.live[request, TOTAL]))


@inner
def note_failure(
    serving: Serving, request: int, need: int, reason: int, outcome: int, mid_stream: int, pool: int
) -> None:
    """Count and write the failure of this wait, unless it is written already; `pool` 2 is the window group's own."""
    if serving.live[request, NOTED]:
        return
    serving.live[request, NOTED] = 1
    serving.tally[REASONS + 16 * mid_stream + reason] += 1
    tally = serving.tally
    if serving.config[PAGED]:
        contiguity = 0
        if pool == 2:
            evictable = tally[WINDOW_SPARE] * 0
            free = evictable + tally[WINDOW_SPARE]
        else:
            evictable = serving.pages.tally[_POOL_EVICTABLE]
            free = serving.pages.tally[_POOL_QUEUED] - evictable
        largest = free
    else:
        contiguity = _REQUIRED
        evictable = serving.runs.tally[_POOL_FREE] * 0
        free = serving.runs.tally[_POOL_FREE]
        largest = free * 0 + largest_run(serving.runs)
        if reason == _NO_RUN:
            tally[FRAGMENTED_FAILURES] += 1
            tally[FREE_AT_FAILURE] += free
            tally[LARGEST_AT_FAILURE] += largest
    if not serving.journal.state[ON]:
        return
    if pool == 2:
        put1(serving.journal, USE_POOL, 2)
    put8(serving.journal, FAIL, request, need, contiguity, free, evictable, largest, reason, outcome)
    if pool == 2:
        put1(serving.journal, USE_POOL, 1)


@inner
def end_request(serving: Serving, request: int, reason: int) -> None:
    """Write FINISH, free what the request holds and give up its seat. Its place in a list is the caller's to clear."""
    live = serving.live
    tally = serving.tally
    output = live[request, TOTAL] - serving.facts[request, PROMPT]
    if serving.journal.state[ON]:
        put4(serving.journal, FINISH, request, reason, output, serving.facts[request, INTENDED])
    if live[request, ROOM]:
        _give_up_seat(serving, request, reason)
    elif serving.config[HOST_UNITS] and swapped_tokens(serving, request):
        swap_in(serving, request, False)
    live[request, PHASE] = DONE
    serving.facts[request, ENDED_BEFORE] = tally[ENDED]
    tally[ENDED] = request
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


@inner
def _give_up_seat(serving: Serving, request: int, reason: int) -> None:
    """Free everything that a seated request holds; `reason` is its FinishReason, 0 when it is preempted."""
    live = serving.live
    tally = serving.tally
    if serving.config[PAGED]:
        release_pages(serving, request, reason)
        if serving.config[WINDOW]:
            release_window(serving, request)
    else:
        keep = units_to_keep(serving, request) if reason else 0
        if keep:
            keep_region(serving, request, keep)
        release_block(serving, request, keep)
    if serving.config[ADMIT_BY] == BY_FULL:
        _promise(serving, request, -full_units(serving, request))
    live[request, ROOM] = 0
    tally[WRITTEN_TOKENS] -= live[request, COMPUTED]
    serving.spare[tally[SPARE]] = live[request, SEAT]
    tally[SPARE] += 1


@inner
def _promise(serving: Serving, request: int, units: int) -> None:
    """Count `units` more (or fewer) that running requests may hold, for all and for the class."""
    serving.tally[COMMITTED_UNITS] += units
    if serving.config[QUOTAS]:
        serving.tally[QUOTA_HELD + min(serving.facts[request, CLASS], 63)] += units


@inner
def take_seat(serving: Serving, request: int, computed: int) -> None:
    """Seat a request on the top spare seat, last in `running`, with `computed` tokens already there."""
    tally = serving.tally
    tally[SPARE] -= 1
    serving.live[request, SEAT] = serving.spare[tally[SPARE]]
    serving.live[request, COMPUTED] = computed
    serving.live[request, NOTED] = 0
    if serving.config[ADMIT_BY] == BY_FULL:
        _promise(serving, request, full_units(serving, request))
    tally[WRITTEN_TOKENS] += computed
    serving.running[tally[RUNNING]] = request
    tally[RUNNING] += 1


@inner
def preempt(serving: Serving, index: int) -> int:
    """Take its memory from the running request at `index` and put it at the front of its level in the queue; returns
    it. Its tokens go to the host tier where there is one with room, otherwise they are lost."""
    live = serving.live
    tally = serving.tally
    victim = serving.running[index]
    leave_running(serving, index)
    lost = live[victim, COMPUTED]
    kept = False
    if serving.config[HOST_UNITS] and lost > 0:
        run = find_host_run(serving, victim)
        kept = run < serving.host.tally[run_pool.RUNS]
        if kept:
            swap_out(serving, victim, run)
            lost = lost * 0
        else:
            refuse_swap(serving, victim)
    if serving.journal.state[ON]:
        put2(serving.journal, PREEMPT, victim, lost)
    if kept:
        put_host_block(serving, victim)
    _give_up_seat(serving, victim, 0)
    tally[PREEMPTIONS] += 1
    tally[LOST_TOKENS] += lost
    tally[CHANGED] = 1
    live[victim, COMPUTED] = 0
    live[victim, PHASE] = WAITING_AGAIN
    mask = serving.waiting.size - 1
    tally[QUEUE_HEAD] = (tally[QUEUE_HEAD] - 1) & mask
    tally[QUEUED] += 1
    place = 0
    if serving.config[LEVELS]:
        # Behind everybody who is more urgent.
        level = serving.facts[victim, PRIORITY]
        while place + 1 < tally[QUEUED]:
            ahead = serving.waiting[(tally[QUEUE_HEAD] + place + 1) & mask]
            if serving.facts[ahead, PRIORITY] >= level:
                break
            serving.waiting[(tally[QUEUE_HEAD] + place) & mask] = ahead
            place += 1
    serving.waiting[(tally[QUEUE_HEAD] + place) & mask] = victim
    return int(victim)


@inner
def leave_running(serving: Serving, index: int) -> None:
    """Close the gap at `index` of `running`."""
    tally = serving.tally
    tally[RUNNING] -= 1
    for i in range(index, tally[RUNNING]):
        serving.running[i] = serving.running[i + 1]


@inner
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


@inner
def _join_queue(serving: Serving, request: int) -> None:
    """Stand last in the queue, with priorities last of the own level."""
    tally = serving.tally
    waiting = serving.waiting
    mask = waiting.size - 1
    place = tally[QUEUED]
    if serving.config[LEVELS]:
        while place > 0:
            ahead = waiting[(tally[QUEUE_HEAD] + place - 1) & mask]
            if serving.facts[ahead, PRIORITY] <= serving.facts[request, PRIORITY]:
                break
            waiting[(tally[QUEUE_HEAD] + place) & mask] = ahead
            place -= 1
    waiting[(tally[QUEUE_HEAD] + place) & mask] = request
    tally[QUEUED] += 1


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
    if serving.config[ADMIT_BY] == BY_FULL:
        need = max(need, full_units(serving, request))
    pool = 1
    if need <= serving.config[CAPACITY_UNITS] and serving.config[WINDOW_OWN]:
        window = most_window_pages(serving, prompt)
        if serving.config[ADMIT_BY] == BY_FULL:
            window = full_window(serving, request)
        if window > serving.config[WINDOW_OWN]:
            need = window
            pool = 2
    too_large = (need > serving.config[CAPACITY_UNITS] or pool == 2) and not serving.config[NEVER_WAITS]
    if too_large:
        reason = _POOL_STARVED if pool == 2 else _NEVER_FITS
        note_failure(serving, request, need, reason, _OUTCOME_REFUSED, 0, pool)
    # A prompt at the model's length is refused too, but memory is not why.
    if too_large or (longest and prompt >= longest):
        end_request(serving, request, _REFUSED)
        return
    _join_queue(serving, request)
