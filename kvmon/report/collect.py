"""From a folded stream to its view: every number is asked of `kvmon.state`, none is computed twice.

While a stream is converging, what depends on the past is left out. Nothing here reads a file or a clock: what the
caller learned from them comes in as `Liveness` and `Rates`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kvmon.events import FAILURE_REASONS, FinishReason, RequestState
from kvmon.events.totals import PoolTotal, StreamTotal
from kvmon.report.memory_map import memory_map
from kvmon.report.view import DeviceView, FailureView, HolderView, PoolView, StreamView
from kvmon.report.words import failure_sentence
from kvmon.state import DeviceSample, PoolState, StreamState
from kvmon.state.device import overclaimed, parts_of
from kvmon.state.requests import computed_tokens

__all__ = ["Liveness", "Rates", "Totals", "stream_view"]

_COUNTERS = {
    "steps": StreamTotal.STEPS,
    "prefill_tokens": StreamTotal.PREFILL_TOKENS,
    "decode_tokens": StreamTotal.DECODE_TOKENS,
    "arrived": StreamTotal.ARRIVED,
    "preempted": StreamTotal.PREEMPTED,
    "lost_tokens": StreamTotal.LOST_TOKENS,
    "lookup_tokens": StreamTotal.LOOKUP_TOKENS,
    "hit_tokens": StreamTotal.HIT_TOKENS,
    "output_tokens": StreamTotal.OUTPUT_TOKENS,
}


class Totals(Protocol):
    """Cumulative counts of a stream since the engine began to record."""

    def stream(self, slot: StreamTotal, offset: int = 0) -> int:
        """A total of the stream."""

    def pool(self, number: int, slot: PoolTotal, offset: int = 0) -> int:
        """A total of a pool."""


@dataclass(frozen=True, slots=True)
class Liveness:
    """What was learned of an engine outside of its events; see `view.CONDITIONS` and `StreamView.moment`."""

    condition: str
    silent_seconds: float | None = None
    last_event_wall_ns: int | None = None
    pid: int | None = None
    moment: str | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second of engine time, over the last seconds."""

    steps: float | None = None
    tokens: float | None = None


def stream_view(
    engine: str,
    rank: int,
    state: StreamState,
    liveness: Liveness,
    *,
    totals: Totals | None = None,
    rates: Rates | None = None,
    holders: int = 5,
    refused: tuple[int, int] | None = None,
) -> StreamView:
    """The view of a stream. `totals` are its cumulative counts, None where not known.

    `holders` bounds the requests named in each pool; `refused` (pool, units) is about to be refused at this moment.
    Needs a state with detail.
    """
    step = state.last_step
    rates = rates or Rates()
    notes = []
    if state.lost_records:
        notes.append(f"{state.lost_records} records were lost by the probe")
    if state.damaged_frames or state.missing_frames:
        notes.append(f"{state.damaged_frames} frames damaged, {state.missing_frames} missing")
    return StreamView(
        engine=engine,
        rank=rank,
        condition=liveness.condition,
        silent_seconds=liveness.silent_seconds,
        last_event_wall_ns=liveness.last_event_wall_ns,
        pid=liveness.pid,
        converged=state.converged,
        config=state.config,
        lost_records=state.lost_records,
        gaps=state.gaps,
        running=None if step is None else step.running,
        waiting=None if step is None else step.waiting,
        head_need=None if step is None else step.head_need,
        steps_per_second=rates.steps,
        tokens_per_second=rates.tokens,
        step_seconds=None if step is None else step.duration_ns / 1e9,
        counters=None if totals is None else {name: totals.stream(slot) for name, slot in _COUNTERS.items()},
        pools=tuple(_pool_view(state, pool, totals, holders, refused) for pool in state.pools.values())
        if state.converged
        else (),
        notes=tuple(notes),
        devices=tuple(_device_view(sample, state.time_ns) for sample in state.fresh_device_samples()),
        finished=None if totals is None else _finished(totals),
        moment=liveness.moment,
    )


