"""A Parquet export against events that are decoded one by one, the fold, and the timeline; for every allocator."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmon.capture import CaptureReader, CaptureWriter, StreamFacts
from kvmon.errors import ConfigError, InputError
from kvmon.events import FAILURE_REASONS, FinishReason, Kind, encode
from kvmon.events.wire import REFS
from kvmon.replay.export.parquet import FILES, capture_names, export_parquet
from kvmon.replay.export.window import parse_window
from kvmon.replay.findings import diagnose_path
from kvmon.replay.lives import open_lives
from kvmon.replay.timeline import read_timeline
from kvmon.replay.timeline_model import POOL_CURVES, STREAM_CURVES
from tests.unit.adapters.driven import OPTIONS, Options
from tests.unit.capture.traffic import record
from tests.unit.replay.exported import naive_events, rows_of
from tests.unit.replay.recorded import Recorded
from tests.unit.serving.option_sets import contiguous_pools, option_sets, paged_pools

STEP_NS = 1000
STEPS = 40
PLACE = "time_ns, frame, word, kind, pool, request, unit, units"
# Columns of events and where a record has them.
SAID = {
    "need": {"alloc_failed": "need", "step": "head_need"},
    "free": {"alloc_failed": "free"},
    "largest_free": {"alloc_failed": "largest"},
    "arrived_ns": {"request_arrived": "at", "audit_request": "at"},
    "prompt_tokens": {"request_arrived": "prompt", "audit_request": "prompt"},
    "token_limit": {"request_arrived": "limit", "audit_request": "limit"},
    "intended_tokens": {"request_arrived": "intended", "request_finished": "intended"},
    "output_tokens": {"request_finished": "output"},
    "computed_tokens": {"request_progress": "computed", "commit": "tokens", "truncate": "tokens",
                        "audit_request": "computed"},
    "reserved_tokens": {"reserve": "tokens", "audit_request": "reserved"},
    "hit_tokens": {"cache_hit": "hit_tokens"},
    "lookup_tokens": {"cache_hit": "lookup_tokens"},
    "lost_tokens": {"preempted": "lost_tokens"},
    "start_ns": {"step": "start"},
    "duration_ns": {"step": "duration"},
    "prefill_tokens": {"step": "prefill"},
    "decode_tokens": {"step": "decode"},
    "running": {"step": "running"},
    "waiting": {"step": "waiting"},
    "page_tokens": {"request_hashes": "hash_tokens"},
    "first_page": {"request_hashes": "first_page"},
    "layer_group": {"assign": "group", "assign_run": "group"},
    "from_unit": {"migrated": "old_start"},
    "from_units": {"migrated": "old_units"},
    "copied_tokens": {"migrated": "copied_tokens"},
    "other_pool": {"offloaded": "to_pool", "onboarded": "from_pool"},
    "claimed_available": {"claims": "available"},
    "claimed_in_flight": {"claims": "in_flight"},
}  # fmt: skip


def exported(recorded: Recorded, folder: Path, **options: Any) -> Path:
    """An export of one recorded run."""
    capture = recorded.capture(folder / "x.kvmon", every=500)
    export_parquet([capture], folder / "out", force=True, **{"every_ns": 5 * STEP_NS, **options})
    return folder / "out"


def check_events(recorded: Recorded, out: Path) -> None:
    """Row for row, in place, kind, units and fields."""
    columns = f"{PLACE}, reason, outcome, pages, {', '.join(SAID)}"
    rows = rows_of(out, "events", columns)
    expected = list(naive_events(recorded.words, recorded.table))
    assert len(rows) == len(expected)
    for row, naive in zip(rows, expected, strict=True):
        fields, kind = naive.pop("fields"), naive["kind"]
        assert {name: row[name] for name in naive} == naive
        for column, sources in SAID.items():
            assert row[column] == (fields.get(sources[kind]) if kind in sources else None), (column, naive)
        reasons = {
            "alloc_failed": FAILURE_REASONS,
            "request_finished": [reason.name.lower() for reason in FinishReason],
        }
        assert row["reason"] == (reasons[kind][fields["reason"]] if kind in reasons else None)
        assert row["pages"] == (len(fields["hashes"]) if kind == "request_hashes" else None)


def check_states(recorded: Recorded, capture: Path, out: Path) -> None:
    """States are the timeline's over the same intervals, however the export cuts them."""
    rows = rows_of(out, "states", order="ORDER BY pool, time_ns")
    for row in rows:
        parts = [row[name] for name in ("active", "cached", "pinned", "deferred", "free")]
        assert None not in parts and sum(parts) == row["capacity"]
    first = [row for row in rows if row["pool"] == 1]
    edges = np.array([first[0]["begin_ns"], *(row["time_ns"] for row in first)], np.int64)
    with open_lives(capture) as lives:
        timeline = read_timeline(lives.lives[0], edges)
    for pool in timeline.pools:
        mine = [row for row in rows if row["pool"] == pool.number]
        assert len(mine) == timeline.buckets
        for name in POOL_CURVES:
            same(mine, name, pool.curves[name])
        refused = sum(pool.failures.values(), np.zeros(timeline.buckets))
        assert [row["refused"] for row in mine] == refused.tolist()
        assert [row["allocated"] for row in mine] == pool.counts["allocated"].tolist()
    for name in STREAM_CURVES:
        same(first, name, timeline.curves[name])
    for name, counts in timeline.counts.items():
        mine = [np.nan if row[name] is None else row[name] for row in first]
        assert np.allclose(mine, counts, equal_nan=True), name


