"""Kernels of the contiguous pool: a list of free runs sorted by address, first fit, coalescing.

    starts, lengths  int64 (room for runs)    free runs in ascending order, never adjacent, never empty
    tally            int64 (4)                capacity, runs in use, free units, largest run (0 = not known)

Units count from 1. A sorted list beats a tree below a few hundred runs, and there is at most one run more than blocks.

Invariant: runs are disjoint, inside 1..capacity, and two of them are never adjacent, so the longest run is the largest
block that could be granted. `first_fit` and `run_at` ask and change nothing; `take_run` and `give_run` act. "None" is
the index one past the last run. The caller keeps room for one run more than there are live blocks. They write no
journal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.jit import kernel

__all__ = ["RunPool", "first_fit", "give_run", "largest_run", "new_run_pool", "run_at", "take_run"]

# Columns of RunPool.tally.
CAPACITY = 0
RUNS = 1
FREE = 2
LARGEST = 3


class RunPool(NamedTuple):
    """Arrays of one pool; see the module for shapes."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    tally: npt.NDArray[np.int64]


def new_run_pool(capacity_units: int, most_blocks: int) -> RunPool:
    """One free run of `capacity_units` units, with room for `most_blocks` live blocks."""
    starts = np.zeros(most_blocks + 2, np.int64)
    lengths = np.zeros(most_blocks + 2, np.int64)
    starts[0] = 1
    lengths[0] = capacity_units
    return RunPool(starts, lengths, np.array([capacity_units, 1, capacity_units, capacity_units], np.int64))


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
