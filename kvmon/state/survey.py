"""What a whole pool looks like at one moment, in one pass over its units and one over its block tables.

For numbers that no event can keep up to date cheaply: who holds the memory, how old it is, how it is scattered.
Compiled, because an exporter asks for eight pools of 65,536 units within a few milliseconds. It changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kvmon.events import RequestState
from kvmon.jit import kernel
from kvmon.state.free_runs import buddy_order
from kvmon.state.requests import computed_tokens, end_of_table, slots_of_table, units_of_group

__all__ = ["ORDERS", "OWNERS", "Survey", "survey"]

OWNERS = ("running", "waiting", "preempted", "finished", "unattributed")
"""Who can hold an active unit: the most active request that names it; one that has ended; nobody was named yet."""
ORDERS = 8
"""Classes of free runs: class k holds runs of 4**k to 4**(k + 1) - 1 units, the last one all longer ones."""

_RUNNING, _WAITING, _PREEMPTED = int(RequestState.RUNNING), int(RequestState.WAITING), int(RequestState.PREEMPTED)
_REFS, _CACHED = (1 << 24) - 1, 1 << 24
(
    _TAIL,
    _RESERVED,
    _OLDEST,
    _SEQUENCES,
    _SEQUENCE_RUNS,
    _LONGEST,
    _LARGEST_AFTER,
    _FREE,
    _OWNERS,
) = range(9)
_ORDERS_AT = _OWNERS + len(OWNERS)
_SIZES_AT = _ORDERS_AT + ORDERS
_LAST_ORDER = ORDERS - 1


@dataclass(frozen=True, slots=True)
class Survey:
    """Units and token slots of a pool; None where nothing is active, or no block table is known."""

    tail: int
    reserved: int
    oldest_active_seconds: float | None
    runs_per_sequence: float | None
    longest_free_run: int
    largest_after_eviction: int
    """The longest run, in a buddy pool the largest buddy block, if every evictable unit were free."""
    owners: dict[str, int]
    free: int
    free_runs: tuple[int, ...]
    placements: tuple[int, ...]
    """For each size asked about, how many blocks of it fit into the free runs: sum(floor(run / s)), in a buddy pool
    those at multiples of s.
    """

    @property
    def active(self) -> int:
        """Units with at least one reference, at the same moment."""
        return sum(self.owners.values())


@kernel
def _close_run(end: Any, length: Any, sizes: Any, buddy: Any, out: Any) -> None:
    """Count the free run of `length` units before offset `end`."""
    if length == 0:
        return
    out[_LONGEST] = max(out[_LONGEST], length)
    out[_FREE] += length
    order, rest = 0, length >> 2
    while rest > 0 and order < _LAST_ORDER:
        rest >>= 2
        order += 1
    out[_ORDERS_AT + order] += 1
    for k in range(len(sizes)):
        if buddy:
            out[_SIZES_AT + k] += max(end // sizes[k] - (end - length + sizes[k] - 1) // sizes[k], 0)
        else:
            out[_SIZES_AT + k] += length // sizes[k]


@kernel
def _close_run_after_eviction(end: Any, length: Any, buddy: Any, out: Any) -> None:
    if length > out[_LARGEST_AFTER]:
        block = 1 << buddy_order(end - length, length) if buddy else length
        out[_LARGEST_AFTER] = max(out[_LARGEST_AFTER], block)


@kernel
def _tables(pool: Any, steps: Any, pools: Any, detail: Any, requests: Any, nodes: Any, holder: Any, out: Any) -> None:
    """Walk the block tables: token slots, runs of each sequence, and the most active holder of each unit."""
    base, groups = pools.base[pool], pools.groups[pool]
    for row in range(len(requests.id)):
        if requests.id[row] == 0 or requests.units[row, pool] == 0:
            continue
        computed = computed_tokens(requests, row, steps)
        end = end_of_table(row, pool, pools, detail, requests, nodes)
        state = requests.state[row]
        activity = 3 if state == _RUNNING else 2 if state == _WAITING else 1
        runs = 0
        for group in range(groups):
            units = np.int64(requests.units[row, pool])
            if groups > 1:
                units = units_of_group(row, pool, np.int64(group), detail, requests, nodes)
                if not pools.windowed[pool]:
                    end = units * pools.unit_tokens[pool]
            _, tail, reserved = slots_of_table(units, end, pools.unit_tokens[pool], computed)
            out[_TAIL] += tail
            out[_RESERVED] += reserved
            before = np.int64(-1)
            node = np.int64(requests.head[row])
            while node >= 0:
                unit = nodes.unit[node]
                of_group = groups == 1 or nodes.group[node] == group
                if of_group and nodes.pool[node] == pool and nodes.generation[node] == detail.generation[unit]:
                    if before - unit != 1:
                        runs += 1
                    before = unit
                    if holder[unit - base] < activity:
                        holder[unit - base] = activity
                node = np.int64(nodes.next[node])
        if runs:
            out[_SEQUENCES] += 1
            out[_SEQUENCE_RUNS] += runs


@kernel
def _survey(
    pool: Any,
    steps: Any,
    now: Any,
    status: Any,
    pools: Any,
    detail: Any,
    requests: Any,
    nodes: Any,
    sizes: Any,
    buddy: Any,
    holder: Any,
    out: Any,
) -> None:
    _tables(pool, steps, pools, detail, requests, nodes, holder, out)
    base, cap = pools.base[pool], pools.capacity[pool]
    free, after = np.int64(0), np.int64(0)
    for u in range(1, cap + 1):
        word = status[base + u]
        if word == 0:
            free += 1
            after += 1
            continue
        if free:
            _close_run(u - 1, free, sizes, buddy, out)
            free = 0
        if word == _CACHED:
            after += 1
            continue
        _close_run_after_eviction(u - 1, after, buddy, out)
        after = 0
        if word & _REFS:
            age = (now - np.int64(detail.since[base + u])) & 0xFFFFFFFF
            out[_OLDEST] = max(out[_OLDEST], age)
            activity = holder[u]
            if activity == 3:
                out[_OWNERS] += 1
            elif activity == 2:
                out[_OWNERS + 1] += 1
            elif activity == 1:
                out[_OWNERS + 2] += 1
            elif detail.owner[base + u] != 0:
                out[_OWNERS + 3] += 1
            else:
                out[_OWNERS + 4] += 1
    _close_run(cap, free, sizes, buddy, out)
    _close_run_after_eviction(cap, after, buddy, out)


def survey(
    pool: int,
    steps: int,
    time_ns: int,
    status: Any,
    pools: Any,
    detail: Any,
    requests: Any,
    nodes: Any,
    sizes: tuple[int, ...],
    buddy: bool = False,
) -> Survey:
    """Survey a pool of a stream folded with detail; `sizes` (units, each >= 1, in a `buddy` pool powers of two) are
    asked about in `placements`.
    """
    holder = np.zeros(int(pools.capacity[pool]) + 2, np.uint8)
    out = np.zeros(_SIZES_AT + len(sizes), np.int64)
    wanted = np.array(sizes, np.int64)
    _survey(pool, steps, time_ns // 1_000_000, status, pools, detail, requests, nodes, wanted, buddy, holder, out)
    numbers: list[int] = out.tolist()
    owners = dict(zip(OWNERS, numbers[_OWNERS:_ORDERS_AT], strict=True))
    return Survey(
        tail=numbers[_TAIL],
        reserved=numbers[_RESERVED],
        oldest_active_seconds=numbers[_OLDEST] / 1000 if any(owners.values()) else None,
        runs_per_sequence=numbers[_SEQUENCE_RUNS] / numbers[_SEQUENCES] if numbers[_SEQUENCES] else None,
        longest_free_run=numbers[_LONGEST],
        largest_after_eviction=numbers[_LARGEST_AFTER],
        owners=owners,
        free=numbers[_FREE],
        free_runs=tuple(numbers[_ORDERS_AT:_SIZES_AT]),
        placements=tuple(numbers[_SIZES_AT:]),
    )
