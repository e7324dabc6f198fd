"""One life as events of a trace: counters of its pools, slices of its requests and steps, moments of what went wrong.

    steps           a slice a step
    what went wrong a moment for each refused allocation, preemption, error, reset and loss
    requests 1 ...  a slice a request from its arrival to its end, within it one for each phase
    counters        memory of each pool by state, its largest free block, requests running and waiting

Invariant: slices of a track never overlap but where one lies within another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.diagnosis import cause_of
from kvmon.events import FAILURE_REASONS, FailureOutcome, FinishReason, Kind, RequestState
from kvmon.replay.export.following import Batch, Follower
from kvmon.replay.export.lanes import Lanes
from kvmon.replay.export.records import Records
from kvmon.replay.export.request_rows import Request, RequestBook, request_events
from kvmon.replay.export.trace_events import ProcessEvents, metadata
from kvmon.replay.timeline_model import PoolTimeline, Timeline
from kvmon.state.watch import R

__all__ = ["LifeTrace"]

Ints = npt.NDArray[np.int64]

_STEPS, _WRONG, _FIRST_LANE = 1, 2, 10
_LATEST_NS = 1_000_000_000  # an event may be told so long after it happened, and still find its place
_STATES = ("active", "cached", "pinned", "deferred", "free")
_REQUESTS = ("running", "waiting", "waiting_for_memory")
_MOMENTS = {
    Kind.ENGINE_ERROR: ("engine error", "asked", "asked_bytes"),
    Kind.GAP: ("records lost", "lost", "records"),
    Kind.POOL_CHANGED: ("pool resized", "capacity_units", "units"),
}


class LifeTrace:
    """Turns the batches of `follower` into events of the process `events.pid`; `announce` takes names of tracks."""

    def __init__(self, follower: Follower, events: ProcessEvents, announce: Any, *, sampled: bool) -> None:
        self._follower = follower
        self._events = events
        self._announce = announce
        self._sampled = sampled
        self._book = RequestBook(follower.state)
        self._lanes = Lanes()
        self._lane: dict[int, int] = {}
        self._phase: dict[int, str] = {}
        self._waits: set[int] = set()
        self._last: dict[str, Mapping[str, Any]] = {}
        self._step_end = -(1 << 62)
        self._number: int | None = None
        self._name()
        for number in sorted(self._book.live):
            request = self._book.live[number]
            self._open(request, max(request.arrived_ns or 0, follower.begin_ns))
        for number in self._book.waiting:
            self._waits.add(number)
            self._set_phase(number, follower.begin_ns)

    def apply(self, batch: Batch) -> None:
        """Take a batch, and write what is early enough."""
        self._steps(batch.records)
        self._moments(batch.records)
        self._requests(batch)
        for curves in batch.curves:
            self._counters(curves)
            self._events.flush(curves.end_ns - _LATEST_NS)

    def close(self) -> None:
        """What is open ends with the last frame."""
        end = max(self._follower.state.time_ns, self._follower.begin_ns)
        for number in sorted(self._lane):
            self._close(number, end, {"ended": "not within this trace"})
        self._events.flush()

    # -- names --

    def _name(self) -> None:
        life, pid = self._follower.life, self._events.pid
        self._announce(metadata(pid, "process_name", name=life.name))
        self._announce(metadata(pid, "process_sort_index", sort_index=pid))
        for tid, name in ((_STEPS, "steps"), (_WRONG, "what went wrong")):
            self._announce(metadata(pid, "thread_name", tid, name=name))
            self._announce(metadata(pid, "thread_sort_index", tid, sort_index=tid))

    # -- steps and moments --

    def _steps(self, records: Records) -> None:
        rows = np.flatnonzero(records.kind == Kind.STEP)
        names = ("start", "duration", "prefill", "decode", "context", "running", "waiting", "head_need")
        columns = [records.field(Kind.STEP, name, rows).tolist() for name in names]
        for start, took, prefill, decode, context, running, waiting, need in zip(*columns, strict=True):
            end = start + took
            start = max(start, self._step_end)  # of an engine that begins a step before the last one has ended
            self._step_end = max(self._step_end, end)
            said = {"prefill_tokens": prefill, "decode_tokens": decode, "context_tokens": context}
            said |= {"running": running, "waiting": waiting}
            if need > 0:
                said["head_need_units"] = need
            self._events.slice(_STEPS, start, max(end - start, 0), "step", said)

    def _moments(self, records: Records) -> None:
        table = records.table
        for place in np.flatnonzero(np.diff(table.numbers, prepend=self._number_before(table.numbers)) != 1).tolist():
            number, before = int(table.numbers[place]), int(table.numbers[place - 1]) if place else self._number
            if before is not None:
                missing = {"frames": number - before - 1} if number > before else {}
                self._events.instant(_WRONG, int(table.times[place]), "frames are missing before this", missing)
        self._number = int(table.numbers[-1]) if len(table.numbers) else self._number
        for kind, (name, field, said) in _MOMENTS.items():
            rows = np.flatnonzero(records.kind == kind)
            values = records.field(kind, field, rows).tolist()
            for time_ns, value in zip(records.time_ns[rows].tolist(), values, strict=True):
                self._events.instant(_WRONG, time_ns, name, {said: value})
        for row in np.flatnonzero(records.kind == Kind.POOL_RESET).tolist():
            self._events.instant(
                _WRONG, int(records.time_ns[row]), "prefix cache reset", {"pool": int(records.pool[row])}
            )

    def _number_before(self, numbers: Ints) -> int:
        return self._number if self._number is not None else int(numbers[0]) - 1 if len(numbers) else 0

    # -- requests --

    def _requests(self, batch: Batch) -> None:
        """Records and refusals in the order of their times; a phase is what holds when all of one time are taken."""
        exact = self._follower.state.config.get("fidelity", "exact") == "exact"
        told: list[tuple[int, int, Any]] = [(event[2], 0, event) for event in request_events(batch.records)]
        told += [(int(row[R.TIME]), 1, row) for row in batch.refusals]
        told.sort(key=lambda one: one[:2])
        for time_ns, same in groupby(told, key=lambda one: one[0]):
            touched: dict[int, None] = {}
            for _, refused, event in same:
                number = self._refusal(event, exact) if refused else self._record(event)
                if number is not None:
                    touched[number] = None
            for number in touched:
                if number in self._lane:
                    self._set_phase(number, time_ns)

    def _record(self, event: tuple[Kind, int, int, tuple[int, ...]]) -> int | None:
        kind, number, time_ns, said = event
        ended = self._book.take(kind, number, time_ns, said)
        if ended is not None:
            if number in self._lane:
                reason = FinishReason(ended.reason).name.lower()
                self._close(number, time_ns, {"ended": reason, "output_tokens": ended.output})
            return None
        if number not in self._lane and number in self._book.live:
            self._open(self._book.live[number], said[0] if kind is Kind.REQUEST_ARRIVED else time_ns)
        if kind is Kind.PREEMPTED:
            preempted = {"request": number, "recompute_tokens": said[0]}
            self._events.instant(_WRONG, time_ns, f"preempted: request {number}", preempted)
        return number

    def _refusal(self, row: Ints, exact: bool) -> int | None:
        number, time_ns = int(row[R.REQUEST]), int(row[R.TIME])
        if row[R.KIND] == R.ENDED:
            self._waits.discard(number)
            return number
        reason = int(row[R.REASON])
        said: dict[str, Any] = {"request": number} if number > 0 else {}
        said |= {
            name: int(row[column])
            for name, column in (("need", R.NEED), ("free", R.FREE), ("evictable", R.EVICTABLE), ("largest", R.LARGEST))
            if row[column] >= 0
        }
        said |= {"pool": int(row[R.POOL]), "cause": cause_of(row, exact), "outcome": _outcome(int(row[R.OUTCOME]))}
        name = FAILURE_REASONS[reason] if reason < len(FAILURE_REASONS) else FAILURE_REASONS[0]
        self._events.instant(_WRONG, time_ns, f"refused: {name}", said)
        if row[R.SEQ] > 0:
            self._waits.add(number)
            return number
        return None

    def _open(self, request: Request, time_ns: int) -> None:
        lanes = self._lanes.count
        lane = self._lane[request.number] = self._lanes.take(time_ns)
        tid = _FIRST_LANE + lane
        if lane == lanes:
            self._announce(metadata(self._events.pid, "thread_name", tid, name=f"requests {lane + 1}"))
            self._announce(metadata(self._events.pid, "thread_sort_index", tid, sort_index=tid))
        said = {"class": request.class_id, "prompt_tokens": request.prompt, "token_limit": request.limit}
        self._events.begin(tid, time_ns, f"request {request.number}", {k: v for k, v in said.items() if v is not None})
        self._phase[request.number] = phase = _phase(request, False)
        self._events.begin(tid, time_ns, phase, {})

    def _set_phase(self, number: int, time_ns: int) -> None:
        phase = _phase(self._book.live[number], number in self._waits)
        if phase != self._phase[number]:
            tid = _FIRST_LANE + self._lane[number]
            self._phase[number] = phase
            self._events.end(tid, time_ns)
            self._events.begin(tid, time_ns, phase, {})

    def _close(self, number: int, time_ns: int, said: Mapping[str, Any]) -> None:
        lane = self._lane.pop(number)
        self._phase.pop(number)
        self._waits.discard(number)
        self._events.end(_FIRST_LANE + lane, time_ns)
        self._events.end(_FIRST_LANE + lane, time_ns, said)
        self._lanes.leave(lane, time_ns)

    # -- counters --

    def _counters(self, curves: Timeline) -> None:
        ends = curves.edges_ns[1:].tolist()
        said = {name: curves.curves[name].last for name in _REQUESTS}
        self._count(ends, "requests", said, 1)
        for pool in curves.pools:
            for name, values, scale in self._of_pool(pool):
                self._count(ends, name, values, scale)

    def _of_pool(self, pool: PoolTimeline) -> Iterator[tuple[str, dict[str, Any], int]]:
        unit, scale = ("bytes", pool.unit_bytes) if pool.unit_bytes else ("units", 1)
        curves = pool.curves
        yield f"{pool.name} memory ({unit})", {name: curves[name].last for name in _STATES}, scale
        yield f"{pool.name} largest free block ({unit})", {"largest": curves["largest_free"].last}, scale
        if self._sampled:  # between two samples something may have come and gone
            extremes = {"most active": curves["active"].most, "least largest free": curves["largest_free"].least}
            yield f"{pool.name} extremes ({unit})", extremes, scale

    def _count(self, ends: list[int], name: str, values: Mapping[str, Any], scale: int) -> None:
        """A counter event wherever a value is another one; what is not known is left out."""
        known = [key for key, column in values.items() if np.isfinite(column).any()]
        columns = [values[key].tolist() for key in known]
        for time_ns, *row in zip(ends, *columns, strict=True):
            said = {key: int(value) * scale for key, value in zip(known, row, strict=True) if value == value}
            if said and said != self._last.get(name):
                self._last[name] = said
                self._events.counter(time_ns, name, said)


def _phase(request: Request, waits: bool) -> str:
    if waits:
        return "waiting for KV memory"
    if request.state == RequestState.RUNNING:
        if request.preemptions:
            return "running again"
        return "prefill" if request.first_token_ns is None else "decode"
    return {RequestState.PREEMPTED: "preempted", RequestState.WAITING: "waiting"}.get(
        RequestState(request.state), "there"
    )


def _outcome(code: int) -> str:
    return FailureOutcome(code if code in set(FailureOutcome) else 0).name.lower()
