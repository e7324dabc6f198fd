"""A trace against the rules of its format and against the events: nothing overlaps, nothing is missing."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kvmon.capture import CaptureReader, StreamFacts
from kvmon.errors import ConfigError, InputError
from kvmon.replay.export.lanes import Lanes
from kvmon.replay.export.perfetto import export_perfetto
from kvmon.replay.export.trace_events import ProcessEvents
from kvmon.replay.export.window import parse_window
from kvmon.replay.findings import diagnose_path
from tests.unit.adapters.driven import OPTIONS
from tests.unit.replay.exported import naive_events
from tests.unit.replay.exported_trace import check_trace, events_of, slices_of
from tests.unit.replay.recorded import Recorded

NAMES = ("paged", "no-cache", "swap", "growth-waits", "growth-aborts", "window-own", "chunks", "buddy", "leaks")


def traced(recorded: Recorded, folder: Path, **options: Any) -> list[dict[str, Any]]:
    """The events of the trace of one run."""
    capture = recorded.capture(folder / "x.kvmon")
    export_perfetto(capture, folder / "x.json", force=True, **options)
    check_trace(folder / "x.json")
    return events_of(folder / "x.json")


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_keeps_the_rules_and_says_what_the_events_say(name: str, tmp_path: Path) -> None:
    """Requests from arrival to end, phases that fill them, a mark for each failure, counters that are the fold's."""
    recorded = Recorded(OPTIONS[name], 5, 60)
    events = traced(recorded, tmp_path)
    slices = slices_of(events)
    naive = list(naive_events(recorded.words, recorded.table))
    zero = max(int(recorded.table.times[0]) - 10**10, 0)

    arrived = {row["request"]: row["fields"]["at"] - zero for row in naive if row["kind"] == "request_arrived"}
    finished = {row["request"]: row["time_ns"] - zero for row in naive if row["kind"] == "request_finished"}
    requests = {int(one[2].split()[1]): one for one in slices if one[2].startswith("request ")}
    assert requests.keys() == arrived.keys()
    end = int(recorded.table.times[-1]) - zero
    for number, (pid, tid, _, begin, until, args) in requests.items():
        assert (begin, until) == (arrived[number], finished.get(number, end))
        assert ("output_tokens" in args) == (number in finished)
        inner = sorted(one[3:5] for one in slices if one[:2] == (pid, tid) and begin <= one[3] and one[4] <= until)
        assert sum(stop - start for start, stop in inner) == 2 * (until - begin), "phases do not fill the request"
    for tid in {one[1] for one in requests.values()}:
        mine = sorted(one[3:5] for one in requests.values() if one[1] == tid)
        assert all(before[1] <= after[0] for before, after in pairwise(mine))

    marks = Counter(event["name"].split(":")[0] for event in events if event["ph"] == "i")
    kinds = Counter(row["kind"] for row in naive)
    assert marks["refused"] == kinds["alloc_failed"]
    assert marks["preempted"] == kinds["preempted"]
    assert sum(one[2] == "step" for one in slices) == kinds["step"]
    (stream,) = diagnose_path(tmp_path / "x.kvmon")
    if not getattr(OPTIONS[name].allocator, "compaction", False):
        causes = [refusal.cause for refusal in stream.refusals()]
        told = [
            event["args"]["cause"] for event in events if event["ph"] == "i" and event["name"].startswith("refused")
        ]
        assert told == causes

    with CaptureReader(tmp_path / "x.kvmon") as reader:
        state = reader.fold(reader.streams[0])
    for pool in state.pools.values():
        last = [event for event in events if event["ph"] == "C" and event["name"].startswith(f"{pool.name} memory")][-1]
        scale = pool.unit_bytes or 1
        assert last["args"] == {name: units * scale for name, units in pool.units.items()}


def test_counters_follow_every_frame(tmp_path: Path) -> None:
    """At the end of each frame the counter is what the fold says there."""
    recorded = Recorded(OPTIONS["paged"], 8, 50)
    events = traced(recorded, tmp_path)
    told = {event["ts"]: event["args"] for event in events if event["ph"] == "C" and "memory" in event["name"]}
    held: dict[str, int] = {}
    zero = max(int(recorded.table.times[0]) - 10**10, 0)
    with CaptureReader(tmp_path / "x.kvmon") as reader:
        for time_ns in recorded.table.times.tolist():
            held = told.get(time_ns - zero, held)
            pool = reader.state_at(reader.streams[0], time_ns).pools[1]
            assert held == {name: units * (pool.unit_bytes or 1) for name, units in pool.units.items()}


def test_a_part_of_it_opens_with_those_who_were_there(tmp_path: Path) -> None:
    """From one moment to another: slices begin and end at the bounds, and a lost range is marked."""
    recorded = Recorded(OPTIONS["paged"], 9, 120)
    times = recorded.table.times
    begin, end = int(times[50]), int(times[90])
    events = traced(recorded, tmp_path, window=parse_window(str(begin), str(end)))
    slices = slices_of(events)
    zero = max(begin - 10**10, 0)
    assert any(one[2].startswith("request ") and one[3] == begin - zero for one in slices)
    assert max(one[4] for one in slices) <= end - zero
    steps = [one for one in slices if one[2] == "step"]
    assert len(steps) == sum(
        row["kind"] == "step" and begin < row["time_ns"] <= end for row in naive_events(recorded.words, recorded.table)
    )


