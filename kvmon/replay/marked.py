"""Refused allocations of a stream by bucket of time: all of them counted, the first of each bucket kept.

Stands between the fold and the diagnosis and hands every row on. Invariant: memory follows from the buckets.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from kvmon.diagnosis import cause_of
from kvmon.events import FAILURE_REASONS
from kvmon.replay.findings import Refusal, StreamDiagnosis
from kvmon.replay.timeline_model import Failure
from kvmon.state.track import MARKS_A_BUCKET
from kvmon.state.watch import R

__all__ = ["MarkedFailures"]

Ints = npt.NDArray[np.int64]


class MarkedFailures:
    """Takes the logs of `stream` from now on; `edges` as of a timeline, `before` refusals that came before them."""

    def __init__(self, stream: StreamDiagnosis, edges: Ints, before: int = 0) -> None:
        self.count = 0
        self._before = before
        self._stream = stream
        self._edges = edges
        self._counts: dict[tuple[int, int], Ints] = {}
        self._in_bucket: Counter[int] = Counter()
        self._rows: list[tuple[int, list[int]]] = []
        self._ended: dict[int, int | None] = {}
        stream.state.log_to(self._take)

    def by_reason(self, pool: int) -> dict[str, Ints]:
        """Refused allocations of a pool in each bucket, for the reasons that occurred."""
        self._stream.state.drain()
        return {
            FAILURE_REASONS[reason] if reason < len(FAILURE_REASONS) else "unknown": counts
            for (number, reason), counts in sorted(self._counts.items())
            if number == pool
        }

    def marked(self) -> list[Failure]:
        """Those that are kept, in their order."""
        self._stream.state.drain()
        exact = self._stream.state.config.get("fidelity", "exact") == "exact"
        return [
            Failure(number, Refusal.of_row(row, cause_of(np.array(row, np.int64), exact), self._ended.get(row[R.SEQ])))
            for number, row in self._rows
        ]

    def _take(self, refusals: Ints, windows: Ints) -> None:
        refused = refusals[refusals[:, R.KIND] == R.REFUSED]
        buckets = np.searchsorted(self._edges, refused[:, R.TIME], "left") - 1
        buckets = np.clip(buckets, 0, len(self._edges) - 2)
        for row, bucket in zip(refused.tolist(), buckets.tolist(), strict=True):
            self.count += 1
            key = row[R.POOL], row[R.REASON]
            if key not in self._counts:
                self._counts[key] = np.zeros(len(self._edges) - 1, np.int64)
            self._counts[key][bucket] += 1
            if self._in_bucket[bucket] < MARKS_A_BUCKET:
                self._in_bucket[bucket] += 1
                self._rows.append((self._before + self.count, row))
                if row[R.SEQ]:
                    self._ended[row[R.SEQ]] = None
        for row in refusals[refusals[:, R.KIND] == R.ENDED].tolist():
            if row[R.SEQ] in self._ended:
                self._ended[row[R.SEQ]] = row[R.TIME]
        self._stream.take(refusals, windows)