def _finished(totals: Totals) -> dict[str, int]:
    """Requests that ended, by why."""
    return {reason.name.lower(): totals.stream(StreamTotal.FINISHED_FIRST, reason) for reason in FinishReason}


def _device_view(sample: DeviceSample, now_ns: int) -> DeviceView:
    """What this engine alone knows: of other engines on the same device its `rest` holds everything."""
    parts = parts_of(sample.used, [sample])
    return DeviceView(
        name=sample.name,
        age_seconds=max(0, now_ns - sample.time_ns) / 1e9,
        used=sample.used,
        total=sample.total,
        parts=parts,
        overclaimed=overclaimed(parts),
        largest_free=sample.largest_free,
    )


def _pool_view(
    state: StreamState, pool: PoolState, totals: Totals | None, holders: int, refused: tuple[int, int] | None
) -> PoolView:
    failure = pool.last_failure
    step = state.last_step
    asked = refused[1] if refused is not None and refused[0] == pool.number else None
    size = asked
    if size is None and step is not None and pool.number == 1:
        size = step.head_need
    if size is None and failure is not None:
        size = failure.need
    slots = pool.slots()
    return PoolView(
        number=pool.number,
        name=pool.name,
        layout=pool.layout,
        contiguity=pool.contiguity,
        tier=pool.tier,
        capacity=pool.capacity_units,
        unit_bytes=pool.unit_bytes,
        unit_tokens=pool.unit_tokens,
        units=pool.units,
        largest_free=pool.largest_free,
        largest_after_eviction=pool.largest_after_eviction,
        external_fragmentation=pool.external_fragmentation() if pool.contiguity != "none" else None,
        lost=None if size is None else pool.lost(size),
        lost_size=size,
        slots={"written": slots.written, "tail": slots.tail, "reserved": slots.reserved},
        page_utilization=slots.utilization,
        unowned=pool.unowned,
        failures=None if totals is None else _failures(pool.number, totals),
        last_failure=None if failure is None else _failure_view(state, pool),
        holders=_holders(state, pool, holders),
        map=memory_map(state, pool),
        refused=asked,
    )


def _failures(number: int, totals: Totals) -> dict[str, int]:
    """Refused allocations by reason, the reasons that occurred."""
    counts = {
        reason: totals.pool(number, PoolTotal.FAILED_FIRST, index) for index, reason in enumerate(FAILURE_REASONS)
    }
    return {reason: count for reason, count in counts.items() if count}


def _failure_view(state: StreamState, pool: PoolState) -> FailureView | None:
    failure = pool.last_failure
    if failure is None:
        return None
    return FailureView(
        age_seconds=max(0, state.time_ns - failure.time_ns) / 1e9,
        request=failure.request,
        need=failure.need,
        contiguity=failure.contiguity.name.lower(),
        free=failure.free,
        evictable=failure.evictable,
        largest=failure.largest,
        reason=failure.reason,
        outcome=failure.outcome.name.lower(),
        sentence=failure_sentence(failure, pool.capacity_units),
    )


def _holders(state: StreamState, pool: PoolState, most: int) -> tuple[HolderView, ...]:
    """The live requests that hold the most units, most first; the older of two equals first."""
    requests = state.requests
    units = requests.units[:, pool.number]
    rows = np.flatnonzero(units)
    rows = rows[np.lexsort((requests.id[rows], -units[rows].astype(np.int64)))][:most]
    return tuple(
        HolderView(
            request=int(requests.id[row]),
            class_id=int(requests.class_id[row]),
            state=RequestState(int(requests.state[row])).name.lower(),
            units=int(units[row]),
            written_tokens=int(computed_tokens(requests, row, state.steps)),
            age_seconds=max(0, state.time_ns - int(requests.arrived[row])) / 1e9,
        )
        for row in rows.tolist()
    )
