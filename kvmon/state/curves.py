"""A timeline while it is made: begun on a state, told what the kernels do not see, finished into arrays.

Invariant: what is kept follows from the frames and from the edges of the buckets alone, however the frames are cut into
batches. Nothing here folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvmon.errors import ConfigError
from kvmon.events import Event, Kind
from kvmon.state.arrays import Ints, Tally
from kvmon.state.track import MARKS_A_BUCKET, C, N, P, S, Track
from kvmon.state.track_kernels import close_buckets, saw_pools
from kvmon.state.track_look import look

if TYPE_CHECKING:
    from kvmon.state.stream import StreamState

__all__ = ["Curves", "Unknown"]

_MOST_RANGES = 1000
_OF_REQUESTS = (S.PREEMPTED, S.STARVED, S.KNOWN)


@dataclass
class Unknown:
    """A time whose past is not known; ns, `end_ns` None while it lasts. What is missing, as far as anybody can tell."""

    begin_ns: int
    end_ns: int | None
    reason: str
    frames: int = 0
    records: int = 0


class Curves:
    """The curves of one stream from `edges[0]` to `edges[-1]`, with maps of its pools in `columns` and `cells`.

    state       folded with detail, up to a time before `edges[1]`; it tells what happens from now on
    edges       ns (buckets + 1), increasing; bucket k holds what is behind edges[k], up to edges[k + 1]
    columns     1 to the number of buckets

    Raises ConfigError for other edges or columns.
    """

    def __init__(self, state: StreamState, edges: Ints, *, columns: int = 1, cells: int = 1) -> None:
        if len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise ConfigError("the edges of a timeline have to increase: give two or more times in their order")
        if not 1 <= columns <= len(edges) - 1 or cells < 1:
            raise ConfigError(f"{len(edges) - 1} buckets have no map of {columns} columns and {cells} cells")
        self.edges = edges
        self.ranges: list[Unknown] = []
        self.marks: list[tuple[str, int, int, int | None, int | None]] = []
        """(kind, ns, frame, pool, value) of what Python sees: attached, resized, error."""
        self._state = state
        self._whole = False
        self._errors = (-1, 0)
        self._reason: str | None = None
        track = Track.make(edges, columns, cells, len(state.requests.id))
        track.tally[:] = state.tallies.tally[:, [Tally.ALLOCATED, Tally.RELEASED, Tally.EVICTED]]
        self.track = track
        """What the kernels keep."""
        state.begin_curves(self, track)
        if state.converged:
            self._begin_known()
        elif state.next_frame is None:  # nothing was before the first frame, which is right behind the edge
            track.now[[N.FROM, N.UPTO, N.BEFORE]] = edges[0] + 1
        if not state.converged:
            self._unknown(int(track.now[N.FROM]), "what came before is not there")

    def expect(self, reason: str) -> None:
        """What the next loss is called."""
        self._reason = reason

    # -- told by the state --

    def changed(self, event: Event | None = None) -> None:
        """A record changed the shape of the state, or what is known of it, or is to be marked."""
        state, track = self._state, self.track
        if event is not None:
            self._mark(event)
        if not state.converged:
            track.value[1:] = np.nan
            track.value[0, _OF_REQUESTS] = np.nan
            if not self.ranges or self.ranges[-1].end_ns is not None:
                self._unknown(int(track.now[N.BEFORE]), "a pool has changed: its owners are known after the next audit")
            return
        if self.ranges and self.ranges[-1].end_ns is None:
            self.ranges[-1].end_ns = state.time_ns
            if state.time_ns <= self.ranges[-1].begin_ns:
                self.ranges.pop()
            self._list_requests()  # an audit may have brought them
        misc, _, pools, _, runs, *_ = state.everything()
        saw_pools(misc, pools, runs, track)

    def lost(self, frames: int, records: int) -> None:
        """Something is missing: frames before the next one, or records within the one that is folded (`records`)."""
        track = self.track
        begin = int(track.now[N.BEFORE])
        why = self._reason or ("the probe lost records" if records else "frames are missing")
        self._reason = None
        track.value[1:] = np.nan
        track.value[0] = np.nan
        if self.ranges and self.ranges[-1].end_ns is None:
            self.ranges[-1].frames += frames
            self.ranges[-1].records += records
        else:
            self._unknown(begin, why, frames, records)
        if records:
            self._take_back(begin)

    def claimed(self, pool: int, residual: int | None, drift: int | None) -> None:
        """The engine said what it has, while the past is known."""
        track = self.track
        for column, value in ((P.RESIDUAL, residual), (P.DRIFT, drift)):
            if value is not None:
                track.value[pool, column] = value
                track.least[pool, column] = min(track.least[pool, column], value)
                track.most[pool, column] = max(track.most[pool, column], value)

    # -- the end --

    def finish(self) -> None:
        """The last bucket ends; what happens from now on is not told any more."""
        if not self._whole:
            arrays = (*self._state.everything(), self.track)
            close_buckets(int(self.edges[-1]), True, *arrays)
            self._state.end_curves()
            self._whole = True
            if self.ranges and self.ranges[-1].end_ns is None:
                self.ranges[-1].end_ns = int(self.edges[-1])

    # -- inside --

    def _begin_known(self) -> None:
        """The past is known: what holds holds from the first edge on."""
        track, step = self.track, self._state.last_step
        self._list_requests()
        self.changed()
        arrays = (*self._state.everything(), track)
        look(True, *arrays)
        held = {S.KNOWN: 1, S.SEEN: 1}
        if step is not None:
            held |= {S.RUNNING: step.running, S.WAITING: step.waiting, S.NEED: step.head_need or 0}
        for column, value in held.items():
            for array in (track.value, track.least, track.most):
                array[0, column] = value

    def _list_requests(self) -> None:
        """All live requests are to be looked at."""
        track, requests = self.track, self._state.everything()[5]
        rows = np.flatnonzero(requests.id)
        track.listed[:] = requests.id != 0
        track.rows[: len(rows)] = rows
        track.now[N.ROWS] = len(rows)

    def _unknown(self, begin: int, reason: str, frames: int = 0, records: int = 0) -> None:
        if len(self.ranges) < _MOST_RANGES:
            self.ranges.append(Unknown(max(begin, int(self.edges[0])), None, reason, frames, records))
        else:  # they are counted as one
            last = self.ranges[-1]
            last.end_ns, last.frames, last.records = None, last.frames + frames, last.records + records

    def _take_back(self, begin: int) -> None:
        """Records were lost in the frame that is folded: nothing is known of the time since the one before it."""
        track, state = self.track, self._state
        opened = int(track.now[N.BUCKET])
        first = max(int(np.searchsorted(self.edges, begin, "right")) - 1, 0)
        for bucket in range(first, opened + 1):
            lower, upper = int(self.edges[bucket]), int(self.edges[bucket + 1])
            took = max(min(upper, state.time_ns) - max(lower, begin), 0)
            if bucket == opened:
                track.span[0, [S.KNOWN, S.SEEN]] = np.maximum(track.span[0, [S.KNOWN, S.SEEN]] - took, 0)
                track.span[1:, P.CAPACITY] = np.maximum(track.span[1:, P.CAPACITY] - took, 0)
                continue
            track.known[:, bucket] = np.maximum(track.known[:, bucket] - took / (upper - lower), 0)
            track.seen[bucket] = max(track.seen[bucket] - took / (upper - lower), 0)
            if begin <= lower:
                track.curves[:, bucket] = np.nan

    def _mark(self, event: Event) -> None:
        state, fields = self._state, event.fields
        if event.kind in (Kind.POOL_ATTACHED, Kind.POOL_CHANGED):
            pool = state.pools.get(fields["pool"])
            kind = "resized" if event.kind is Kind.POOL_CHANGED else "attached"
            if pool is None or fields.get("restated") or len(self.marks) >= _MOST_RANGES * MARKS_A_BUCKET:
                return
            self.marks.append((kind, state.time_ns, state.frame, pool.number, pool.capacity_units))
        elif event.kind is Kind.ENGINE_ERROR:
            bucket = int(self.track.now[N.BUCKET])
            self.track.counts[0, C.ERRORS] += 1
            marked = self._errors[1] + 1 if self._errors[0] == bucket else 1
            self._errors = (bucket, marked)
            if marked <= MARKS_A_BUCKET:
                asked = int(fields["asked"]) or None
                self.marks.append(("error", state.time_ns, state.frame, None, asked))
