"""Kernels of the contiguous pool: a list of free runs sorted by address, three placements, coalescing.

    starts, lengths  int64 (room for runs)    free runs in ascending order, never empty
    tally            int64 (5)                capacity, runs in use, free units, largest run (0 = not known), placement

Units count from 1. A sorted list beats a tree below a few hundred runs, and there is at most one run more than blocks.

First fit and best fit keep maximal runs: two of them are never adjacent. A buddy pool (Knuth TAOCP 1, 2.5) keeps free
blocks instead: 2^k units at an offset (unit - 1) that is a multiple of 2^k. The buddy of a block is at offset xor 2^k,
and two buddies never stand in the list together, they have merged. A capacity that is no power of two starts as its
binary digits, the largest first (12 = 8 + 4), and nothing merges beyond that, because the missing buddy is outside.

Invariant: entries are disjoint and inside 1..capacity, and the longest one is the largest block that could be granted.
`find_run`, `granted_units`, `grows_in_place`, `largest_block` and `run_at` ask and change nothing; `take_block`,
`give_block` and `gather_free` act. `first_fit`, `take_run` and `give_run` are those of a pool that is known to be first
fit. "None" is the index one past the last run. The caller keeps room, see `room_for_blocks`. They write no journal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.jit import inner, kernel

__all__ = [
    "BEST_FIT",
    "BUDDY",
    "FIRST_FIT",
    "RunPool",
    "best_fit",
    "find_run",
    "first_fit",
    "gather_free",
    "give_block",
    "give_run",
    "granted_units",
    "grows_in_place",
    "largest_block",
    "largest_run",
    "new_run_pool",
    "room_for_blocks",
    "run_at",
    "take_block",
    "take_run",
]

# Placements, in the order of `config.PLACEMENTS`.
FIRST_FIT = 0
BEST_FIT = 1
BUDDY = 2

# Columns of RunPool.tally.
CAPACITY = 0
RUNS = 1
FREE = 2
LARGEST = 3
POLICY = 4


class RunPool(NamedTuple):
    """Arrays of one pool; see the module for shapes."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    tally: npt.NDArray[np.int64]


def room_for_blocks(capacity_units: int, most_blocks: int, policy: int = FIRST_FIT) -> int:
    """Entries that a list of free runs needs while at most `most_blocks` blocks are held, both of a relocation counted.

    Maximal runs lie between blocks: one more than there are blocks. Free buddies are whole trees of the first
    decomposition, or the siblings along the way from a tree's root down to a held block: a tree for each binary digit
    of the capacity, and as many siblings a block as the highest tree has levels. Never more than there are units.
    """
    if policy != BUDDY:
        return most_blocks + 2
    siblings = most_blocks * (capacity_units.bit_length() - 1)
    return min(capacity_units, capacity_units.bit_count() + siblings) + 2


def new_run_pool(capacity_units: int, most_blocks: int, policy: int = FIRST_FIT) -> RunPool:
    """`capacity_units` free units under placement `policy`, with room for `most_blocks` held blocks."""
    room = room_for_blocks(capacity_units, most_blocks, policy)
    starts = np.zeros(room, np.int64)
    lengths = np.zeros(room, np.int64)
    pieces = [capacity_units]
    if policy == BUDDY:
        pieces = [1 << k for k in reversed(range(capacity_units.bit_length())) if capacity_units >> k & 1]
    for at, units in enumerate(pieces):
        starts[at] = 1 + sum(pieces[:at])
        lengths[at] = units
    tally = np.array([capacity_units, len(pieces), capacity_units, pieces[0], policy], np.int64)
    return RunPool(starts, lengths, tally)


@kernel
def granted_units(pool: RunPool, n: int) -> int:
    """Units that a request for `n` gets: `n`, in a buddy pool the next power of two, even if no block has that."""
    if pool.tally[POLICY] != BUDDY:
        return n
    units = 1
    while units < n:
        units *= 2
    return units


