"""Kernels that keep the runs of free units of a pool that needs contiguity: boundary tags, and a count of every length.

A run is known by its length at both ends. Invariant: `longest` is the longest run after every call, and for a buddy
pool `of_order` counts every run by the largest buddy block in it. They change nothing but the runs; whoever changes a
unit's status calls them first.
"""

from __future__ import annotations

import numpy as np

from kvmon.jit import inlined, kernel
from kvmon.state.arrays import ACTIVE, BUDDY_ORDERS, CACHED, DEFERRED, FREE, PINNED, Array, Runs

__all__ = [
    "CACHED_FLAG",
    "DEFERRED_FLAG",
    "PINNED_FLAG",
    "REFERENCES",
    "add_run",
    "buddy_order",
    "give_free",
    "largest_grantable",
    "state_of",
    "take_free",
]

REFERENCES, CACHED_FLAG, PINNED_FLAG, DEFERRED_FLAG = (1 << 24) - 1, 1 << 24, 1 << 25, 1 << 26
"""Parts of a status word, as `events.wire` draws it."""


@inlined
def state_of(status: int) -> int:
    """Which of the five states a status word means."""
    if status & REFERENCES:
        return ACTIVE
    if status & DEFERRED_FLAG:
        return DEFERRED
    if status & CACHED_FLAG:
        return PINNED if status & PINNED_FLAG else CACHED
    return FREE


@kernel
def buddy_order(offset: int, length: int) -> int:
    """Order of the largest block of 2**k units at a multiple of 2**k in the run of `length` units from `offset` on."""
    order = 0
    while length >> order > 1:
        order += 1
    size = 1 << order
    if (offset + size - 1) // size * size + size > offset + length:
        order = max(order - 1, 0)  # half of it always has a place
    return order


@kernel
def largest_grantable(runs: Runs, pool: int) -> int:
    """G of a pool whose runs are kept: its longest run, or the largest buddy block in any of them."""
    if not runs.buddy[pool]:
        return int(runs.longest[pool])
    for order in range(BUDDY_ORDERS - 1, -1, -1):
        if runs.of_order[pool, order]:
            return 1 << order
    return 0


@kernel
def add_run(runs: Runs, pool: int, base: int, start: int, length: int) -> None:
    """A run that touches no other."""
    runs.length[base + start] = length
    runs.length[base + start + length - 1] = length
    runs.of_length[base + length] += 1
    runs.count[pool] += 1
    if runs.buddy[pool]:
        runs.of_order[pool, buddy_order(start - 1, length)] += 1
    if length > runs.longest[pool]:
        runs.longest[pool] = length


@kernel
def _drop_run(runs: Runs, pool: int, base: int, start: int, length: int) -> None:
    _uncount(runs, pool, base, start, length)
    while runs.longest[pool] > 0 and runs.of_length[base + runs.longest[pool]] == 0:
        runs.longest[pool] -= 1


@kernel
def _uncount(runs: Runs, pool: int, base: int, start: int, length: int) -> None:
    runs.of_length[base + length] -= 1
    runs.count[pool] -= 1
    if runs.buddy[pool]:
        runs.of_order[pool, buddy_order(start - 1, length)] -= 1


@kernel
def take_free(runs: Runs, status: Array, pool: int, base: int, cap: int, start: int, n: int) -> None:
    """Units start .. start + n - 1 leave the free runs; called before their status changes, all of them free."""
    head, end = start, start + n
    # from both sides at once: blocks are mostly cut off one end of a run, and only the ends know its length
    while True:
        if head == 1 or state_of(np.int64(status[base + head - 1])) != FREE:
            length = np.int64(runs.length[base + head])
            break
        if end > cap or state_of(np.int64(status[base + end])) != FREE:
            length = np.int64(runs.length[base + end - 1])
            head = end - length
            break
        head -= 1
        end += 1
    # the longest run is looked for once, after what remains of this one is back
    _uncount(runs, pool, base, head, length)
    if start > head:
        add_run(runs, pool, base, head, start - head)
    rest = head + length - (start + n)
    if rest > 0:
        add_run(runs, pool, base, start + n, rest)
    while runs.longest[pool] > 0 and runs.of_length[base + runs.longest[pool]] == 0:
        runs.longest[pool] -= 1


@kernel
def give_free(runs: Runs, status: Array, pool: int, base: int, cap: int, start: int, n: int) -> None:
    """Units start .. start + n - 1 join the free runs; called while their status is not yet free."""
    length = n
    if start > 1 and state_of(np.int64(status[base + start - 1])) == FREE:
        left = np.int64(runs.length[base + start - 1])
        start -= left
        _drop_run(runs, pool, base, start, left)
        length += left
    if start + length <= cap and state_of(np.int64(status[base + start + length])) == FREE:
        right = np.int64(runs.length[base + start + length])
        _drop_run(runs, pool, base, start + length, right)
        length += right
    add_run(runs, pool, base, start, length)
