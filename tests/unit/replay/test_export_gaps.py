"""Exports of recordings of which frames are missing: what is said is true, what is not known is absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmon.capture import CaptureWriter, StreamFacts
from kvmon.events import FinishReason
from kvmon.replay.export.parquet import export_parquet
from kvmon.replay.export.perfetto import export_perfetto
from kvmon.state import scan
from tests.unit.capture.traffic import record, words_of
from tests.unit.replay.exported import naive_events, rows_of
from tests.unit.replay.exported_trace import check_trace, events_of, slices_of

STEPS = 500
STATES = ("active", "cached", "pinned", "deferred", "free")


class Holed:
    """A recording of the toy engine, which audits itself, without the frames at some places."""

    def __init__(self, folder: Path) -> None:
        record(folder, STEPS, units=64)
        self.words = words_of(folder / "toy-0")
        self.table = scan(self.words)
        self.naive = list(naive_events(self.words, self.table))
        self.numbers = self.table.numbers.tolist()
        self.write(folder / "whole.kvmon", [])
        export_parquet([folder / "whole.kvmon"], folder / "whole", every_ns=0)
        self.whole = self.states(folder / "whole")

    def write(self, path: Path, holes: list[tuple[int, int]]) -> set[int]:
        """A capture without these (first, count) frames; their numbers."""
        gone = np.zeros(len(self.numbers), np.bool_)
        for first, count in holes:
            gone[first : first + count] = True
        starts = np.concatenate([[0], self.table.ends[:-1]])
        with CaptureWriter(path, checkpoint_operations=None, force=True) as writer:
            sink = writer.add_stream(StreamFacts("toy"))
            for place in np.flatnonzero(~gone).tolist():
                sink.write(self.words[starts[place] : self.table.ends[place]])
        return set(self.table.numbers[gone].tolist())

    def states(self, out: Path) -> dict[int, list[int | None]]:
        """Units by state at the end of each frame, by its time."""
        rows = rows_of(out, "states", f"time_ns, {', '.join(STATES)}")
        return {row["time_ns"]: [row[state] for state in STATES] for row in rows}

    def requests(self, lost: set[int]) -> dict[int, dict[str, Any]]:
        """What is true of each request, and what of it was seen."""
        told: dict[int, dict[str, Any]] = {}
        for row in self.naive:
            number = row["request"]
            if row["kind"] == "request_arrived":
                told[number] = {"arrived": row["frame"], "refused": 0, "finished": None}
            if number not in told:
                continue
            mine = told[number]
            mine["refused"] += row["kind"] == "alloc_failed"
            if row["kind"] == "request_finished":
                mine["finished"] = row["frame"]
                mine |= {"finished_ns": row["time_ns"], "reason": FinishReason(row["fields"]["reason"]).name.lower()}
        return told


@pytest.fixture(scope="module")
def holed(tmp_path_factory: pytest.TempPathFactory) -> Holed:
    """One recording for all of them."""
    return Holed(tmp_path_factory.mktemp("holed"))


HOLES = st.lists(st.tuples(st.integers(1, STEPS - 60), st.integers(1, 40)), min_size=1, max_size=4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HOLES)
def test_requests_and_states_of_a_recording_with_holes(
    holed: Holed, tmp_path: Path, holes: list[tuple[int, int]]
) -> None:
    """Requests that miss nothing are as without a hole, of the others nothing is said that is not so.

    States are those of the whole recording, or absent.
    """
    lost = holed.write(tmp_path / "x.kvmon", holes)
    export_parquet([tmp_path / "x.kvmon"], tmp_path / "out", every_ns=0, force=True)
    truth, rows = holed.requests(lost), rows_of(tmp_path / "out", "requests")
    told = {row["request"]: row for row in rows}
    assert len(told) == len(rows)
    assert {number for number, mine in truth.items() if mine["arrived"] not in lost} <= told.keys()
    last = max(set(holed.numbers) - lost)
    for number, row in told.items():
        mine = truth[number]
        end = last if mine["finished"] is None else min(mine["finished"], last)
        assert row["incomplete"] == any(mine["arrived"] <= frame <= end for frame in lost), (number, mine)
        ended = None if mine["finished"] is None or mine["finished"] in lost else mine["finished_ns"]
        assert row["finished_ns"] == ended
        if ended is not None:
            assert row["finish_reason"] == mine["reason"]
        elif row["finish_reason"] is not None:
            assert row["finish_reason"] == "unknown" and mine["finished"] in lost
        if not row["incomplete"]:
            assert row["refused"] == mine["refused"]
    states = holed.states(tmp_path / "out")
    assert None in [state for units in states.values() for state in units]
    for time_ns, units in states.items():
        assert units == [None] * len(STATES) or units == holed.whole[time_ns]


def test_a_hole_in_a_trace_is_drawn_as_one(holed: Holed, tmp_path: Path) -> None:
    """A mark with how many frames are missing, a slice until an audit has gone round, and no request that goes on."""
    lost = holed.write(tmp_path / "x.kvmon", [(200, 30)])
    export_perfetto(tmp_path / "x.kvmon", tmp_path / "x.json")
    check_trace(tmp_path / "x.json")
    events = events_of(tmp_path / "x.json")
    (mark,) = [event for event in events if event.get("name") == "frames are missing before this"]
    assert mark["args"] == {"frames": len(lost)}
    (dark,) = [one for one in slices_of(events) if one[2] == "the state is not known"]
    assert dark[3] < mark["ts"] < dark[4]
    before = max(row["time_ns"] for row in holed.naive if row["frame"] == holed.numbers[199])
    after = min(row["time_ns"] for row in holed.naive if row["frame"] == holed.numbers[230])
    assert mark["ts"] - dark[3] == after - before
    unseen = {
        number
        for number, mine in holed.requests(lost).items()
        if mine["finished"] in lost and mine["arrived"] not in lost
    }
    ended = {one[2] for one in slices_of(events) if one[5].get("ended") == "before this: nobody saw when"}
    assert ended == {f"request {number}" for number in unseen} and unseen
