"""`kvmon capture` and `kvmon verify` from the command line: what they print, what they refuse, how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmon.cli.main import run
from kvmon.recording.layout import HEADER_BYTES
from tests.unit.capture.traffic import record


def kvmon(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run one command line; its exit code, stdout and stderr."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_capture_and_verify_a_dead_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recording becomes one file with a summary; both verify clean, and both say every event was looked at."""
    directory, output = tmp_path / "recording", tmp_path / "x.kvmon"
    directory.mkdir()
    record(directory, 300)
    record(directory, 200, rank=1)
    code, out, err = kvmon(capsys, "capture", directory, "-o", output)
    assert (code, err) == (0, "")
    assert out.startswith(f"{output}: ") and "2 streams" in out and "bytes a unit-operation" in out
    assert "toy-0 (ended): 300 frames" in out and "toy-1 (ended): 200 frames" in out
    assert output.stat().st_mode & 0o777 == 0o600
    for path in (directory, output):
        code, out, err = kvmon(capsys, "verify", path)
        assert (code, err) == (0, "")
        assert out.splitlines()[0] == f"{path}: clean"
        assert out.count("exclusive and conserved at every one of") == 2


def test_json_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both verbs print one JSON object with the numbers a machine needs."""
    record(tmp_path, 120)
    _, out, _ = kvmon(capsys, "capture", tmp_path, "-o", tmp_path / "x.kvmon", "--json", "--stream", "toy-0")
    summary = json.loads(out)
    assert summary["bytes"] == (tmp_path / "x.kvmon").stat().st_size
    assert summary["streams"][0]["frames"] == 120
    code, out, _ = kvmon(capsys, "verify", tmp_path / "x.kvmon", "--json")
    found = json.loads(out)
    assert code == 0 and found["clean"] and found["streams"][0]["frames"] == 120
    assert found["streams"][0]["unit_operations"] == summary["unit_operations"]


def test_a_fault_is_printed_with_its_position_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A double free in the middle of a recording is one line with frame, word, pool, unit and time."""
    engine = record(tmp_path, 50, close=False)
    free = next(unit for unit in range(1, 257) if engine.status(1, unit, 1)[0] == 1 << 31)
    engine.pool.free_one(free)
    engine.run(10)
    engine.close()
    code, out, _ = kvmon(capsys, "verify", tmp_path)
    assert code == 1
    assert out.startswith(f"{tmp_path}: not clean")
    assert f"frame 50 word 0: pool 1, unit {free}: double_free" in out
    code, out, _ = kvmon(capsys, "verify", tmp_path, "--json")
    (fault,) = json.loads(out)["streams"][0]["faults"]
    assert (code, fault["kind"], fault["frame"], fault["word"], fault["unit"]) == (1, "double_free", 50, 0, free)


def test_many_faults_are_grouped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More faults than a screen holds are one line a kind, with the first of each."""
    engine = record(tmp_path, 20, close=False)
    for _ in range(60):
        engine.pool.free_one(999)
    engine.run(1)
    engine.close()
    code, out, _ = kvmon(capsys, "verify", tmp_path)
    assert code == 1
    assert "60 faults in" in out and "unit_out_of_range, 60 times; first: frame 20 word 0" in out


def test_damage_is_said_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged recording is captured as far as it is sound; summary, capture and report name the hole."""
    directory, output = tmp_path / "recording", tmp_path / "x.kvmon"
    directory.mkdir()
    record(directory, 80)
    (segment,) = directory.rglob("*.seg")
    with open(segment, "r+b") as file:
        file.seek(HEADER_BYTES + 4000)
        file.write(b"\0" * 12)
    code, out, _ = kvmon(capsys, "capture", directory, "-o", output)
    assert code == 0 and "hole: " in out and "from frame" in out
    for path in (directory, output):
        code, out, _ = kvmon(capsys, "verify", path)
        assert code == 1 and "damaged_frame" in out and "hole: " in out


def test_a_cut_capture_is_verified_as_far_as_it_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A capture without its end says so, and what is left is verified."""
    record(tmp_path, 80)
    kvmon(capsys, "capture", tmp_path, "-o", tmp_path / "x.kvmon")
    (tmp_path / "x.kvmon").write_bytes((tmp_path / "x.kvmon").read_bytes()[:-50])
    code, out, _ = kvmon(capsys, "verify", tmp_path / "x.kvmon")
    assert code == 1
    assert "damaged: byte" in out and "exclusive and conserved" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["capture", "{missing}", "-o", "{out}"], 3, "no directory"),
        (["capture", "{empty}", "-o", "{out}"], 3, "holds no stream"),
        (["capture", "{file}", "-o", "{out}"], 3, "is not a directory"),
        (["capture", "{recording}", "-o", "{file}"], 3, "--force"),
        (["capture", "{recording}", "-o", "{missing}/x.kvmon"], 3, "no directory"),
        (["capture", "{recording}", "-o", "{out}", "--stream", "other-0"], 3, "it has toy-0"),
        (["capture", "{recording}", "-o", "{out}", "--last", "soon"], 2, "is no time"),
        (["capture", "{recording}"], 2, "--output"),
        (["verify", "{missing}"], 3, "no file"),
        (["verify", "{file}"], 3, "no kvmon capture"),
        (["verify", "{empty}"], 3, "holds no stream"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    """Every mistake is one line on stderr that says what to do, with its exit code, and leaves no file behind."""
    names = {name: tmp_path / name for name in ("missing", "empty", "file", "recording", "out")}
    names["empty"].mkdir()
    names["recording"].mkdir()
    names["file"].write_text("something else\n")
    record(names["recording"], 5)
    got, out, err = kvmon(capsys, *(argument.format(**names) for argument in arguments))
    assert (got, out) == (code, "")
    assert message in err and len(err.splitlines()) == 1
    assert not names["out"].exists() and names["file"].read_text() == "something else\n"
    assert not list(tmp_path.glob(".*"))
