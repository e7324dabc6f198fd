"""Kernels for the requests of a stream: where each is in its life, and which units its block tables name.

A row is held from arrival to finish. A block table is a list of nodes; a node counts while its unit still has the
generation it was named at, so that a unit that went back to the pool leaves the table of its old owner by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvmon.events import RequestState
from kvmon.jit import kernel
from kvmon.state.arrays import HISTOGRAM_SLOTS, UNOWNED, Array, Detail, Faults, Ints, Misc, Nodes, Pools, Requests
from kvmon.state.faults import FaultKind
from kvmon.state.units import note

__all__ = [
    "add_to_table",
    "computed_tokens",
    "drop_table",
    "end_of_table",
    "find_row",
    "forget_request",
    "forget_unstated",
    "leave_table",
    "new_row",
    "observe_wait",
    "place",
    "recount",
    "slots_of_table",
    "units_of_group",
]

_REFS = (1 << 24) - 1
_SWEEP, _STALE = Misc.SWEEP, Misc.STALE_TABLES
_ASSIGN_UNHELD = int(FaultKind.ASSIGN_UNHELD)
_OUT_OF_RANGE = int(FaultKind.UNIT_OUT_OF_RANGE)
_WAITING = int(RequestState.WAITING)
_NODES_FREE, _NODES_LEFT, _SLOTS_LEFT, _SLOT_FREE, _TIME = (
    Misc.NODES_FREE,
    Misc.NODES_LEFT,
    Misc.SLOTS_LEFT,
    Misc.SLOT_FREE,
    Misc.TIME,
)


@kernel
def place(requests: Requests, request: int) -> int:
    """Where the key of a request is in the map, or would be."""
    mask = len(requests.keys) - 1
    at = (request * 0x9E3779B1 >> 7) & mask
    while requests.keys[at] != 0 and requests.keys[at] != request:
        at = (at + 1) & mask
    return at


@kernel
def find_row(requests: Requests, request: int) -> int:
    """The row of a live request, -1 where there is none."""
    at = place(requests, request)
    return int(requests.slots[at]) if requests.keys[at] != 0 else -1


@kernel
def new_row(requests: Requests, misc: Ints, request: int) -> int:
    """A cleared row for a request that has none; the caller made sure that one is free."""
    row = int(misc[_SLOT_FREE])
    misc[_SLOT_FREE] = requests.next_free[row]
    misc[_SLOTS_LEFT] -= 1
    at = place(requests, request)
    requests.keys[at] = request
    requests.slots[at] = row
    requests.id[row] = request
    requests.state[row] = _WAITING
    requests.class_id[row] = 0
    requests.arrived[row] = misc[_TIME]
    requests.admitted[row] = 0
    requests.first_token[row] = 0
    requests.starved[row] = 0
    requests.prompt[row] = 0
    requests.limit[row] = -1
    requests.computed[row] = 0
    requests.decoding[row] = -1
    requests.reserved[row] = 0
    requests.preemptions[row] = 0
    requests.head[row] = -1
    requests.units[row, :] = 0
    requests.stated[row] = misc[_SWEEP]
    return row


@kernel
def forget_request(requests: Requests, misc: Ints, row: int) -> None:
    """Free the row and take the key out of the map, closing the gap it leaves."""
    mask = len(requests.keys) - 1
    hole = place(requests, np.int64(requests.id[row]))
    requests.keys[hole] = 0
    at = (hole + 1) & mask
    while requests.keys[at] != 0:
        home = (np.int64(requests.keys[at]) * 0x9E3779B1 >> 7) & mask
        if ((at - home) & mask) >= ((at - hole) & mask):
            requests.keys[hole] = requests.keys[at]
            requests.slots[hole] = requests.slots[at]
            requests.keys[at] = 0
            hole = at
        at = (at + 1) & mask
    requests.id[row] = 0
    requests.next_free[row] = misc[_SLOT_FREE]
    misc[_SLOT_FREE] = row
    misc[_SLOTS_LEFT] += 1


@kernel
def computed_tokens(requests: Requests, row: int, steps: int) -> int:
    """Tokens whose keys and values are written after `steps` folded steps: a running decode adds one a step."""
    since = requests.decoding[row]
    return int(requests.computed[row] + (steps - since if since >= 0 else 0))


@kernel
def observe_wait(requests: Requests, wait_ns: int) -> None:
    """Count a wait for memory in its slot: slot k holds up to 2**k ms."""
    ms = (wait_ns + 999_999) // 1_000_000
    slot, rest = 0, ms - 1
    while rest > 0:
        rest >>= 1
        slot += 1
    requests.waits[min(slot, HISTOGRAM_SLOTS - 1)] += 1
    requests.waits[HISTOGRAM_SLOTS] += ms


@kernel
def add_to_table(
    words: Array,
    at: int,
    n: int,
    first: int,
    row: int,
    pool: int,
    group: int,
    status: Array,
    misc: Ints,
    pools: Pools,
    detail: Detail,
    requests: Requests,
    nodes: Nodes,
    faults: Faults,
) -> None:
    """Units first .. first + n - 1 (first > 0), or `words[at:at + n]`, join the table; the caller made sure of
    enough nodes.
    """
    base, cap = pools.base[pool], pools.capacity[pool]
    request = requests.id[row]
    for k in range(n):
        u = first + k if first > 0 else np.int64(words[at + k])
        if u > cap or u < 1:
            note(faults, misc, np.int64(_OUT_OF_RANGE), u, np.int64(request), np.int64(-1))
            continue
        i = base + u
        if not status[i] & _REFS:
            note(faults, misc, np.int64(_ASSIGN_UNHELD), u, np.int64(request), np.int64(-1))
            continue
        if detail.owners[i] == 0:
            pools.counts[pool, UNOWNED] -= 1
        if detail.owners[i] < 65535:
            detail.owners[i] += np.uint16(1)
        detail.owner[i] = request
        node = int(misc[_NODES_FREE])
        misc[_NODES_FREE] = nodes.next[node]
        misc[_NODES_LEFT] -= 1
        nodes.unit[node] = i
        nodes.generation[node] = detail.generation[i]
        nodes.pool[node] = pool
        nodes.group[node] = min(group, pools.groups[pool] - 1)
        nodes.next[node] = requests.head[row]
        requests.head[row] = node
        requests.units[row, pool] += 1


@kernel
def drop_table(
    row: int, pool: int, status: Array, misc: Ints, pools: Pools, detail: Detail, requests: Requests, nodes: Nodes
) -> None:
    """The request names no unit of `pool` any more, or of any pool (0); units that nobody names are unowned until they
    are given back.
    """
    before, node = -1, int(requests.head[row])
    while node >= 0:
        following = int(nodes.next[node])
        if pool > 0 and nodes.pool[node] != pool:
            before = node
        else:
            i = nodes.unit[node]
            if nodes.generation[node] == detail.generation[i] and detail.owners[i] > 0:
                detail.owners[i] -= np.uint16(1)
                if detail.owners[i] == 0 and status[i] & _REFS:
                    pools.counts[nodes.pool[node], UNOWNED] += 1
            if before < 0:
                requests.head[row] = following
            else:
                nodes.next[before] = following
            nodes.next[node] = misc[_NODES_FREE]
            misc[_NODES_FREE] = node
            misc[_NODES_LEFT] += 1
        node = following
    if pool > 0:
        requests.units[row, pool] = 0
    else:
        requests.units[row, :] = 0


@kernel
def leave_table(
    unit: int,
    row: int,
    pool: int,
    status: Array,
    misc: Ints,
    pools: Pools,
    detail: Detail,
    requests: Requests,
    nodes: Nodes,
) -> None:
    """One unit leaves the table of a request that keeps the rest; nothing where the table does not name it."""
    wanted = pools.base[pool] + unit
    before, node = -1, int(requests.head[row])
    while node >= 0:
        following = int(nodes.next[node])
        if nodes.unit[node] == wanted and nodes.generation[node] == detail.generation[wanted]:
            detail.owners[wanted] -= np.uint16(1)
            if detail.owners[wanted] == 0 and status[wanted] & _REFS:
                pools.counts[pool, UNOWNED] += 1
            if before < 0:
                requests.head[row] = following
            else:
                nodes.next[before] = following
            nodes.next[node] = misc[_NODES_FREE]
            misc[_NODES_FREE] = node
            misc[_NODES_LEFT] += 1
            requests.units[row, pool] -= 1
            return
        before, node = node, following


@kernel
def recount(misc: Ints, detail: Detail, requests: Requests, nodes: Nodes) -> None:
    """Take the units that went back to their pool out of the tables that named them, so that `Requests.units` is
    exact again.
    """
    for row in range(len(requests.id)):
        if requests.id[row] == 0:
            continue
        requests.units[row, :] = 0
        before, node = -1, int(requests.head[row])
        while node >= 0:
            following = int(nodes.next[node])
            if nodes.generation[node] == detail.generation[nodes.unit[node]]:
                requests.units[row, nodes.pool[node]] += 1
                before = node
            else:
                if before < 0:
                    requests.head[row] = following
                else:
                    nodes.next[before] = following
                nodes.next[node] = misc[_NODES_FREE]
                misc[_NODES_FREE] = node
                misc[_NODES_LEFT] += 1
            node = following
    misc[_STALE] = 0


@kernel
def forget_unstated(status: Array, misc: Ints, pools: Pools, detail: Detail, requests: Requests, nodes: Nodes) -> None:
    """A sweep has closed: requests that it did not name, and that did not arrive since it began, ended in a gap."""
    for row in range(len(requests.id)):
        if requests.id[row] and requests.stated[row] < misc[_SWEEP]:
            drop_table(row, np.int64(0), status, misc, pools, detail, requests, nodes)
            forget_request(requests, misc, row)


@kernel
def units_of_group(row: Any, pool: Any, group: Any, detail: Any, requests: Any, nodes: Any) -> Any:
    """Units that a request holds in a pool for one group of layers."""
    units = 0
    node = np.int64(requests.head[row])
    while node >= 0:
        if nodes.pool[node] == pool and nodes.group[node] == group:
            units += int(nodes.generation[node] == detail.generation[nodes.unit[node]])
        node = np.int64(nodes.next[node])
    return units


@kernel
def end_of_table(row: Any, pool: Any, pools: Any, detail: Any, requests: Any, nodes: Any) -> Any:
    """Slots from the first token of a request to the end of what it holds in a pool.

    Of a sliding window only the end of the table is there. Every group of layers is given slots for the same tokens, so
    its end is that of the longest table: of another group of the pool, or of another pool that keeps every token.
    """
    longest = np.int64(0)
    if pools.groups[pool] > 1:
        for group in range(pools.groups[pool]):
            longest = max(longest, units_of_group(row, pool, np.int64(group), detail, requests, nodes))
        return longest * pools.unit_tokens[pool]
    longest = np.int64(requests.units[row, pool]) * pools.unit_tokens[pool]
    if pools.windowed[pool]:
        for other in range(1, len(pools.windowed)):
            if not pools.windowed[other] and pools.groups[other] == 1:
                longest = max(longest, np.int64(requests.units[row, other]) * pools.unit_tokens[other])
    return longest


@kernel
def slots_of_table(units: Any, end: Any, unit_tokens: Any, computed: Any) -> Any:
    """(written, tail, reserved) slots of the `units` of one request in one group of a pool, the last of which ends
    behind `end` slots of its sequence; see the vocabulary of the design.

    The unit that holds the last of the `computed` tokens has a tail; those behind it are reserved. Where there are
    fewer units than the sequence has tokens (sliding window), the oldest tokens are not in them.
    """
    slots = units * unit_tokens
    last = unit_tokens - 1
    tail = -computed & last if unit_tokens & last == 0 else -computed % unit_tokens  # a division costs ten times more
    reserved = min(max(end - computed - tail, 0), slots)
    if reserved == slots:
        return 0, 0, slots
    return slots - tail - reserved, tail, reserved
