"""Kernels that change units: one function a kind of event, over a list or a run of units.

`first` > 0 means the run first .. first + n - 1, otherwise the units are `words[at:at + n]`. Counts and tallies of
the pool are updated with the units, so that the states of a pool sum to its capacity after every call. `detail` and
`runs` may be None: then only states are folded, and the compiler leaves the rest out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvmon.events import Kind
from kvmon.jit import inlined, kernel
from kvmon.state.arrays import (
    ACTIVE,
    CACHED,
    DEFERRED,
    FREE,
    HISTOGRAM_SLOTS,
    SHARED,
    UNOWNED,
    Array,
    Faults,
    Ints,
    Misc,
    Pools,
    Tally,
)
from kvmon.state.faults import FaultKind
from kvmon.state.free_runs import (
    CACHED_FLAG,
    DEFERRED_FLAG,
    PINNED_FLAG,
    REFERENCES,
    give_free,
    state_of,
    take_free,
)

__all__ = ["IDLE", "LIFETIME", "REUSE", "apply", "move", "note"]

_ALLOC, _FREE, _SHARE, _UNSHARE = int(Kind.ALLOC), int(Kind.FREE), int(Kind.SHARE), int(Kind.UNSHARE)
_CACHE, _EVICT, _PIN, _DEFER = int(Kind.CACHE_INSERT), int(Kind.EVICT), int(Kind.PIN), int(Kind.DEFER)
_REFS, _CACHED, _PINNED, _DEFERRED = REFERENCES, CACHED_FLAG, PINNED_FLAG, DEFERRED_FLAG

_ALLOC_IN_USE = int(FaultKind.ALLOC_IN_USE)
_ALLOC_DEFERRED = int(FaultKind.ALLOC_DEFERRED)
_DOUBLE_FREE = int(FaultKind.DOUBLE_FREE)
_FREE_REFERENCED = int(FaultKind.FREE_REFERENCED)
_SHARE_FREE = int(FaultKind.SHARE_FREE)
_OUT_OF_RANGE = int(FaultKind.UNIT_OUT_OF_RANGE)
_CONTENT_OF_FREE = int(FaultKind.CONTENT_OF_FREE_UNIT)
_EVICT_WITHOUT = int(FaultKind.EVICT_WITHOUT_CONTENT)
_PIN_WITHOUT = int(FaultKind.PIN_WITHOUT_CONTENT)
_UNPIN_NOT_PINNED = int(FaultKind.UNPIN_NOT_PINNED)
_DEFER_SHARED = int(FaultKind.DEFER_SHARED)
_AT, _TIME, _CONVERGED, _FAULTS = Misc.AT, Misc.TIME, Misc.CONVERGED, Misc.FAULTS
_FRAME, _FRAME_START, _POOL, _STALE, _DOUBLES = (
    Misc.FRAME,
    Misc.FRAME_START,
    Misc.POOL,
    Misc.STALE_TABLES,
    Misc.DOUBLES,
)
_ALLOCATED, _RELEASED, _EVICTED, _REVIVED, _INSERTED = (
    Tally.ALLOCATED,
    Tally.RELEASED,
    Tally.EVICTED,
    Tally.REVIVED,
    Tally.INSERTED,
)
LIFETIME, IDLE, REUSE = range(3)


@kernel
def note(faults: Faults, misc: Ints, kind: int, unit: int, request: int, value: int) -> None:
    """Write down a fault at the record being folded; while converging nothing can be called a fault."""
    if misc[_CONVERGED] == 0:
        return
    if kind in (_DOUBLE_FREE, _ALLOC_IN_USE):
        misc[_DOUBLES] += 1
    row = misc[_FAULTS]
    if row < faults.rows.shape[0]:
        faults.rows[row, 0] = kind
        faults.rows[row, 1] = misc[_FRAME]
        faults.rows[row, 2] = misc[_AT] - misc[_FRAME_START]
        faults.rows[row, 3] = misc[_TIME]
        faults.rows[row, 4] = misc[_POOL]
        faults.rows[row, 5] = unit
        faults.rows[row, 6] = request
        faults.rows[row, 7] = value
    misc[_FAULTS] += 1


@kernel
def _observe(pools: Pools, pool: int, which: int, then: int, now: int) -> None:
    """Count an interval (ms, modulo 2**32) in its slot: slot k holds up to 2**k ms."""
    length = (now - then) & 0xFFFFFFFF
    slot, rest = 0, max(length - 1, 0)
    for bits in (16, 8, 4, 2, 1):  # the number of its bits, without a step for each
        if rest >> bits:
            slot += bits
            rest >>= bits
    slot += int(rest > 0)
    pools.histogram[pool, which, min(slot, HISTOGRAM_SLOTS - 1)] += 1
    pools.histogram_sum[pool, which] += length


@kernel
def _all_are(status: Array, base: int, cap: int, start: int, n: int, value: int) -> bool:
    """Whether a whole run of units has this status."""
    if start < 1 or start + n - 1 > cap:
        return False
    for unit in range(base + start, base + start + n):  # noqa: SIM110 - kernels compile loops, not generators
        if status[unit] != value:
            return False
    return True


@inlined
def move(
    u: Any, old: Any, new: Any, whole: Any, pool: Any, misc: Any, status: Any, pools: Any, detail: Any, runs: Any
) -> None:
    """Give a unit a new status: counts, free runs and what is known of it follow. The only place where a unit changes.

    `whole` says that the free runs already know.
    """
    base = pools.base[pool]
    before, after = state_of(old), state_of(new)
    pools.counts[pool, SHARED] += int((new & _REFS) > 1) - int((old & _REFS) > 1)
    if before != after:
        pools.counts[pool, before] -= 1
        pools.counts[pool, after] += 1
        if runs is not None and pools.runs[pool] and not whole:
            if before == FREE:
                take_free(runs, status, pool, base, pools.capacity[pool], u, 1)
            elif after == FREE:
                give_free(runs, status, pool, base, pools.capacity[pool], u, 1)
        if detail is not None:
            i = base + u
            if after == ACTIVE:
                pools.counts[pool, UNOWNED] += 1
                detail.owner[i] = 0
            elif before == ACTIVE:
                if detail.owners[i] == 0:
                    pools.counts[pool, UNOWNED] -= 1
                else:
                    misc[_STALE] = 1  # a table still names it
                    detail.owners[i] = 0
                detail.generation[i] += np.uint32(1)
            detail.since[i] = (misc[_TIME] // 1_000_000) & 0xFFFFFFFF
    status[base + u] = new


@inlined
def _change(
    kind: Any, u: Any, whole: Any, pool: Any, misc: Any, status: Any, pools: Any, detail: Any, runs: Any, faults: Any
) -> None:
    """What one event of kind 1 to 9 does to one unit; a broken rule is a fault, and the fold goes on from what was
    said.
    """
    if u > pools.capacity[pool] or u < 1:
        note(faults, misc, np.int64(_OUT_OF_RANGE), u, np.int64(-1), np.int64(-1))
        return
    i = pools.base[pool] + u
    old = np.int64(status[i])
    refs, content, state = old & _REFS, old & (_CACHED | _PINNED), state_of(old)
    new, fault, value, tally, age = old, 0, np.int64(-1), -1, -1
    if kind == _ALLOC:
        new = np.int64(1)
        pools.tally[pool, _ALLOCATED] += 1
        if refs:
            fault = _ALLOC_IN_USE
            if detail is not None:  # whoever had it has it no more
                if detail.owners[i]:
                    pools.counts[pool, UNOWNED] += 1
                    misc[_STALE] = 1
                detail.owners[i] = 0
                detail.owner[i] = 0
                detail.generation[i] += np.uint32(1)
                detail.since[i] = (misc[_TIME] // 1_000_000) & 0xFFFFFFFF
        elif old & _DEFERRED:
            fault = _ALLOC_DEFERRED
        elif old & _CACHED:
            tally, age = _EVICTED, IDLE
    elif kind == _UNSHARE and refs > 1:
        new = old - 1
    elif kind in (_UNSHARE, _FREE, _DEFER):
        new = content | _DEFERRED if kind == _DEFER else content
        if refs:
            tally, age = _RELEASED, LIFETIME
            if refs > 1:
                fault, value = _FREE_REFERENCED if kind == _FREE else _DEFER_SHARED, refs
        elif kind == _DEFER:
            new, fault, value = old, _DEFER_SHARED, np.int64(0)
        elif kind == _UNSHARE or state != DEFERRED:
            new, fault = old, _DOUBLE_FREE
    elif kind == _SHARE:
        new = (old & ~_DEFERRED) + 1
        if refs == 0:
            tally, age = _REVIVED, REUSE
            if state == FREE:
                fault = _SHARE_FREE
    elif kind == _CACHE:
        new = old | _CACHED
        if not old & _CACHED:
            tally = _INSERTED
        if state == FREE:
            fault = _CONTENT_OF_FREE
    elif kind == _EVICT:
        new = old & ~(_CACHED | _PINNED)
        if not old & _CACHED:
            fault = _EVICT_WITHOUT
        else:
            tally, age = _EVICTED, IDLE if refs == 0 else -1
    elif kind == _PIN:
        if old & _CACHED:
            new = old | _PINNED
        else:
            fault = _PIN_WITHOUT
    else:
        new = old & ~_PINNED
        if not old & _PINNED:
            fault = _UNPIN_NOT_PINNED
    if fault:
        note(faults, misc, fault, u, np.int64(-1), value)
    if tally >= 0:
        pools.tally[pool, tally] += 1
    if detail is not None and age >= 0:
        _observe(pools, pool, age, np.int64(detail.since[i]), misc[_TIME] // 1_000_000)
    if new != old:
        move(u, old, new, whole, pool, misc, status, pools, detail, runs)


@kernel
def _one_by_one(
    kind: Any,
    words: Any,
    at: Any,
    n: Any,
    first: Any,
    whole: Any,
    pool: Any,
    misc: Any,
    status: Any,
    pools: Any,
    detail: Any,
    runs: Any,
    faults: Any,
) -> None:
    """Any event, any unit. Not inlined, so that the compiler sees it once: a call a record costs little, a call a
    unit much.
    """
    for k in range(n):
        u = first + k if first > 0 else np.int64(words[at + k])
        _change(kind, u, whole, pool, misc, status, pools, detail, runs, faults)


@inlined
def _plain(
    kind: Any,
    words: Any,
    at: Any,
    n: Any,
    first: Any,
    pool: Any,
    misc: Any,
    status: Any,
    pools: Any,
    detail: Any,
    runs: Any,
    faults: Any,
) -> None:
    """The commonest events where the free runs need no care: tallied for the whole record, the odd unit handed on."""
    base, cap = pools.base[pool], pools.capacity[pool]
    now = misc[_TIME] // 1_000_000
    content, ones, twos, fine, nameless = 0, 0, 0, 0, 0
    k = 0
    while k < n:
        while k < n:  # without a call, so that everything stays in registers
            u = first + k if first > 0 else np.int64(words[at + k])
            i = base + u if 1 <= u <= cap else base
            old = np.int64(status[i])
            refs = old & _REFS
            odd = i == base or old & (_PINNED | _DEFERRED)
            if kind == _ALLOC:
                odd = odd or refs
            elif kind == _SHARE:
                odd = odd or old == 0
            else:
                odd = odd or refs == 0
            if odd:
                break
            fine += 1
            cached = old >> 24
            if kind == _ALLOC:
                content += cached
                status[i] = 1
                if detail is not None:
                    if cached:
                        _observe(pools, pool, IDLE, np.int64(detail.since[i]), now)
                    detail.since[i] = now & 0xFFFFFFFF
                    detail.owner[i] = 0
            elif kind == _SHARE:
                ones += int(refs == 0)
                twos += int(refs == 1)
                status[i] = old + 1
                if detail is not None and refs == 0:
                    _observe(pools, pool, REUSE, np.int64(detail.since[i]), now)
                    detail.since[i] = now & 0xFFFFFFFF
                    detail.owner[i] = 0
            elif kind == _CACHE:
                content += cached
                status[i] = old | _CACHED
            else:
                last = int(refs == 1)
                ones += last
                twos += int(refs == 2)
                content += cached & last
                status[i] = old - 1
                if detail is not None and last:
                    _observe(pools, pool, LIFETIME, np.int64(detail.since[i]), now)
                    detail.since[i] = now & 0xFFFFFFFF
                    detail.generation[i] += np.uint32(1)
                    if detail.owners[i]:
                        misc[_STALE] = 1  # a table still names it
                        detail.owners[i] = 0
                    else:
                        nameless += 1
            k += 1
        if k < n:
            u = first + k if first > 0 else np.int64(0)  # no literals: each would be compiled for itself
            _one_by_one(
                np.int64(kind),
                words,
                at + k,
                np.int64(1),
                u,
                np.bool_(False),
                pool,
                misc,
                status,
                pools,
                detail,
                runs,
                faults,
            )
            k += 1
    counts, tally = pools.counts, pools.tally
    if kind == _ALLOC:
        counts[pool, ACTIVE] += fine
        counts[pool, CACHED] -= content
        counts[pool, FREE] -= fine - content
        tally[pool, _ALLOCATED] += fine
        tally[pool, _EVICTED] += content
        if detail is not None:
            counts[pool, UNOWNED] += fine
    elif kind == _SHARE:
        counts[pool, ACTIVE] += ones
        counts[pool, CACHED] -= ones
        counts[pool, SHARED] += twos
        tally[pool, _REVIVED] += ones
        if detail is not None:
            counts[pool, UNOWNED] += ones
    elif kind == _CACHE:
        tally[pool, _INSERTED] += fine - content
    else:
        counts[pool, ACTIVE] -= ones
        counts[pool, CACHED] += content
        counts[pool, FREE] += ones - content
        counts[pool, SHARED] -= twos
        counts[pool, UNOWNED] -= nameless
        tally[pool, _RELEASED] += ones


@inlined
def apply(
    kind: Any,
    words: Any,
    at: Any,
    n: Any,
    first: Any,
    pool: Any,
    misc: Any,
    status: Any,
    pools: Any,
    detail: Any,
    runs: Any,
    faults: Any,
) -> None:
    """One record of kind 1 to 9: units first .. first + n - 1 (first > 0), or `words[at:at + n]`."""
    whole, free = False, runs is not None and pools.runs[pool]
    if runs is not None and free and first > 0 and n > 1:
        base, cap = pools.base[pool], pools.capacity[pool]
        if kind == _ALLOC and _all_are(status, base, cap, first, n, 0):
            take_free(runs, status, pool, base, cap, first, n)
            whole = True
        elif (kind in (_FREE, _UNSHARE)) and _all_are(status, base, cap, first, n, 1):
            give_free(runs, status, pool, base, cap, first, n)
            whole = True
    plain = whole or not free
    if plain and kind == _ALLOC:
        _plain(_ALLOC, words, at, n, first, pool, misc, status, pools, detail, runs, faults)
    elif plain and (kind == _UNSHARE or (kind == _FREE and whole)):
        _plain(_UNSHARE, words, at, n, first, pool, misc, status, pools, detail, runs, faults)
    elif plain and kind == _SHARE:
        _plain(_SHARE, words, at, n, first, pool, misc, status, pools, detail, runs, faults)
    elif kind == _CACHE:
        _plain(_CACHE, words, at, n, first, pool, misc, status, pools, detail, runs, faults)
    else:
        _one_by_one(kind, words, at, n, first, whole, pool, misc, status, pools, detail, runs, faults)
