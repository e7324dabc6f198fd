"""The memory of a fold: plain numpy arrays in NamedTuples, as the kernels take them.

Per-unit arrays hold the units of all pools one after the other; unit u of pool p is at `base[p] + u`, u from 1.
Nothing here computes: `kernels.py` changes these arrays, `stream.py` owns and grows them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.events.totals import MAX_POOLS

__all__ = [
    "ACTIVE",
    "BUDDY_ORDERS",
    "CACHED",
    "DEFERRED",
    "FREE",
    "HISTOGRAM_SLOTS",
    "MARK_SLOTS",
    "NO_SECOND",
    "PINNED",
    "SHARED",
    "STATES",
    "UNOWNED",
    "Detail",
    "Faults",
    "Misc",
    "Nodes",
    "Pools",
    "Requests",
    "Runs",
    "Tally",
]

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

STATES = ("active", "cached", "pinned", "deferred", "free")
ACTIVE, CACHED, PINNED, DEFERRED, FREE, SHARED, UNOWNED = range(7)
"""Columns of `Pools.counts`; the first five are the states of a unit and sum to the capacity."""
_COUNTS = 7
HISTOGRAM_SLOTS = 48
MARK_SLOTS = 64
NO_SECOND = -1
"""Where `Pools.marks` holds nothing yet; a simulated clock begins with second 0."""
BUDDY_ORDERS = 32


class Tally:
    """Columns of `Pools.tally`: cumulative numbers that only a fold knows, units unless said otherwise."""

    ALLOCATED = 0
    RELEASED = 1  # the last reference went
    EVICTED = 2  # content forgotten to make room, one unit at a time
    FORGOTTEN = 3  # content forgotten by a reset of the whole cache
    REVIVED = 4  # cached units referenced again
    INSERTED = 5
    AUDIT_DIFFERENCES = 6
    WIDTH = 8


class Misc:
    """Slots of the scalar array of a fold."""

    AT = 0  # next word
    FRAME_AT = 1  # index in the table of frames
    POOL = 2
    TIME = 3  # ns, end of the frame being folded
    CONVERGED = 4
    NAMES_OWNERS = 5  # the engine has named owners: an active unit without one is a fault at the end of a step
    STEPS = 6
    STEP_START = 7
    STEP_NS = 8
    RUNNING = 9
    WAITING = 10
    HEAD_NEED = 11  # units, 0 = nobody waits for memory
    PREFILL = 12
    DECODE = 13
    CONTEXT = 14
    LAST_STEP_TIME = 15
    POOLS = 16  # number of attached pools
    FAULTS = 17  # found in all; the first ones are kept
    NODES_FREE = 18  # head of the list of free nodes
    NODES_LEFT = 19
    SLOTS_LEFT = 20  # free rows of the table of requests
    SLOT_FREE = 21
    FRAME = 22  # number of the frame being folded
    FRAME_START = 23  # its first word
    VERIFY = 24  # keep looking for unowned units and tokens beyond units at every step
    LAST_UNOWNED = 25
    FAILURES = 26  # refused allocations so far
    LAST_FAILURE = 27  # word of the last one in this batch, 0 = none
    STALE_TABLES = 28  # a unit left the block tables that name it: `Requests.units` must be counted anew
    SWEEP = 29  # sweeps of the audit that were seen to begin
    STRANGE_POOL = 30  # a record was about a pool that is not known: a sweep that holds one proves nothing
    DOUBLES = 31  # units that were given back twice, or handed out while somebody had them
    WIDTH = 32


class Pools(NamedTuple):
    """Per pool, by number (row 0 unused)."""

    base: Ints
    capacity: Ints
    unit_tokens: Ints
    runs: Array  # uint8: free runs are tracked
    windowed: Array  # uint8: a sequence may hold fewer units than it has tokens
    groups: Ints  # groups of layers that draw from it, each with units of its own for a token
    counts: Ints  # [pool, state]
    tally: Ints  # [pool, Tally]
    histogram: (
        Ints  # [pool, which, slot]: lifetimes, idle before eviction, reuse gaps, in powers of two of a millisecond
    )
    histogram_sum: Ints  # [pool, which], ms
    marks: Ints  # [pool, slot, (second, most used, least free, least largest free block)]
    last_failure: Ints  # [pool, (time ns, request, need, contiguity, free, evictable, largest, reason, outcome)]

    @staticmethod
    def make() -> Pools:
        """Of nothing attached."""
        rows = MAX_POOLS + 1
        marks = np.zeros((rows, MARK_SLOTS, 4), np.int64)
        marks[:, :, 0] = NO_SECOND
        return Pools(
            base=np.zeros(rows, np.int64),
            capacity=np.zeros(rows, np.int64),
            unit_tokens=np.ones(rows, np.int64),
            runs=np.zeros(rows, np.uint8),
            windowed=np.zeros(rows, np.uint8),
            groups=np.ones(rows, np.int64),
            counts=np.zeros((rows, _COUNTS), np.int64),
            tally=np.zeros((rows, Tally.WIDTH), np.int64),
            histogram=np.zeros((rows, 3, HISTOGRAM_SLOTS), np.int64),
            histogram_sum=np.zeros((rows, 3), np.int64),
            marks=marks,
            last_failure=np.zeros((rows, 9), np.int64),
        )


class Detail(NamedTuple):
    """Per unit: when its state last changed, who names it."""

    since: Array  # uint32 ms, modulo 2**32
    generation: Array  # uint32, one more each time its last reference goes
    owners: Array  # uint16, how many block tables name it
    owner: Array  # uint32, the request that named it last

    @staticmethod
    def make(units: int) -> Detail:
        """For `units` entries, zeroed."""
        return Detail(
            np.zeros(units, np.uint32),
            np.zeros(units, np.uint32),
            np.zeros(units, np.uint16),
            np.zeros(units, np.uint32),
        )


class Runs(NamedTuple):
    """Free runs of the pools that need contiguity: their length at both ends, how many there are of each length; of
    buddy pools also how many hold which largest buddy block.
    """

    length: Array  # int32 per unit: at the first and the last unit of a free run its length
    of_length: Array  # int32, at base[pool] + length
    longest: Ints  # [pool]
    count: Ints  # type: ignore[assignment]  # [pool]; a field hides tuple.count
    buddy: Array  # uint8 [pool]: blocks are powers of two at multiples of their size
    of_order: Ints  # [pool, k]: runs whose largest such block has 2**k units

    @staticmethod
    def make(units: int) -> Runs:
        """For `units` entries, no run."""
        rows = MAX_POOLS + 1
        return Runs(
            np.zeros(units, np.int32),
            np.zeros(units, np.int32),
            np.zeros(rows, np.int64),
            np.zeros(rows, np.int64),
            np.zeros(rows, np.uint8),
            np.zeros((rows, BUDDY_ORDERS), np.int64),
        )


class Requests(NamedTuple):
    """Live requests: an open-addressed map from id to row, and the rows."""

    keys: Array  # uint32, 0 = empty; twice as many as rows
    slots: Array  # int32
    next_free: Array  # int32, list of free rows
    id: Array  # uint32, 0 = free row
    state: Array  # uint8, RequestState
    class_id: Array  # int32
    arrived: Ints  # ns
    admitted: Ints  # ns, 0 = never
    first_token: Ints  # ns, 0 = not yet
    starved: Ints  # ns since when it waits for memory, 0 = it does not
    prompt: Ints
    limit: Ints  # tokens to generate at most, -1 = not said
    computed: Ints  # tokens written at the last word about it
    decoding: Ints  # steps folded when it began to add one token a step, -1 = it does not
    reserved: Ints  # slots set aside in all, 0 = not said
    preemptions: Ints
    head: Array  # int32, first node of its table
    units: Array  # int32 [row, pool]
    stated: Ints  # `Misc.SWEEP` when it arrived or was last restated
    waits: Ints  # histogram of waits for memory, powers of two of a millisecond; last slot = sum in ms

    @staticmethod
    def make(rows: int) -> Requests:
        """Of no request, with room for `rows`."""

        def column() -> Ints:
            return np.zeros(rows, np.int64)

        return Requests(
            keys=np.zeros(2 * rows, np.uint32),
            slots=np.zeros(2 * rows, np.int32),
            next_free=np.arange(1, rows + 1, dtype=np.int32),
            id=np.zeros(rows, np.uint32),
            state=np.zeros(rows, np.uint8),
            class_id=np.zeros(rows, np.int32),
            arrived=column(),
            admitted=column(),
            first_token=column(),
            starved=column(),
            prompt=column(),
            limit=column(),
            computed=column(),
            decoding=column(),
            reserved=column(),
            preemptions=column(),
            head=np.full(rows, -1, np.int32),
            units=np.zeros((rows, MAX_POOLS + 1), np.int32),
            stated=column(),
            waits=np.zeros(HISTOGRAM_SLOTS + 1, np.int64),
        )


class Nodes(NamedTuple):
    """Entries of block tables, in lists by request. An entry counts while the unit has the generation it was named
    at.
    """

    unit: Ints  # index into the per-unit arrays
    generation: Array  # uint32
    pool: Array  # uint8
    group: Array  # uint8, which group of layers of its pool
    next: Array  # int32

    @staticmethod
    def make(size: int) -> Nodes:
        """`size` free nodes."""
        return Nodes(
            np.zeros(size, np.int64),
            np.zeros(size, np.uint32),
            np.zeros(size, np.uint8),
            np.zeros(size, np.uint8),
            np.arange(1, size + 1, dtype=np.int32),
        )


class Faults(NamedTuple):
    """The first faults found: kind, frame, word, time, pool, unit, request, value (-1 = not said)."""

    rows: Ints

    @staticmethod
    def make(size: int) -> Faults:
        """Room for `size` faults."""
        return Faults(np.zeros((size, 8), np.int64))