def same(rows: list[dict[str, Any]], name: str, curve: Any) -> None:
    """One curve."""
    for suffix, values in (("", curve.last), ("_least", curve.least), ("_most", curve.most), ("_mean", curve.mean)):
        if f"{name}{suffix}" in rows[0]:
            mine = [np.nan if row[f"{name}{suffix}"] is None else row[f"{name}{suffix}"] for row in rows]
            assert np.allclose(mine, values, equal_nan=True), f"{name}{suffix}"


def check_failures(capture: Path, out: Path) -> None:
    """Failures are those of a diagnosis, in number, cause and wait; holders are of their frames."""
    (stream,) = diagnose_path(capture)
    rows = rows_of(out, "failures", order="ORDER BY number")
    assert [row["number"] for row in rows] == list(range(1, len(rows) + 1))
    for row, refusal in zip(rows, stream.refusals(), strict=True):
        said = (refusal.time_ns, refusal.frame, refusal.word, refusal.pool, refusal.request, refusal.class_id)
        assert tuple(row[name] for name in ("time_ns", "frame", "word", "pool", "request", "class")) == said
        assert (row["cause"], row["reason"]) == (refusal.cause, FAILURE_REASONS[refusal.reason])
        assert (row["need"], row["free"], row["largest_free"]) == (refusal.need, refusal.free, refusal.largest)
        assert (row["active"], row["pinned"], row["tail"]) == (refusal.active, refusal.pinned, refusal.tail_slots)
        assert row["waited_ns"] == (None if refusal.ended_ns is None else refusal.ended_ns - refusal.time_ns)
    held = [tuple(row[name] for name in ("frame", "pool", "class", "state")) for row in rows_of(out, "holders")]
    assert len(set(held)) == len(held) and {frame for frame, *_ in held} <= {row["frame"] for row in rows}


