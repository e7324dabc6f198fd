"""The kernels that fill `state.track` while the fold reads: extremes after each record, what holds after each frame,
everything about a bucket at its end.

Invariant: a kernel here reads the state of the fold and changes nothing of it, but that block tables may be counted
anew as every reader of them does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvmon.events import FailureOutcome, Kind, field_offsets
from kvmon.jit import inlined, inner, kernel
from kvmon.state.arrays import CACHED, FREE, Misc, Tally
from kvmon.state.free_runs import largest_grantable
from kvmon.state.requests import find_row
from kvmon.state.track import MARKS_A_BUCKET, C, M, N, P, S
from kvmon.state.track_look import earn, look, put
from kvmon.state.track_map import draw

__all__ = [
    "advance",
    "close_buckets",
    "saw_frame",
    "saw_pool",
    "saw_pools",
    "saw_record",
    "saw_refusal",
    "saw_request",
    "saw_units",
]

_K_ARRIVED, _K_FINISHED, _K_PREEMPTED = int(Kind.REQUEST_ARRIVED), int(Kind.REQUEST_FINISHED), int(Kind.PREEMPTED)
_K_HIT, _K_RESET, _K_STEP = int(Kind.CACHE_HIT), int(Kind.POOL_RESET), int(Kind.STEP)
_LOST_TOKENS = field_offsets(Kind.PREEMPTED)["lost_tokens"]
_HIT_AT, _LOOKUP_AT = (field_offsets(Kind.CACHE_HIT)[name] for name in ("hit_tokens", "lookup_tokens"))
_OUTCOME_AT = field_offsets(Kind.ALLOC_FAILED)["outcome"]
_SENT_AWAY, _ABORTED = int(FailureOutcome.REFUSED), int(FailureOutcome.ABORTED)

_TIME, _FRAME, _CONVERGED, _POOLS = Misc.TIME, Misc.FRAME, Misc.CONVERGED, Misc.POOLS
_RUNNING_NOW, _WAITING_NOW, _HEAD_NEED = Misc.RUNNING, Misc.WAITING, Misc.HEAD_NEED
_STEP_NS, _PREFILL_NOW, _DECODE_NOW = Misc.STEP_NS, Misc.PREFILL, Misc.DECODE
_TALLIES = (Tally.ALLOCATED, Tally.RELEASED, Tally.EVICTED)
_T_ALLOCATED, _T_RELEASED, _T_EVICTED = _TALLIES

_BUCKET, _END, _UPTO, _BEFORE, _DIRTY = N.BUCKET, N.END, N.UPTO, N.BEFORE, N.DIRTY
_LOST, _PAIN, _WORST, _MARKS, _REFUSED, _FROM, _ROWS = N.LOST, N.PAIN, N.WORST, N.MARKS, N.REFUSED, N.FROM, N.ROWS
_MARKED_PREEMPTED, _MARKED_RESETS = N.PREEMPTED, N.RESETS
_STATES = P.FREE + 1
_AVAILABLE, _LARGEST, _RUNS, _EXTERNAL = P.AVAILABLE, P.LARGEST, P.RUNS, P.EXTERNAL
_AFTER, _CAPACITY = P.AFTER, P.CAPACITY
_S_RUNNING, _S_WAITING, _S_NEED, _S_STARVED = S.RUNNING, S.WAITING, S.NEED, S.STARVED
_S_KNOWN, _S_SEEN, _S_STEP = S.KNOWN, S.SEEN, S.STEP
_C_STEPS, _C_PREFILL, _C_DECODE, _C_ARRIVED, _C_FINISHED, _C_PREEMPTIONS, _C_RECOMPUTED, _C_LOOKUP, _C_HIT = range(9)
_COUNTS = C.WIDTH
_C_ALLOCATED, _C_RELEASED, _C_EVICTED = C.ALLOCATED, C.RELEASED, C.EVICTED
_M_PREEMPTED, _M_RESET = M.PREEMPTED, M.RESET


@inlined
def saw_units(pool: Any, misc: Any, pools: Any, runs: Any, track: Any) -> None:
    """Units of `pool` have changed: the extremes of what a record can move. What holds is taken after the frame."""
    if misc[_CONVERGED] == 0:
        return
    counts, now = pools.counts, track.fresh
    for column in range(_STATES):
        now[column] = counts[pool, column]
    now[_AVAILABLE] = counts[pool, FREE] + counts[pool, CACHED]
    behind = _AVAILABLE + 1
    if pools.runs[pool]:
        now[_LARGEST] = largest_grantable(runs, pool)
        now[_RUNS] = runs.count[pool]
        behind = _EXTERNAL
        if counts[pool, FREE] > 0:
            now[_EXTERNAL] = 1.0 - runs.longest[pool] / counts[pool, FREE]
            behind = _EXTERNAL + 1
        if counts[pool, CACHED] == 0:  # with evictable units it takes a look
            track.least[pool, _AFTER] = min(track.least[pool, _AFTER], now[_LARGEST])
            track.most[pool, _AFTER] = max(track.most[pool, _AFTER], now[_LARGEST])
    for column in range(behind):
        track.least[pool, column] = min(track.least[pool, column], now[column])
        track.most[pool, column] = max(track.most[pool, column], now[column])


@kernel
def saw_pools(misc: Any, pools: Any, runs: Any, track: Any) -> None:
    """The shape of a pool, or what is known, has changed: what there is counts from here on."""
    for pool in range(1, misc[_POOLS] + 1):
        if misc[_CONVERGED]:
            put(pool, _CAPACITY, np.float64(pools.capacity[pool]), track.value, track.least, track.most)
        saw_units(pool, misc, pools, runs, track)


@inner
def saw_pool(pool: Any, misc: Any, pools: Any, runs: Any, track: Any) -> None:
    """As `saw_units`, for records that are rare."""
    saw_units(pool, misc, pools, runs, track)


@inner
def _mark(kind: Any, slot: Any, pool: Any, request: Any, value: Any, misc: Any, track: Any) -> None:
    """Mark an event, unless the open bucket has enough of its kind."""
    now = track.now
    if now[slot] < MARKS_A_BUCKET and now[_MARKS] < len(track.marks):
        row = track.marks[now[_MARKS]]
        now[_MARKS] += 1
        now[slot] += 1
        row[0] = kind
        row[1] = misc[_TIME]
        row[2] = misc[_FRAME]
        row[3] = pool
        row[4] = request
        row[5] = value


@inner
def saw_record(words: Any, at: Any, kind: Any, pool: Any, misc: Any, track: Any) -> None:
    """A record that is counted. A STEP comes after the fold has taken it."""
    counts = track.counts
    if kind == _K_STEP:
        counts[0, _C_STEPS] += 1
        counts[0, _C_PREFILL] += misc[_PREFILL_NOW]
        counts[0, _C_DECODE] += misc[_DECODE_NOW]
        put(0, _S_RUNNING, np.float64(misc[_RUNNING_NOW]), track.value, track.least, track.most)
        put(0, _S_WAITING, np.float64(misc[_WAITING_NOW]), track.value, track.least, track.most)
        put(0, _S_NEED, np.float64(misc[_HEAD_NEED]), track.value, track.least, track.most)
        took = np.float64(misc[_STEP_NS])
        put(0, _S_STEP, took, track.value, track.least, track.most)
        track.area[0, _S_STEP] += took
        track.span[0, _S_STEP] += 1.0
    elif kind == _K_ARRIVED:
        counts[0, _C_ARRIVED] += 1
    elif kind == _K_FINISHED:
        counts[0, _C_FINISHED] += 1
    elif kind == _K_PREEMPTED:
        lost = np.int64(words[at + _LOST_TOKENS]) - 1
        counts[0, _C_PREEMPTIONS] += 1
        counts[0, _C_RECOMPUTED] += lost
        _mark(np.int64(_M_PREEMPTED), np.int64(_MARKED_PREEMPTED), pool, np.int64(words[at + 1]), lost, misc, track)
    elif kind == _K_HIT:
        counts[0, _C_HIT] += np.int64(words[at + _HIT_AT]) - 1
        counts[0, _C_LOOKUP] += np.int64(words[at + _LOOKUP_AT]) - 1
    elif kind == _K_RESET:
        _mark(np.int64(_M_RESET), np.int64(_MARKED_RESETS), pool, np.int64(0), np.int64(-1), misc, track)


@inner
def saw_request(request: Any, requests: Any, track: Any) -> None:
    """A request got memory, or lost it: it is looked at after each frame."""
    row = find_row(requests, request)
    if row >= 0 and track.listed[row] == 0:
        track.listed[row] = 1
        track.rows[track.now[_ROWS]] = row
        track.now[_ROWS] += 1


@inner
def advance(time: Any, pools: Any, track: Any) -> None:
    """What holds has held until `time`; the clock of a recording may jump back, then nothing has."""
    now = track.now
    took = np.float64(time - now[_UPTO])
    if took <= 0:
        return
    now[_UPTO] = time
    for row in range(pools + 1):
        for column in range(track.value.shape[1]):
            value = track.value[row, column]
            if value == value and (row > 0 or column != _S_STEP):
                track.area[row, column] += value * took
                track.span[row, column] += took


@inner
def saw_frame(
    words: Any,
    misc: Any,
    status: Any,
    pools: Any,
    detail: Any,
    runs: Any,
    requests: Any,
    nodes: Any,
    watch: Any,
    track: Any,
) -> None:
    """A frame of so many words was folded."""
    now = track.now
    now[_BEFORE] = misc[_TIME]
    now[_DIRTY] = 1
    earn(words, track)
    track.value[0, _S_SEEN] = 1.0
    if misc[_CONVERGED] == 0:
        now[_LOST] = 0
        return
    track.value[0, _S_KNOWN] = 1.0
    look(np.bool_(False), misc, status, pools, detail, runs, requests, nodes, watch, track)
    pain = np.int64(track.value[0, _S_STARVED]) + now[_LOST]
    now[_LOST] = 0
    if misc[_POOLS] == 0 or pain < now[_PAIN]:
        return
    share = 0.0
    for pool in range(1, misc[_POOLS] + 1):
        share = max(share, 1.0 - track.value[pool, _AVAILABLE] / max(pools.capacity[pool], 1))
    if pain > now[_PAIN] or share > track.worst_share[0]:
        now[_PAIN] = pain
        now[_WORST] = misc[_TIME]
        track.worst_share[0] = share


@inlined
def _column_of(bucket: Any, track: Any) -> Any:
    """The column of the maps that a bucket belongs to."""
    return bucket * track.cells.shape[1] // (len(track.edges) - 1)


@inner
def saw_refusal(
    words: Any,
    at: Any,
    pool: Any,
    misc: Any,
    status: Any,
    pools: Any,
    detail: Any,
    requests: Any,
    nodes: Any,
    track: Any,
) -> None:
    """An allocation is refused: what comes of it hurts, and the first one of a column is where its map is drawn."""
    outcome = np.int64(words[at + _OUTCOME_AT]) - 1
    track.now[_LOST] += outcome in (_SENT_AWAY, _ABORTED)
    if misc[_CONVERGED] and not track.now[_REFUSED] >> pool & 1:
        track.now[_REFUSED] |= np.int64(1) << pool
        column = _column_of(track.now[_BUCKET], track)
        draw(pool, column, misc[_TIME], np.int64(1), misc, status, pools, detail, requests, nodes, track)


@inner
def _share(row: Any, column: Any, width: Any, track: Any) -> Any:
    """For which part of the open bucket a column was known; of one that is a single frame, whether it is now."""
    if width > 0:
        return track.span[row, column] / width
    value = track.value[row, column]
    return 1.0 if value == value else 0.0


@inner
def _close_bucket(
    end: Any,
    misc: Any,
    status: Any,
    pools: Any,
    detail: Any,
    runs: Any,
    requests: Any,
    nodes: Any,
    watch: Any,
    track: Any,
) -> None:
    """The open bucket ends at `end`; the next one, if there is one, begins with what holds."""
    now, count = track.now, misc[_POOLS]
    bucket = now[_BUCKET]
    if now[_DIRTY] and misc[_CONVERGED]:
        look(np.bool_(True), misc, status, pools, detail, runs, requests, nodes, watch, track)
    now[_DIRTY] = 0
    advance(end, count, track)
    width = np.float64(track.edges[bucket + 1] - max(track.edges[bucket], now[_FROM]))
    for row in range(count + 1):
        for column in range(track.value.shape[1]):
            out = track.curves[row, bucket, column]
            if track.least[row, column] <= track.most[row, column]:
                out[0] = track.least[row, column]
                out[1] = track.most[row, column]
            out[2] = track.value[row, column]
            if track.span[row, column] > 0:
                out[3] = track.area[row, column] / track.span[row, column]
        for column in range(_COUNTS):
            track.sums[row, bucket, column] = track.counts[row, column]
            track.counts[row, column] = 0
    track.known[0, bucket] = _share(np.int64(0), np.int64(_S_KNOWN), width, track)
    track.seen[bucket] = _share(np.int64(0), np.int64(_S_SEEN), width, track)
    for pool in range(1, count + 1):
        track.known[pool, bucket] = _share(np.int64(pool), np.int64(_CAPACITY), width, track)
        sums, tally = track.sums[pool, bucket], pools.tally[pool]
        sums[_C_ALLOCATED] = tally[_T_ALLOCATED] - track.tally[pool, 0]
        sums[_C_RELEASED] = tally[_T_RELEASED] - track.tally[pool, 1]
        sums[_C_EVICTED] = tally[_T_EVICTED] - track.tally[pool, 2]
        for slot, which in enumerate(_TALLIES):
            track.tally[pool, slot] = tally[which]
    buckets = len(track.edges) - 1
    if bucket + 1 == buckets or _column_of(bucket + 1, track) != _column_of(bucket, track):
        if misc[_CONVERGED]:
            for pool in range(1, count + 1):
                if not now[_REFUSED] >> pool & 1:
                    column = _column_of(bucket, track)
                    draw(pool, column, end, np.int64(0), misc, status, pools, detail, requests, nodes, track)
        now[_REFUSED] = 0
    if bucket + 1 < buckets:
        now[_BUCKET] = bucket + 1
        now[_END] = track.edges[bucket + 2]
    now[_MARKED_PREEMPTED] = 0
    now[_MARKED_RESETS] = 0
    track.value[0, _S_STEP] = np.nan
    for row in range(count + 1):
        for column in range(track.value.shape[1]):
            value = track.value[row, column]
            known = value == value
            track.least[row, column] = value if known else np.inf
            track.most[row, column] = value if known else -np.inf
            track.area[row, column] = 0.0
            track.span[row, column] = 0.0


@kernel
def close_buckets(
    time: Any,
    over: Any,
    misc: Any,
    status: Any,
    pools: Any,
    detail: Any,
    runs: Any,
    requests: Any,
    nodes: Any,
    watch: Any,
    track: Any,
) -> None:
    """A frame at `time` is behind the open bucket: close those before the frame's. When all is `over` the last one is
    closed too; until then it stays open, for whatever comes."""
    now, last = track.now, len(track.edges) - 2
    while now[_BUCKET] < last and time > now[_END]:
        _close_bucket(now[_END], misc, status, pools, detail, runs, requests, nodes, watch, track)
    if over:
        while now[_BUCKET] < last:
            _close_bucket(now[_END], misc, status, pools, detail, runs, requests, nodes, watch, track)
        _close_bucket(now[_END], misc, status, pools, detail, runs, requests, nodes, watch, track)
