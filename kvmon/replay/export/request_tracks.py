"""Requests of one life as tracks of a trace: a slice each from arrival to end, and within it one for each phase.

Invariant: a track has one request at a time, so that its slices nest; the phases of a request fill its slice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.events import FinishReason, Kind, RequestState
from kvmon.replay.export.following import Batch, Follower
from kvmon.replay.export.lanes import Lanes
from kvmon.replay.export.request_rows import Request, RequestBook, request_events
from kvmon.replay.export.trace_events import ProcessEvents, track_names
from kvmon.state.watch import R

__all__ = ["RequestTracks"]

Ints = npt.NDArray[np.int64]

_PHASES = {RequestState.PREEMPTED: "preempted", RequestState.WAITING: "waiting"}


class RequestTracks:
    """Tracks of the process `events.pid`, from 1; `announce` takes their names.

    Begins with those that were there when `follower` begins.
    """

    def __init__(self, follower: Follower, events: ProcessEvents, announce: Callable[[str], None]) -> None:
        self._events = events
        self._announce = announce
        self._book = RequestBook(follower.state)
        self._lanes = Lanes()
        self._lane: dict[int, int] = {}
        self._phase: dict[int, str] = {}
        self._waits: set[int] = set()
        for number in sorted(self._book.live):
            request = self._book.live[number]
            self._open(request, max(request.arrived_ns or 0, follower.begin_ns))
        for number in self._book.waiting:
            self._waits.add(number)
            self._set_phase(number, follower.begin_ns)

    def apply(self, batch: Batch, end_ns: int) -> None:
        """Records and refusals of a batch that ends at `end_ns`, in the order of their times.

        A phase is what holds when all of one time are taken.
        """
        told: list[tuple[int, int, Any]] = [(event[2], 0, event) for event in request_events(batch)]
        told += [(int(row[R.TIME]), 1, row) for row in batch.refusals]
        told.sort(key=lambda one: one[:2])
        for time_ns, same in groupby(told, key=lambda one: one[0]):
            touched: dict[int, None] = {}
            for _, refused, event in same:
                touched[self._refusal(event) if refused else self._record(event)] = None
            for number in touched:
                if number in self._lane:
                    self._set_phase(number, time_ns)
        for request in self._book.unseen():
            self._close(request.number, end_ns, {"ended": "before this: nobody saw when"})

    def close(self, end_ns: int) -> None:
        """What is open ends with the last frame."""
        for number in sorted(self._lane):
            self._close(number, end_ns, {"ended": "not within this trace"})

    def _record(self, event: tuple[Kind, int, int, tuple[int, ...]]) -> int:
        kind, number, time_ns, said = event
        ended = self._book.take(kind, number, time_ns, said)
        if ended is not None:
            if number in self._lane:
                reason = FinishReason(ended.reason).name.lower()
                self._close(number, time_ns, {"ended": reason, "output_tokens": ended.output})
        elif number not in self._lane and number in self._book.live:
            self._open(self._book.live[number], said[0] if kind is Kind.REQUEST_ARRIVED else time_ns)
        return number

    def _refusal(self, row: Ints) -> int:
        number = int(row[R.REQUEST])
        if row[R.KIND] == R.ENDED:
            self._waits.discard(number)
        elif row[R.SEQ] > 0:
            self._waits.add(number)
        return number

    def _open(self, request: Request, time_ns: int) -> None:
        lanes = self._lanes.count
        lane = self._lane[request.number] = self._lanes.take(time_ns)
        if lane == lanes:
            track_names(self._announce, self._events.pid, lane + 1, "requests")
        said = {"class": request.class_id, "prompt_tokens": request.prompt, "token_limit": request.limit}
        known = {name: value for name, value in said.items() if value is not None}
        self._events.begin(lane + 1, time_ns, f"request {request.number}", known)
        self._phase[request.number] = phase = _phase(request, False)
        self._events.begin(lane + 1, time_ns, phase, {})

    def _set_phase(self, number: int, time_ns: int) -> None:
        phase = _phase(self._book.live[number], number in self._waits)
        if phase != self._phase[number]:
            self._phase[number] = phase
            self._events.end(self._lane[number] + 1, time_ns)
            self._events.begin(self._lane[number] + 1, time_ns, phase, {})

    def _close(self, number: int, time_ns: int, said: Mapping[str, Any]) -> None:
        lane = self._lane.pop(number)
        self._phase.pop(number)
        self._waits.discard(number)
        self._events.end(lane + 1, time_ns)
        self._events.end(lane + 1, time_ns, said)
        self._lanes.leave(lane, time_ns)


def _phase(request: Request, waits: bool) -> str:
    if waits:
        return "waiting for KV memory"
    if request.state == RequestState.RUNNING:
        if request.preemptions:
            return "running again"
        return "prefill" if request.first_token_ns is None else "decode"
    return _PHASES.get(RequestState(request.state), "there")
