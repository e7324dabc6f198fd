"""The rarer calls of the probe, through a recording: what is said is what is read, and what the fold makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from kvmon.events import Event, Kind, decode, status_word
from kvmon.probe import PoolInfo, PoolProbe, RequestPicture, StreamProbe
from kvmon.recording import StreamReader, find_streams
from kvmon.state import FaultKind, StreamState
from kvmon.state.device import STALE_NS

CAPACITY = 20


class Recorded:
    """A probe with one pool, and everything that was read back."""

    def __init__(self, directory: Path, info: PoolInfo | None = None) -> None:
        self.now = 0
        self.probe = StreamProbe(directory, "toy", clock=self.clock)
        self.pool: PoolProbe = self.probe.attach_pool(info or PoolInfo("kv", CAPACITY, 64, 4))
        self.reader = StreamReader(find_streams(directory)[0])
        self.state = StreamState(verify=True)
        self.events: list[Event] = []

    def clock(self) -> int:
        """A millisecond a look."""
        self.now += 1_000_000
        return self.now

    def step(self) -> None:
        """Close a step and fold it."""
        self.probe.step(self.now, 1, 0, 0, 0, 1, 0)
        while (piece := self.reader.poll()) is not None:
            words = np.frombuffer(piece.data, np.uint32)
            self.state.apply(words)
            self.events += decode(words.tolist())

    def run_request(self, units: Sequence[int], tokens: int) -> None:
        """Request 1 holds `units` and decodes from `tokens` on."""
        self.probe.arrived(1, 0, tokens)
        self.probe.admitted(1)
        self.pool.alloc(list(units))
        self.pool.assign(1, list(units))
        self.probe.progress(1, tokens, True)
        self.step()

    def written(self) -> int:
        """Written slots of the pool."""
        return self.state.pools[1].slots().written


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    """Nothing allocated yet."""
    return Recorded(tmp_path)


def test_truncate_takes_tokens_and_units(recorded: Recorded) -> None:
    """What was drafted and rejected is gone, its unit leaves the table, and decoding goes on from there."""
    recorded.run_request([1, 2, 3], 10)
    recorded.pool.truncate(1, 7, [3])
    recorded.pool.unshare([3])
    recorded.step()
    assert recorded.written() == 7
    assert recorded.state.pools[1].units["active"] == 2
    assert recorded.state.table(0, 1).tolist() == [1, 2]
    recorded.step()
    assert recorded.written() == 8
    assert recorded.state.faults() == []


def test_a_truncated_unit_that_is_not_given_back_is_unowned(recorded: Recorded) -> None:
    """Leaving the table is not giving back: the step that ends so has a fault."""
    recorded.run_request([1, 2, 3], 10)
    recorded.pool.truncate(1, 7, [3])
    recorded.step()
    assert [(fault.kind, fault.unit) for fault in recorded.state.faults()] == [(FaultKind.UNOWNED, 3)]


def test_commit_says_what_of_a_reservation_is_written(tmp_path: Path) -> None:
    """A contiguous block of 12 slots with 5 written has 4 of its units begun, the rest set aside."""
    recorded = Recorded(tmp_path, PoolInfo("slots", CAPACITY, 16, 1, layout="contiguous", contiguity="required"))
    recorded.probe.arrived(1, 0, 5)
    recorded.probe.admitted(1)
    recorded.pool.alloc_run(3, 12)
    recorded.pool.assign_run(1, 3, 12)
    recorded.pool.reserve(1, 12)
    recorded.pool.commit(1, 5)
    recorded.step()
    slots = recorded.state.pools[1].slots()
    assert (slots.written, slots.tail, slots.reserved) == (5, 0, 7)
    assert recorded.state.faults() == []


@pytest.mark.parametrize("capacity", [12, 20, 33])
def test_a_resized_pool_keeps_its_units_and_learns_its_owners(recorded: Recorded, capacity: int) -> None:
    """Larger, smaller or the same: states stand at once, owners after a sweep, and no fault is invented."""
    recorded.run_request([1, 2, 3], 10)
    recorded.pool.cache([1])
    recorded.probe.audit_from(Truth())
    recorded.probe.pool_changed(recorded.pool, capacity)
    recorded.step()
    pool = recorded.state.pools[1]
    assert pool.units == {"active": 3, "cached": 0, "pinned": 0, "deferred": 0, "free": capacity - 3}
    for _ in range(6):
        recorded.step()
    assert recorded.state.converged
    assert recorded.state.pools[1].unowned == 0
    assert recorded.state.faults() == []


def test_a_pool_that_shrinks_below_its_use_is_a_fault(recorded: Recorded) -> None:
    """Units in use above the new size are named by how many there are."""
    recorded.run_request([1, 2, 19], 10)
    recorded.probe.pool_changed(recorded.pool, 2)
    recorded.step()
    assert [(fault.kind, fault.value) for fault in recorded.state.faults()] == [(FaultKind.CAPACITY_BELOW_USE, 1)]


def test_a_pool_that_is_resized_again_and_again_takes_bounded_memory(recorded: Recorded) -> None:
    """A thousand changes of size leave no thousand regions behind."""
    for number in range(1000):
        recorded.probe.pool_changed(recorded.pool, 10 + number % 50)
        recorded.step()
    assert recorded.state.pools[1].capacity_units == 10 + 999 % 50
    assert len(recorded.state._status) < 50 * 10


def test_what_is_only_told_reads_back_as_it_was_said(recorded: Recorded) -> None:
    """Traffic between tiers, compaction and device samples change no state of a pool."""
    recorded.run_request([1, 2], 5)
    before = recorded.state.pools[1].units
    recorded.pool.offloaded(1, 2, [1, 2])
    recorded.pool.onboarded(None, 2, [5])
    recorded.pool.compacted(7)
    recorded.probe.device_sample(0, 100, 20, 120, reserved=90, allocated=60, inactive=30)
    recorded.step()
    said = {event.kind: event.fields for event in recorded.events}
    assert said[Kind.OFFLOADED] == {"request": 1, "to_pool": 2, "units": (1, 2)}
    assert said[Kind.ONBOARDED] == {"request": None, "from_pool": 2, "units": (5,)}
    assert said[Kind.COMPACTED] == {"moved_units": 7}
    assert said[Kind.DEVICE_SAMPLE]["inactive"] == 30
    assert recorded.state.device_samples[0].used == 100
    assert recorded.state.pools[1].units == before


def test_a_device_sample_keeps_apart_what_is_zero_and_what_is_not_known(recorded: Recorded) -> None:
    """A device without a driver's or a framework's numbers has none; what was not told is None, and time goes on."""
    probe, state = recorded.probe, recorded.state
    probe.device_sample(0, 100, 20, 120, 90, 60, 30, largest_free=0, weights=40, retries=0, uuid="GPU-1")
    probe.device_sample(1, 0, 0, 0)
    recorded.step()
    told, untold = state.device_samples[0], state.device_samples[1]
    assert (told.largest_free, told.kv_pool, told.weights, told.retries, told.ooms) == (0, None, 40, 0, None)
    assert (told.name, told.slack, untold.name) == ("GPU-1", 30, "cuda:1")
    assert (untold.used, untold.reserved, untold.slack, untold.largest_free) == (None, None, None, None)
    assert told.time_ns == state.time_ns and state.fresh_device_samples() == [told, untold]
    recorded.now += STALE_NS
    recorded.step()
    assert state.fresh_device_samples() == [] and len(state.device_samples) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.pool.truncate(1, -5, [1]),
        lambda r: r.pool.commit(1, -2),
        lambda r: r.pool.offloaded("a", 1, [1]),
        lambda r: r.pool.compacted(None),
        lambda r: r.probe.pool_changed("no pool", 5),
        lambda r: r.probe.pool_changed(r.pool, -1),
        lambda r: r.probe.device_sample(0, -1, 0, 0),
        lambda r: r.probe.device_sample(0, 1, 0, 1, kv_pool=-1),
    ],
)
def test_nonsense_is_counted_and_raises_nothing(recorded: Recorded, call: Callable[[Recorded], None]) -> None:
    """The engine never notices; the probe says that something is missing."""
    call(recorded)
    assert recorded.probe.lost == 1
    assert recorded.probe.loss_reasons == ["value"]


class Truth:
    """The audit of an engine whose request 1 holds units 1 to 3, the first with content."""

    def status(self, pool: int, first: int, count: int) -> Sequence[int]:
        """One reference each for the first three."""
        return [status_word(int(unit <= 3), cached=unit == 1) for unit in range(first, first + count)]

    def live_requests(self) -> Sequence[int]:
        """It runs."""
        return [1]

    def picture(self, request: int) -> RequestPicture | None:
        """It decodes."""
        return RequestPicture(2, 0, 0, 10, None, 10, True, tables=[(1, 0, [1, 2, 3])])
