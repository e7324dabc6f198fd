"""The view model: what a terminal shows of recordings at one moment, as plain data.

Collected by `collect.py`, drawn by `terminal.py`, written as JSON by `Screen.as_json`. Invariants: the units by state
of a pool sum to its capacity; a number that is not known is None, never zero. Nothing here reads a recording, a clock
or a terminal.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from kvmon.report.memory_map import MemoryMap

__all__ = ["CONDITIONS", "DeviceView", "FailureView", "HolderView", "PoolView", "Screen", "StreamView"]

CONDITIONS = ("alive", "idle", "stalled", "dead", "ended", "unseen", "replayed")
"""What can be said of an engine: working; nothing to do; work pending but silent; its process is gone; it closed the
recording in order; its lock cannot be seen (no permission); this is how it was at a moment of a recording."""

_JSON_CELLS = 256


@dataclass(frozen=True, slots=True)
class FailureView:
    """A refused allocation in units; `age_seconds` is engine time from it to the last frame."""

    age_seconds: float
    request: int | None
    need: int
    contiguity: str
    free: int
    evictable: int
    largest: int | None
    reason: str
    outcome: str
    sentence: str


@dataclass(frozen=True, slots=True)
class HolderView:
    """A live request and what it holds in one pool; `age_seconds` since its arrival, by engine time."""

    request: int
    class_id: int
    state: str
    units: int
    written_tokens: int
    age_seconds: float


@dataclass(frozen=True, slots=True)
class PoolView:
    """One pool. Units unless the name says otherwise; ratios 0 to 1; slots are tokens.

    `refused`: what is about to be refused at the moment that is shown. `lost` is `lost(s)` for s = `lost_size`: that
    or the need at the head of the queue, else of the last refused request.
    """

    number: int
    name: str
    layout: str
    contiguity: str
    tier: str
    capacity: int
    unit_bytes: int
    unit_tokens: int
    units: dict[str, int]
    largest_free: int | None
    largest_after_eviction: int | None
    external_fragmentation: float | None
    lost: float | None
    lost_size: int | None
    slots: dict[str, int] | None
    page_utilization: float | None
    unowned: int | None
    failures: dict[str, int] | None
    last_failure: FailureView | None
    holders: tuple[HolderView, ...]
    map: MemoryMap
    refused: int | None = None

    @property
    def free(self) -> int:
        """F: units that hold nothing."""
        return self.units["free"]


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A GPU in bytes, as the engine's process last saw it; `age_seconds` of engine time ago.

    `parts` sum to `used` (see `state.device`): what is negative in them was told wrongly, `overclaimed` by how much.
    """

    name: str
    age_seconds: float
    used: int | None
    total: int | None
    parts: dict[str, int]
    overclaimed: int
    largest_free: int | None


@dataclass(frozen=True, slots=True)
class StreamView:
    """One rank of one engine. `last_event_wall_ns` is the wall-clock time of its last sign of life, ns since 1970.

    Counters run since the engine began to record, `finished` by why requests ended; rates are per second of engine
    time. `moment` says in words which moment of a recording this is, None = now. `head_need` is what the request at the
    head of the queue waits for, in units of the first pool.
    """

    engine: str
    rank: int
    condition: str
    silent_seconds: float | None
    last_event_wall_ns: int | None
    pid: int | None
    converged: bool
    config: dict[str, Any]
    lost_records: int
    gaps: int
    running: int | None
    waiting: int | None
    head_need: int | None
    steps_per_second: float | None
    tokens_per_second: float | None
    step_seconds: float | None
    counters: dict[str, int] | None
    pools: tuple[PoolView, ...]
    notes: tuple[str, ...] = field(default=())
    devices: tuple[DeviceView, ...] = field(default=())
    finished: dict[str, int] | None = None
    moment: str | None = None

    @property
    def prefix_hit_ratio(self) -> float | None:
        """Prompt tokens found in the prefix cache of those looked up; None before the first lookup."""
        if self.counters is None or not self.counters["lookup_tokens"]:
            return None
        return self.counters["hit_tokens"] / self.counters["lookup_tokens"]


@dataclass(frozen=True, slots=True)
class Screen:
    """Everything that is shown of a recording directory at one moment; `problems` say what of it cannot be read."""

    directory: str
    wall_ns: int
    streams: tuple[StreamView, ...]
    problems: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`; memory maps in at most 256 cells."""
        data = asdict(self)
        for stream, plain in zip(self.streams, data["streams"], strict=True):
            plain["prefix_hit_ratio"] = stream.prefix_hit_ratio
            for pool, plain_pool in zip(stream.pools, plain["pools"], strict=True):
                plain_pool["map"] = pool.map.as_json(_JSON_CELLS)
        return data
