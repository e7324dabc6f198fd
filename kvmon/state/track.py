"""What a timeline keeps while a stream is folded: the open bucket of time, and everything about those before it.

Arrays alone; `track_kernels.py` fills them while the fold reads, `curves.py` owns them. Memory follows from the number
of buckets, cells and pools, never from the length of the stream.

Invariant: in `value`, and in what has been written of a bucket, NaN is what is not known.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kvmon.events.totals import MAX_POOLS
from kvmon.state.arrays import Array, Ints

__all__ = ["CELL_STATES", "MARKS_A_BUCKET", "UNKNOWN_CELL", "C", "M", "N", "P", "S", "Track"]

MARKS_A_BUCKET = 4
"""Events of one kind that a bucket marks; the rest is counted."""
CELL_STATES = ("free", "active", "reserved", "cached", "pinned", "deferred")
"""What a unit is on a map, by number; reserved is active and nothing is written in it."""
UNKNOWN_CELL = 255


class N:
    """Slots of `Track.now`."""

    BUCKET = 0  # the open one
    END = 1  # ns, its edge
    UPTO = 2  # ns, the time that `area` covers
    BEFORE = 3  # ns, time of the frame before the one being folded
    CREDIT = 4  # visits to units and nodes that may be spent on a look at the whole pool
    DIRTY = 5  # something has changed since the last look
    LOST = 6  # requests that were refused or aborted in this frame
    PAIN = 7  # of the worst frame so far: how many waited for memory, with the lost ones; -1 = none yet
    WORST = 8  # ns, when it ended
    MARKS = 9  # rows of `marks` that are used
    PREEMPTED, RESETS = 10, 11  # marked in the open bucket
    REFUSED = 12  # a bit for each pool of which this column of the map shows a refused allocation
    FROM = 13  # ns, what the first bucket is about: the first frame where nothing was before it, else its edge
    ROWS = 14  # requests in `rows`
    WIDTH = 16


class P:
    """Columns of the curves of a pool; units, slots, ratios. The first five are the states, as in `arrays.STATES`."""

    ACTIVE, CACHED, PINNED, DEFERRED, FREE = range(5)
    AVAILABLE, LARGEST, RUNS, EXTERNAL = range(5, 9)  # the last of those that are exact after each record
    AFTER, UNOWNED, WRITTEN, TAIL, RESERVED, UTILIZATION, LOST = range(9, 16)
    CAPACITY, RESIDUAL, DRIFT = range(16, 19)


class S:
    """Columns of the curves of the stream (row 0)."""

    RUNNING, WAITING, NEED = range(3)  # as the last step said
    PREEMPTED, STARVED = range(3, 5)  # live requests that lost their memory; that wait for memory
    KNOWN, SEEN = range(5, 7)  # 1 while the past is known; while frames follow each other
    STEP = 7  # ns; `area` and `span` are of its steps: their sum and number


class C:
    """Counts of a bucket: of the stream (row 0), then of a pool."""

    STEPS, PREFILL, DECODE, ARRIVED, FINISHED, PREEMPTIONS, RECOMPUTED, LOOKUP, HIT, ERRORS = range(10)
    ALLOCATED, RELEASED, EVICTED = range(3)
    WIDTH = 10


class M:
    """Columns of the marks, and their kinds."""

    KIND, TIME, FRAME, POOL, REQUEST, VALUE = range(6)
    PREEMPTED, RESET = 0, 1


_COLUMNS = P.DRIFT + 1
_ROWS = MAX_POOLS + 1


class Track(NamedTuple):
    """See `N`, `P`, `S`, `C` and `M`; row 0 of what has a row a pool is the stream's."""

    now: Ints
    edges: Ints  # [bucket + 1] ns
    worst_share: Array  # float64 [1]: of the worst frame, the largest share of a pool that was in use
    value: Array  # float64 [pool, column]: what holds
    least: Array  # float64 [pool, column]: of the open bucket; inf = nothing known yet
    most: Array
    area: Array  # float64 [pool, column]: value * ns while it was known, and those ns
    span: Array
    counts: Ints  # [pool, C] of the open bucket
    tally: Ints  # [pool, (allocated, released, evicted)] when it began
    curves: Array  # float64 [pool, bucket, column, (least, most, last, mean)]
    sums: Ints  # [pool, bucket, C]
    known: Array  # float64 [pool, bucket]: the share of it that is known; of row 0 the stream's
    seen: Array  # float64 [bucket]: the share of it in which frames follow each other
    cells: Array  # uint8 [pool, column, cell, (state, used in 255ths)]
    taken: Ints  # [pool, column, (ns, 1 = at a refused allocation, capacity)], ns 0 = not yet
    rows: Ints  # rows of the requests that may hold memory, or may have lost it, in no order
    listed: Array  # uint8 [row]: it is there
    fresh: Array  # float64 [column],
    slots: Ints  # [pool, (tail, reserved)], and
    scratch: Ints  # [cell, state]: room to sum in
    marks: Ints  # [row, M]

    @staticmethod
    def make(edges: Ints, columns: int, cells: int, requests: int = 1) -> Track:
        """Nothing known yet; `edges` increase, 1 <= columns <= buckets; there are `requests` rows of requests."""
        buckets = len(edges) - 1

        def rows(fill: float) -> Array:
            return np.full((_ROWS, _COLUMNS), fill)

        now = np.zeros(N.WIDTH, np.int64)
        now[[N.END, N.UPTO, N.BEFORE, N.FROM, N.PAIN]] = edges[1], edges[0], edges[0], edges[0], -1
        return Track(
            now=now,
            edges=np.ascontiguousarray(edges, np.int64),
            worst_share=np.zeros(1),
            value=rows(np.nan),
            least=rows(np.inf),
            most=rows(-np.inf),
            area=rows(0.0),
            span=rows(0.0),
            counts=np.zeros((_ROWS, C.WIDTH), np.int64),
            tally=np.zeros((_ROWS, 3), np.int64),
            curves=np.full((_ROWS, buckets, _COLUMNS, 4), np.nan),
            sums=np.zeros((_ROWS, buckets, C.WIDTH), np.int64),
            known=np.zeros((_ROWS, buckets)),
            seen=np.zeros(buckets),
            cells=np.zeros((_ROWS, columns, cells, 2), np.uint8),
            taken=np.zeros((_ROWS, columns, 3), np.int64),
            rows=np.zeros(requests, np.int64),
            listed=np.zeros(requests, np.uint8),
            fresh=np.zeros(_COLUMNS),
            slots=np.zeros((_ROWS, 2), np.int64),
            scratch=np.zeros((cells, len(CELL_STATES)), np.int64),
            marks=np.zeros((2 * MARKS_A_BUCKET * buckets, 6), np.int64),
        )

    def grown(self) -> Track:
        """With twice the rows of requests."""
        more = np.zeros_like(self.rows), np.zeros_like(self.listed)
        return self._replace(rows=np.concatenate([self.rows, more[0]]), listed=np.concatenate([self.listed, more[1]]))
