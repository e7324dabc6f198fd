"""One life as two processes of a trace: what the engine did and had, and its requests.

    NAME            steps               a slice a step, or an interval in which there were some
                    what went wrong     a moment for each refused allocation, preemption, error, reset and loss
                    not known           a slice for each time whose past is not known: see `counter_tracks.py`
                    counters            memory and requests
    NAME: requests  requests 1 ...      see `request_tracks.py`

The requests are a process of their own because viewers draw counters below all tracks of a process, and those of
requests are many. Invariant: slices of a track never overlap but where one lies within another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.events import FAILURE_REASONS, FailureOutcome, Kind
from kvmon.replay.export.counter_tracks import CounterTracks
from kvmon.replay.export.following import Batch, Follower
from kvmon.replay.export.records import Records
from kvmon.replay.export.request_tracks import RequestTracks
from kvmon.replay.export.trace_events import ProcessEvents, process_names, track_names
from kvmon.replay.timeline_model import Timeline
from kvmon.state.watch import R

__all__ = ["LifeTrace"]

Ints = npt.NDArray[np.int64]

_STEPS, _WRONG, _UNKNOWN = 1001, 1002, 1003  # a viewer says "main thread" of a track with the number of its process
_LATEST_NS = 1_000_000_000  # an event may be told so long after it happened, and still find its place
_MOMENTS = {
    Kind.ENGINE_ERROR: ("engine error", "asked", "asked_bytes"),
    Kind.GAP: ("records lost", "lost", "records"),
    Kind.POOL_CHANGED: ("pool resized", "capacity_units", "units"),
}


class LifeTrace:
    """Turns the batches of `follower` into events of the processes `engine` and `requests`; `announce` takes names.

    sampled     curves are of intervals, and steps are told once an interval
    """

    def __init__(
        self,
        follower: Follower,
        engine: ProcessEvents,
        requests: ProcessEvents,
        announce: Callable[[str], None],
        *,
        sampled: bool,
    ) -> None:
        self._follower = follower
        self._engine = engine
        self._processes = (engine, requests)
        self._sampled = sampled
        self._step_end = -(1 << 62)
        name = follower.life.name
        process_names(announce, engine.pid, name)
        process_names(announce, requests.pid, f"{name}: requests")
        track_names(announce, engine.pid, _STEPS, "steps")
        track_names(announce, engine.pid, _WRONG, "what went wrong")
        self._counters = CounterTracks(engine, _UNKNOWN, announce, sampled=sampled)
        self._requests = RequestTracks(follower, requests, announce)

    def apply(self, batch: Batch) -> None:
        """Take a batch, and write what is early enough."""
        if not self._sampled:
            self._steps(batch.records)
        self._moments(batch)
        self._refusals(batch.refusals)
        self._requests.apply(batch, self._follower.state.time_ns)
        for curves in batch.curves:
            if self._sampled:
                self._intervals(curves)
            self._counters.apply(curves)
            for events in self._processes:
                events.flush(curves.end_ns - _LATEST_NS)

    def close(self) -> None:
        """What is open ends with the last frame."""
        end = max(self._follower.state.time_ns, self._follower.begin_ns)
        self._counters.close(end)
        self._requests.close(end)
        for events in self._processes:
            events.flush()

    # -- steps --

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
            self._engine.slice(_STEPS, start, max(end - start, 0), "step", said)

    def _intervals(self, curves: Timeline) -> None:
        edges = curves.edges_ns.tolist()
        columns = [curves.counts[name].tolist() for name in ("steps", "prefill_tokens", "decode_tokens")]
        longest = curves.curves["step_seconds"].most.tolist()
        for begin, end, steps, prefill, decode, most in zip(edges[:-1], edges[1:], *columns, longest, strict=True):
            if steps > 0:
                said = {"steps": int(steps), "prefill_tokens": int(prefill), "decode_tokens": int(decode)}
                if most == most:
                    said["longest_step_us"] = round(most * 1e6)
                self._engine.slice(_STEPS, begin, end - begin, "steps", said)

    # -- moments --

    def _moments(self, batch: Batch) -> None:
        records = batch.records
        for place, missing in batch.jumps:
            said = {"frames": missing} if missing else {}
            self._engine.instant(_WRONG, int(records.table.times[place]), "frames are missing before this", said)
        for kind, (name, field, unit) in _MOMENTS.items():
            rows = np.flatnonzero(records.kind == kind)
            values = records.field(kind, field, rows).tolist()
            for time_ns, value in zip(records.time_ns[rows].tolist(), values, strict=True):
                self._engine.instant(_WRONG, time_ns, name, {unit: value} if value >= 0 else {})
        rows = np.flatnonzero(records.kind == Kind.POOL_RESET)
        for time_ns, pool in zip(records.time_ns[rows].tolist(), records.pool[rows].tolist(), strict=True):
            self._engine.instant(_WRONG, time_ns, "prefix cache reset", {"pool": pool})
        rows = np.flatnonzero(records.kind == Kind.PREEMPTED)
        columns = records.time_ns[rows], records.request[rows], records.field(Kind.PREEMPTED, "lost_tokens", rows)
        for time_ns, number, tokens in zip(*(column.tolist() for column in columns), strict=True):
            preempted = {"request": number, "recompute_tokens": tokens}
            self._engine.instant(_WRONG, time_ns, f"preempted: request {number}", preempted)

    def _refusals(self, rows: Ints) -> None:
        refused = rows[rows[:, R.KIND] == R.REFUSED]
        for row, cause in zip(refused, self._follower.causes(refused), strict=True):
            said: dict[str, Any] = {"request": int(row[R.REQUEST])} if row[R.REQUEST] > 0 else {}
            said |= {
                name: int(row[column])
                for name, column in (
                    ("need_units", R.NEED),
                    ("free_units", R.FREE),
                    ("evictable_units", R.EVICTABLE),
                    ("largest_free_units", R.LARGEST),
                )
                if row[column] >= 0
            }
            said |= {"pool": int(row[R.POOL]), "cause": cause, "outcome": _outcome(int(row[R.OUTCOME]))}
            reason = int(row[R.REASON])
            name = FAILURE_REASONS[reason] if 0 <= reason < len(FAILURE_REASONS) else FAILURE_REASONS[0]
            self._engine.instant(_WRONG, int(row[R.TIME]), f"refused: {name}", said)


def _outcome(code: int) -> str:
    return FailureOutcome(code if code in set(FailureOutcome) else 0).name.lower()
