"""Cumulative numbers that only a fold knows, continued over gaps and over the death of the exporter.

The probe's own totals stand in every segment's header; releases, evictions and durations do not. They are counted
here as `base + (tally - mark)`: while the past is known the tally of the fold moves them, and while it is not (a gap,
a late start, frames that were counted in an earlier life of the exporter) they stand still. Invariant: no number ever
falls within one life of the engine, and none is counted twice. What was evicted unseen is made good by an identity:
entered = evicted + forgotten + still there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.events.totals import MAX_POOLS, PoolTotal
from kvmon.events.wire import CACHED
from kvmon.exporter.follow.recount import Counts
from kvmon.state import Histogram, StreamState
from kvmon.state.arrays import HISTOGRAM_SLOTS, Tally

__all__ = ["Anchor", "Continuation", "Saved"]

Ints = npt.NDArray[np.int64]

_RELEASED, _EVICTED, _SUMS = 0, 1, 2
_HISTOGRAMS = 5
_POOL_WIDTH = _HISTOGRAMS + 3 * HISTOGRAM_SLOTS
_RECORDS, _MISSING, _WAITS = 0, 1, 2
_STREAM_WIDTH = _WAITS + HISTOGRAM_SLOTS + 1


class Anchor(NamedTuple):
    """What is needed to know later how much was evicted unseen, by pool: entered so far, still there, resets."""

    inserted: Ints
    content: Ints
    resets: Ints


@dataclass(frozen=True, slots=True)
class Saved:
    """The numbers of one life of an engine as they were before frame `frame`.

    `began`: since when they count, wall clock in ns; 0 where an older kvmon did not say.
    """

    epoch: bytes
    frame: int
    stream: Ints
    pools: Ints
    anchor: Anchor
    began: int = 0

    @staticmethod
    def widths() -> tuple[int, int, int]:
        """Lengths that a file of this version must have: of `stream`, and rows and columns of `pools`."""
        return _STREAM_WIDTH, MAX_POOLS + 1, _POOL_WIDTH


class Continuation:
    """The fold's cumulative numbers of one life of an engine.

    `saved` continues those of an earlier life of the exporter.
    """

    def __init__(self, saved: Saved | None = None) -> None:
        self.resume_at = saved.frame if saved else None
        self._stream = saved.stream.copy() if saved else np.zeros(_STREAM_WIDTH, np.int64)
        self._pools = saved.pools.copy() if saved else np.zeros((MAX_POOLS + 1, _POOL_WIDTH), np.int64)
        self._anchor = saved.anchor if saved else None
        self._anchor_frame = saved.frame if saved else 0
        self._anchor_read = self._stream[:_WAITS].copy()
        self._content_base = np.zeros(MAX_POOLS, np.int64)
        self._mark: Ints | None = None
        self._gaps = 0
        self._waits_mark: Ints = np.zeros(HISTOGRAM_SLOTS + 1, np.int64)
        self.known = saved is not None

    def count_from_the_start(self) -> None:
        """The first frame of the engine's life is at hand: everything will be seen."""
        self._mark = np.zeros_like(self._pools)
        self._waits_mark[:] = 0

    def add_records(self, records: int, missing_frames: int) -> None:
        """Count what was read, and frames that were gone before they could be."""
        self._stream[_RECORDS] += records
        self._stream[_MISSING] += missing_frames

    def update(self, state: StreamState, counts: Counts) -> None:
        """After every batch: move the numbers while the past is known, begin again once it is known again."""
        if state.gaps != self._gaps:
            self._gaps, self._mark = state.gaps, None
        if not state.converged:
            if state.pools:
                self._mark = None
            return
        tally, waits = _tally(state), _waits(state)
        if self._mark is None:
            self._content_base = _content(state) - _kept(state)
            self._recover_evictions(state, counts)
        else:
            self._pools += tally - self._mark
            self._stream[_WAITS:] += waits - self._waits_mark
        self.known = True
        self._mark, self._waits_mark = tally, waits
        self._anchor = Anchor(
            inserted=counts.by_pool(PoolTotal.CACHE_INSERT),
            content=self._content_base + _kept(state),
            resets=counts.by_pool(PoolTotal.RESETS),
        )
        self._anchor_frame = state.next_frame or 0
        self._anchor_read = self._stream[:_WAITS].copy()

    def reach(self, state: StreamState, counts: Counts) -> None:
        """The frames that were counted in an earlier life of the exporter are behind: count on from here."""
        self.resume_at = None
        self._gaps = state.gaps
        self.update(state, counts)

    def save(self, epoch: bytes, began: int = 0) -> Saved | None:
        """What a later life needs to go on from the last moment at which everything was known; None before it came."""
        if self._anchor is None:
            return None
        stream = self._stream.copy()
        stream[:_WAITS] = self._anchor_read
        return Saved(epoch, self._anchor_frame, stream, self._pools.copy(), self._anchor, began)

    def _recover_evictions(self, state: StreamState, counts: Counts) -> None:
        """Count what was evicted unseen: entered = evicted + still there, where no reset forgot anything meanwhile."""
        anchor = self._anchor
        if anchor is None:
            return  # a pool may have held content when its recording began: nothing is made up
        entered = counts.by_pool(PoolTotal.CACHE_INSERT) - anchor.inserted
        unseen = entered - (_content(state) - anchor.content)
        sure = counts.by_pool(PoolTotal.RESETS) == anchor.resets
        self._pools[1:, _EVICTED] += np.where(sure, np.maximum(unseen, 0), 0)

    # -- what is known --

    @property
    def records_read(self) -> int:
        """Records that were read."""
        return int(self._stream[_RECORDS])

    @property
    def missing_frames(self) -> int:
        """Frames that were overwritten or damaged before they were read."""
        return int(self._stream[_MISSING])

    def released(self, pool: int) -> int:
        """Units whose last reference went."""
        return int(self._pools[pool, _RELEASED])

    def evicted(self, pool: int) -> int:
        """Units whose content was forgotten to make room."""
        return int(self._pools[pool, _EVICTED])

    def histogram(self, pool: int, which: int) -> Histogram:
        """`state.units.LIFETIME`, `IDLE` or `REUSE` of a pool."""
        row = self._pools[pool]
        start = _HISTOGRAMS + which * HISTOGRAM_SLOTS
        return Histogram(row[start : start + HISTOGRAM_SLOTS], int(row[_SUMS + which]) / 1000)

    def waits(self) -> Histogram:
        """How long requests waited for memory."""
        waits = self._stream[_WAITS:]
        return Histogram(waits[:HISTOGRAM_SLOTS], int(waits[HISTOGRAM_SLOTS]) / 1000)


def _tally(state: StreamState) -> Ints:
    arrays = state.tallies
    row = np.zeros((MAX_POOLS + 1, _POOL_WIDTH), np.int64)
    row[:, _RELEASED] = arrays.tally[:, Tally.RELEASED]
    row[:, _EVICTED] = arrays.tally[:, Tally.EVICTED]
    row[:, _SUMS : _SUMS + 3] = arrays.histogram_sum
    row[:, _HISTOGRAMS:] = arrays.histogram.reshape(MAX_POOLS + 1, -1)
    return row


def _waits(state: StreamState) -> Ints:
    waits: Ints = state.requests.waits.copy()
    return waits


def _content(state: StreamState) -> Ints:
    """Units that hold content now, counted, by pool."""
    content = np.zeros(MAX_POOLS, np.int64)
    for number, pool in state.pools.items():
        content[number - 1] = np.count_nonzero(pool.status & np.uint32(CACHED))
    return content


def _kept(state: StreamState) -> Ints:
    """By how much content has grown since the fold began, by pool; cheap where counting is not."""
    tally = state.tallies.tally[1:]
    kept: Ints = tally[:, Tally.INSERTED] - tally[:, Tally.EVICTED] - tally[:, Tally.FORGOTTEN]
    return kept
