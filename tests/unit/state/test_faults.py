"""Corrupted sequences of events: `kvmon verify` names each fault, at exactly the event that shows it.

Every sequence is written by the real probe into a recording. The records that are wrong stand in `Wrong(...)`; a fault
that shows only when the step closes is expected at the STEP itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from kvmon.capture.verification import StreamReport, verify_path
from kvmon.events import Kind, checksum, encode, status_word
from kvmon.events.wire import OP_POOL
from kvmon.probe import PoolInfo, StreamProbe
from kvmon.recording.layout import HEADER_BYTES
from kvmon.state import FaultKind, scan

UNITS, TOKENS = 16, 4
Record = list[int]


class Wrong(NamedTuple):
    """A record that breaks a rule."""

    record: Record


STEP = Wrong([])
"""Stands for the STEP that closes the frame, where the fault shows only then."""

Sequence_ = Sequence[Sequence[Record | Wrong]]


class Case(NamedTuple):
    """Frames that follow the good start, and the one fault that they hold."""

    frames: Sequence_
    kind: FaultKind
    fields: dict[str, int | None]


def units(kind: Kind, *numbers: int) -> Record:
    """A record about units."""
    return encode(kind, units=numbers)


def alloc(*numbers: int) -> Record:
    """Units leave the free list."""
    return units(Kind.ALLOC, *numbers)


def assign(request: int, *numbers: int) -> Record:
    """Units join a block table."""
    return encode(Kind.ASSIGN, request=request, group=0, units=numbers)


def arrive(request: int) -> Record:
    """A request of 12 tokens comes."""
    return encode(Kind.REQUEST_ARRIVED, request=request, at=1, class_id=0, prompt=12)


def claims(**said: int) -> Record:
    """What the engine says it has."""
    return encode(Kind.CLAIMS, **said)


def finish(request: int) -> Record:
    """A request ends."""
    return encode(Kind.REQUEST_FINISHED, request=request, reason=1, output=1)


def progress(request: int, computed: int, decoding: int = 0) -> Record:
    """So many tokens are written."""
    return encode(Kind.REQUEST_PROGRESS, request=request, computed=computed, decoding=decoding)


# Request 1 holds units 1, 2 and 3, full of tokens; the content of 1 and 2 can be found again.
GOOD_START: Sequence_ = [
    [
        arrive(1),
        encode(Kind.REQUEST_ADMITTED, request=1),
        alloc(1, 2, 3),
        assign(1, 1, 2, 3),
        units(Kind.CACHE_INSERT, 1, 2),
        progress(1, 12),
    ]
]
FAILED = {"contiguity": 0, "free": 0, "evictable": 0, "reason": 1, "outcome": 1}

CASES: dict[str, Case] = {
    "one unit allocated twice": Case([[Wrong(alloc(2))]], FaultKind.ALLOC_IN_USE, {"unit": 2}),
    "a list allocates a held unit": Case([[Wrong(alloc(7, 3)), assign(1, 7)]], FaultKind.ALLOC_IN_USE, {"unit": 3}),
    "a run allocates a held unit": Case(
        [[Wrong(alloc(3, 4, 5)), assign(1, 4, 5)]], FaultKind.ALLOC_IN_USE, {"unit": 3}
    ),
    "a shared unit is allocated": Case(
        [[units(Kind.SHARE, 1), assign(1, 1)], [Wrong(alloc(1))]], FaultKind.ALLOC_IN_USE, {"unit": 1}
    ),
    "a deferred unit is allocated": Case(
        [[units(Kind.DEFER, 3), progress(1, 8)], [Wrong(alloc(3)), assign(1, 3)]], FaultKind.ALLOC_DEFERRED, {"unit": 3}
    ),
    "a unit is freed that was never held": Case([[Wrong(units(Kind.FREE, 9))]], FaultKind.DOUBLE_FREE, {"unit": 9}),
    "a unit is freed twice": Case(
        [[units(Kind.FREE, 3), progress(1, 8)], [], [Wrong(units(Kind.FREE, 3))]], FaultKind.DOUBLE_FREE, {"unit": 3}
    ),
    "a unit is unshared that nobody holds": Case(
        [[Wrong(units(Kind.UNSHARE, 16))]], FaultKind.DOUBLE_FREE, {"unit": 16}
    ),
    "cached content is unshared once too often": Case(
        [[finish(1), units(Kind.UNSHARE, 3, 2, 1)], [Wrong(units(Kind.UNSHARE, 1))]], FaultKind.DOUBLE_FREE, {"unit": 1}
    ),
    "a list frees a free unit": Case(
        [[progress(1, 8), Wrong(units(Kind.FREE, 3, 9))]], FaultKind.DOUBLE_FREE, {"unit": 9}
    ),
    "a run frees a free unit": Case(
        [[progress(1, 8), Wrong(units(Kind.FREE, 3, 4))]], FaultKind.DOUBLE_FREE, {"unit": 4}
    ),
    "a unit is freed while another refers to it": Case(
        [[units(Kind.SHARE, 2), assign(1, 2)], [progress(1, 8), Wrong(units(Kind.FREE, 2))]],
        FaultKind.FREE_REFERENCED,
        {"unit": 2, "value": 2},
    ),
    "a free unit is shared": Case([[Wrong(units(Kind.SHARE, 9)), assign(1, 9)]], FaultKind.SHARE_FREE, {"unit": 9}),
    "a unit beyond the pool is allocated": Case([[Wrong(alloc(17))]], FaultKind.UNIT_OUT_OF_RANGE, {"unit": 17}),
    "a list frees beyond the pool": Case(
        [[Wrong(units(Kind.FREE, 90, 3)), progress(1, 8)]], FaultKind.UNIT_OUT_OF_RANGE, {"unit": 90}
    ),
    "an audit looks beyond the pool": Case(
        [[Wrong(encode(Kind.AUDIT_SLICE, start=16, status=[status_word(0), status_word(0)]))]],
        FaultKind.UNIT_OUT_OF_RANGE,
        {"unit": 17},
    ),
    "a block table names a unit beyond the pool": Case(
        [[Wrong(assign(1, 40))]], FaultKind.UNIT_OUT_OF_RANGE, {"unit": 40, "request": 1}
    ),
    "content of a free unit": Case([[Wrong(units(Kind.CACHE_INSERT, 5))]], FaultKind.CONTENT_OF_FREE_UNIT, {"unit": 5}),
    "eviction of a unit without content": Case(
        [[Wrong(units(Kind.EVICT, 3))]], FaultKind.EVICT_WITHOUT_CONTENT, {"unit": 3}
    ),
    "eviction of a free unit": Case([[Wrong(units(Kind.EVICT, 12))]], FaultKind.EVICT_WITHOUT_CONTENT, {"unit": 12}),
    "a unit without content is pinned": Case([[Wrong(units(Kind.PIN, 3))]], FaultKind.PIN_WITHOUT_CONTENT, {"unit": 3}),
    "a unit is unpinned that was not pinned": Case(
        [[Wrong(units(Kind.UNPIN, 1))]], FaultKind.UNPIN_NOT_PINNED, {"unit": 1}
    ),
    "a shared unit is deferred": Case(
        [[units(Kind.SHARE, 1), assign(1, 1)], [progress(1, 8), Wrong(units(Kind.DEFER, 1))]],
        FaultKind.DEFER_SHARED,
        {"unit": 1, "value": 2},
    ),
    "a free unit is deferred": Case([[Wrong(units(Kind.DEFER, 8))]], FaultKind.DEFER_SHARED, {"unit": 8, "value": 0}),
    "a block table names a free unit": Case(
        [[Wrong(assign(1, 9))]], FaultKind.ASSIGN_UNHELD, {"unit": 9, "request": 1}
    ),
    "a block of free units is assigned": Case(
        [[alloc(9), Wrong(encode(Kind.ASSIGN_RUN, request=1, group=0, start=9, units=2))]],
        FaultKind.ASSIGN_UNHELD,
        {"unit": 10, "request": 1},
    ),
    "a unit that nobody owns when the step closes": Case(
        [[alloc(9), STEP]], FaultKind.UNOWNED, {"unit": 9, "value": 1}
    ),
    "a request ends and keeps its units": Case([[finish(1), STEP]], FaultKind.UNOWNED, {"unit": 1, "value": 3}),
    "progress of a request that never came": Case([[Wrong(progress(7, 1))]], FaultKind.UNKNOWN_REQUEST, {"request": 7}),
    "a request ends twice": Case(
        [[finish(1), units(Kind.UNSHARE, 3, 2, 1)], [Wrong(finish(1))]], FaultKind.UNKNOWN_REQUEST, {"request": 1}
    ),
    "a refusal of a request that never came": Case(
        [[Wrong(encode(Kind.ALLOC_FAILED, request=5, need=3, **FAILED))]], FaultKind.UNKNOWN_REQUEST, {"request": 5}
    ),
    "units for a request that never came": Case(
        [[alloc(9), Wrong(assign(8, 9)), units(Kind.FREE, 9)]], FaultKind.UNKNOWN_REQUEST, {"request": 8}
    ),
    "a request comes twice": Case([[Wrong(arrive(1))]], FaultKind.REQUEST_TWICE, {"request": 1}),
    "a running request is admitted": Case(
        [[Wrong(encode(Kind.REQUEST_ADMITTED, request=1))]], FaultKind.ADMIT_NOT_WAITING, {"request": 1}
    ),
    "a waiting request is preempted": Case(
        [[arrive(2), Wrong(encode(Kind.PREEMPTED, request=2, lost_tokens=0))]],
        FaultKind.PREEMPT_NOT_RUNNING,
        {"request": 2},
    ),
    "more tokens than slots": Case(
        [[progress(1, 13), STEP]], FaultKind.TOKENS_BEYOND_UNITS, {"request": 1, "value": 1}
    ),
    "a decode runs out of its slots": Case(
        [[progress(1, 11, 1)], [], [STEP, progress(1, 13)]], FaultKind.TOKENS_BEYOND_UNITS, {"request": 1, "value": 1}
    ),
    "an event of a pool that was never attached": Case(
        [[[OP_POOL << 27 | 5], Wrong(alloc(1))]], FaultKind.UNKNOWN_POOL, {"pool": 5}
    ),
    "a pool without units": Case(
        [[Wrong(encode(Kind.POOL_ATTACHED, pool=2, restated=0, text='{"capacity_units": 0}'))]],
        FaultKind.UNKNOWN_POOL,
        {"pool": 2},
    ),
    "a pool whose numbers are none": Case(
        [[Wrong(encode(Kind.POOL_ATTACHED, pool=2, restated=0, text='{"capacity_units": 9, "unit_tokens": "many"}'))]],
        FaultKind.UNKNOWN_POOL,
        {"pool": 2},
    ),
    "a pool whose capacity is a word": Case(
        [[Wrong(encode(Kind.POOL_ATTACHED, pool=2, restated=0, text='{"capacity_units": "many"}'))]],
        FaultKind.UNKNOWN_POOL,
        {"pool": 2},
    ),
    "a pool changes that was never attached": Case(
        [[Wrong(encode(Kind.POOL_CHANGED, pool=3, capacity_units=4))]], FaultKind.UNKNOWN_POOL, {"pool": 3}
    ),
    "the engine holds a unit that its events freed": Case(
        [[Wrong(encode(Kind.AUDIT_SLICE, start=4, status=[status_word(0), status_word(0, cached=True)]))]],
        FaultKind.AUDIT_MISMATCH,
        {"unit": 5},
    ),
    "the engine has free units that its events hold": Case(
        [[finish(1), units(Kind.UNSHARE, 3), Wrong(encode(Kind.AUDIT_RUN, start=3, units=1, status=[status_word(1)]))]],
        FaultKind.AUDIT_MISMATCH,
        {"unit": 3},
    ),
    "the engine counts fewer free units": Case([[Wrong(claims(available=10))]], FaultKind.CLAIMS_DRIFT, {"value": -3}),
    "the engine's numbers leak": Case(
        [[Wrong(claims(available=13, evictable=0, protected=2, in_flight=0))]], FaultKind.RESIDUAL, {"value": -1}
    ),
    "the pool shrinks below its use": Case(
        [[Wrong(encode(Kind.POOL_CHANGED, pool=1, capacity_units=2))]], FaultKind.CAPACITY_BELOW_USE, {"value": 1}
    ),
    "the probe lost records": Case(
        [[Wrong(encode(Kind.GAP, lost=12, reason=1))]], FaultKind.RECORDS_LOST, {"value": 12}
    ),
    "a relocation onto itself": Case(
        [
            [
                alloc(4, 5, 6),
                Wrong(
                    encode(
                        Kind.MIGRATED, request=1, old_start=1, old_units=3, new_start=3, new_units=4, copied_tokens=12
                    )
                ),
            ],
        ],
        FaultKind.RELOCATION_OVERLAP,
        {"request": 1},
    ),
}


class Clock:
    """Nanoseconds, one millisecond more at each look."""

    def __init__(self) -> None:
        self.now = 1_000_000_000

    def __call__(self) -> int:
        self.now += 1_000_000
        return self.now


def record(directory: Path, frames: Sequence_) -> tuple[int, int] | None:
    """Write these frames after the one that attaches the pool.

    (frame, word) of the wrong record, None where there is none.
    """
    probe = StreamProbe(directory, "engine", clock=Clock())
    probe.attach_pool(PoolInfo("gpu", UNITS, 4096, TOKENS))
    probe.tick()
    where = None
    for number, frame in enumerate(frames, start=1):
        word, at_step = 0, False
        for item in frame:
            if item is STEP:
                at_step = True
                continue
            if isinstance(item, Wrong):
                where = (number, word)
            words = item.record if isinstance(item, Wrong) else item
            probe.emitter.put(words)
            word += len(words)
        if at_step:
            where = (number, word)
        probe.step(1, 1, 0, 0, 0, 1, 0)
    probe.close()
    return where


def verify(directory: Path) -> StreamReport:
    """The report on the only stream."""
    (report,) = verify_path(directory).streams
    return report


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_named_with_its_position(name: str, tmp_path: Path) -> None:
    """The first fault found is the one that was put in, with its kind, frame, word, time, pool, unit and request."""
    case = CASES[name]
    where = record(tmp_path, [*GOOD_START, *case.frames])
    report = verify(tmp_path)
    assert report.faults, "nothing was found"
    first = report.faults[0]
    assert first.kind is case.kind
    assert (first.frame, first.word) == where
    assert {field: getattr(first, field) for field in case.fields} == case.fields
    assert first.time_ns > 1_000_000_000
    assert not report.clean


def test_the_good_start_is_clean(tmp_path: Path) -> None:
    """What the corrupted sequences begin with, and a life of a request without a fault, holds none."""
    release = [finish(1), units(Kind.UNSHARE, 3, 2, 1), claims(available=14, evictable=2, protected=0, in_flight=0)]
    record(tmp_path, [*GOOD_START, [], release, [units(Kind.PIN, 1), units(Kind.UNPIN, 1), units(Kind.EVICT, 1)]])
    report = verify(tmp_path)
    assert report.faults == []
    assert report.clean
    assert report.verified_from == 0
    assert report.frames == 5


def test_every_kind_of_fault_has_a_sequence() -> None:
    """No fault that the fold can find is left without a sequence that shows it."""
    in_files = {FaultKind.FRAME_MISSING, FaultKind.TIME_BACKWARDS, FaultKind.DAMAGED_FRAME}
    assert {case.kind for case in CASES.values()} | in_files == set(FaultKind)
    assert len(CASES) >= 30


# -- what happens to bytes --


class Words:
    """The words of the only segment of a recording, to be changed behind the writer's back."""

    def __init__(self, directory: Path) -> None:
        (self.path,) = directory.rglob("*.seg")
        data = np.frombuffer(self.path.read_bytes()[HEADER_BYTES:], np.uint32)
        self.table = scan(data[: int(np.flatnonzero(data)[-1]) + 1])
        self.words = data[: self.table.consumed].copy()

    def span(self, frame: int) -> tuple[int, int]:
        """First word of a frame, and the word behind it."""
        return (int(self.table.ends[frame - 1]) if frame else 0), int(self.table.ends[frame])

    def seal(self, frame: int) -> None:
        """Give a frame the checksum of what it now holds."""
        begin, end = self.span(frame)
        self.words[end - 1] = checksum(self.words[begin : end - 1].tobytes())

    def save(self) -> None:
        """Write the words back."""
        with open(self.path, "r+b") as file:
            file.seek(HEADER_BYTES)
            file.write(self.words.tobytes())


