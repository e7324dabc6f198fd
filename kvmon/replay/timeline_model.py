"""The timeline of one life of one rank as plain data: curves in buckets of time, a map of each pool, marks and gaps.

Made by `timeline.py` in one pass over a recording or a capture; reports and exports only read it. Arrays are numpy,
`as_json` gives plain lists. Invariants:

- Bucket k holds the frames with `edges_ns[k] < time <= edges_ns[k + 1]`, and what held when it began.
- NaN is what is not known (None in JSON), never zero. A bucket that lies wholly in a gap has no number at all.
- `least` and `most` are over every event: a number that held between two events of one frame counts. They and `mean`
  are over the known part of a bucket, `last` is at its end.
- Times are ns of the engine's monotonic clock; `facts.wall_time_ns` turns them into ns since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.capture.pieces import StreamFacts
from kvmon.diagnosis import HEALTHY, Finding
from kvmon.events import FAILURE_REASONS
from kvmon.replay.findings import Refusal

__all__ = [
    "MAP_STATES",
    "POOL_CURVES",
    "SCHEMA",
    "STREAM_CURVES",
    "UNKNOWN_CELL",
    "Curve",
    "Failure",
    "Gap",
    "Mark",
    "PoolMap",
    "PoolTimeline",
    "Timeline",
    "known_or_none",
]

SCHEMA = 1
"""Version of what `Timeline.as_json` gives; fields may be added to a version, never changed."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

POOL_CURVES = {
    "capacity": "units",
    "active": "units",
    "cached": "units",
    "pinned": "units",
    "deferred": "units",
    "free": "units",
    "available": "units",
    "largest_free": "units",
    "largest_after_eviction": "units",
    "free_runs": "runs",
    "external_fragmentation": "ratio",
    "lost_at_head": "ratio",
    "written": "slots",
    "tail": "slots",
    "reserved": "slots",
    "page_utilization": "ratio",
    "unowned": "units",
    "residual": "units",
    "drift": "units",
}
"""Curves of a pool and their units. `active` to `free` sum to `capacity`; `available` = free and cached; `lost_at_head`
= lost(s) for s = the need at the head of the queue, of the first pool, while somebody waits there for memory;
`largest_after_eviction`, `written` to `reserved` and `page_utilization` are looked at after each frame (in a pool of
many units, or of several groups, only as often as that costs no more than the fold itself) and at the end of each
bucket. A curve that the recording's fidelity or the pool's layout cannot know is NaN throughout."""

STREAM_CURVES = {
    "running": "requests",
    "waiting": "requests",
    "preempted": "requests",
    "waiting_for_memory": "requests",
    "head_need": "units",
    "step_seconds": "s",
}
"""Curves of a stream. `running`, `waiting` and `head_need` are what the steps said (need 0: nobody waits for memory);
`preempted` live requests that lost their memory and are not running again; `waiting_for_memory` requests with a refused
allocation that they have not got over; `step_seconds` the durations of the steps that ended in the bucket, its `mean`
is over steps."""

MAP_STATES = ("free", "active", "reserved", "cached", "pinned", "deferred")
"""What a cell of the map can mostly hold; reserved = active units in which nothing is written."""
UNKNOWN_CELL = 255


@dataclass(frozen=True)
class Curve:
    """One number over time, float64 arrays of one value a bucket. `mean` is by time, None where that means nothing."""

    name: str
    unit: str
    least: Floats
    most: Floats
    last: Floats
    mean: Floats | None = None

    @property
    def known(self) -> bool:
        """Whether there is any number at all."""
        return bool(np.isfinite(self.most).any())

    def as_json(self) -> dict[str, Any]:
        """Plain lists, None for what is not known."""
        arrays = {"least": self.least, "most": self.most, "last": self.last, "mean": self.mean}
        return {
            "unit": self.unit,
            **{name: None if array is None else known_or_none(array) for name, array in arrays.items()},
        }


@dataclass(frozen=True)
class PoolMap:
    """What lay where over time: M columns of time, K cells of neighbouring units in order of address.

    edges_ns (M + 1)    column m holds whole buckets, from edges_ns[m] to edges_ns[m + 1]
    taken_ns (M)        the moment that the column shows: its first refused allocation of this pool, the instant before
                        it, because there the holes mattered; else its end. -1 where nothing is known
    refused (M)         whether it shows a refused allocation
    capacity (M)        units of the pool then; cell k stands for units k * capacity // K to (k + 1) * capacity // K - 1
    state (M, K)        what most of the units in use are (an index into MAP_STATES); free only where all are free;
                        UNKNOWN_CELL where nothing is known
    used (M, K)         the share of the units that are not free, in 255ths: a hole inside a cell shows as less than 255
    """

    edges_ns: Ints
    taken_ns: Ints
    refused: npt.NDArray[np.bool_]
    capacity: Ints
    state: Bytes
    used: Bytes

    def as_json(self) -> dict[str, Any]:
        """Plain lists, a row a column of time."""
        return {
            "states": list(MAP_STATES),
            "unknown": UNKNOWN_CELL,
            "edges_ns": self.edges_ns.tolist(),
            "taken_ns": self.taken_ns.tolist(),
            "refused": self.refused.tolist(),
            "capacity": self.capacity.tolist(),
            "state": self.state.tolist(),
            "used": self.used.tolist(),
        }


