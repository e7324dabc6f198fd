"""The decision rule at a refused allocation: why this request did not get in.

In units, with the need s, free F, evictable E, the largest block that could be granted G and the capacity C:

    fragmentation   the request needs contiguity, F >= s and G < s: no index and no threshold
    never_fits      s > C
    reclaim_failed  s <= F + E: memory was there, or would have been after eviction
    a cause         what holds memory without need explains the failure when giving it back would have let *this*
                    request in and it holds a share of the pool worth naming; the largest one is named
    head_of_line    the request needs a large part of the pool while a large part is free
    capacity        what is left

A reason that the engine names itself (a quota, a second pool, a watermark) comes before what is left to infer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvmon.diagnosis.thresholds import FREE_FOR_OTHERS, NAMED_SHARE
from kvmon.events import Contiguity, FailureReason
from kvmon.state.watch import R

__all__ = ["CAUSES", "cause_of", "causes"]

Ints = npt.NDArray[np.int64]

CAUSES = (
    "capacity",
    "fragmentation",
    "never_fits",
    "pool_starved",
    "partition",
    "reclaim_failed",
    "reservation",
    "pinned",
    "stranded",
    "tail_waste",
    "leak",
    "head_of_line",
    "telemetry_untrusted",
)
"""Verdicts that explain a failure, by the number that `causes` gives."""
_NUMBER = {name: number for number, name in enumerate(CAUSES)}


def causes(rows: Ints, exact: bool = True) -> Ints:
    """The cause of each refused allocation in `rows` (n, R.WIDTH), as an index into CAUSES.

    `exact` False: the recording has no units, so nobody can say who held them.
    """
    need, free, evictable, largest = (rows[:, column] for column in (R.NEED, R.FREE, R.EVICTABLE, R.LARGEST))
    capacity, unit_tokens, reason = rows[:, R.CAPACITY], np.maximum(rows[:, R.UNIT_TOKENS], 1), rows[:, R.REASON]
    gap = need - free - evictable
    found = np.zeros(len(rows), np.int64)
    held = np.stack(
        [
            rows[:, R.RESERVED] // unit_tokens,
            rows[:, R.PINNED],
            rows[:, R.DEFERRED],
            rows[:, R.TAIL] // unit_tokens,
            np.maximum(rows[:, R.UNOWNED], 0),
        ],
        axis=1,
    )
    names = np.array([_NUMBER[name] for name in ("reservation", "pinned", "stranded", "tail_waste", "leak")])
    seen = (rows[:, R.KNOWN] > 0) & exact
    worth = seen[:, None] & (held >= gap[:, None]) & (held >= NAMED_SHARE * capacity[:, None])
    best = np.where(worth, held, -1).argmax(axis=1) if len(rows) else np.zeros(0, np.int64)
    named = worth.any(axis=1) if len(rows) else np.zeros(0, np.bool_)
    large = FREE_FOR_OTHERS * capacity
    found[(need >= large) & (free + evictable >= large)] = _NUMBER["head_of_line"]
    found[named] = names[best[named]]
    found[reason == FailureReason.WATERMARK] = _NUMBER["capacity"]
    reclaimable = (gap <= 0) & (reason != FailureReason.WATERMARK)
    found[reclaimable | (reason == FailureReason.EVICTABLE_NOT_RECLAIMED)] = _NUMBER["reclaim_failed"]
    found[reason == FailureReason.PARTITION_FULL] = _NUMBER["partition"]
    found[reason == FailureReason.ACCOUNTING_ERROR] = _NUMBER["telemetry_untrusted"]
    contiguous = rows[:, R.CONTIGUITY] == Contiguity.REQUIRED
    scattered = contiguous & (free >= need) & (largest < need)  # G = -1: the engine cannot say, its reason does
    scattered &= (largest >= 0) | (reason == FailureReason.NO_CONTIGUOUS_RUN)
    found[scattered] = _NUMBER["fragmentation"]
    found[(reason == FailureReason.NEVER_FITS) | (need > capacity)] = _NUMBER["never_fits"]
    found[reason == FailureReason.POOL_STARVED] = _NUMBER["pool_starved"]
    return found


def cause_of(row: Ints, exact: bool = True) -> str:
    """The cause of one refused allocation, by name."""
    return CAUSES[int(causes(row[None, :], exact)[0])]
