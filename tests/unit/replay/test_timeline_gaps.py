"""What a timeline says where something is missing, where something sticks out for an instant, and of what it marks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kvmon.capture import CaptureReader, CaptureWriter, StreamFacts
from kvmon.errors import ConfigError, InputError
from kvmon.events import Kind, encode, status_word
from kvmon.replay.lives import open_lives
from kvmon.replay.timeline import read_timelines
from kvmon.replay.timeline_model import UNKNOWN_CELL, Timeline
from kvmon.report.memory_map import MAP_STATES, memory_map
from kvmon.state import StreamState
from tests.unit.adapters.driven import OPTIONS
from tests.unit.capture.traffic import frame, record, words_of
from tests.unit.replay.recorded import Recorded

Words = npt.NDArray[np.uint32]
UNITS = 64


class Frames:
    """Frames by hand, closed by ticks a thousand nanoseconds apart."""

    def __init__(self, **info: object) -> None:
        self.words: list[int] = []
        self.number, self.time_ns = 0, 1_000_000
        text = json.dumps({"capacity_units": UNITS, "unit_tokens": 4, "fresh": True, "contiguity": "required", **info})
        self.add(encode(Kind.POOL_ATTACHED, pool=1, restated=0, text=text))

    def add(self, *records: list[int], skip: int = 0) -> int:
        """One more frame, `skip` numbers later than it should be; its time."""
        self.number += skip
        self.time_ns += 1000 * (1 + skip)
        self.words += frame(self.number, self.time_ns, list(records))
        self.number += 1
        return self.time_ns

    def write(self, path: Path) -> Path:
        """A capture of them."""
        with CaptureWriter(path, checkpoint_operations=None, force=True) as writer:
            writer.add_stream(StreamFacts("hand")).write(np.array(self.words, np.uint32))
        return path


def swept(active: int) -> list[list[int]]:
    """The records of an audit that finds the first units referenced and the others free."""
    status = [status_word(int(unit < active)) for unit in range(UNITS)]
    return [
        encode(Kind.AUDIT_SWEEP, sweep=1, ended=0, live=0),
        encode(Kind.AUDIT_SLICE, start=1, status=status),
        encode(Kind.AUDIT_SWEEP, sweep=1, ended=1, live=0),
    ]


def one(path: Path, **options: object) -> Timeline:
    """The only timeline of a file."""
    (timeline,) = read_timelines(path, **options)  # type: ignore[arg-type]
    return timeline


def test_a_spike_of_one_event_is_never_lost(tmp_path: Path) -> None:
    """Sixty units that come and go within one of two thousand frames stand in the extremes of every resolution."""
    frames = Frames()
    for place in range(2000):
        if place == 1234:
            spike = frames.add(encode(Kind.ALLOC, units=range(1, 61)), encode(Kind.FREE, units=range(1, 61)))
        else:
            frames.add()
    path = frames.write(tmp_path / "x.kvmon")
    for buckets in (1, 2, 7, 100, 1000, 5000):
        timeline = one(path, buckets=buckets)
        (pool,) = timeline.pools
        hit = np.flatnonzero(pool.curves["active"].most == 60)
        assert len(hit) == 1 and timeline.edges_ns[hit[0]] < spike <= timeline.edges_ns[hit[0] + 1]
        assert pool.curves["largest_free"].least[hit[0]] == pool.curves["free"].least[hit[0]] == 4
        assert pool.curves["active"].last.max() == 0
        assert (np.delete(pool.curves["active"].most, hit) == 0).all()


def test_a_gap_is_absent_and_never_zero(tmp_path: Path) -> None:
    """Frames that are missing: what they held is not known until an audit has gone round; counts are not zero there."""
    frames = Frames()
    frames.add(encode(Kind.ALLOC, units=range(1, 11)))
    for _ in range(8):
        before = frames.add()
    frames.add(encode(Kind.ALLOC, units=range(11, 21)), skip=30)
    for _ in range(9):
        frames.add()
    known = frames.add(*swept(25))
    for _ in range(20):
        frames.add()
    timeline = one(frames.write(tmp_path / "x.kvmon"), buckets=70, columns=70, cells=8)
    (gap,) = timeline.gaps
    assert (gap.begin_ns, gap.end_ns, gap.frames, gap.reason) == (before, known, 30, "frames are missing")
    (pool,) = timeline.pools
    edges = timeline.edges_ns
    inside = (edges[:-1] >= gap.begin_ns) & (edges[1:] < gap.end_ns)
    outside = (edges[1:] <= gap.begin_ns) | (edges[:-1] >= gap.end_ns)
    assert inside.sum() > 30 and (timeline.known[inside] == 0).all() and (timeline.known[outside] == 1).all()
    partly = ~inside & ~outside
    assert ((timeline.known[partly] >= 0) & (timeline.known[partly] < 1)).all()
    for name in ("active", "free", "largest_free", "available"):
        curve = pool.curves[name]
        for values in (curve.least, curve.most, curve.last):
            assert np.isnan(values[inside]).all() and np.isfinite(values[outside]).all()
    assert set(pool.curves["active"].last[outside][1:].tolist()) == {10.0, 25.0}
    assert np.isnan(pool.counts["evicted"][inside]).all()
    assert np.isnan(timeline.counts["arrived"][(edges[:-1] >= before) & (edges[1:] < before + 29_000)]).all()
    assert (pool.map.state[inside] == UNKNOWN_CELL).all() and (pool.map.taken_ns[inside] == -1).all()
    said = json.loads(json.dumps(timeline.as_json()))
    assert said["pools"][0]["curves"]["active"]["last"][int(np.flatnonzero(inside)[0])] is None


def test_records_that_the_probe_lost_make_the_time_before_them_unknown(tmp_path: Path) -> None:
    """A frame that says so lost them since the frame before it."""
    frames = Frames()
    for _ in range(10):
        before = frames.add()
    frames.time_ns += 20_000
    lost = frames.add(encode(Kind.GAP, lost=7, reason=1))
    frames.add(*swept(5))
    end = frames.add()
    timeline = one(frames.write(tmp_path / "x.kvmon"), buckets=60)
    (gap,) = timeline.gaps
    assert (gap.begin_ns, gap.records, gap.reason) == (before, 7, "the probe lost records")
    edges, active = timeline.edges_ns, timeline.pools[0].curves["active"]
    inside = (edges[:-1] >= before) & (edges[1:] < lost)
    assert inside.any() and (timeline.known[inside] == 0).all() and np.isnan(active.most[inside]).all()
    assert active.last[-1] == 5 and timeline.end_ns == end


def test_a_recording_that_begins_in_the_middle(tmp_path: Path) -> None:
    """Until the first audit has gone round nothing is known, and that is one gap."""
    record(tmp_path, 3000, budget=256 << 10, units=64)
    (timeline,) = read_timelines(tmp_path, buckets=200)
    gap = timeline.gaps[0]
    assert gap.begin_ns == timeline.begin_ns and gap.end_ns > gap.begin_ns
    assert gap.reason == "what came before is not there"
    assert timeline.known[0] == 0 and timeline.known[-1] == 1
    active = timeline.pools[0].curves["active"]
    assert np.isnan(active.last[0]) and active.last[-1] >= 0


def test_a_capture_of_the_last_minutes_knows_its_begin(tmp_path: Path) -> None:
    """It begins with a checkpoint: nothing is unknown, and failures count from its first frame."""
    recorded = Recorded(OPTIONS["paged"], 1, 300)
    half = len(recorded.table.ends) // 2
    at, state = int(recorded.table.ends[half]), StreamState()
    state.apply(recorded.words[:at])
    path = tmp_path / "x.kvmon"
    with CaptureWriter(path) as writer:
        writer.add_stream(StreamFacts("late"), state=state).write(recorded.words[at:])
    timeline = one(path, buckets=30)
    assert (timeline.known == 1).all() and not timeline.gaps
    assert timeline.pools[0].curves["written"].least[0] > 0, "what the checkpoint holds, holds before the first frame"
    whole = recorded.followed()
    late = [failure for failure in whole.failures if failure[0] >= timeline.begin_ns]
    assert late and timeline.failure_count == len(late) < len(whole.failures)
    assert timeline.failures[0].number == 1


def test_a_window_is_the_same_as_that_part_of_the_whole(tmp_path: Path) -> None:
    """Sought from a checkpoint: curves, counts and numbers of failures are those of the whole timeline there."""
    recorded = Recorded(OPTIONS["chunks"], 3, 300)
    path = recorded.capture(tmp_path / "x.kvmon")
    whole = one(path, buckets=60)
    begin, end = int(whole.edges_ns[20]), int(whole.edges_ns[50])
    part = one(path, buckets=30, window=(begin, end))
    assert np.isfinite(one(path, buckets=5000, window=(begin, end)).curves["running"].last).all(), "before a frame too"
    fine = one(path, buckets=1, window=(begin, end))
    for name, curve in fine.pools[0].curves.items():
        mine = whole.pools[0].curves[name]
        if np.isfinite(mine.most[20:50]).any():
            assert curve.most[0] == np.nanmax(mine.most[20:50]) and curve.least[0] == np.nanmin(mine.least[20:50]), name
        assert np.isclose(curve.last[0], mine.last[49], equal_nan=True)
    assert fine.counts["steps"][0] == whole.counts["steps"][20:50].sum()
    numbers = [failure.number for failure in whole.failures if begin < failure.refusal.time_ns <= end]
    assert numbers and [failure.number for failure in part.failures] == numbers
    with pytest.raises(InputError, match="no frame in that window"):
        read_timelines(path, window=(end + 10**12, None))


@pytest.mark.parametrize("name", ["paged", "pins", "transfers", "window", "window-own", "buddy", "retained", "swap"])
def test_the_map_is_what_lay_there_at_that_moment(name: str, tmp_path: Path) -> None:
    """Each cell of each column, at the end of it or before its first refusal, as a map of the state at that moment."""
    recorded = Recorded(OPTIONS[name], 6, 120)
    path = recorded.capture(tmp_path / "x.kvmon")
    timeline = one(path, buckets=60, columns=12, cells=9)
    refused = 0
    with open_lives(path) as source:
        (life,) = source.lives
        for pool in timeline.pools:
            drawn = pool.map
            assert drawn.edges_ns.tolist() == timeline.edges_ns[::5].tolist()
            for column in range(12):
                first = [
                    failure.refusal
                    for failure in timeline.failures
                    if drawn.edges_ns[column] < failure.refusal.time_ns <= drawn.edges_ns[column + 1]
                    and failure.refusal.pool == pool.number
                ]
                assert drawn.refused[column] == bool(first)
                if first:
                    refused += 1
                    assert drawn.taken_ns[column] == first[0].time_ns
                    state, _ = life.state_within(first[0].time_ns, first[0].frame, first[0].word)
                else:
                    assert drawn.taken_ns[column] == drawn.edges_ns[column + 1]
                    state = life.state_at(int(drawn.taken_ns[column]))
                codes = np.frombuffer(memory_map(state, state.pools[pool.number]).codes, np.uint8)
                for cell in range(9):
                    part = codes[cell * len(codes) // 9 : (cell + 1) * len(codes) // 9]
                    counts = np.bincount(part, minlength=len(MAP_STATES))
                    most = 1 + int(counts[1:].argmax()) if counts[1:].any() else 0
                    assert counts[drawn.state[column, cell]] == counts[most], (column, cell)
                    used = len(part) - counts[0]
                    assert drawn.used[column, cell] == (max(used * 255 // len(part), 1) if used else 0)
    assert refused or name not in ("paged", "buddy")


def test_what_is_marked(tmp_path: Path) -> None:
    """A pool that comes and changes, a reset, errors and preemptions: the first ones of a bucket; all are counted."""
    frames = Frames()
    frames.add(encode(Kind.REQUEST_ARRIVED, request=1, at=1, class_id=0, prompt=9))
    for _ in range(30):
        frames.add(encode(Kind.REQUEST_ADMITTED, request=1), encode(Kind.PREEMPTED, request=1, lost_tokens=5))
        frames.add(encode(Kind.ENGINE_ERROR, error=1, asked=1 << 30, free=0, reserved=0))
    frames.add(encode(Kind.POOL_RESET))
    frames.add(encode(Kind.POOL_CHANGED, pool=1, capacity_units=32))
    timeline = one(frames.write(tmp_path / "x.kvmon"), buckets=2)
    kinds = [mark.kind for mark in timeline.marks]
    assert kinds[0] == "attached" and kinds[-2:] == ["reset", "resized"]
    assert kinds.count("preempted") == kinds.count("error") == 8
    assert timeline.counts["preemptions"].sum() == timeline.counts["errors"].sum() == 30
    assert timeline.counts["recomputed_tokens"].sum() == 150
    sizes = {mark.kind: mark.value for mark in timeline.marks}
    assert (sizes["attached"], sizes["resized"], sizes["preempted"], sizes["error"]) == (64, 32, 5, 1 << 30)


def test_what_the_engine_says_of_itself(tmp_path: Path) -> None:
    """Residual and drift have the extremes of what was claimed, and hold until the next claim."""
    frames = Frames()
    for available in (60, 62, 64, 61):
        frames.add(encode(Kind.CLAIMS, available=available, evictable=0, protected=0, in_flight=0, usage=0))
    for _ in range(40):
        frames.add()
    timeline = one(frames.write(tmp_path / "x.kvmon"), buckets=4)
    for name in ("residual", "drift"):
        curve = timeline.pools[0].curves[name]
        assert (curve.least[0], curve.most[0], curve.last[0]) == (-4, 0, -3)
        assert curve.most.tolist()[1:] == curve.least.tolist()[1:] == [-3, -3, -3]


@pytest.mark.parametrize(
    ("config", "info", "absent", "there"),
    [
        ({"fidelity": "cache_only"}, {}, ("written", "unowned", "free_runs", "largest_after_eviction"), ("free",)),
        ({"fidelity": "sampled"}, {}, ("written", "page_utilization"), ("free_runs", "external_fragmentation")),
        ({}, {"net": True}, ("cached", "pinned", "deferred", "available"), ("active", "free", "capacity")),
        ({}, {"contiguity": "none"}, ("free_runs", "external_fragmentation", "lost_at_head"), ("largest_free",)),
    ],
)
def test_what_nobody_can_know_is_absent(
    config: dict[str, str], info: dict[str, object], absent: tuple[str, ...], there: tuple[str, ...], tmp_path: Path
) -> None:
    """Whatever the fold has counted."""
    frames = Frames(**info)
    frames.add(encode(Kind.ENGINE_CONFIG, text=json.dumps(config)))
    frames.add(encode(Kind.ALLOC, units=range(1, 11)))
    (pool,) = one(frames.write(tmp_path / "x.kvmon"), buckets=3).pools
    for name in absent:
        assert not pool.curves[name].known, name
    assert all(pool.curves[name].known for name in there)
    drawn = not info.get("net") and config.get("fidelity") != "cache_only"
    assert bool((pool.map.state != UNKNOWN_CELL).any()) == drawn


def test_a_damaged_capture_is_drawn_as_far_as_it_is_sound(tmp_path: Path) -> None:
    """A damaged chunk is a gap with its reason; a file that was cut off has what came before the cut."""
    record(tmp_path, 4000)
    path, words = tmp_path / "x.kvmon", words_of(tmp_path / "toy-0")
    with CaptureWriter(path, checkpoint_operations=2000) as writer:
        sink = writer.add_stream(StreamFacts("toy"))
        for begin in range(0, len(words), len(words)):
            sink.write(words[begin:])
    with CaptureReader(path) as reader:
        chunks = [chunk for chunk in reader.streams[0].chunks if chunk.kind == 2]
    assert len(chunks) > 4
    data = bytearray(path.read_bytes())
    data[chunks[2].payload_at + 50] ^= 0xFF
    path.write_bytes(data)
    timeline = one(path, buckets=100)
    assert [gap.reason for gap in timeline.gaps] == ["a chunk of the capture is damaged"]
    assert "a chunk of the capture is damaged" in timeline.damage
    assert timeline.gaps[0].begin_ns == chunks[1].last_time_ns and timeline.gaps[0].end_ns > chunks[2].last_time_ns
    assert 0.3 < timeline.known.mean() < 1 and timeline.known[0] == timeline.known[-1] == 1
    path.write_bytes(bytes(data[: chunks[1].end + 10]))
    cut = one(path, buckets=10)
    assert cut.end_ns == chunks[1].last_time_ns and any("cut off" in damage for damage in cut.damage)


@pytest.mark.parametrize("numbers", [{"buckets": 0}, {"columns": 0}, {"cells": -1}])
def test_impossible_numbers_are_refused(numbers: dict[str, int], tmp_path: Path) -> None:
    """In a line that says what is possible."""
    path = Frames().write(tmp_path / "x.kvmon")
    with pytest.raises(ConfigError, match="give 1 or more"):
        read_timelines(path, **numbers)  # type: ignore[arg-type]
    assert one(path).buckets == 1, "of a single frame there is a single nanosecond"