@kernel
def find_run(pool: RunPool, n: int) -> int:
    """Index of the run from which a block for `n` units would be taken; the number of runs when there is none."""
    if pool.tally[POLICY] == FIRST_FIT:
        return first_fit(pool, n)
    return best_fit(pool, granted_units(pool, n))


@kernel
def first_fit(pool: RunPool, n: int) -> int:
    """Index of the lowest run of at least `n` units; the number of runs when there is none."""
    lengths = pool.lengths
    runs = pool.tally[RUNS]
    at = 0
    while at < runs and lengths[at] < n:
        at += 1
    return at


@kernel
def best_fit(pool: RunPool, n: int) -> int:
    """Index of the shortest run of at least `n` units, the lowest of equals; the number of runs when there is none."""
    lengths = pool.lengths
    runs = pool.tally[RUNS]
    none = pool.tally[CAPACITY] + 1
    least = none
    for i in range(runs):  # without a way out, so that it compiles to vector instructions
        length = lengths[i]
        least = min(least, length if length >= n else none)
    if least == none:
        return int(runs)
    at = 0
    while lengths[at] != least:
        at += 1
    return at


@inner
def _position(pool: RunPool, start: int) -> int:
    """Index of the first run that begins at `start` or after it."""
    starts = pool.starts
    low = np.int64(0)
    high = pool.tally[RUNS]
    while low < high:
        middle = (low + high) >> 1
        if starts[middle] < start:
            low = middle + 1
        else:
            high = middle
    return int(low)


@kernel
def run_at(pool: RunPool, start: int) -> int:
    """Index of the run that begins exactly at `start`; the number of runs when there is none."""
    at = _position(pool, start)
    runs = pool.tally[RUNS]
    if at < runs and pool.starts[at] == start:
        return at
    return int(runs)


@kernel
def grows_in_place(pool: RunPool, start: int, units: int, more: int) -> int:
    """Index of the run whose first `more` units continue the block `start` + `units`; the number of runs when there is
    none.

    Never in a buddy pool: a block has its size and its place there.
    """
    runs = pool.tally[RUNS]
    if pool.tally[POLICY] != BUDDY:
        at = run_at(pool, start + units)
        if at < runs and pool.lengths[at] >= more:
            return at
    return int(runs)


@kernel
def largest_block(pool: RunPool) -> int:
    """G: the largest block that could be granted now, whatever the placement; the longest entry of the list."""
    return largest_run(pool)


@kernel
def largest_run(pool: RunPool) -> int:
    """Units of the longest run, 0 when nothing is free. Remembered until the runs change."""
    tally = pool.tally
    if tally[LARGEST] == 0:
        lengths = pool.lengths
        most = np.int64(0)
        for i in range(tally[RUNS]):
            most = max(most, lengths[i])
        tally[LARGEST] = most
    return int(tally[LARGEST])


@kernel
def take_run(pool: RunPool, at: int, n: int) -> int:
    """Take the first `n` units of run `at`, which must be that long; returns their first unit."""
    starts = pool.starts
    lengths = pool.lengths
    tally = pool.tally
    start = starts[at]
    if lengths[at] == tally[LARGEST]:
        tally[LARGEST] = 0
    if lengths[at] == n:
        last = tally[RUNS] - 1
        for i in range(at, last):
            starts[i] = starts[i + 1]
            lengths[i] = lengths[i + 1]
        tally[RUNS] = last
    else:
        starts[at] = start + n
        lengths[at] -= n
    tally[FREE] -= n
    return int(start)


