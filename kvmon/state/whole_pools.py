"""Kernels that change many units of a pool at once: a reset of its contents, an audit, a pool that is new."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvmon.jit import inlined, kernel
from kvmon.state.arrays import FREE, Misc, Tally
from kvmon.state.faults import FaultKind
from kvmon.state.free_runs import CACHED_FLAG, DEFERRED_FLAG, PINNED_FLAG, REFERENCES, add_run
from kvmon.state.units import move, note

__all__ = ["audit_slice", "clear_pool", "reset"]

_OUT_OF_RANGE, _AUDIT_MISMATCH = int(FaultKind.UNIT_OUT_OF_RANGE), int(FaultKind.AUDIT_MISMATCH)
_CONVERGED, _FORGOTTEN, _DIFFERENCES = Misc.CONVERGED, Tally.FORGOTTEN, Tally.AUDIT_DIFFERENCES


@kernel
def reset(pool: Any, misc: Any, status: Any, pools: Any, detail: Any, runs: Any) -> None:
    """Every content of the pool is forgotten at once."""
    base = pools.base[pool]
    for u in range(1, pools.capacity[pool] + 1):
        old = np.int64(status[base + u])
        if old & CACHED_FLAG:
            pools.tally[pool, _FORGOTTEN] += 1
            move(u, old, old & ~(CACHED_FLAG | PINNED_FLAG), False, pool, misc, status, pools, detail, runs)


@inlined
def _audit(
    u: Any, word: Any, pool: Any, misc: Any, status: Any, pools: Any, detail: Any, runs: Any, faults: Any
) -> None:
    """The engine's own status of a unit replaces the folded one; a difference is counted."""
    if u > pools.capacity[pool] or u < 1:
        note(faults, misc, np.int64(_OUT_OF_RANGE), u, np.int64(-1), np.int64(-1))
        return
    old, new = (
        np.int64(status[pools.base[pool] + u]),
        np.int64(word) & (REFERENCES | CACHED_FLAG | PINNED_FLAG | DEFERRED_FLAG),
    )
    if not new & CACHED_FLAG:
        new &= ~PINNED_FLAG  # nothing is protected that is not there
    if old == new:
        return
    if misc[_CONVERGED]:
        pools.tally[pool, _DIFFERENCES] += 1
        note(faults, misc, np.int64(_AUDIT_MISMATCH), u, np.int64(-1), np.int64(-1))
    move(u, old, new, False, pool, misc, status, pools, detail, runs)


@kernel
def audit_slice(
    words: Any,
    at: Any,
    n: Any,
    first: Any,
    repeat: Any,
    pool: Any,
    misc: Any,
    status: Any,
    pools: Any,
    detail: Any,
    runs: Any,
    faults: Any,
) -> None:
    """Status words at `words[at]`, `n` of them or one that `repeat`s, are what the engine says of the units from
    `first` on.
    """
    for k in range(n):
        _audit(first + k, np.int64(words[at if repeat else at + k]), pool, misc, status, pools, detail, runs, faults)


@kernel
def clear_pool(pool: Any, status: Any, pools: Any, detail: Any, runs: Any) -> Any:
    """Every unit of a newly attached pool is free."""
    base, cap = pools.base[pool], pools.capacity[pool]
    for i in range(base, base + cap + 2):
        status[i] = 0
        if detail is not None:
            detail.since[i] = 0
            detail.owners[i] = 0
            detail.owner[i] = 0
            detail.generation[i] += np.uint32(1)
        if runs is not None and pools.runs[pool]:  # where no runs are tracked their pages are never touched
            runs.length[i] = 0
            runs.of_length[i] = 0
    pools.counts[pool, :] = 0
    pools.counts[pool, FREE] = cap
    if runs is not None:
        runs.longest[pool] = 0
        runs.count[pool] = 0
        runs.of_order[pool, :] = 0
        if pools.runs[pool]:
            add_run(runs, pool, base, 1, cap)
