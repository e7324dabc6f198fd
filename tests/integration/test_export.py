"""`kvmon export` from the command line: a fleet that DuckDB is asked about, refusals, and the reference engine."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from kvmon.adapters.attach import attach
from kvmon.capture import CaptureReader, CaptureWriter, Frames, StreamFacts
from kvmon.capture.recorded import read_recorded
from kvmon.cli.main import run
from kvmon.engine.drive import build_driver
from kvmon.replay.findings import diagnose_path
from kvmon.replay.simulated import record_setup
from kvmon.serving.scenarios import find
from kvmon.state import scan
from tests.integration.test_capture_verify import kvmon
from tests.naive.fleet import LOST, NaiveCapture, Refused
from tests.naive.timeline import frames_of
from tests.unit.adapters.driven import OPTIONS
from tests.unit.replay.exported import naive_events, rows_of
from tests.unit.replay.recorded import Recorded
from tests.unit.replay.test_whatif_engine import PAGED

SCENARIOS = ("fragmentation", "cache-thrash", "leak", "multi-tenant")
PAGE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captures of some scenarios as if they had run an hour ago on hosts of their own, and their export `fleet`."""
    folder, hour_ago = tmp_path_factory.mktemp("fleet"), time.time_ns() - 3600 * 10**9
    for place, name in enumerate(SCENARIOS):
        (folder / f"host{place}").mkdir()
        setup = find(name).setups(0)[0][""]
        with CaptureWriter(folder / f"host{place}" / "incident.kvmon") as writer:
            sink = writer.add_stream(StreamFacts(f"vllm-{place}", wall_ns=hour_ago, mono_ns=0))
            record_setup(sink.write, setup)
    captures = [str(path) for path in sorted(folder.glob("*/*.kvmon"))]
    assert run(["export", *captures, "-o", str(folder / "fleet")]) == 0
    return folder


@pytest.fixture(scope="module")
def naive(fleet: Path) -> dict[str, NaiveCapture]:
    """The same captures, event by event, by the names that they have in the export."""
    told = {}
    for path in sorted(fleet.glob("*/*.kvmon")):
        with CaptureReader(path) as reader:
            (stream,) = reader.streams
            pieces = [piece.words.copy() for piece in reader.pieces(stream) if isinstance(piece, Frames)]
            (pool,) = reader.fold(stream).pools.values()
        words = np.concatenate(pieces)
        table = scan(words)
        mine = told[f"{path.parent.name}-incident"] = NaiveCapture(pool.capacity_units)
        for time_ns, events in frames_of(words, table):
            mine.frame(time_ns, events)
        mine.close(int(table.times[-1]))
    return told


@pytest.fixture(scope="module")
def answers(fleet: Path) -> list[list[dict[str, Any]]]:
    """What each query of docs/export.md answers, word for word."""
    queries = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(queries) == 8
    found = []
    with contextlib.chdir(fleet), duckdb.connect() as connection:
        for query in queries:
            relation = connection.sql(query)
            found.append([dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()])
    assert all(found)
    return found


Answers = list[list[dict[str, Any]]]


def test_who_was_refused_memory_and_why(naive: dict[str, NaiveCapture], answers: Answers) -> None:
    """By engine and reason, and how many of them lost their request."""
    told: Counter[tuple[str, str]] = Counter()
    lost: Counter[tuple[str, str]] = Counter()
    for row in answers[0]:
        told[row["engine"], row["reason"]] += row["refused"]
        lost[row["engine"], row["reason"]] += row["lost"]
    names = {f"host{place}-incident": f"vllm-{place}" for place in range(len(SCENARIOS))}
    assert told == Counter((names[name], one.reason) for name, mine in naive.items() for one in mine.refused)
    assert +lost == Counter(
        (names[name], one.reason) for name, mine in naive.items() for one in mine.refused if one.outcome in LOST
    )