@kernel
def give_run(pool: RunPool, start: int, n: int) -> None:
    """Give back `n` units from `start`, which must all be taken; merges with free neighbours."""
    starts = pool.starts
    lengths = pool.lengths
    tally = pool.tally
    runs = tally[RUNS]
    at = _position(pool, start)
    joins_left = at > 0 and starts[at - 1] + lengths[at - 1] == start
    joins_right = at < runs and start + n == starts[at]
    if joins_left and joins_right:
        lengths[at - 1] += n + lengths[at]
        for i in range(at, runs - 1):
            starts[i] = starts[i + 1]
            lengths[i] = lengths[i + 1]
        tally[RUNS] = runs - 1
        grown = lengths[at - 1]
    elif joins_left:
        lengths[at - 1] += n
        grown = lengths[at - 1]
    elif joins_right:
        starts[at] = start
        lengths[at] += n
        grown = lengths[at]
    else:
        for i in range(runs, at, -1):
            starts[i] = starts[i - 1]
            lengths[i] = lengths[i - 1]
        starts[at] = start
        lengths[at] = n
        tally[RUNS] = runs + 1
        grown = lengths[at]
    tally[FREE] += n
    if tally[LARGEST] != 0 and grown > tally[LARGEST]:
        tally[LARGEST] = grown


@kernel
def take_block(pool: RunPool, at: int, n: int) -> int:
    """Take `granted_units(pool, n)` from the front of entry `at`, which must be that long; returns their first unit."""
    if pool.tally[POLICY] == BUDDY:
        return _take_buddy(pool, at, granted_units(pool, n))
    return take_run(pool, at, n)


@kernel
def give_block(pool: RunPool, start: int, n: int) -> None:
    """Give back the `n` units that were granted from `start`; merges with what is free beside them."""
    if pool.tally[POLICY] == BUDDY:
        _give_buddy(pool, start, n)
    else:
        give_run(pool, start, n)


@kernel
def gather_free(pool: RunPool) -> None:
    """One free run behind all blocks, because the caller has slid them together; not for a buddy pool."""
    tally = pool.tally
    free = tally[FREE]
    pool.starts[0] = tally[CAPACITY] - free + 1
    pool.lengths[0] = free
    tally[RUNS] = 1 if free else 0
    tally[LARGEST] = free


@inner
def _take_buddy(pool: RunPool, at: int, units: int) -> int:
    """Halve entry `at` until its lowest part has `units`; the other halves take its place in the list."""
    starts = pool.starts
    lengths = pool.lengths
    tally = pool.tally
    start = starts[at]
    length = lengths[at]
    if length == tally[LARGEST]:
        tally[LARGEST] = 0
    halves = 0
    while units << halves < length:
        halves += 1
    _move_entries(pool, at + 1, halves - 1)
    for i in range(halves):
        starts[at + i] = start + (units << i)
        lengths[at + i] = units << i
    tally[FREE] -= units
    return int(start)


@inner
def _give_buddy(pool: RunPool, start: int, units: int) -> None:
    """Merge with the buddy for as long as it is free, then put the result into the list."""
    starts = pool.starts
    lengths = pool.lengths
    tally = pool.tally
    runs = tally[RUNS]
    low = high = _position(pool, start)  # entries low..high - 1 become one
    offset = start - 1
    size = units
    while True:
        buddy = offset ^ size
        if buddy < offset and low > 0 and starts[low - 1] == buddy + 1 and lengths[low - 1] == size:
            low -= 1
            offset = buddy
        elif buddy > offset and high < runs and starts[high] == buddy + 1 and lengths[high] == size:
            high += 1
        else:
            break
        size *= 2
    _move_entries(pool, high, low + 1 - high)
    starts[low] = offset + 1
    lengths[low] = size
    tally[FREE] += units
    if tally[LARGEST] != 0 and size > tally[LARGEST]:
        tally[LARGEST] = size


@inner
def _move_entries(pool: RunPool, first: int, by: int) -> None:
    """Move the entries from `first` on by so many places, and count them."""
    starts = pool.starts
    lengths = pool.lengths
    runs = pool.tally[RUNS]
    if by > 0:
        for i in range(runs - 1, first - 1, -1):
            starts[i + by] = starts[i]
            lengths[i + by] = lengths[i]
    elif by < 0:
        for i in range(first, runs):
            starts[i + by] = starts[i]
            lengths[i + by] = lengths[i]
    pool.tally[RUNS] = runs + by
