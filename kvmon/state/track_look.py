"""What no event keeps up to date, looked at after a frame: token slots, requests that lost their memory, what eviction
would free, what fragmentation costs the head of the queue.

A look costs a visit to every unit or node. So in a large pool it is taken only when the frames since the last one cost
as much, and at the end of each bucket of a timeline. Invariant: the state of the fold is read and not changed, but that
block tables may be counted anew, as every reader of them does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvmon.events import RequestState
from kvmon.jit import inlined, inner, kernel
from kvmon.state.arrays import ACTIVE, CACHED, FREE, UNOWNED, Misc
from kvmon.state.free_runs import CACHED_FLAG, buddy_order, largest_grantable
from kvmon.state.requests import computed_tokens, end_of_table, recount, slots_of_table, units_of_group
from kvmon.state.track import N, P, S
from kvmon.state.watch import NAMING, STARVED

__all__ = ["earn", "look", "put"]

_VISITS_A_WORD = 4  # a word of a frame costs the fold about as much as so many visits of a look
_MOST_CREDIT = 1 << 30
_FREELY = 1024  # visits that are never too many

_WAS_PREEMPTED = int(RequestState.PREEMPTED)
_STEPS, _POOLS, _HEAD_NEED = Misc.STEPS, Misc.POOLS, Misc.HEAD_NEED
_STALE, _NODES_LEFT = Misc.STALE_TABLES, Misc.NODES_LEFT
_NAMING, _STARVED_NOW = NAMING, STARVED
_CREDIT, _ROWS = N.CREDIT, N.ROWS
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
_S_PREEMPTED, _S_STARVED = S.PREEMPTED, S.STARVED
_NOT_CACHED = np.uint32(0xFFFFFFFF ^ CACHED_FLAG)


@inner
def put(row: Any, column: Any, value: Any, values: Any, least: Any, most: Any) -> None:
    """From now on this holds; NaN is nothing."""
    values[row, column] = value
    if value == value:
        least[row, column] = min(least[row, column], value)
        most[row, column] = max(most[row, column], value)


@inner
def earn(words: Any, track: Any) -> None:
    """A frame of so many words pays for visits."""
    track.now[_CREDIT] = min(track.now[_CREDIT] + words * _VISITS_A_WORD, _MOST_CREDIT)


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
        put(1, _LOST_AT_HEAD, np.nan, track.value, track.least, track.most)
    elif largest_grantable(runs, np.int64(1)) < size:
        put(1, _LOST_AT_HEAD, 1.0, track.value, track.least, track.most)
    else:
        cost = pools.capacity[1] if runs.buddy[1] else runs.longest[1] - size
        if _may_look(cost, track) or forced:
            placed = _placements(size, np.int64(1), status, pools, runs)
            put(1, _LOST_AT_HEAD, 1.0 - placed / (free // size), track.value, track.least, track.most)


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
    put(0, _S_PREEMPTED, np.float64(preempted), track.value, track.least, track.most)
    if slots:
        for pool in range(1, count + 1):
            total = pools.counts[pool, ACTIVE] * pools.unit_tokens[pool]
            tail, reserved = sums[pool, 0], sums[pool, 1]
            written = max(total - tail - reserved, 0)
            put(pool, _WRITTEN, np.float64(written), track.value, track.least, track.most)
            put(pool, _TAIL, np.float64(tail), track.value, track.least, track.most)
            put(pool, _RESERVED, np.float64(reserved), track.value, track.least, track.most)
            every = written + tail + reserved
            put(pool, _UTILIZATION, written / every if every > 0 else np.nan, track.value, track.least, track.most)


@kernel
def look(
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
                put(pool, _AFTER, np.float64(largest), track.value, track.least, track.most)
            elif _may_look(pools.capacity[pool], track) or forced:
                put(
                    pool,
                    _AFTER,
                    np.float64(_largest_after_eviction(pool, status, pools, runs)),
                    track.value,
                    track.least,
                    track.most,
                )
        if watch.used[_NAMING] >> pool & 1:
            put(pool, _UNOWNED, np.float64(counts[pool, UNOWNED]), track.value, track.least, track.most)
    _look_at_requests(forced, misc, pools, detail, requests, nodes, track)
    put(0, _S_STARVED, np.float64(watch.used[_STARVED_NOW]), track.value, track.least, track.most)
    if misc[_HEAD_NEED] > 0 and pools.runs[1]:
        _lost_at_head(misc[_HEAD_NEED], forced, status, pools, runs, track)
    else:
        track.value[1, _LOST_AT_HEAD] = np.nan
