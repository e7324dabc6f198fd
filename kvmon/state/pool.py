"""What is known of one pool now: the numbers of the catalogue, each defined here once.

A view: it reads the arrays of its stream and changes nothing. Numbers that the fidelity or the layout cannot know are
None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvmon.errors import RecordingError
from kvmon.events import FAILURE_REASONS, Contiguity, FailureOutcome
from kvmon.state.arrays import (
    ACTIVE,
    CACHED,
    FREE,
    HISTOGRAM_SLOTS,
    MARK_SLOTS,
    NO_SECOND,
    SHARED,
    STATES,
    UNOWNED,
    Misc,
    Tally,
)
from kvmon.state.fragmentation import (
    buddy_size,
    external_fragmentation,
    free_run_lengths,
    free_runs,
    largest_buddy,
    lost_ratio,
    lost_ratio_of_buddies,
)
from kvmon.state.free_runs import largest_grantable
from kvmon.state.survey import Survey, survey

if TYPE_CHECKING:
    from kvmon.state.said import Claims
    from kvmon.state.stream import StreamState

__all__ = ["Failure", "Histogram", "Marks", "PoolState", "Slots"]

_REFS = (1 << 24) - 1


@dataclass(frozen=True, slots=True)
class Slots:
    """Token slots of the active units of a pool by what they are used for."""

    written: int
    tail: int
    reserved: int

    @property
    def utilization(self) -> float | None:
        """Written slots of all of them; None when nothing is active."""
        slots = self.written + self.tail + self.reserved
        return self.written / slots if slots else None


@dataclass(frozen=True, slots=True)
class Marks:
    """Extremes of the last minute of event time, in units; used = neither free nor evictable."""

    most_used: int
    least_free: int
    least_largest_free: int


@dataclass(frozen=True, slots=True)
class Failure:
    """The last refused allocation of a pool; units, None where not known."""

    time_ns: int
    request: int | None
    need: int
    contiguity: Contiguity
    free: int
    evictable: int
    largest: int | None
    reason: str
    outcome: FailureOutcome


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations counted in powers of two of a millisecond: `counts[k]` holds those of at most 2**k ms and more
    than the slot before.
    """

    counts: npt.NDArray[np.int64]
    sum_seconds: float

    @property
    def count(self) -> int:
        """How many durations were observed."""
        return int(self.counts.sum())


