"""The fold: apply whole frames to the arrays of a stream, one pass over the words.

The one definition of what an event does to the state, for the exporter, for replay and for `kvmon verify`. It stops
at records that change the shape of the state (a pool is attached) or that Python looks at (claims, audits of a
sweep): the caller handles the record at `misc[AT]` and calls again. Words have been through `frames.scan`, so every
record is whole.

Compiled as often as it is asked for: with detail, runs and requests (everything), with None for them (states of units
only), and with everything and a track (a timeline too).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvmon.events import Kind, RequestState, field_offsets
from kvmon.jit import kernel
from kvmon.state.arrays import ACTIVE, DEFERRED, FREE, MARK_SLOTS, PINNED, UNOWNED, Misc
from kvmon.state.faults import FaultKind
from kvmon.state.free_runs import largest_grantable
from kvmon.state.request_records import arrival, failure, maybe, of_request, restated, wide
from kvmon.state.requests import computed_tokens, find_row, recount
from kvmon.state.track import N
from kvmon.state.track_kernels import (
    advance,
    close_buckets,
    saw_frame,
    saw_pool,
    saw_record,
    saw_refusal,
    saw_request,
    saw_units,
)
from kvmon.state.units import apply, note
from kvmon.state.watch import NAMING, OPEN_END, REFUSALS, STARVED, WINDOWS, W
from kvmon.state.watch_kernels import ends_wait, log_refusal, next_window, saw_hashes, saw_hit, saw_step
from kvmon.state.whole_pools import audit_slice, reset

__all__ = ["DONE", "LOG_FULL", "NEEDS_NODES", "NEEDS_ROWS", "TRAP", "fold"]

DONE, TRAP, NEEDS_ROWS, NEEDS_NODES, LOG_FULL = range(5)

_CACHE_INSERT = int(Kind.CACHE_INSERT)
_STEP, _TICK, _POOL_RESET = int(Kind.STEP), int(Kind.TICK), int(Kind.POOL_RESET)
_ARRIVED, _HASHES, _ADMITTED = int(Kind.REQUEST_ARRIVED), int(Kind.REQUEST_HASHES), int(Kind.REQUEST_ADMITTED)
_ASSIGN, _ASSIGN_RUN = int(Kind.ASSIGN), int(Kind.ASSIGN_RUN)
_FIRST_TOKEN, _FAILED, _FINISHED = int(Kind.FIRST_TOKEN), int(Kind.ALLOC_FAILED), int(Kind.REQUEST_FINISHED)
_OFFLOADED, _ONBOARDED = int(Kind.OFFLOADED), int(Kind.ONBOARDED)
_TRUNCATE, _HIT, _PREEMPTED, _MIGRATED = (
    int(Kind.TRUNCATE),
    int(Kind.CACHE_HIT),
    int(Kind.PREEMPTED),
    int(Kind.MIGRATED),
)
_AUDIT_SLICE, _AUDIT_RUN, _AUDIT_REQUEST = int(Kind.AUDIT_SLICE), int(Kind.AUDIT_RUN), int(Kind.AUDIT_REQUEST)

_RUNNING = int(RequestState.RUNNING)

_S = field_offsets(Kind.STEP)
_S_START, _S_DURATION, _S_PREFILL, _S_DECODE, _S_CONTEXT, _S_RUNNING, _S_WAITING, _S_NEED = (
    _S[name] for name in ("start", "duration", "prefill", "decode", "context", "running", "waiting", "head_need")
)

_TOKENS_BEYOND, _UNOWNED_FAULT, _UNKNOWN_POOL, _TIME_BACKWARDS, _OUT_OF_RANGE = (
    int(FaultKind.TOKENS_BEYOND_UNITS),
    int(FaultKind.UNOWNED),
    int(FaultKind.UNKNOWN_POOL),
    int(FaultKind.TIME_BACKWARDS),
    int(FaultKind.UNIT_OUT_OF_RANGE),
)

_AT, _FRAME_AT, _POOL, _TIME = Misc.AT, Misc.FRAME_AT, Misc.POOL, Misc.TIME
_NAMES_OWNERS, _STEPS, _POOLS, _FRAME, _FRAME_START = (
    Misc.NAMES_OWNERS,
    Misc.STEPS,
    Misc.POOLS,
    Misc.FRAME,
    Misc.FRAME_START,
)
_VERIFY, _LAST_UNOWNED, _LAST_STEP_TIME = Misc.VERIFY, Misc.LAST_UNOWNED, Misc.LAST_STEP_TIME
_STEP_START, _STEP_NS, _PREFILL, _DECODE = Misc.STEP_START, Misc.STEP_NS, Misc.PREFILL, Misc.DECODE
_CONTEXT, _RUNNING_NOW, _WAITING_NOW, _HEAD_NEED = Misc.CONTEXT, Misc.RUNNING, Misc.WAITING, Misc.HEAD_NEED
_H = field_offsets(Kind.CACHE_HIT)
_H_HIT, _H_LOOKUP = _H["hit_tokens"], _H["lookup_tokens"]
_OPEN_END, _WINDOWS_USED, _REFUSALS_USED, _STARVED, _NAMING = OPEN_END, WINDOWS, REFUSALS, STARVED, NAMING
_BUCKET_END = N.END
_W_LEAST_DEFERRED, _W_LEAST_UNOWNED = W.LEAST_DEFERRED, W.LEAST_UNOWNED
_W_FINISHED, _W_PREEMPTED, _W_LOST = W.FINISHED, W.PREEMPTED, W.LOST
_STALE, _STRANGE, _SLOTS_LEFT = Misc.STALE_TABLES, Misc.STRANGE_POOL, Misc.SLOTS_LEFT


@kernel
def _mark(pools: Any, runs: Any, count: Any, second: Any, window: Any) -> Any:
    """Keep the extremes of each second of event time, so that a spike between two scrapes is seen; and of the open
    window the least of what may only pass by.
    """
    slot = second % MARK_SLOTS
    for pool in range(1, count + 1):
        free = pools.counts[pool, FREE]
        deferred, unowned = pools.counts[pool, DEFERRED], pools.counts[pool, UNOWNED]
        used = pools.counts[pool, ACTIVE] + pools.counts[pool, PINNED] + deferred
        window[pool, _W_LEAST_DEFERRED] = min(window[pool, _W_LEAST_DEFERRED], deferred)
        window[pool, _W_LEAST_UNOWNED] = min(window[pool, _W_LEAST_UNOWNED], unowned)
        largest = largest_grantable(runs, pool) if pools.runs[pool] else free
        marks = pools.marks
        if marks[pool, slot, 0] != second:
            marks[pool, slot, 0] = second
            marks[pool, slot, 1] = used
            marks[pool, slot, 2] = free
            marks[pool, slot, 3] = largest
        else:
            marks[pool, slot, 1] = max(marks[pool, slot, 1], used)
            marks[pool, slot, 2] = min(marks[pool, slot, 2], free)
            marks[pool, slot, 3] = min(marks[pool, slot, 3], largest)


@kernel
def _close_step(misc: Any, status: Any, pools: Any, detail: Any, requests: Any, nodes: Any, faults: Any) -> Any:
    """What must hold when a step is over, once an engine names owners."""
    if misc[_NAMES_OWNERS] == 0:
        return
    unowned = 0
    for pool in range(1, misc[_POOLS] + 1):
        unowned += pools.counts[pool, UNOWNED]
    if unowned > misc[_LAST_UNOWNED]:
        for pool in range(1, misc[_POOLS] + 1):
            base = pools.base[pool]
            for u in range(1, pools.capacity[pool] + 1):
                if status[base + u] & 0xFFFFFF and detail.owners[base + u] == 0:
                    misc[_POOL] = pool
                    note(faults, misc, np.int64(_UNOWNED_FAULT), u, np.int64(-1), unowned)
                    break
            else:
                continue
            break
        misc[_POOL] = 1
    misc[_LAST_UNOWNED] = unowned
    if misc[_VERIFY]:
        if misc[_STALE]:
            recount(misc, detail, requests, nodes)
        for row in range(len(requests.id)):
            if requests.id[row] and requests.state[row] == _RUNNING:
                tokens = computed_tokens(requests, row, misc[_STEPS])
                for pool in range(1, misc[_POOLS] + 1):
                    slots = np.int64(requests.units[row, pool]) * pools.unit_tokens[pool] // pools.groups[pool]
                    if slots and tokens > slots and not pools.windowed[pool]:
                        note(
                            faults,
                            misc,
                            np.int64(_TOKENS_BEYOND),
                            np.int64(-1),
                            np.int64(requests.id[row]),
                            tokens - slots,
                        )


@kernel
def _step(
    words: Any,
    at: Any,
    misc: Any,
    status: Any,
    pools: Any,
    detail: Any,
    requests: Any,
    nodes: Any,
    faults: Any,
    watch: Any,
) -> Any:
    misc[_STEPS] += 1
    misc[_STEP_START] = wide(words, at + _S_START)
    misc[_STEP_NS] = wide(words, at + _S_DURATION)
    misc[_PREFILL] = np.int64(words[at + _S_PREFILL]) - 1
    misc[_DECODE] = np.int64(words[at + _S_DECODE]) - 1
    misc[_CONTEXT] = wide(words, at + _S_CONTEXT)
    misc[_RUNNING_NOW] = np.int64(words[at + _S_RUNNING]) - 1
    misc[_WAITING_NOW] = np.int64(words[at + _S_WAITING]) - 1
    misc[_HEAD_NEED] = maybe(words, at + _S_NEED, 0)
    if watch is not None:
        saw_step(misc, watch)
    misc[_LAST_STEP_TIME] = misc[_TIME]
    if requests is not None:
        _close_step(misc, status, pools, detail, requests, nodes, faults)


@kernel
def fold(
    words: Any,
    ends: Any,
    numbers: Any,
    times: Any,
    misc: Any,
    status: Any,
    pools: Any,
    detail: Any,
    runs: Any,
    requests: Any,
    nodes: Any,
    faults: Any,
    watch: Any,
    track: Any,
) -> Any:
    """Apply frames from `misc[FRAME_AT]` on; DONE, or why it stopped at the record at `misc[AT]`."""
    at = misc[_AT]
    frame = misc[_FRAME_AT]
    while frame < len(ends):
        end = ends[frame]
        pool = misc[_POOL]
        if watch is not None and times[frame] > watch.used[_OPEN_END]:
            if watch.used[_WINDOWS_USED] + misc[_POOLS] > len(watch.windows):
                return LOG_FULL
            next_window(times[frame], misc, pools, detail, requests, nodes, watch)
        if track is not None:
            if times[frame] > track.now[_BUCKET_END]:
                close_buckets(
                    times[frame],
                    np.bool_(False),
                    misc,
                    status,
                    pools,
                    detail,
                    runs,
                    requests,
                    nodes,
                    watch,
                    track,
                )
            advance(times[frame], misc[_POOLS], track)
        backwards = misc[_TIME] - times[frame]
        misc[_TIME] = times[frame]
        misc[_FRAME] = numbers[frame]
        if backwards > 0:
            misc[_AT] = at
            note(faults, misc, np.int64(_TIME_BACKWARDS), np.int64(-1), np.int64(-1), backwards)
        while at < end:
            misc[_AT] = at
            word = np.int64(words[at])
            op, payload = word >> 27, word & 0x7FFFFFF
            if op < 30:
                if op < 10:
                    kind, n, first, units, size = op, 1, payload, at, 1
                elif op < 20:
                    kind, n, first, units, size = op - 10, payload, 0, at + 1, payload + 1
                else:
                    kind, n, first, units, size = op - 20, np.int64(words[at + 1]), payload, at, 2
                if pool > misc[_POOLS] or pool < 1:
                    misc[_STRANGE] = 1
                    note(faults, misc, np.int64(_UNKNOWN_POOL), np.int64(-1), np.int64(-1), pool)
                elif units == at and (first == 0 or n > pools.capacity[pool]):
                    note(faults, misc, np.int64(_OUT_OF_RANGE), first + n - 1, np.int64(-1), np.int64(-1))
                elif kind > 0:
                    apply(kind, words, units, n, first, pool, misc, status, pools, detail, runs, faults)
                    if track is not None and kind != _CACHE_INSERT:
                        saw_units(pool, misc, pools, runs, track)
                at += size
                continue
            if op == 30:
                pool = payload
                misc[_POOL] = pool
                at += 1
                continue
            kind, n = payload >> 19, payload & 0x7FFFF
            known = 1 <= pool <= misc[_POOLS]
            if not known:
                misc[_STRANGE] = 1
            if kind == _STEP:
                misc[_POOL] = 1
                _step(words, at, misc, status, pools, detail, requests, nodes, faults, watch)
                if track is not None:
                    saw_record(words, at, kind, pool, misc, track)
            elif kind == _TICK:
                pass
            elif kind == _POOL_RESET:
                if known:
                    reset(pool, misc, status, pools, detail, runs)
                    if track is not None:
                        saw_pool(pool, misc, pools, runs, track)
                        saw_record(words, at, kind, pool, misc, track)
            elif kind in (_AUDIT_SLICE, _AUDIT_RUN):
                if known:
                    repeat = kind == _AUDIT_RUN
                    count = min(np.int64(words[at + 2]), pools.capacity[pool]) if repeat else n - 1
                    place, start = at + 3 if repeat else at + 2, np.int64(words[at + 1])
                    audit_slice(words, place, count, start, repeat, pool, misc, status, pools, detail, runs, faults)
                    if track is not None:
                        saw_pool(pool, misc, pools, runs, track)
            elif kind in (_OFFLOADED, _ONBOARDED):
                pass  # traffic between pools: kept in the recording, no part of the state
            elif kind in (_HASHES, _HIT):
                if watch is not None and requests is not None:
                    row = find_row(requests, np.int64(words[at + 1]))
                    if kind == _HASHES:
                        saw_hashes(words, at, n, row, requests, watch)
                    else:
                        saw_hit(
                            np.int64(words[at + _H_HIT]) - 1,
                            np.int64(words[at + _H_LOOKUP]) - 1,
                            row,
                            pools.unit_tokens[pool],
                            requests,
                            watch,
                        )
                        if track is not None:
                            saw_record(words, at, kind, pool, misc, track)
            elif requests is not None and watch is not None:
                if watch.used[_REFUSALS_USED] == len(watch.refusals):
                    return LOG_FULL
                if track is not None and kind in (_FINISHED, _PREEMPTED):
                    saw_record(words, at, kind, pool, misc, track)
                if kind in (_ARRIVED, _AUDIT_REQUEST):
                    if misc[_SLOTS_LEFT] == 0:
                        return NEEDS_ROWS
                    if kind == _ARRIVED:
                        arrival(words, at, np.int64(words[at + 1]), misc, requests, faults)
                        if track is not None:
                            saw_record(words, at, kind, pool, misc, track)
                    else:
                        restated(words, at, np.int64(words[at + 1]), misc, status, pools, detail, requests, nodes)
                        if watch.used[_STARVED]:
                            ends_wait(words, at, kind, misc, requests, watch)
                elif kind == _FAILED:
                    if known:
                        if track is not None:
                            saw_refusal(words, at, pool, misc, status, pools, detail, requests, nodes, track)
                        log_refusal(words, at, pool, misc, pools, detail, requests, nodes, watch)
                        failure(words, at, pool, misc, pools, requests, faults)
                elif _FIRST_TOKEN <= kind <= _TRUNCATE or kind in (_PREEMPTED, _MIGRATED, _ADMITTED):
                    if not known:
                        note(faults, misc, np.int64(_UNKNOWN_POOL), np.int64(-1), np.int64(-1), pool)
                    else:
                        if watch.used[_STARVED]:
                            ends_wait(words, at, kind, misc, requests, watch)
                        if not of_request(
                            words, at, kind, n, pool, misc, status, pools, detail, requests, nodes, faults
                        ):
                            return NEEDS_NODES
                        if track is not None and kind in (_ASSIGN, _ASSIGN_RUN, _PREEMPTED):
                            saw_request(np.int64(words[at + 1]), requests, track)
                        if kind in (_ASSIGN, _ASSIGN_RUN):
                            watch.used[_NAMING] |= misc[_NAMES_OWNERS] << pool  # 0 where nobody knows the request
                        elif kind == _FINISHED:
                            watch.open[0, _W_FINISHED] += 1
                        elif kind == _PREEMPTED:
                            watch.open[0, _W_PREEMPTED] += 1
                            watch.open[0, _W_LOST] += np.int64(words[at + 2]) - 1
                else:
                    return TRAP
            elif kind < _ARRIVED or kind > _MIGRATED:
                return TRAP
            at += n + 1
        misc[_AT] = at
        misc[_POOL] = 1
        frame += 1
        misc[_FRAME_AT] = frame
        size, misc[_FRAME_START] = at - misc[_FRAME_START], at
        if runs is not None and watch is not None:
            _mark(pools, runs, misc[_POOLS], misc[_TIME] // 1_000_000_000, watch.open)
            if track is not None:
                saw_frame(size, misc, status, pools, detail, runs, requests, nodes, watch, track)
    return DONE