def check_requests(recorded: Recorded, out: Path) -> None:
    """Requests are what their own records say."""
    naive: dict[int, dict[str, Any]] = {}
    for row in naive_events(recorded.words, recorded.table):
        fields, request, now = row["fields"], row["request"], row["time_ns"]
        if row["kind"] == "request_arrived":
            naive[request] = {
                "class": fields["class_id"], "arrived_ns": fields["at"], "prompt_tokens": fields["prompt"],
                "admitted_ns": None, "first_token_ns": None, "finished_ns": None, "finish_reason": None,
                "hit_tokens": 0, "preemptions": 0, "lost_tokens": 0, "refused": 0, "output_tokens": None,
            }  # fmt: skip
            continue
        if request not in naive:
            continue
        mine = naive[request]
        if row["kind"] == "request_admitted":
            mine["admitted_ns"] = mine["admitted_ns"] or now
        elif row["kind"] == "first_token":
            mine["first_token_ns"] = mine["first_token_ns"] or now
        elif row["kind"] == "cache_hit":
            mine["hit_tokens"] += fields["hit_tokens"] if not mine["preemptions"] else 0
        elif row["kind"] == "preempted":
            mine["preemptions"] += 1
            mine["lost_tokens"] += fields["lost_tokens"]
        elif row["kind"] == "alloc_failed" and mine["finished_ns"] is None:
            mine["refused"] += 1
        elif row["kind"] == "request_finished":
            reason = FinishReason(fields["reason"]).name.lower()
            mine |= {"finished_ns": now, "finish_reason": reason, "output_tokens": fields["output"]}
    rows = {row["request"]: row for row in rows_of(out, "requests")}
    assert rows.keys() == naive.keys()
    for number, mine in naive.items():
        assert {name: rows[number][name] for name in mine} == mine, number
    waited = {row["request"]: 0 for row in rows.values()}
    end = int(recorded.table.times[-1])
    for row in rows_of(out, "failures"):
        if row["waits"] and row["request"] in waited:
            waited[row["request"]] += end - row["time_ns"] if row["waited_ns"] is None else row["waited_ns"]
    assert {number: row["memory_wait_ns"] for number, row in rows.items()} == waited


