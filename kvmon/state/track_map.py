"""What lies where in a pool at one moment, drawn into a column of the map of a timeline.

Invariant: the state of the fold is read and not changed, but that block tables may be counted anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvmon.jit import inner
from kvmon.state.arrays import Misc
from kvmon.state.free_runs import CACHED_FLAG, DEFERRED_FLAG, PINNED_FLAG, REFERENCES
from kvmon.state.requests import computed_tokens, end_of_table, recount, slots_of_table, units_of_group
from kvmon.state.track import CELL_STATES, N

__all__ = ["draw"]

_STEPS, _STALE, _ROWS = Misc.STEPS, Misc.STALE_TABLES, N.ROWS
_IN_FREE, _IN_ACTIVE, _IN_RESERVED, _IN_CACHED, _IN_PINNED, _IN_DEFERRED = range(6)
_CELL_STATES = len(CELL_STATES)
_REFS, _DEFERRED_FLAG = np.uint32(REFERENCES), np.uint32(DEFERRED_FLAG)
_NOT_FREE, _KEPT = np.uint32(REFERENCES | DEFERRED_FLAG | CACHED_FLAG), np.uint32(CACHED_FLAG | PINNED_FLAG)


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
def draw(
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