def test_how_long_each_class_waited(naive: dict[str, NaiveCapture], answers: Answers) -> None:
    """95th percentiles of the queue, of KV memory and of the first token."""
    everybody = [request for mine in naive.values() for request in mine.requests.values()]
    assert {row["class"] for row in answers[1]} == {request.class_id for request in everybody}
    for row in answers[1]:
        mine = [request for request in everybody if request.class_id == row["class"]]
        assert row["requests"] == len(mine)
        for name, waits in {
            "queued_p95_s": [one.admitted - one.arrived for one in mine if one.admitted is not None],
            "memory_wait_p95_s": [one.waited for one in mine],
            "ttft_p95_s": [one.first_token - one.arrived for one in mine if one.first_token is not None],
        }.items():
            assert row[name] == pytest.approx(float(np.quantile(waits, 0.95)) / 1e9), name


def test_who_held_the_memory_at_the_failures(naive: dict[str, NaiveCapture], answers: Answers) -> None:
    """Mean shares by class and state."""
    sums: Counter[tuple[int, str]] = Counter()
    frames = sum(len(mine.held) for mine in naive.values())
    for mine in naive.values():
        for held in mine.held:
            sums.update({key: units / mine.capacity for key, units in held.items()})
    told = {(row["class"], row["state"]): row["mean_share_of_pool"] for row in answers[2]}
    assert told == {key: pytest.approx(share / frames) for key, share in sums.items()}


def test_in_which_state_it_was_at_the_failures(fleet: Path, naive: dict[str, NaiveCapture], answers: Answers) -> None:
    """Means by cause; the causes are those of a diagnosis of each capture."""
    by_cause: dict[str, list[tuple[int, Refused]]] = {}
    for path in sorted(fleet.glob("*/*.kvmon")):
        (stream,) = diagnose_path(path)
        mine = naive[f"{path.parent.name}-incident"]
        for refusal, refused in zip(stream.refusals(), mine.refused, strict=True):
            by_cause.setdefault(refusal.cause, []).append((mine.capacity, refused))
    assert {row["cause"] for row in answers[3]} == by_cause.keys()
    for row in answers[3]:
        ours = by_cause[row["cause"]]
        assert row["refused"] == len(ours)
        for name in ("active", "pinned", "free"):
            assert row[name] == pytest.approx(np.mean([getattr(one, name) / capacity for capacity, one in ours])), name
        largest = [one.largest / one.free for _, one in ours if one.free]
        assert row["largest_of_free"] == pytest.approx(np.mean(largest)) if largest else row["largest_of_free"] is None


def test_how_near_to_full_each_pool_came(naive: dict[str, NaiveCapture], answers: Answers) -> None:
    """Over every event, not over every second."""
    told = {row["capture"]: row["peak_use"] for row in answers[4]}
    assert told == {name: pytest.approx(mine.most_active / mine.capacity) for name, mine in naive.items()}
    assert all(row["least_largest_free_mib"] >= 0 for row in answers[4])