def test_lost_frames_are_marked(tmp_path: Path) -> None:
    """Where a chunk of the capture is damaged, the trace says how many frames are missing."""
    recorded = Recorded(OPTIONS["paged"], 4, 400)
    capture = recorded.capture(tmp_path / "x.kvmon", every=300)
    with CaptureReader(capture) as reader:
        chunk = [one for one in reader.streams[0].chunks if one.frames][2]
    data = bytearray(capture.read_bytes())
    data[chunk.payload_at + 9] ^= 255
    capture.write_bytes(data)
    done = export_perfetto(capture, tmp_path / "x.json")
    assert done.missing
    check_trace(tmp_path / "x.json")
    events = events_of(tmp_path / "x.json")
    (mark,) = [event for event in events if event.get("name") == "frames are missing before this"]
    assert mark["args"] == {"frames": chunk.frames}


def test_sampled_counters_keep_the_extremes(tmp_path: Path) -> None:
    """With an interval there are fewer of them, and the most and the least within it beside."""
    recorded = Recorded(OPTIONS["chunks"], 3, 80)
    every = traced(recorded, tmp_path)
    some = traced(recorded, tmp_path, every_ns=20_000)
    names = Counter(event["name"].split(" (")[0] for event in some if event["ph"] == "C")
    assert names["kv extremes"] and len(some) < len(every)
    most = max(event["args"]["active"] for event in every if event["ph"] == "C" and "memory" in event["name"])
    assert max(event["args"]["most active"] for event in some if "extremes" in event.get("name", "")) >= most


def test_several_lives_are_processes_on_one_clock(tmp_path: Path) -> None:
    """Two ranks whose clocks differ stand beside each other by their wall clocks; compressed where the name says so."""
    recorded = Recorded(OPTIONS["paged"], 2, 30)
    wall = 1_763_000_000_000_000_000
    facts = [StreamFacts("a", wall_ns=wall, mono_ns=0), StreamFacts("b", 1, wall_ns=wall + 7_000, mono_ns=0)]
    capture = recorded.capture(tmp_path / "x.kvmon", facts=facts)
    done = export_perfetto(capture, tmp_path / "x.json.gz")
    data = gzip.decompress((tmp_path / "x.json.gz").read_bytes())
    trace = json.loads(data)
    assert len(data) == done.json_bytes and len(trace["traceEvents"]) == done.events
    assert trace["otherData"]["time_0"].startswith("2025-11-13T")
    check_trace(tmp_path / "x.json.gz")
    first = {pid: min(e["ts"] for e in trace["traceEvents"] if e["pid"] == pid and "ts" in e) for pid in (1, 2, 3, 4)}
    assert round(first[3] - first[1], 3) == round(first[4] - first[2], 3) == 7
    names = [event["args"]["name"] for event in trace["traceEvents"] if event.get("name") == "process_name"]
    assert names == ["a-0", "a-0: requests", "b-1", "b-1: requests"]


def test_what_comes_late_is_moved_behind_what_was_written() -> None:
    """Order holds whatever comes; times are exact to the nanosecond."""
    written: list[str] = []
    events = ProcessEvents(1, 10**18, written.append)
    events.instant(1, 10**18 + 5, "b", {})
    events.begin(1, 10**18 + 1, "a", {})
    events.flush(10**18 + 3)
    events.instant(1, 10**18 + 2, "late", {})
    events.flush()
    assert [(json.loads(text)["name"], text.partition('"ts":')[2].partition(",")[0]) for text in written] == [
        ("a", "0.001"),
        ("late", "0.003"),
        ("b", "0.005"),
    ]


def test_lanes_are_taken_again_only_when_they_are_left() -> None:
    """The lowest that was left by then; else a new one."""
    lanes = Lanes()
    assert [lanes.take(0), lanes.take(0)] == [0, 1]
    lanes.leave(0, 10)
    assert lanes.take(9) == 2
    assert lanes.take(10) == 0
    assert lanes.count == 3


def test_a_trace_is_whole_or_not_there(tmp_path: Path) -> None:
    """A taken name, no directory and a time without anything: an error, and nothing is left behind."""
    capture = Recorded(OPTIONS["paged"], 2, 10).capture(tmp_path / "x.kvmon")
    export_perfetto(capture, tmp_path / "x.json")
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="--force"):
        export_perfetto(capture, tmp_path / "x.json")
    with pytest.raises(InputError, match="no directory"):
        export_perfetto(capture, tmp_path / "no" / "x.json")
    with pytest.raises(ConfigError, match="holds nothing from"):
        export_perfetto(capture, tmp_path / "y.json", window=parse_window("+99d", None))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.json", "x.kvmon"]