@pytest.fixture
def words(tmp_path: Path) -> Words:
    """A recording of eight clean frames; the last five have the same length."""
    record(tmp_path, [*GOOD_START, *([[alloc(9), assign(1, 9), units(Kind.FREE, 9)]] * 6)])
    return Words(tmp_path)


def only_fault(directory: Path) -> Any:
    """The single fault of a report."""
    (fault,) = verify(directory).faults
    return fault


def test_frames_that_are_missing_are_named(words: Words, tmp_path: Path) -> None:
    """A jump in the numbers of frames is a fault at the frame that follows it."""
    begin, end = words.span(7)
    words.words[end - 16] += 3
    words.seal(7)
    words.save()
    fault = only_fault(tmp_path)
    assert (fault.kind, fault.frame, fault.word, fault.value) == (FaultKind.FRAME_MISSING, 10, 0, 3)
    assert begin < end


def test_time_that_runs_backwards_is_named(words: Words, tmp_path: Path) -> None:
    """A frame that ended before the one before it is a fault at its first word."""
    _, end = words.span(5)
    words.words[end - 14] -= 50_000_000
    words.seal(5)
    words.save()
    fault = only_fault(tmp_path)
    assert (fault.kind, fault.frame, fault.word) == (FaultKind.TIME_BACKWARDS, 5, 0)


