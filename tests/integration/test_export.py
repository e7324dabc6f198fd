"""`kvmon export` from the command line: a fleet that DuckDB is asked about, refusals, and the reference engine."""

from __future__ import annotations

import json
import re
import sys
import time
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


def test_the_questions_of_the_page_have_answers(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each query of docs/export.md, word for word; what it finds is what a diagnosis of the captures found."""
    monkeypatch.chdir(fleet)
    queries = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(queries) == 8
    with duckdb.connect() as connection:
        answers = []
        for query in queries:
            relation = connection.sql(query)
            answers.append([dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()])
    failures, waits, holders, states, pools, ratios, pieces, wrong = answers

    streams = {}
    for path in sorted(fleet.glob("*/*.kvmon")):
        (streams[f"{path.parent.name}-incident"],) = diagnose_path(path)
    refusals = {name: stream.refusals() for name, stream in streams.items()}
    refused = {stream.facts.engine: len(refusals[name]) for name, stream in streams.items() if refusals[name]}
    told: dict[str, int] = {}
    for row in failures:
        told[row["engine"]] = told.get(row["engine"], 0) + row["refused"]
    assert told == refused

    everybody = [row for one in fleet.glob("fleet/*") for row in rows_of(one, "requests")]
    assert sum(row["requests"] for row in waits) == len(everybody)
    for row in waits:
        mine = [one["memory_wait_ns"] / 1e9 for one in everybody if one["class"] == row["class"]]
        assert row["memory_wait_p95_s"] == pytest.approx(float(np.quantile(mine, 0.95)))

    assert sum(row["refused"] for row in states) == sum(refused.values())
    assert all(0 < row["mean_share_of_pool"] <= 1 for row in holders)
    assert {row["capture"] for row in pools} == set(streams)
    assert all(0 < row["peak_use"] <= 1 and row["least_largest_free_mib"] >= 0 for row in pools)
    assert any(row["hit_ratio"] for row in ratios)
    assert {row["kind"] for row in pieces} <= {"alloc", "free", "unshare", "evict"}
    assert {row["capture"]: row["verdict"] for row in wrong} == {
        name: stream.verdict for name, stream in streams.items() if stream.verdict != "healthy"
    }


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
        (["host0/incident.kvmon", "-o", "new", "--from", "worst"], 2, "no bound"),
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
