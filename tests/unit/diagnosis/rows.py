"""Rows of the logs by hand: refused allocations and windows with everything else at rest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvmon.diagnosis import Diagnosis
from kvmon.events import Contiguity, FailureOutcome, FailureReason
from kvmon.state.watch import WINDOW_NS, R, W

__all__ = ["NEVER", "diagnosed", "refused", "window", "windows"]

Ints = npt.NDArray[np.int64]

NEVER = np.iinfo(np.int64).max


def refused(need: int, free: int, evictable: int = 0, *, capacity: int = 1000, **more: int) -> Ints:
    """One refused allocation; `more` names columns of R in lower case."""
    row = np.zeros(R.WIDTH, np.int64)
    row[[R.NEED, R.FREE, R.EVICTABLE, R.CAPACITY]] = need, free, evictable, capacity
    row[[R.LARGEST, R.POOL, R.KNOWN, R.UNIT_TOKENS, R.SEQ, R.REQUEST]] = -1, 1, 1, 16, 1, 1
    row[R.REASON], row[R.OUTCOME] = FailureReason.EXHAUSTED, FailureOutcome.REFUSED
    row[R.CONTIGUITY] = Contiguity.NONE
    for name, value in more.items():
        row[getattr(R, name.upper())] = value
    return row


def window(number: int, **columns: int) -> Ints:
    """Window `number` from 0 of pool 1; `columns` names columns of W in lower case."""
    row = np.zeros(W.WIDTH, np.int64)
    row[[W.BEGIN, W.END]] = number * WINDOW_NS, (number + 1) * WINDOW_NS
    row[[W.POOL, W.KNOWN, W.CAPACITY, W.UNIT_TOKENS, W.FREE, W.STEPS, W.PROGRESS]] = 1, 1, 1000, 16, 1000, 100, 100
    row[[W.LEAST_RESIDUAL, W.MOST_RESIDUAL, W.LEAST_DRIFT, W.LEAST_GAUGE]] = NEVER, -NEVER, NEVER, NEVER
    for name, value in columns.items():
        row[getattr(W, name.upper())] = value
    return row


def windows(count: int, **columns: int) -> Ints:
    """So many windows that are alike."""
    return np.stack([window(number, **columns) for number in range(count)])


def diagnosed(windows: Ints, *refusals: Ints) -> Diagnosis:
    """What a diagnosis makes of these rows."""
    diagnosis = Diagnosis()
    diagnosis.take(np.stack(refusals) if refusals else np.zeros((0, R.WIDTH), np.int64), windows)
    return diagnosis