@dataclass(frozen=True)
class PoolTimeline:
    """One pool over time. Facts are those of its last attachment; `curves` by name (`POOL_CURVES`), all of them.

    known       the share of each bucket in which the pool was there and its whole past known, 0 to 1
    failures    refused allocations in each bucket, by reason, for the reasons that occurred
    counts      what happened in each bucket: `allocated`, `released` and `evicted` units; NaN where nothing was seen
    """

    number: int
    name: str
    layout: str
    contiguity: str
    tier: str
    unit_bytes: int
    unit_tokens: int
    capacity: int
    known: Floats
    curves: Mapping[str, Curve]
    counts: Mapping[str, Floats]
    failures: Mapping[str, Floats]
    map: PoolMap

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        facts = ("number", "name", "layout", "contiguity", "tier", "unit_bytes", "unit_tokens", "capacity")
        return {
            **{name: getattr(self, name) for name in facts},
            "known": known_or_none(self.known),
            "curves": {name: curve.as_json() for name, curve in self.curves.items()},
            "counts": {name: known_or_none(counts) for name, counts in self.counts.items()},
            "failures": {name: known_or_none(counts) for name, counts in self.failures.items()},
            "map": self.map.as_json(),
        }


@dataclass(frozen=True)
class Failure:
    """A refused allocation that is marked: its place among all of its stream, from 1 (`--at failure:N`), and what is
    known of it. Of a bucket with many the first ones are marked."""

    number: int
    refusal: Refusal

    def as_json(self) -> dict[str, Any]:
        """Plain data; reason and outcome by name."""
        said = asdict(self.refusal)
        said["reason"] = FAILURE_REASONS[self.refusal.reason]
        said["outcome"] = self.refusal.outcome.name.lower()
        return {"number": self.number, **said}


@dataclass(frozen=True)
class Mark:
    """Something else worth a mark. `kind`:

    attached, resized, reset    a pool came, changed its size, or its whole cache was forgotten; value = its units
    preempted                   value = tokens to be computed again; of a bucket with many the first ones
    error                       of another allocator of the engine; value = bytes that it asked for
    died                        the writer died: its last frame was never closed, or its lock was dropped without a word
    """

    kind: str
    time_ns: int
    frame: int
    pool: int | None = None
    request: int | None = None
    value: int | None = None


@dataclass(frozen=True)
class Gap:
    """A time whose past is not known: from the last frame before the loss to the frame from which everything is known
    again; `frames` and `records` that are missing, as far as anybody can tell. `reason` is for people."""

    begin_ns: int
    end_ns: int
    reason: str
    frames: int = 0
    records: int = 0


@dataclass(frozen=True)
class Timeline:
    """One life of one rank.

    name            `<engine>-<rank>`, with `#2` behind it for a second life, and so on
    edges_ns        (buckets + 1) edges of the buckets, increasing
    known           the share of each bucket in which the whole past is known, 0 to 1
    curves          by name (`STREAM_CURVES`), all of them
    counts          what happened in each bucket: `steps`, `prefill_tokens`, `decode_tokens`, `arrived`, `finished`,
                    `preemptions`, `recomputed_tokens`, `lookup_tokens` and `hit_tokens` of the prefix cache, `errors`,
                    `memory_wait_s` (request-seconds spent waiting for memory); NaN where nothing was seen
    failure_count   refused allocations in all; `failures` has those that are marked, in their order
    worst_ns        the end of the frame that hurt most: see `timeline.read_timelines`; None where nothing is known
    findings        of the whole life, most important first, each with the times in which it held
    damage          what could not be read, in words
    """

    name: str
    facts: StreamFacts
    config: Mapping[str, Any]
    edges_ns: Ints
    known: Floats
    curves: Mapping[str, Curve]
    counts: Mapping[str, Floats]
    pools: tuple[PoolTimeline, ...]
    failures: tuple[Failure, ...]
    failure_count: int
    marks: tuple[Mark, ...]
    gaps: tuple[Gap, ...]
    worst_ns: int | None
    findings: tuple[Finding, ...]
    steps: int
    damage: tuple[str, ...] = ()
    schema: int = field(default=SCHEMA)

    @property
    def buckets(self) -> int:
        """How many there are."""
        return len(self.edges_ns) - 1

    @property
    def begin_ns(self) -> int:
        """Time of the first frame."""
        return int(self.edges_ns[0]) + 1

    @property
    def end_ns(self) -> int:
        """Time of the last frame."""
        return int(self.edges_ns[-1])

    @property
    def verdict(self) -> str:
        """The one word."""
        return self.findings[0].verdict if self.findings else HEALTHY

    def as_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`; the engine's configuration is left to whoever wants it."""
        return {
            "schema": self.schema,
            "name": self.name,
            "engine": self.facts.engine,
            "rank": self.facts.rank,
            "verdict": self.verdict,
            "wall_anchor_ns": self.facts.wall_ns,
            "clock_anchor_ns": self.facts.mono_ns,
            "edges_ns": self.edges_ns.tolist(),
            "steps": self.steps,
            "known": known_or_none(self.known),
            "curves": {name: curve.as_json() for name, curve in self.curves.items()},
            "counts": {name: known_or_none(counts) for name, counts in self.counts.items()},
            "pools": [pool.as_json() for pool in self.pools],
            "failure_count": self.failure_count,
            "failures": [failure.as_json() for failure in self.failures],
            "marks": [asdict(mark) for mark in self.marks],
            "gaps": [asdict(gap) for gap in self.gaps],
            "worst_ns": self.worst_ns,
            "findings": [finding.to_json() for finding in self.findings],
            "damage": list(self.damage),
        }


def known_or_none(values: Floats) -> list[float | int | None]:
    """Numbers as JSON has them: None for NaN, whole numbers as such, ratios to six digits."""
    said: list[float | int | None] = []
    for value in values.tolist():
        if value != value:
            said.append(None)
        else:
            said.append(int(value) if value == int(value) else round(value, 6))
    return said
