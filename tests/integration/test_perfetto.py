"""Traces in the viewers that they are for: what Perfetto and chrome://tracing have read is what the events say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kvmon.replay.export.perfetto import export_perfetto
from tests.naive.timeline import frames_of
from tests.perfetto_viewer import Viewer, import_trace, open_trace
from tests.unit.adapters.driven import OPTIONS
from tests.unit.replay.exported import naive_events
from tests.unit.replay.recorded import Recorded

STATES = ("active", "cached", "pinned", "deferred", "free")


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    """A run with refused allocations, preemptions and requests that have not ended."""
    return Recorded(OPTIONS["paged"], 5, 400)


def check_requests(viewer: Viewer, recorded: Recorded, zero: int) -> None:
    """Each request is a slice from its arrival to its end, to the nanosecond."""
    rows = viewer.query("SELECT name, ts, dur FROM slice WHERE name LIKE 'request %'")
    end, expected = int(recorded.table.times[-1]), {}
    for row in naive_events(recorded.words, recorded.table):
        if row["kind"] == "request_arrived":
            expected[f"request {row['request']}"] = [row["fields"]["at"], end]
        elif row["kind"] == "request_finished":
            expected[f"request {row['request']}"][1] = row["time_ns"]
    assert {row["name"]: [row["ts"] + zero, row["ts"] + row["dur"] + zero] for row in rows} == expected


def check_counters(viewer: Viewer, recorded: Recorded, zero: int) -> None:
    """At the end of each frame the counters of the pool are what a count of its units, one by one, finds."""
    sql = "SELECT ts, t.name AS name, value FROM counter JOIN counter_track t ON t.id = track_id ORDER BY ts"
    told = viewer.query(sql)
    naive, held, at = recorded.naive(), dict.fromkeys(STATES, 0.0), 0
    info = recorded.pools[1]
    names = {f"{info.name} memory (bytes) {state}": state for state in STATES}
    for time_ns, events in frames_of(recorded.words, recorded.table):
        naive.frame(time_ns, events)
        while at < len(told) and told[at]["ts"] + zero <= time_ns:
            if told[at]["name"] in names:
                held[names[told[at]["name"]]] = told[at]["value"]
            at += 1
        assert held == {state: units * info.unit_bytes for state, units in naive.pools[1].state_sums().items()}
    assert at == len(told)


def test_perfetto_reads_what_the_events_say(recorded: Recorded, tmp_path: Path) -> None:
    """Its trace processor finds no fault, and answers with the requests, steps, marks and counters of the recording."""
    export_perfetto(recorded.capture(tmp_path / "x.kvmon"), tmp_path / "x.json.gz")
    zero = max(int(recorded.table.times[0]) - 10**10, 0)
    kinds = Counter(row["kind"] for row in naive_events(recorded.words, recorded.table))
    with open_trace(tmp_path / "x.json.gz") as viewer:
        assert viewer.query("SELECT name, value FROM stats WHERE severity <> 'info' AND value > 0") == []
        check_requests(viewer, recorded, zero)
        check_counters(viewer, recorded, zero)
        names = [row["name"] for row in viewer.query("SELECT name FROM slice")]
        tracks = viewer.query(
            "SELECT DISTINCT process.name AS process, thread.name AS track FROM thread JOIN process USING (upid) "
            "WHERE thread.name IS NOT NULL"
        )
    assert kinds["alloc_failed"] and kinds["preempted"]
    for kind, begin in (("alloc_failed", "refused: "), ("preempted", "preempted: "), ("step", "step")):
        assert sum(name.startswith(begin) for name in names) == kinds[kind], kind
    assert {(row["process"], row["track"]) for row in tracks} == {
        ("sim-0", "steps"),
        ("sim-0", "what went wrong"),
        ("sim-0: requests", "requests"),
    }


def test_chrome_tracing_reads_it_without_a_warning(recorded: Recorded, tmp_path: Path) -> None:
    """Its importer closes no slice by itself, and has as many as there are."""
    export_perfetto(recorded.capture(tmp_path / "x.kvmon"), tmp_path / "x.json")
    read = import_trace(tmp_path / "x.json")
    assert read["warnings"] == [] and read["processes"] == ["sim-0", "sim-0: requests"]
    assert not any(unfinished for _, unfinished in read["slices"])
    steps = sum(row["kind"] == "step" for row in naive_events(recorded.words, recorded.table))
    assert sum(title == "step" for title, _ in read["slices"]) == steps
    arrived = {
        row["request"] for row in naive_events(recorded.words, recorded.table) if row["kind"] == "request_arrived"
    }
    assert {title for title, _ in read["slices"] if title.startswith("request ")} == {
        f"request {one}" for one in arrived
    }
