"""From what the kernels kept to a `Timeline`: names, units, and what nobody can know taken out.

Invariant: what the recording's fidelity or a pool's layout cannot know is NaN here, whatever the fold has counted.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from kvmon.replay.findings import StreamDiagnosis
from kvmon.replay.lives import Life
from kvmon.replay.marked import MarkedFailures
from kvmon.replay.timeline_model import (
    POOL_CURVES,
    STREAM_CURVES,
    UNKNOWN_CELL,
    Curve,
    Gap,
    Mark,
    PoolMap,
    PoolTimeline,
    Timeline,
)
from kvmon.state import PoolState
from kvmon.state.curves import Curves
from kvmon.state.track import C, M, N, P, S, Track

__all__ = ["build"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_POOL = {
    "capacity": P.CAPACITY,
    "active": P.ACTIVE,
    "cached": P.CACHED,
    "pinned": P.PINNED,
    "deferred": P.DEFERRED,
    "free": P.FREE,
    "available": P.AVAILABLE,
    "largest_free": P.LARGEST,
    "largest_after_eviction": P.AFTER,
    "free_runs": P.RUNS,
    "external_fragmentation": P.EXTERNAL,
    "lost_at_head": P.LOST,
    "written": P.WRITTEN,
    "tail": P.TAIL,
    "reserved": P.RESERVED,
    "page_utilization": P.UTILIZATION,
    "unowned": P.UNOWNED,
    "residual": P.RESIDUAL,
    "drift": P.DRIFT,
}
_STREAM = {
    "running": S.RUNNING,
    "waiting": S.WAITING,
    "preempted": S.PREEMPTED,
    "waiting_for_memory": S.STARVED,
    "head_need": S.NEED,
    "step_seconds": S.STEP,
}
_STREAM_COUNTS = {
    "steps": C.STEPS,
    "prefill_tokens": C.PREFILL,
    "decode_tokens": C.DECODE,
    "arrived": C.ARRIVED,
    "finished": C.FINISHED,
    "preemptions": C.PREEMPTIONS,
    "recomputed_tokens": C.RECOMPUTED,
    "lookup_tokens": C.LOOKUP,
    "hit_tokens": C.HIT,
    "errors": C.ERRORS,
}
_POOL_COUNTS = {"allocated": C.ALLOCATED, "released": C.RELEASED, "evicted": C.EVICTED}
# Where a request needs no contiguity: any free units will do, and runs mean nothing.
_ANY_UNITS = {"largest_free": "free", "largest_after_eviction": "available"}
_OF_RUNS = ("free_runs", "external_fragmentation", "lost_at_head")
_OF_SAMPLES = (*_OF_RUNS, "largest_after_eviction")
_OF_EVERYTHING = ("written", "tail", "reserved", "page_utilization", "unowned")
_NOT_NET = ("cached", "pinned", "deferred", "available", "largest_after_eviction")


def build(life: Life, told: StreamDiagnosis, failures: MarkedFailures, curves: Curves) -> Timeline:
    """The timeline of a life that was folded to the last edge."""
    track, state = curves.track, told.state
    fidelity = str(state.config.get("fidelity", "exact"))
    marked = failures.marked()
    ranges = [unknown for unknown in curves.ranges if (unknown.end_ns or 0) > unknown.begin_ns]
    return Timeline(
        name=life.name,
        facts=life.facts,
        config=state.config,
        edges_ns=curves.edges,
        known=track.known[0].copy(),
        curves={name: _stream_curve(name, track) for name in STREAM_CURVES},
        counts=_stream_counts(track, curves.edges),
        pools=tuple(_pool(pool, failures, curves, fidelity) for _, pool in sorted(state.pools.items())),
        failures=tuple(marked),
        failure_count=failures.count,
        marks=_marks(life, curves, state.frame, state.time_ns),
        gaps=tuple(
            Gap(unknown.begin_ns, unknown.end_ns or 0, unknown.reason, unknown.frames, unknown.records)
            for unknown in ranges
        ),
        worst_ns=int(track.now[N.WORST]) if track.now[N.PAIN] >= 0 else None,
        findings=tuple(finding for finding in told.findings if finding.end_ns > int(curves.edges[0])),
        steps=state.steps,
        damage=tuple(dict.fromkeys(told.damage)),
    )


def _stream_curve(name: str, track: Track) -> Curve:
    scale = 1e-9 if name == "step_seconds" else 1.0
    least, most, last, mean = (track.curves[0, :, _STREAM[name], which] * scale for which in range(4))
    return Curve(name, STREAM_CURVES[name], least, most, last, mean)


def _counted(track: Track, row: int, column: int, unknown: npt.NDArray[np.bool_]) -> Floats:
    """Counts of each bucket; NaN where none was seen and nobody looked."""
    counts = track.sums[row, :, column].astype(np.float64)
    counts[unknown & (counts == 0)] = np.nan
    return counts


def _stream_counts(track: Track, edges: Ints) -> Mapping[str, Floats]:
    unseen = track.seen <= 0
    counts = {name: _counted(track, 0, column, unseen) for name, column in _STREAM_COUNTS.items()}
    waiting, seconds = track.curves[0, :, S.STARVED, 3], np.diff(edges) / 1e9 * track.known[0]
    return {**counts, "memory_wait_s": waiting * seconds}


def _pool(pool: PoolState, failures: MarkedFailures, curves: Curves, fidelity: str) -> PoolTimeline:
    track, number = curves.track, pool.number
    known, unseen = track.known[number].copy(), track.seen <= 0
    counts = {name: _counted(track, number, column, known <= 0) for name, column in _POOL_COUNTS.items()}
    by_reason = {}
    for reason, counted in failures.by_reason(number).items():
        by_reason[reason] = np.where(unseen & (counted == 0), np.nan, counted)
    if pool.net:
        counts = {name: np.full_like(values, np.nan) for name, values in counts.items()}
    return PoolTimeline(
        number=number,
        name=pool.name,
        layout=pool.layout,
        contiguity=pool.contiguity,
        tier=pool.tier,
        unit_bytes=pool.unit_bytes,
        unit_tokens=pool.unit_tokens,
        capacity=pool.capacity_units,
        known=known,
        curves=_pool_curves(pool, track, fidelity),
        counts=counts,
        failures=by_reason,
        map=_map(pool, curves, drawn=not pool.net and fidelity in ("exact", "sampled")),
    )


def _pool_curves(pool: PoolState, track: Track, fidelity: str) -> dict[str, Curve]:
    absent: set[str] = set()
    if fidelity != "exact":
        absent.update(_OF_EVERYTHING)
    if fidelity not in ("exact", "sampled"):
        absent.update(_OF_SAMPLES)
    if pool.net:
        absent.update(_NOT_NET)
    loose = pool.contiguity == "none"
    if loose:
        absent.update(_OF_RUNS)
    curves = {}
    for name, unit in POOL_CURVES.items():
        column = _POOL[_ANY_UNITS.get(name, name) if loose else name]
        values = track.curves[pool.number, :, column]
        if name in absent:
            values = np.full_like(values, np.nan)
        least, most, last, mean = (values[:, which].copy() for which in range(4))
        curves[name] = Curve(name, unit, least, most, last, mean)
    return curves


def _map(pool: PoolState, curves: Curves, *, drawn: bool) -> PoolMap:
    track, number = curves.track, pool.number
    columns, most_cells = track.cells.shape[1:3]
    buckets = len(curves.edges) - 1
    of_bucket = np.arange(buckets) * columns // buckets
    edges = curves.edges[np.searchsorted(of_bucket, np.arange(columns + 1), "left")]
    taken, capacity = track.taken[number, :, 0], track.taken[number, :, 2]
    there = (capacity > 0) & drawn
    cells = np.minimum(capacity, most_cells)
    width = int(cells[there].max(initial=1))
    state = np.full((columns, width), UNKNOWN_CELL, np.uint8)
    used = np.zeros((columns, width), np.uint8)
    for count in np.unique(cells[there]).tolist():  # a pool that has fewer units than the widest column has cells
        mine = there & (cells == count)
        place = np.arange(width) * count // width
        state[mine] = track.cells[number, mine][:, place, 0]
        used[mine] = track.cells[number, mine][:, place, 1]
    return PoolMap(
        edges_ns=edges,
        taken_ns=np.where(there, taken, -1),
        refused=(track.taken[number, :, 1] > 0) & there,
        capacity=np.where(there, capacity, 0),
        state=state,
        used=used,
    )


def _marks(life: Life, curves: Curves, frame: int, time_ns: int) -> tuple[Mark, ...]:
    track = curves.track
    marks = [Mark(kind, time, at, pool, None, value) for kind, time, at, pool, value in curves.marks]
    for row in track.marks[: int(track.now[N.MARKS])].tolist():
        kind, time, at, pool, request, value = (row[column] for column in range(M.VALUE + 1))
        if kind == M.PREEMPTED:
            marks.append(Mark("preempted", time, at, None, request, value))
        else:
            marks.append(Mark("reset", time, at, pool))
    if life.died and time_ns >= (life.last_ns or time_ns):
        marks.append(Mark("died", time_ns, frame))
    return tuple(sorted(marks, key=lambda mark: mark.time_ns))
