"""What a diagnosis has to know of the past, in two short logs: refused allocations with the state around them, and a
row a pool for each window of event time.

A log holds facts, never a judgement: thresholds and verdicts are `kvmon.diagnosis`. Whoever asked for them takes the
rows out when the fold says that a log is full; nobody asked: they are dropped. Windows end at multiples of WINDOW_NS of
the engine's clock, so that they are the same wherever reading began and however the words were cut.

    refusals   a row a refused allocation (R.REFUSED), and one where the wait that it began is over (R.ENDED)
    windows    a row a pool and window (W): what happened in it, what was at its end

Invariant: both follow from the frames alone. A window in which something was lost says so in W.KNOWN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kvmon.events.totals import MAX_POOLS
from kvmon.state.arrays import Array, Ints, Tally
from kvmon.state.device import DeviceSample

__all__ = [
    "BEGUN",
    "NAMING",
    "OPEN_END",
    "REFUSALS",
    "SEEN_BITS",
    "SEQ",
    "STARVED",
    "WINDOWS",
    "WINDOW_NS",
    "R",
    "W",
    "Watch",
    "note_error",
]

WINDOW_NS = 5_000_000_000
"""Length of a window: short against the minute in which an operator wants to know, long against a step."""
_LOG_ROWS = 256
_MOST_BYTES = 1 << 61  # damaged words can say more than a row holds
SEEN_BITS = 15
"""Names of pages that are remembered, in bits."""

REFUSALS, WINDOWS, OPEN_END, SEQ, BEGUN, STARVED, NAMING = range(7)
"""Of `Watch.used`: rows in either log, when the open window ends (ns), refusals so far, when it began (ns), about how
many requests wait for memory (0 = none does), and a bit for each pool of which an engine has named owners."""


class R:
    """Columns of the log of refusals; units, tokens, ns of the engine's clock, -1 = not known."""

    TIME, KIND, FRAME, WORD, SEQ, POOL, REQUEST, CLASS = range(8)
    NEED, CONTIGUITY, FREE, EVICTABLE, LARGEST, REASON, OUTCOME = range(8, 15)
    CAPACITY, UNIT_TOKENS, ACTIVE, PINNED, DEFERRED, UNOWNED, TAIL, RESERVED = range(15, 23)
    KNOWN, RUNNING, WAITING, MID_STREAM, SINCE = range(23, 28)
    WIDTH = 28
    REFUSED, ENDED = 0, 1  # of KIND; an ended wait has TIME, SEQ and SINCE


class W:
    """Columns of the log of windows."""

    END, POOL, KNOWN, FRAME = range(4)
    # of the stream, within the window
    STEPS, PROGRESS, STUCK_NS, PREFILL, FINISHED = range(4, 9)
    PREEMPTED, LOST, LOOKUP, HIT, FORGOTTEN, ERRORS, GAPS = range(9, 16)
    # of the stream, at its end
    RUNNING, WAITING = range(16, 18)
    # of the pool, at its end
    CAPACITY, UNIT_TOKENS, ACTIVE, CACHED, PINNED, DEFERRED, FREE, UNOWNED, STARVED, FITTING = range(18, 28)
    # of the pool, within the window
    EVICTED, LEAST_DEFERRED, LEAST_UNOWNED, DOUBLES = range(28, 32)
    CLAIMS, LEAST_RESIDUAL, MOST_RESIDUAL, LEAST_DRIFT, LEAST_GAUGE = range(32, 37)
    BEGIN = 37  # ns, not in the window any more; of the first one just before the first frame
    # of the stream: the error within the window that asked for the most, in bytes, 0 = not known; then the sample of
    # the device before it: how old it was (ns), and its bytes (TOTAL, RESERVED 0 and LARGEST -1 = not known)
    ASKED, ERROR_FREE, ERROR_RESERVED, SAMPLE_NS = range(38, 42)
    DEVICE_TOTAL, DEVICE_FREE, TORCH_RESERVED, TORCH_ALLOCATED, TORCH_LARGEST = range(42, 47)
    WIDTH = 47
    STREAM = (STEPS, GAPS + 1)  # columns that are counted for the stream and stand in every pool's row,
    ERROR = (ASKED, WIDTH)  # and those too


class Watch(NamedTuple):
    """The logs and what they are made from; see `R` and `W`."""

    refusals: Ints
    windows: Ints
    used: Ints  # see REFUSALS and the names beside it
    open: Ints  # [pool, W]: the open window; row 0 counts for the stream
    before: Ints  # [pool, Tally] at its begin
    seen: Array  # uint64: names of pages that were asked for before, by their low bits
    of_row: Ints  # [row, (request, sequence of its refusal, tokens of its prompt that were asked for before)]

    @staticmethod
    def make(rows: int) -> Watch:
        """Empty, for `rows` requests."""
        return Watch(
            refusals=np.zeros((_LOG_ROWS, R.WIDTH), np.int64),
            windows=np.zeros((_LOG_ROWS, W.WIDTH), np.int64),
            used=np.zeros(8, np.int64),
            open=np.zeros((MAX_POOLS + 1, W.WIDTH), np.int64),
            before=np.zeros((MAX_POOLS + 1, Tally.WIDTH), np.int64),
            seen=np.zeros(1 << SEEN_BITS, np.uint64),
            of_row=np.zeros((rows, 3), np.int64),
        )


def note_error(watch: Watch, error: Mapping[str, int], samples: Sequence[DeviceSample], now_ns: int) -> None:
    """An error of another allocator (fields of an ENGINE_ERROR), with what was known of the device that had least free.

    An error does not say its device. Of several errors in a window the one that asked for the most is kept.
    """
    now = watch.open[0]
    now[W.ERRORS] += 1
    known = [sample for sample in samples if sample.total]
    if now[W.ERRORS] > 1 and error["asked"] <= now[W.ASKED]:
        return
    row = {W.ASKED: error["asked"], W.ERROR_FREE: error["free"], W.ERROR_RESERVED: error["reserved"]}
    if known:
        sample = min(known, key=lambda sample: sample.free or 0)
        row |= {
            W.SAMPLE_NS: now_ns - sample.time_ns,
            W.DEVICE_TOTAL: sample.total or 0,
            W.DEVICE_FREE: sample.free or 0,
        }
        row |= {W.TORCH_RESERVED: sample.reserved or 0, W.TORCH_ALLOCATED: sample.allocated or 0}
        row[W.TORCH_LARGEST] = -1 if sample.largest_free is None else sample.largest_free
    now[W.ERROR[0] : W.ERROR[1]] = 0
    for column, value in row.items():
        now[column] = min(value, _MOST_BYTES)