class PoolState:
    """One pool of a stream, by number; see `StreamState`."""

    def __init__(self, number: int, info: dict[str, Any], stream: StreamState) -> None:
        self.number = number
        self.info = info
        self.name = str(info.get("name", number))
        self.layout = str(info.get("layout", "paged"))
        self.contiguity = str(info.get("contiguity", "none"))
        self.tier = str(info.get("tier", "gpu"))
        self.buddy = info.get("placement") == "buddy"
        self.net = bool(info.get("net"))
        """Whether the adapter knows only how many units are in use now: not what is cached, nor what came and went."""
        self.unit_bytes = int(info.get("unit_bytes", 0))
        self.unit_tokens = max(1, int(info.get("unit_tokens", 1)))
        self._stream = stream

    @property
    def capacity_units(self) -> int:
        """Units of the pool."""
        return int(self._stream._pools.capacity[self.number])

    @property
    def status(self) -> npt.NDArray[np.uint32]:
        """One status word a unit (references and flags, `events.wire`), units in order of address from 1."""
        base = int(self._stream._pools.base[self.number])
        return self._stream._status[base + 1 : base + 1 + self.capacity_units]

    @property
    def owner(self) -> npt.NDArray[np.uint32]:
        """The request that named each unit last, 0 = none; only meaningful for active units. Needs a state with
        detail.
        """
        return self._unit_detail("owner")

    @property
    def owners(self) -> npt.NDArray[np.uint16]:
        """How many block tables name each unit. Needs a state with detail."""
        return self._unit_detail("owners")

    def ages_seconds(self) -> npt.NDArray[np.float64]:
        """For each unit the seconds since its state last changed. Needs a state with detail."""
        now = np.uint32(self._stream.time_ns // 1_000_000 & 0xFFFFFFFF)
        seconds: npt.NDArray[np.float64] = (now - self._unit_detail("since")).astype(np.float64) / 1000
        return seconds

    def _unit_detail(self, name: str) -> npt.NDArray[Any]:
        detail = self._stream._detail
        if detail is None:
            return np.zeros(self.capacity_units, np.uint32)
        base = int(self._stream._pools.base[self.number])
        column: npt.NDArray[Any] = getattr(detail, name)
        return column[base + 1 : base + 1 + self.capacity_units]

    # -- units --

    @property
    def units(self) -> dict[str, int]:
        """Units by state; they sum to the capacity. Of a net pool the two that it tells apart."""
        counts = self._stream._pools.counts[self.number]
        known = ("active", "free") if self.net else STATES
        return {state: int(counts[column]) for column, state in enumerate(STATES) if state in known}

    @property
    def free(self) -> int:
        """F: units that hold nothing."""
        return int(self._stream._pools.counts[self.number, FREE])

    @property
    def active(self) -> int:
        """Units with at least one reference."""
        return int(self._stream._pools.counts[self.number, ACTIVE])

    @property
    def used(self) -> int:
        """Units that are neither free nor evictable: active, pinned or deferred."""
        return self.capacity_units - self.free - self.evictable

    @property
    def evictable(self) -> int:
        """E: cached units that the allocator may take."""
        return int(self._stream._pools.counts[self.number, CACHED])

    @property
    def shared(self) -> int:
        """Units with more than one reference."""
        return int(self._stream._pools.counts[self.number, SHARED])

    @property
    def unowned(self) -> int | None:
        """Active units that no live request names; None where the engine has named no owner yet."""
        if not self._stream._misc[Misc.NAMES_OWNERS]:
            return None
        return int(self._stream._pools.counts[self.number, UNOWNED])

    @property
    def references_saved(self) -> int:
        """Units that sharing saves: references beyond the first of each unit."""
        references = (self.status & np.uint32(_REFS)).astype(np.int64)
        return int(np.maximum(references - 1, 0).sum())

    # -- placement --

    def free_runs(self) -> npt.NDArray[np.int64]:
        """Lengths of the runs of free units, in order of address."""
        return free_run_lengths(self.status == 0)

    @property
    def largest_free(self) -> int:
        """G in units: the largest block that could be granted now.

        Where a request needs no contiguity any free units will do, so G = F; elsewhere it is the longest run of free
        units, in a buddy pool the largest block of a power of two at a multiple of itself.
        """
        if self.contiguity == "none":
            return self.free
        runs = self._stream._runs
        if runs is None:
            return self._largest(self.status == 0)
        return largest_grantable(runs, self.number) if self.buddy else int(runs.longest[self.number])

    def granted(self, units: int) -> int:
        """Units of the block that a request for `units` takes: as many, in a buddy pool the next power of two."""
        return buddy_size(units) if self.buddy else units

    @property
    def largest_after_eviction(self) -> int:
        """The largest block that could be granted once every evictable unit is free."""
        if self.contiguity == "none":
            return self.free + self.evictable
        if self.evictable == 0:
            return self.largest_free
        return self._largest((self.status & ~np.uint32(1 << 24)) == 0)

    def _largest(self, free: npt.NDArray[np.bool_]) -> int:
        """The largest block that could be granted if these units were free."""
        offsets, lengths = free_runs(free)
        return largest_buddy(offsets, lengths) if self.buddy else int(lengths.max(initial=0))

    def external_fragmentation(self) -> float | None:
        """`1 - L/F` over the runs of free units; None when nothing is free."""
        runs = self._stream._runs
        if runs is not None and self.contiguity != "none":
            return external_fragmentation(int(runs.longest[self.number]), self.free)
        return external_fragmentation(int(self.free_runs().max(initial=0)), self.free)

    def lost(self, units: int) -> float | None:
        """`lost(s)` for a request of `units`; None where contiguity is not needed or not even F holds one."""
        if self.contiguity == "none":
            return None
        offsets, lengths = free_runs(self.status == 0)
        return lost_ratio_of_buddies(offsets, lengths, units) if self.buddy else lost_ratio(lengths, units)

    # -- tokens --

    def survey(self, sizes: tuple[int, ...] = ()) -> Survey:
        """Everything that takes a look at every unit, at once; `sizes` (units) are asked about in `placements`.

        Raises RecordingError where this state was folded without detail.
        """
        stream = self._stream
        if stream._detail is None or stream._nodes is None:
            raise RecordingError("owners and ages were not folded: this state holds units only")
        return survey(
            self.number,
            stream.steps,
            stream.time_ns,
            stream._status,
            stream._pools,
            stream._detail,
            stream.requests,
            stream._nodes,
            tuple(self.granted(units) for units in sizes),
            self.buddy,
        )

    def slots(self, seen: Survey | None = None) -> Slots:
        """Slots of active units: written, tail, reserved. Pages that several requests share are full, and count
        once.
        """
        seen = seen or self.survey()
        slots = seen.active * self.unit_tokens
        return Slots(written=max(0, slots - seen.tail - seen.reserved), tail=seen.tail, reserved=seen.reserved)

    def page_utilization(self) -> float | None:
        """Written slots of the slots of active units; None when nothing is active."""
        return self.slots().utilization

    def units_by_owner_state(self) -> dict[str, int]:
        """Active units by the state of the most active request that names them (`survey.OWNERS`)."""
        return self.survey().owners

    def runs_per_sequence(self) -> float | None:
        """Mean number of runs of neighbouring units in the block tables; None without a table in this pool."""
        return self.survey().runs_per_sequence

    # -- over time --

    def marks(self, seconds: int = 60) -> Marks:
        """Extremes of the last `seconds` (up to 64) of event time."""
        now = self._stream.time_ns // 1_000_000_000
        rows = self._stream._pools.marks[self.number]
        recent = rows[(rows[:, 0] > max(now - min(seconds, MARK_SLOTS), NO_SECOND)) & (rows[:, 0] <= now)]
        if len(recent) == 0:
            return Marks(self.used, self.free, self.largest_free)
        return Marks(int(recent[:, 1].max()), int(recent[:, 2].min()), int(recent[:, 3].min()))

    def oldest_active_seconds(self) -> float | None:
        """Age of the oldest allocation that is still held; None when nothing is active."""
        return self.survey().oldest_active_seconds

    def tally(self, which: int) -> int:
        """A cumulative number of `arrays.Tally` since this state began."""
        return int(self._stream._pools.tally[self.number, which])

    @property
    def evicted(self) -> int:
        """Units whose content was forgotten to make room, since this state began."""
        return self.tally(Tally.EVICTED)

    def histogram(self, which: int) -> Histogram:
        """`units.LIFETIME`, `units.IDLE` (before eviction) or `units.REUSE` (gap), in seconds by powers of two."""
        pools = self._stream._pools
        counts = pools.histogram[self.number, which, :HISTOGRAM_SLOTS].copy()
        return Histogram(counts, int(pools.histogram_sum[self.number, which]) / 1000)

    @property
    def last_failure(self) -> Failure | None:
        """The last refused allocation; None when there was none."""
        time_ns, request, need, contiguity, free, evictable, largest, reason, outcome = (
            int(value) for value in self._stream._pools.last_failure[self.number]
        )
        if need <= 0:
            return None
        return Failure(
            time_ns,
            request or None,
            need,
            Contiguity(min(contiguity, 2)),
            free,
            evictable,
            None if largest < 0 else largest,
            FAILURE_REASONS[reason] if reason < len(FAILURE_REASONS) else "unknown",
            FailureOutcome(outcome) if outcome <= max(FailureOutcome) else FailureOutcome.UNKNOWN,
        )

    def drift(self, claims: Claims) -> int | None:
        """Units by which the engine's claim of what is available differs from the fold; None where it claims nothing.

        An engine that names no evictable units counts them as available.
        """
        if claims.available is None:
            return None
        expected = self.free if claims.evictable is not None else self.free + self.evictable
        difference = claims.available - expected
        if difference == 0 and claims.evictable is not None:
            difference = claims.evictable - self.evictable
        return difference
