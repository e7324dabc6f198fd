"""`kvmon capture --share` from the command line: the list comes first, the findings are those of the original."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmon.capture import CaptureWriter, StreamFacts
from kvmon.replay.findings import diagnose_path
from kvmon.replay.simulated import record_setup
from kvmon.serving.scenarios import find
from tests.integration.test_capture_verify import kvmon
from tests.unit.capture.traffic import record


@pytest.mark.parametrize("scenario", ["fragmentation", "cache-thrash", "leak", "multi-tenant", "preemption-storm"])
def test_findings_of_a_bundle_are_those_of_the_original(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Word for word and number for number, of scenarios with names of pages and without."""
    with CaptureWriter(tmp_path / "x.kvmon") as writer:
        setup = find(scenario).setups(0)[0][""]
        record_setup(writer.add_stream(StreamFacts("acme", wall_ns=1_763_000_000_000_000_000)).write, setup)
    code, out, err = kvmon(capsys, "capture", tmp_path / "x.kvmon", "--share", "-o", tmp_path / "y.kvmon")
    assert (code, err) == (0, "")
    assert out.index("It contains:") < out.index("Taken out or replaced:") < out.index(f"{tmp_path / 'y.kvmon'}: ")
    assert "engine1-0 (which was acme-0)" in out and "wall clock" in out and "workload" in out
    (one,), (other,) = diagnose_path(tmp_path / "x.kvmon"), diagnose_path(tmp_path / "y.kvmon")
    assert one.findings
    assert [finding.to_json() for finding in one.findings] == [finding.to_json() for finding in other.findings]
    data = (tmp_path / "y.kvmon").read_bytes()
    assert b"acme" not in data and (tmp_path / "y.kvmon").stat().st_mode & 0o777 == 0o600


def test_a_recording_is_listed_without_being_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run says what would be there; --json says it to machines."""
    (tmp_path / "rec").mkdir()
    record(tmp_path / "rec", 60, name="acme")
    arguments = ["capture", tmp_path / "rec", "--share", "-o", tmp_path / "y.kvmon"]
    code, out, _ = kvmon(capsys, *arguments, "--dry-run")
    assert code == 0 and "60 step" in out and "nothing was written" in out
    assert [path.name for path in tmp_path.iterdir()] == ["rec"]
    code, out, _ = kvmon(capsys, *arguments, "--json", "--keep-names", "--keep-time", "--stream", "acme-0")
    said = json.loads(out)
    assert code == 0 and said["shared"]["records"]["step"] == 60
    assert said["streams"][0]["engine"] == "acme" and said["streams"][0]["wall_ns"] > 0
    assert "name of an engine" not in said["shared"]["removed"]
    assert said["bytes"] == (tmp_path / "y.kvmon").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["rec", "--keep-names", "-o", "y.kvmon"], 2, "belongs to --share"),
        (["rec", "--dry-run", "-o", "y.kvmon"], 2, "belongs to --share"),
        (["x.kvmon", "--share", "--last", "5s", "-o", "y.kvmon"], 2, "is shared whole"),
        (["x.kvmon", "--share", "--force", "-o", "x.kvmon"], 2, "is what is read"),
        (["x.kvmon", "--share", "-o", "taken.kvmon"], 3, "exists"),
        (["none", "--share", "-o", "y.kvmon"], 3, "none"),
        (["junk", "--share", "-o", "y.kvmon"], 3, "no kvmon capture"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    arguments: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What cannot be shared, and where it cannot be put."""
    monkeypatch.chdir(tmp_path)
    Path("rec").mkdir()
    record(Path("rec"), 20)
    assert kvmon(capsys, "capture", "rec", "-o", "x.kvmon")[0] == 0
    Path("taken.kvmon").write_text("mine")
    Path("junk").write_text("no capture at all")
    before = sorted(Path().rglob("*"))
    ended, out, err = kvmon(capsys, "capture", *arguments)
    assert (ended, out) == (code, "") and says in err and err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