@pytest.mark.parametrize(("offset", "word"), [(0, 0), (1, 1)])
def test_a_word_that_begins_no_record_is_named(words: Words, tmp_path: Path, offset: int, word: int) -> None:
    """A frame whose structure is broken is named with the wrong word.

    The frames behind it are verified after the next sweep.
    """
    begin, _ = words.span(4)
    words.words[begin + offset] = 10 << 27 | 1
    words.save()
    fault = only_fault(tmp_path)
    assert (fault.kind, fault.frame, fault.word) == (FaultKind.DAMAGED_FRAME, 4, word)


@pytest.mark.parametrize("offset", range(0, 4))
def test_a_changed_payload_is_named(words: Words, tmp_path: Path, offset: int) -> None:
    """A flipped bit that breaks no structure is found by the checksum, and its frame named."""
    begin, _ = words.span(4)
    words.words[begin + offset] ^= 1 << 1
    words.save()
    fault = only_fault(tmp_path)
    assert (fault.kind, fault.frame) == (FaultKind.DAMAGED_FRAME, 4)


def test_several_damaged_frames_are_each_one_fault(words: Words, tmp_path: Path) -> None:
    """Two holes apart are two faults; nothing of what lies behind them is called a fault."""
    for frame in (3, 6):
        begin, _ = words.span(frame)
        words.words[begin] ^= 1
    words.save()
    report = verify(tmp_path)
    assert [(fault.kind, fault.frame) for fault in report.faults] == [
        (FaultKind.DAMAGED_FRAME, 3),
        (FaultKind.DAMAGED_FRAME, 6),
    ]
    assert [hole.frames for hole in report.holes] == [1, 1]
    assert not report.converged