@pytest.mark.parametrize("name", OPTIONS)
def test_tables_of_every_allocator_say_what_the_events_say(name: str, tmp_path: Path) -> None:
    """Events, states, failures and requests of a run under each option of the scheduler."""
    recorded = Recorded(OPTIONS[name], 5, STEPS)
    out = exported(recorded, tmp_path)
    check_events(recorded, out)
    check_states(recorded, tmp_path / "x.kvmon", out)
    if not getattr(OPTIONS[name].allocator, "compaction", False):  # there the log of refusals counts tables too late
        check_failures(tmp_path / "x.kvmon", out)
    check_requests(recorded, out)
    assert {file.name for file in out.iterdir()} == set(FILES)
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in out.iterdir())


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.one_of(option_sets(paged_pools()), option_sets(contiguous_pools())), st.integers(0, 1000), st.integers(1, 40))
def test_tables_of_random_options(tmp_path: Path, options: tuple[Any, ...], seed: int, every: int) -> None:
    """Whatever the options, and at any interval."""
    recorded = Recorded(Options(*options), seed, 25)
    out = exported(recorded, tmp_path, every_ns=every * STEP_NS // 7 + 1)
    check_events(recorded, out)
    check_states(recorded, tmp_path / "x.kvmon", out)


@pytest.mark.parametrize("name", ["no-cache", "single-tokens", "maximum", "buddy", "best-fit"])
def test_what_was_handed_out_less_what_came_back_is_there(name: str, tmp_path: Path) -> None:
    """Sums over events give the references of the fold; the last state is the fold's."""
    recorded = Recorded(OPTIONS[name], 7, 150)
    out = exported(recorded, tmp_path, every_ns=0)
    sums = Counter({row["kind"]: row["n"] or 0 for row in rows_of(out, "events", "kind, sum(units) n", "GROUP BY 1")})
    with CaptureReader(tmp_path / "x.kvmon") as reader:
        pool = reader.fold(reader.streams[0]).pools[1]
    references = int((pool.status & np.uint32(REFS)).sum())
    assert sums["alloc"] + sums["share"] - sums["free"] - sums["unshare"] == references
    (last,) = rows_of(out, "states", order="WHERE pool = 1 ORDER BY time_ns DESC LIMIT 1")
    assert {state: last[state] for state in pool.units} == pool.units
    assert [
        row["time_ns"] for row in rows_of(out, "states", "time_ns", "WHERE pool = 1")
    ] == recorded.table.times.tolist()


def test_a_window_holds_what_is_in_it_and_knows_what_came_before(tmp_path: Path) -> None:
    """Rows between two moments are those of the whole; requests that were there before are marked."""
    recorded = Recorded(OPTIONS["paged"], 11, 200)
    capture = recorded.capture(tmp_path / "x.kvmon", every=300)
    times = recorded.table.times
    begin, end = int(times[80]), int(times[150])
    export_parquet([capture], tmp_path / "all", every_ns=0)
    export_parquet([capture], tmp_path / "part", every_ns=0, window=parse_window(str(begin), str(end)))
    for table in ("events", "states", "failures"):
        moment = f"WHERE time_ns > {begin} AND time_ns <= {end}"
        columns = "*" if table != "failures" else "* EXCLUDE (waited_ns)"
        assert rows_of(tmp_path / "part", table, columns, "ORDER BY ALL") == rows_of(
            tmp_path / "all", table, columns, f"{moment} ORDER BY ALL"
        )
    whole = {row["request"]: row for row in rows_of(tmp_path / "all", "requests")}
    part = rows_of(tmp_path / "part", "requests")
    assert any(row["from_before"] for row in part) and not all(row["from_before"] for row in part)
    for row in part:
        mine = whole[row["request"]]
        assert (row["class"], row["arrived_ns"]) == (mine["class"], mine["arrived_ns"])
        for name in ("admitted_ns", "first_token_ns", "finished_ns"):
            then = mine[name] if mine[name] is None or mine[name] <= end else None
            lost = name == "admitted_ns" and row["from_before"] and row["preemptions"] and row[name] is None
            assert lost or row[name] == then, name
    with pytest.raises(ConfigError, match="nothing was recorded"):
        export_parquet([capture], tmp_path / "none", window=parse_window(str(end * 10), None))
    assert not (tmp_path / "none").exists()


def test_intervals_end_at_multiples_on_the_wall_clock(tmp_path: Path) -> None:
    """Where the capture has an anchor; and the wall clock stands beside every time."""
    recorded, wall = Recorded(OPTIONS["paged"], 1, 40), 1_763_000_000_123_456_789
    facts = StreamFacts("sim", wall_ns=wall, mono_ns=77)
    capture = recorded.capture(tmp_path / "x.kvmon", facts=[facts])
    export_parquet([capture], tmp_path / "out", every_ns=6000)
    states = rows_of(tmp_path / "out", "states", "time_ns, epoch_ns(time) wall")
    assert all(row["wall"] == wall + row["time_ns"] - 77 for row in states)
    assert all(row["wall"] % 6000 == 0 for row in states[:-1])
    events = rows_of(tmp_path / "out", "events", "time_ns, epoch_ns(time) wall")
    assert all(row["wall"] == wall + row["time_ns"] - 77 for row in events)


def test_memory_does_not_depend_on_the_length(tmp_path: Path) -> None:
    """Row groups are written as the capture is read: a file of many has them in pieces."""
    recorded = Recorded(OPTIONS["no-cache"], 3, 4000)
    out = exported(recorded, tmp_path)
    file = pq.ParquetFile(out / "events.parquet")
    assert file.metadata.num_rows == len(rows_of(out, "events", "frame"))
    assert file.schema_arrow.metadata[b"kvmon.schema"] == b"1"
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_damaged_capture_gives_what_is_sound(tmp_path: Path) -> None:
    """What can be read is there, what is missing is said, states are absent where nothing is known."""
    recorded = Recorded(OPTIONS["paged"], 3, 400)
    capture = recorded.capture(tmp_path / "x.kvmon", every=400)
    with CaptureReader(capture) as reader:
        chunk = [one for one in reader.streams[0].chunks if one.frames][3]
    data = bytearray(capture.read_bytes())
    data[chunk.payload_at + 5] ^= 255
    capture.write_bytes(data)
    (done,) = export_parquet([capture], tmp_path / "out", every_ns=STEP_NS)
    assert any("damaged" in text for text in done.missing)
    (stream,) = rows_of(tmp_path / "out", "streams")
    assert "damaged" in stream["damage"] and stream["gaps"] >= 1
    frames = {row["frame"] for row in rows_of(tmp_path / "out", "events", "frame")}
    lost = set(range(chunk.first_frame, chunk.first_frame + chunk.frames))
    assert frames == set(recorded.table.numbers.tolist()) - lost
    states = rows_of(tmp_path / "out", "states", "known, active, free", "WHERE known = 0")
    assert states and all(row["active"] is None and row["free"] is None for row in states)


def test_a_recording_is_exported_like_a_capture(tmp_path: Path) -> None:
    """A directory of streams, with wall clock and name."""
    record(tmp_path, 80)
    (done,) = export_parquet([tmp_path], tmp_path.with_name("out"), force=True)
    assert done.name == tmp_path.name and done.lives == 1
    (stream,) = rows_of(tmp_path.with_name("out"), "streams")
    assert stream["life"] == "toy-0" and stream["steps"] == 80 and stream["begin"] is not None
    assert (stream["adapter"], stream["engine_version"]) == ("toy", "0.0")


def test_records_of_a_frame_that_was_never_closed_are_there(tmp_path: Path) -> None:
    """They stand in the frame that would have followed, at the time of the last one."""
    recorded = Recorded(OPTIONS["no-cache"], 2, 20)
    with CaptureWriter(tmp_path / "x.kvmon") as writer:
        sink = writer.add_stream(StreamFacts("sim"))
        sink.write(recorded.words)
        sink.tail(np.array(encode(Kind.ALLOC, units=[3, 4, 9]), np.uint32))
    export_parquet([tmp_path / "x.kvmon"], tmp_path / "out")
    last = rows_of(tmp_path / "out", "events", PLACE, "ORDER BY frame DESC, unit LIMIT 2")
    number, time_ns = int(recorded.table.numbers[-1]) + 1, int(recorded.table.times[-1])
    assert [(row["frame"], row["time_ns"], row["kind"], row["unit"], row["units"]) for row in last] == [
        (number, time_ns, "alloc", 3, 2),
        (number, time_ns, "alloc", 9, 1),
    ]


def test_names_of_many_captures_tell_them_apart(tmp_path: Path) -> None:
    """As many folders as are needed; the same one twice is refused."""
    paths = [Path("/a/host1/x.kvmon"), Path("/a/host2/x.kvmon"), Path("/a/host2/y.kvmon")]
    assert capture_names(paths) == ["host1-x", "host2-x", "host2-y"]
    assert capture_names(paths[1:]) == ["x", "y"]
    with pytest.raises(ConfigError, match="given twice"):
        capture_names([paths[0], paths[0]])


def test_an_export_replaces_nothing_but_exports(tmp_path: Path) -> None:
    """A directory is replaced with force, and only if nothing else is in it; what fails leaves nothing behind."""
    capture = Recorded(OPTIONS["paged"], 2, 10).capture(tmp_path / "x.kvmon")
    out = tmp_path / "out"
    export_parquet([capture], out)
    before = sorted(file.name for file in tmp_path.iterdir())
    with pytest.raises(InputError, match="--force"):
        export_parquet([capture], out)
    export_parquet([capture], out, force=True)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.txt"):
        export_parquet([capture], out, force=True)
    assert (out / "mine.txt").read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == before
    with pytest.raises(InputError, match="no directory"):
        export_parquet([capture], tmp_path / "no" / "where")
    (tmp_path / "empty.kvmon").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no kvmon capture"):
        export_parquet([capture, tmp_path / "empty.kvmon"], tmp_path / "both")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*before, "empty.kvmon"])


def test_the_page_describes_every_column() -> None:
    """docs/export.md is as docs/export_columns.py writes it anew."""
    docs = Path(__file__).parents[3] / "docs"
    page = (docs / "export.md").read_text(encoding="utf-8")
    assert runpy.run_path(str(docs / "export_columns.py"))["page"](page) == page
