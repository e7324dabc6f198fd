"""The kernels that fill `state.track` while the fold reads: extremes after each record, the rest after each frame.

Numbers that no event keeps up to date (token slots, the largest block after eviction) are looked at. A look costs a
visit to every unit or node, so in a large pool it is taken only when the frames since the last one cost as much, and at
the end of each bucket.

Invariant: a kernel here reads the state of the fold and changes nothing of it, but that it may count block tables anew
as every reader of them does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvmon.events import FailureOutcome, Kind, RequestState, field_offsets
from kvmon.jit import inlined, inner, kernel
from kvmon.state.arrays import ACTIVE, CACHED, FREE, UNOWNED, Misc, Tally
from kvmon.state.free_runs import (
    CACHED_FLAG,
    DEFERRED_FLAG,
    PINNED_FLAG,
    REFERENCES,
    buddy_order,
    largest_grantable,
)
from kvmon.state.requests import computed_tokens, end_of_table, find_row, recount, slots_of_table, units_of_group
from kvmon.state.track import CELL_STATES, MARKS_A_BUCKET, C, M, N, P, S
from kvmon.state.watch import NAMING, STARVED

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

_VISITS_A_WORD = 4  # a word of a frame costs the fold about as much as so many visits of a look
_MOST_CREDIT = 1 << 30
_FREELY = 1024  # visits that are never too many

_WAS_PREEMPTED = int(RequestState.PREEMPTED)
_K_ARRIVED, _K_FINISHED, _K_PREEMPTED = int(Kind.REQUEST_ARRIVED), int(Kind.REQUEST_FINISHED), int(Kind.PREEMPTED)
_K_HIT, _K_RESET, _K_STEP = int(Kind.CACHE_HIT), int(Kind.POOL_RESET), int(Kind.STEP)
_LOST_TOKENS = field_offsets(Kind.PREEMPTED)["lost_tokens"]
_HIT_AT, _LOOKUP_AT = (field_offsets(Kind.CACHE_HIT)[name] for name in ("hit_tokens", "lookup_tokens"))
_OUTCOME_AT = field_offsets(Kind.ALLOC_FAILED)["outcome"]
_SENT_AWAY, _ABORTED = int(FailureOutcome.REFUSED), int(FailureOutcome.ABORTED)

_TIME, _FRAME, _CONVERGED, _STEPS, _POOLS = Misc.TIME, Misc.FRAME, Misc.CONVERGED, Misc.STEPS, Misc.POOLS
_RUNNING_NOW, _WAITING_NOW, _HEAD_NEED = Misc.RUNNING, Misc.WAITING, Misc.HEAD_NEED
_STEP_NS, _PREFILL_NOW, _DECODE_NOW = Misc.STEP_NS, Misc.PREFILL, Misc.DECODE
_STALE, _NODES_LEFT = Misc.STALE_TABLES, Misc.NODES_LEFT
_NAMING, _STARVED_NOW = NAMING, STARVED
_TALLIES = (Tally.ALLOCATED, Tally.RELEASED, Tally.EVICTED)
_T_ALLOCATED, _T_RELEASED, _T_EVICTED = _TALLIES

_BUCKET, _END, _UPTO, _BEFORE, _CREDIT, _DIRTY, _LOST, _PAIN, _WORST = range(N.WORST + 1)
_MARKS, _MARKED_PREEMPTED, _MARKED_RESETS, _REFUSED, _FROM, _ROWS = (
    N.MARKS,
    N.PREEMPTED,
    N.RESETS,
    N.REFUSED,
    N.FROM,
    N.ROWS,
)
_STATES = P.FREE + 1
_AVAILABLE, _LARGEST, _RUNS, _EXTERNAL = P.AVAILABLE, P.LARGEST, P.RUNS, P.EXTERNAL
_AFTER, _UNOWNED, _WRITTEN, _TAIL, _RESERVED, _UTILIZATION, _LOST_AT_HEAD = (
    P.AFTER,
    P.UNOWNED,
    P.WRITTEN,
    P.TAIL,
    P.RESERVED,
    P.UTILIZATION,
    P.LOST,
)
_CAPACITY = P.CAPACITY
_S_RUNNING, _S_WAITING, _S_NEED, _S_PREEMPTED, _S_STARVED, _S_KNOWN, _S_SEEN, _S_STEP = range(S.STEP + 1)
_C_STEPS, _C_PREFILL, _C_DECODE, _C_ARRIVED, _C_FINISHED, _C_PREEMPTIONS, _C_RECOMPUTED, _C_LOOKUP, _C_HIT = range(9)
_COUNTS = C.WIDTH
_C_ALLOCATED, _C_RELEASED, _C_EVICTED = C.ALLOCATED, C.RELEASED, C.EVICTED
_M_PREEMPTED, _M_RESET = M.PREEMPTED, M.RESET
_IN_FREE, _IN_ACTIVE, _IN_RESERVED, _IN_CACHED, _IN_PINNED, _IN_DEFERRED = range(6)
_CELL_STATES = len(CELL_STATES)
_REFS, _DEFERRED_FLAG = np.uint32(REFERENCES), np.uint32(DEFERRED_FLAG)
_NOT_FREE, _KEPT = np.uint32(REFERENCES | DEFERRED_FLAG | CACHED_FLAG), np.uint32(CACHED_FLAG | PINNED_FLAG)
_NOT_CACHED = np.uint32(0xFFFFFFFF ^ CACHED_FLAG)


@inner
def _put(row: Any, column: Any, value: Any, values: Any, least: Any, most: Any) -> None:
    """From now on this holds; NaN is nothing."""
    values[row, column] = value
    if value == value:
        least[row, column] = min(least[row, column], value)
        most[row, column] = max(most[row, column], value)


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
            _put(pool, _CAPACITY, np.float64(pools.capacity[pool]), track.value, track.least, track.most)
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
        _put(0, _S_RUNNING, np.float64(misc[_RUNNING_NOW]), track.value, track.least, track.most)
        _put(0, _S_WAITING, np.float64(misc[_WAITING_NOW]), track.value, track.least, track.most)
        _put(0, _S_NEED, np.float64(misc[_HEAD_NEED]), track.value, track.least, track.most)
        took = np.float64(misc[_STEP_NS])
        _put(0, _S_STEP, took, track.value, track.least, track.most)
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
def _largest_after_eviction(pool: Any, status: Any, pools: Any, runs: Any) -> Any:
    """The largest block that could be granted if every evictable unit were free: a visit to each unit."""
    base, cap, buddy = pools.base[pool], pools.capacity[pool], runs.buddy[pool]
    best, length = np.int64(0), np.int64(0)
    for u in range(1, cap + 2):
        if u <= cap and status[base + u] & _NOT_CACHED == 0:
            length += 1
        elif length:
            if length > best:
                best = max(best, 1 << buddy_order(u - 1 - length, length) if buddy else length)
            length = 0
    return best


@inner
def _placements(size: Any, pool: Any, status: Any, pools: Any, runs: Any) -> Any:
    """How many blocks of `size` fit into the free runs, in a buddy pool at multiples of it."""
    base, cap, found = pools.base[pool], pools.capacity[pool], np.int64(0)
    if not runs.buddy[pool]:
        for length in range(size, runs.longest[pool] + 1):
            found += length // size * runs.of_length[base + length]
        return found
    u = np.int64(1)
    while u <= cap:
        if status[base + u]:
            u += 1
        else:
            length = np.int64(runs.length[base + u])
            found += max((u - 1 + length) // size - (u - 1 + size - 1) // size, 0)
            u += length
    return found


@inner
def _lost_at_head(need: Any, forced: Any, status: Any, pools: Any, runs: Any, track: Any) -> None:
    """lost(s) of the first pool for what the head of the queue waits for (see `fragmentation.lost_share`)."""
    free, size = pools.counts[1, FREE], need
    if runs.buddy[1]:
        size = np.int64(1)
        while size < need:
            size <<= 1
    if free < size:
        _put(1, _LOST_AT_HEAD, np.nan, track.value, track.least, track.most)
    elif largest_grantable(runs, np.int64(1)) < size:
        _put(1, _LOST_AT_HEAD, 1.0, track.value, track.least, track.most)
    else:
        cost = pools.capacity[1] if runs.buddy[1] else runs.longest[1] - size
        if _may_look(cost, track) or forced:
            placed = _placements(size, np.int64(1), status, pools, runs)
            _put(1, _LOST_AT_HEAD, 1.0 - placed / (free // size), track.value, track.least, track.most)


@inlined
def _may_look(cost: Any, track: Any) -> Any:
    """Whether a look that visits so many units or nodes is paid for; then it is paid."""
    if cost <= _FREELY:
        return True
    if track.now[_CREDIT] < cost:
        return False
    track.now[_CREDIT] -= cost
    return True


@inner
def _slots_of_groups(
    row: Any, pool: Any, computed: Any, pools: Any, detail: Any, requests: Any, nodes: Any, out: Any
) -> None:
    """Add the tail and the reserved slots of one request in one pool to `out`, as a survey does; of any pool."""
    end = end_of_table(row, pool, pools, detail, requests, nodes)
    tokens = pools.unit_tokens[pool]
    for group in range(pools.groups[pool]):
        units = np.int64(requests.units[row, pool])
        if pools.groups[pool] > 1:
            units = units_of_group(row, pool, np.int64(group), detail, requests, nodes)
            if not pools.windowed[pool]:
                end = units * tokens
        _, tail, reserved = slots_of_table(units, end, tokens, computed)
        out[0] += tail
        out[1] += reserved


@inner
def _look_at_requests(forced: Any, misc: Any, pools: Any, detail: Any, requests: Any, nodes: Any, track: Any) -> None:
    """Requests by state, and the token slots of every pool where the block tables are known."""
    count, sums = misc[_POOLS], track.slots
    cost = np.int64(0)
    taken = len(nodes.unit) - misc[_NODES_LEFT]
    if misc[_STALE]:
        cost += taken
    for pool in range(1, count + 1):
        sums[pool, 0] = 0
        sums[pool, 1] = 0
        if pools.groups[pool] > 1:
            cost += 2 * taken * pools.groups[pool]
    slots = _may_look(cost, track) or forced
    if slots and misc[_STALE]:
        recount(misc, detail, requests, nodes)
    preempted, kept = np.int64(0), np.int64(0)
    for place in range(track.now[_ROWS]):
        row = track.rows[place]
        lost = requests.id[row] != 0 and requests.state[row] == _WAS_PREEMPTED
        preempted += lost
        holds = False
        computed = computed_tokens(requests, row, misc[_STEPS])
        for pool in range(1, count + 1):
            units = np.int64(requests.units[row, pool]) if requests.id[row] else 0
            if units == 0:
                continue
            holds = True
            if not slots:
                continue
            if pools.groups[pool] > 1 or pools.windowed[pool]:
                _slots_of_groups(row, np.int64(pool), computed, pools, detail, requests, nodes, sums[pool])
            else:
                tokens = pools.unit_tokens[pool]
                _, tail, reserved = slots_of_table(units, units * tokens, tokens, computed)
                sums[pool, 0] += tail
                sums[pool, 1] += reserved
        if lost or holds:
            track.rows[kept] = row
            kept += 1
        else:
            track.listed[row] = 0
    track.now[_ROWS] = kept
    _put(0, _S_PREEMPTED, np.float64(preempted), track.value, track.least, track.most)
    if slots:
        for pool in range(1, count + 1):
            total = pools.counts[pool, ACTIVE] * pools.unit_tokens[pool]
            tail, reserved = sums[pool, 0], sums[pool, 1]
            written = max(total - tail - reserved, 0)
            _put(pool, _WRITTEN, np.float64(written), track.value, track.least, track.most)
            _put(pool, _TAIL, np.float64(tail), track.value, track.least, track.most)
            _put(pool, _RESERVED, np.float64(reserved), track.value, track.least, track.most)
            every = written + tail + reserved
            _put(pool, _UTILIZATION, written / every if every > 0 else np.nan, track.value, track.least, track.most)


@inner
def _look(
    forced: Any,
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
    """What holds now, while the past is known; `forced` whatever it costs."""
    counts = pools.counts
    for pool in range(1, misc[_POOLS] + 1):
        for column in range(_STATES):
            track.value[pool, column] = counts[pool, column]
        track.value[pool, _AVAILABLE] = counts[pool, FREE] + counts[pool, CACHED]
        if pools.runs[pool]:
            largest, free = largest_grantable(runs, np.int64(pool)), counts[pool, FREE]
            track.value[pool, _LARGEST] = largest
            track.value[pool, _RUNS] = runs.count[pool]
            track.value[pool, _EXTERNAL] = 1.0 - runs.longest[pool] / free if free > 0 else np.nan
            if counts[pool, CACHED] == 0:
                _put(pool, _AFTER, np.float64(largest), track.value, track.least, track.most)
            elif _may_look(pools.capacity[pool], track) or forced:
                _put(
                    pool,
                    _AFTER,
                    np.float64(_largest_after_eviction(pool, status, pools, runs)),
                    track.value,
                    track.least,
                    track.most,
                )
        if watch.used[_NAMING] >> pool & 1:
            _put(pool, _UNOWNED, np.float64(counts[pool, UNOWNED]), track.value, track.least, track.most)
    _look_at_requests(forced, misc, pools, detail, requests, nodes, track)
    _put(0, _S_STARVED, np.float64(watch.used[_STARVED_NOW]), track.value, track.least, track.most)
    if misc[_HEAD_NEED] > 0 and pools.runs[1]:
        _lost_at_head(misc[_HEAD_NEED], forced, status, pools, runs, track)
    else:
        track.value[1, _LOST_AT_HEAD] = np.nan


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
    now[_CREDIT] = min(now[_CREDIT] + words * _VISITS_A_WORD, _MOST_CREDIT)
    track.value[0, _S_SEEN] = 1.0
    if misc[_CONVERGED] == 0:
        now[_LOST] = 0
        return
    track.value[0, _S_KNOWN] = 1.0
    _look(np.bool_(False), misc, status, pools, detail, runs, requests, nodes, watch, track)
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


@inner
def _reserved_cells(
    pool: Any, cells: Any, misc: Any, pools: Any, detail: Any, requests: Any, nodes: Any, track: Any
) -> None:
    """Count the units behind the written ones of each block table as reserved, no more as active."""
    base, cap, tokens, groups = pools.base[pool], pools.capacity[pool], pools.unit_tokens[pool], pools.groups[pool]
    scratch = track.scratch
    for place in range(track.now[_ROWS]):
        row = track.rows[place]
        if requests.id[row] == 0 or requests.units[row, pool] == 0:
            continue
        computed = computed_tokens(requests, row, misc[_STEPS])
        end = end_of_table(np.int64(row), pool, pools, detail, requests, nodes)
        for group in range(groups):
            units = np.int64(requests.units[row, pool])
            if groups > 1:
                units = units_of_group(np.int64(row), pool, np.int64(group), detail, requests, nodes)
                if not pools.windowed[pool]:
                    end = units * tokens
            _, _, reserved = slots_of_table(units, end, tokens, computed)
            left = reserved // tokens
            node = np.int64(requests.head[row])
            while node >= 0 and left > 0:  # the last units of a table are its first nodes
                unit = nodes.unit[node]
                here = nodes.pool[node] == pool and (groups == 1 or nodes.group[node] == group)
                if here and nodes.generation[node] == detail.generation[unit]:
                    left -= 1
                    cell = ((unit - base) * cells - 1) // cap
                    if scratch[cell, _IN_ACTIVE] > 0:
                        scratch[cell, _IN_ACTIVE] -= 1
                        scratch[cell, _IN_RESERVED] += 1
                node = np.int64(nodes.next[node])


@inner
def _draw(
    pool: Any,
    column: Any,
    time: Any,
    refused: Any,
    misc: Any,
    status: Any,
    pools: Any,
    detail: Any,
    requests: Any,
    nodes: Any,
    track: Any,
) -> None:
    """What lies where in `pool` now, into a column of its map."""
    if misc[_STALE]:
        recount(misc, detail, requests, nodes)
    base, cap = pools.base[pool], pools.capacity[pool]
    cells, scratch = min(track.cells.shape[2], cap), track.scratch
    for cell in range(cells):
        first, behind = cell * cap // cells, (cell + 1) * cap // cells
        free, active, deferred, pinned = 0, 0, 0, 0
        for u in range(base + 1 + first, base + 1 + behind):  # what `state_of` says, without branches
            word = status[u]
            held, later = (word & _REFS) != 0, (word & _DEFERRED_FLAG) != 0
            free += (word & _NOT_FREE) == 0
            active += held
            deferred += later & (not held)
            pinned += ((word & _KEPT) == _KEPT) & (not held) & (not later)
        scratch[cell, _IN_FREE] = free
        scratch[cell, _IN_ACTIVE] = active
        scratch[cell, _IN_RESERVED] = 0
        scratch[cell, _IN_CACHED] = behind - first - free - active - deferred - pinned
        scratch[cell, _IN_PINNED] = pinned
        scratch[cell, _IN_DEFERRED] = deferred
    _reserved_cells(pool, cells, misc, pools, detail, requests, nodes, track)
    for cell in range(cells):
        first, behind = cell * cap // cells, (cell + 1) * cap // cells
        most = _IN_FREE
        for state in range(_IN_ACTIVE, _CELL_STATES):
            if scratch[cell, state] > (scratch[cell, most] if most != _IN_FREE else 0):
                most = state
        used = behind - first - scratch[cell, _IN_FREE]
        track.cells[pool, column, cell, 0] = most
        # a share that is neither 0 nor 1 is drawn as neither
        filled = used * 255 // (behind - first)
        track.cells[pool, column, cell, 1] = max(filled, 1) if used > 0 else 0
    track.taken[pool, column, 0] = time
    track.taken[pool, column, 1] = refused
    track.taken[pool, column, 2] = cap


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
        _draw(pool, column, misc[_TIME], np.int64(1), misc, status, pools, detail, requests, nodes, track)


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
        _look(np.bool_(True), misc, status, pools, detail, runs, requests, nodes, watch, track)
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
                    _draw(pool, column, end, np.int64(0), misc, status, pools, detail, requests, nodes, track)
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
