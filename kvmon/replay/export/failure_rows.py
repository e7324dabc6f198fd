"""Refused allocations of a life, each handed on when the wait that it began is over.

Invariant: memory follows from the waits that last at once. Rows are those of `state.watch.R`, -1 is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvmon.diagnosis import cause_of
from kvmon.state.watch import R

__all__ = ["Failures", "Refused"]

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class Refused:
    """`number` counts from 1 in its life; `waited_ns` is None while its wait lasts, or where it began none."""

    number: int
    row: list[int]
    cause: str
    waited_ns: int | None = None


class Failures:
    """Takes the log of refusals of one life; `before` of them came before the export begins."""

    def __init__(self, before: int = 0) -> None:
        self.count = before
        self._waiting: dict[int, Refused] = {}  # by the sequence of the log

    def apply(self, refusals: Ints, *, exact: bool) -> list[Refused]:
        """Take rows; the refusals that are settled, in their order. `exact`: the fidelity of the recording."""
        settled: list[Refused] = []
        for row in refusals:
            sequence = int(row[R.SEQ])
            if row[R.KIND] == R.ENDED:
                refused = self._waiting.pop(sequence, None)
                if refused is not None:
                    refused.waited_ns = int(row[R.TIME]) - refused.row[R.TIME]
                    settled.append(refused)
                continue
            self.count += 1
            refused = Refused(self.count, row.tolist(), cause_of(row, exact))
            if sequence > 0:
                self._waiting[sequence] = refused
            else:
                settled.append(refused)
        return sorted(settled, key=lambda refused: refused.number)

    def rest(self) -> list[Refused]:
        """Those whose wait lasts at the end."""
        return [self._waiting[sequence] for sequence in sorted(self._waiting)]