def test_how_the_hit_ratio_went(fleet: Path, naive: dict[str, NaiveCapture], answers: Answers) -> None:
    """Whole seconds of the wall clock, put together to minutes."""
    for name, mine in naive.items():
        (stream,) = rows_of(fleet / "fleet" / name, "streams", "epoch_ns(begin) - begin_ns AS zero")
        minutes: dict[int, list[int]] = {}
        for time_ns, hit, lookup in mine.hits:
            second = -(-(time_ns + stream["zero"]) // 10**9)  # a row stands at the end of its second
            found = minutes.setdefault(second // 60, [0, 0])
            found[0] += hit
            found[1] += lookup
        told = {
            int(row["minute"].timestamp()) // 60: row["hit_ratio"]
            for row in answers[5]
            if row["capture"] == name and row["hit_ratio"] is not None
        }
        assert told == {minute: pytest.approx(hit / lookup) for minute, (hit, lookup) in minutes.items() if lookup}


def test_how_often_units_change_hands(naive: dict[str, NaiveCapture], answers: Answers) -> None:
    """Units, and in what pieces."""
    told = {(row["capture"], row["kind"]): row for row in answers[6]}
    kinds = ("alloc", "free", "unshare", "evict")
    assert told.keys() == {(name, kind) for name, mine in naive.items() for kind in kinds if mine.runs[kind]}
    for (name, kind), row in told.items():
        runs, times = naive[name].runs[kind], naive[name].times[kind]
        assert row["units"] == sum(runs) and row["units_a_run"] == pytest.approx(sum(runs) / len(runs))
        if times[-1] > times[0]:
            assert row["units_a_second"] == pytest.approx(sum(runs) / (times[-1] - times[0]) * 1e9)


def test_what_went_wrong_where(fleet: Path, answers: Answers) -> None:
    """Verdicts are those of `kvmon replay`; nothing is missing of these captures."""
    streams = {f"{path.parent.name}-incident": diagnose_path(path)[0] for path in fleet.glob("host*/*.kvmon")}
    assert {row["capture"]: row["verdict"] for row in answers[7]} == {
        name: stream.verdict for name, stream in streams.items() if stream.verdict != "healthy"
    }
    assert all((row["gaps"], row["missing_frames"], row["damage"]) == (0, 0, None) for row in answers[7])


def test_a_part_of_the_fleet_in_words_and_for_machines(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The summary names files, rows and a question; with --json it is one object."""
    capture = fleet / "host0" / "incident.kvmon"
    code, out, err = kvmon(capsys, "export", capture, "-o", fleet / "one", "--table", "failures", "--every", "100ms")
    assert (code, err) == (0, "") and "failures" in out and "duckdb -c" in out
    assert [file.name for file in (fleet / "one").iterdir()] == ["failures.parquet"]
    code, out, _ = kvmon(capsys, "export", capture, "-o", fleet / "one", "--force", "--json", "--from", "-30s")
    said = json.loads(out)
    assert said["captures"][0]["rows"]["failures"] == len(rows_of(fleet / "one", "failures"))
    code, out, _ = kvmon(capsys, "export", capture, "-o", fleet / "x.json.gz", "--until", "+30s", "--json")
    assert code == 0 and json.loads(out)["events"] > 100
    code, out, _ = kvmon(capsys, "export", capture, "-o", fleet / "x.json", "--until", "+30s")
    assert code == 0 and "ui.perfetto.dev" in out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["host0/incident.kvmon", "-o", "fleet"], 3, "exists"),
        (["nowhere.kvmon", "-o", "new"], 3, "is not there"),
        (["host0", "-o", "new"], 3, "holds no stream"),
        (["host0/incident.kvmon", "-o", "new", "--every", "often"], 2, "is no time"),
        (["host0/incident.kvmon", "-o", "new", "--every", "0.001ms"], 2, "longer"),
        (["host0/incident.kvmon", "-o", "new", "--from", "worst"], 2, "bounds no stretch of time"),
        (["host0/incident.kvmon", "-o", "new", "--from", "+9d"], 2, "nothing was recorded from"),
        (["host0/incident.kvmon", "-o", "new", "--table", "cats"], 2, "is no table"),
        (["host0/incident.kvmon", "host0/incident.kvmon", "-o", "new"], 2, "given twice"),
        (["host0/incident.kvmon", "host1/incident.kvmon", "-o", "new.json"], 2, "one capture"),
        (["host0/incident.kvmon", "-o", "new.json", "--table", "events"], 2, "--table"),
        (["host0/incident.kvmon", "-o", "host0/incident.kvmon", "--force"], 2, "is what is read"),
        (["host0/incident.kvmon", "-o", "-"], 2, "is no file"),
        (["host0/incident.kvmon", "-o", "no/where"], 3, "no directory"),
        (["host0/incident.kvmon", "-o", "host1", "--force"], 3, "no export has written"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    fleet: Path,
    arguments: list[str],
    code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every impossible wish: its exit code, one line, no traceback, nothing written."""
    monkeypatch.chdir(fleet)
    before = sorted(fleet.rglob("*"))
    ended, out, err = kvmon(capsys, "export", *arguments)
    assert (ended, out) == (code, "") and says in err and err.count("\n") == 1
    assert sorted(fleet.rglob("*")) == before


def test_without_pyarrow_it_says_how_to_get_it(
    fleet: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with the command; a trace needs nothing."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    capture = fleet / "host0" / "incident.kvmon"
    code, _, err = kvmon(capsys, "export", capture, "-o", fleet / "without")
    assert (code, err) == (2, "kvmon: Parquet needs pyarrow: pip install 'kvmon[export]'\n")
    assert not (fleet / "without").exists()
    assert kvmon(capsys, "export", capture, "-o", fleet / "without.json", "--until", "+5s")[0] == 0


def test_a_damaged_capture_is_exported_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A byte is wrong in the middle: exit code 0, one line of what is missing."""
    capture = Recorded(OPTIONS["paged"], 3, 400).capture(tmp_path / "x.kvmon", every=400)
    with CaptureReader(capture) as reader:
        chunk = [one for one in reader.streams[0].chunks if one.frames][3]
    data = bytearray(capture.read_bytes())
    data[chunk.payload_at + 5] ^= 255
    capture.write_bytes(data)
    for name in ("out", "out.json"):
        code, _, err = kvmon(capsys, "export", capture, "-o", tmp_path / name)
        assert code == 0 and "damaged; what can be read was exported" in err


def test_the_reference_engine_is_exported_as_it_was_recorded(tmp_path: Path) -> None:
    """Recorded by the real probe: every record is a row, states sum to the capacity, requests end as they did."""
    (tmp_path / "rec").mkdir()
    driver = build_driver(PAGED)
    recording = attach(driver.engine, tmp_path / "rec", clock=lambda: driver.clock.now_ns + 10**9)
    driver.run()
    recording.close()
    assert run(["export", str(tmp_path / "rec"), "-o", str(tmp_path / "out"), "--every", "frame"]) == 0
    (stream,) = (tmp_path / "rec").glob("*-*")
    words = np.concatenate([piece.words for piece in read_recorded(stream) if isinstance(piece, Frames)])
    columns = "time_ns, frame, word, kind, pool, unit, units, request"
    rows: list[dict[str, Any]] = rows_of(tmp_path / "out", "events", columns)
    naive = list(naive_events(words, scan(words)))
    assert rows == [{name: one[name] for name in rows[0]} for one in naive]
    for row in rows_of(tmp_path / "out", "states", "active, cached, pinned, deferred, free, capacity, known"):
        capacity = row.pop("capacity")
        assert row.pop("known") == 1 and sum(row.values()) == capacity
    requests = rows_of(tmp_path / "out", "requests", "finish_reason, output_tokens")
    assert len(requests) == 40 and all(row["output_tokens"] for row in requests)


def test_an_engine_that_lives_and_then_is_dead(tmp_path: Path) -> None:
    """Its directory is exported while it records, and after it was killed: the later one has all of the earlier one."""
    recording = tmp_path / "rec"
    recording.mkdir()
    command = [sys.executable, "-m", "tests.integration.live_engine", str(recording), "live"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PAGE.parents[1]) as engine:
        try:
            assert engine.stdout is not None and engine.stdout.readline() == "ready\n"
            time.sleep(1)
            assert run(["export", str(recording), "-o", str(tmp_path / "living"), "--every", "frame"]) == 0
        finally:
            engine.kill()
    assert run(["export", str(recording), "-o", str(tmp_path / "dead"), "--every", "frame"]) == 0
    columns = "frame, word, kind, pool, request, unit, units"
    order = "ORDER BY frame, word, unit"
    living, dead = (rows_of(tmp_path / name, "events", columns, order) for name in ("living", "dead"))
    whole = max(row["frame"] for row in living)  # of the last frame only the begin may have been there
    assert whole > 20
    assert [row for row in living if row["frame"] < whole] == [row for row in dead if row["frame"] < whole]
    for name in ("living", "dead"):
        for row in rows_of(tmp_path / name, "states", "active + cached + pinned + deferred + free AS units, capacity"):
            assert row["units"] == row["capacity"]
