"""`kvmon replay`, `why`, `holders`, `status` and `explain` as a person or a script uses them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvmon.cli.main import run
from kvmon.diagnosis import VERDICTS
from kvmon.diagnosis.reading import first_line, page, pages

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captures of a few scenarios by name."""
    folder = tmp_path_factory.mktemp("captures")
    for name in ("post-incident", "stranded", "warm-cache", "partition", "deadlock"):
        assert run(["simulate", "--scenario", name, "--out", str(folder / f"{name}.kvmon"), "--json"]) == 0
    return folder


def test_replay_answers_in_the_first_line(captures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict and why, then evidence with events, what avoids it and what to do; 1 says that something is there."""
    capsys.readouterr()
    assert run(["replay", str(captures / "post-incident.kvmon")]) == 1
    text = capsys.readouterr().out
    assert text.startswith("fragmentation: a request needed ") and "in one piece" in text.splitlines()[0]
    for part in ("evidence", "largest free block at a failure", "events", "frame ", "avoided by", "safest now"):
        assert part in text
    assert max(map(len, text.splitlines()[1:])) <= 100
    assert run(["replay", str(captures / "warm-cache.kvmon")]) == 0
    assert capsys.readouterr().out.startswith("healthy: nothing was found in ")


def test_replay_as_json(captures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`findings`, most important first, each with its verdict; the events are where they say."""
    from kvmon.capture import CaptureReader
    from kvmon.capture.pieces import Frames
    from kvmon.events import Kind, decode

    path = captures / "post-incident.kvmon"
    assert run(["replay", str(path), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == said["findings"][0]["verdict"] == "fragmentation"
    first = said["findings"][0]
    assert first["confidence"] == "certain" and first["lost"] > 0 and first["completeness"]["known_ratio"] == 1.0
    place = first["events"][0]
    with CaptureReader(path) as reader:
        for piece in reader.pieces(reader.streams[0]):
            if not isinstance(piece, Frames):
                continue
            numbers = piece.table.numbers.tolist()
            if place["frame"] in numbers:
                at = numbers.index(place["frame"])
                begin = int(piece.table.ends[at - 1]) if at else 0
                words = piece.words[begin : int(piece.table.ends[at])]
                kinds = [event.kind for event in decode(words[place["word"] :].tolist())]
                assert kinds[0] is Kind.ALLOC_FAILED
                return
    pytest.fail("the frame of the evidence is not in the capture")


def test_why_the_last_request_failed(captures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In words with numbers: the need, what was free, the cause, who held the memory, what avoids it."""
    assert run(["why", str(captures / "stranded.kvmon")]) == 0
    text = capsys.readouterr().out
    assert "was refused" in text and "Why: stranded." in text and "deferred 9" in text and "Safest now:" in text
    assert run(["why", str(captures / "stranded.kvmon"), "--last", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["cause"] == "stranded" and said["deferred_units"] > 3000 and said["past_known"]
    assert run(["why", str(captures / "warm-cache.kvmon")]) == 0
    assert "No allocation was refused" in capsys.readouterr().out


def test_why_of_a_class_and_of_a_time(captures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One class alone, and all of a time by cause."""
    path = str(captures / "partition.kvmon")
    assert run(["why", path, "--request-class", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["class"] == 2
    assert run(["why", path, "--request-class", "9"]) == 0
    assert "No allocation of class 9 was refused" in capsys.readouterr().out
    assert run(["why", path, "--since", "60s", "--json"]) == 0
    causes = json.loads(capsys.readouterr().out)
    assert next(iter(causes)) == "partition" and causes["partition"]["waited_s"] > 100
    assert run(["why", path, "--since", "60s"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("partition ")
    assert run(["why", str(captures / "deadlock.kvmon")]) == 0
    assert "still waits" in capsys.readouterr().out


def test_who_holds_the_memory(captures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By class, state and age; with what nobody holds the units sum to the pool."""
    path = str(captures / "deadlock.kvmon")
    assert run(["holders", path, "--by", "state,age", "--json"]) == 0
    pool = json.loads(capsys.readouterr().out)["pools"][0]
    assert (pool["holders"][0]["state"] == "running" and pool["holders"][0]["age"] == "10 to 60 s") or pool["holders"]
    held = sum(holder["units"] for holder in pool["holders"])
    assert held + sum(other["units"] for other in pool["others"]) + pool["free_units"] == pool["capacity_units"]
    assert run(["holders", path]) == 0
    assert "class 0, running" in capsys.readouterr().out
    assert run(["holders", str(captures / "stranded.kvmon")]) == 0
    assert "deferred" in capsys.readouterr().out


ENGINE = """
import sys
import time
from pathlib import Path
from tests.toy_engine import ToyEngine
engine = ToyEngine(Path(sys.argv[1]), "chat")
engine.run(int(sys.argv[2]))
print("ready", flush=True)
"""
# until it is killed: an engine that stands still is another state
ENGINE_THAT_RUNS_ON = (
    ENGINE
    + """
while True:
    engine.run(1)
    time.sleep(0.01)
"""
)


def test_status_of_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line a pool and an exit code for scripts: of an engine that lives, and of one that was killed."""
    engine = subprocess.Popen(
        [sys.executable, "-c", ENGINE_THAT_RUNS_ON, str(tmp_path), "50"], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert engine.stdout is not None and engine.stdout.readline() == b"ready\n"
        run(["status", str(tmp_path)])
        line = capsys.readouterr().out
        assert line.startswith("chat-0 kv ") and "% used" in line and line.count("\n") == 1
        code = run(["status", str(tmp_path), "--json"])
        row = json.loads(capsys.readouterr().out)["pools"][0]
        assert row["life"] == "alive" and (code == 0) == (row["verdicts"] == ["healthy"])
    finally:
        engine.kill()
        engine.communicate()
    assert run(["status", str(tmp_path)]) == 1
    assert "dead" in capsys.readouterr().out


def test_a_damaged_capture_is_never_called_healthy(
    captures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut off before its first step nothing can be said, and no verb pretends; cut off later it says so."""
    whole = (captures / "stranded.kvmon").read_bytes()
    cut = tmp_path / "cut.kvmon"
    cut.write_bytes(whole[:1000])
    for verb in ("replay", "why", "holders"):
        assert run([verb, str(cut)]) == 3
        said = capsys.readouterr()
        assert said.out == "" and "kvmon verify" in said.err and said.err.count("\n") == 1
    cut.write_bytes(whole[:-40])
    assert run(["replay", str(cut)]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("stranded: ") and "   damaged: " in said.out
    assert "the part that can be read" in said.err
    (tmp_path / "rec" / "chat-0").mkdir(parents=True)
    (tmp_path / "rec" / "chat-0" / "00000000.seg").touch()
    os.mkfifo(tmp_path / "pipe")
    for source in ("rec", "pipe"):
        assert run(["replay", str(tmp_path / source)]) == 3
        assert capsys.readouterr().err.count("\n") == 1


def test_a_restart_is_a_new_life_and_silent(tmp_path: Path) -> None:
    """Each life is judged for itself: what an engine left behind when it was killed is no leak of the next one."""
    from kvmon.replay import diagnose_path

    for steps in (300, 60):
        done = subprocess.run(
            [sys.executable, "-c", ENGINE, str(tmp_path), str(steps)],
            capture_output=True,
            cwd=ROOT,
            check=True,
        )
        assert done.stdout == b"ready\n"
    first, second = diagnose_path(tmp_path)
    assert first.state.steps == 300 and second.state.steps == 60
    assert not {finding.verdict for finding in second.findings} & {"leak", "telemetry_untrusted", "double_free"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["replay", "absent.kvmon"], 3, "absent.kvmon"),
        (["replay", "."], 3, ""),
        (["why"], 2, "KVMON_DIR"),
        (["why", ".", "--last", "--since", "5m"], 2, "one of them"),
        (["why", ".", "--since", "soon"], 2, "is no time"),
        (["holders", ".", "--by", "colour"], 2, "class, state, age"),
        (["holders"], 2, "KVMON_DIR"),
        (["why", ".", "--request-class", "-1"], 2, "from 0"),
        (["status"], 2, "KVMON_DIR"),
        (["status", "absent"], 3, "absent"),
        (["explain", "leek"], 2, "did you mean leak"),
        (["explain", "zzz"], 2, "lists them all"),
    ],
)
def test_what_cannot_work_is_one_line(
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line that says what to do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KVMON_DIR", raising=False)
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == "" and says in captured.err and captured.err.count("\n") == 1


def test_every_verdict_has_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    """With all its parts, in the documentation too."""
    docs = ROOT / "docs" / "verdicts"
    assert pages() == ["healthy", *VERDICTS]
    for name in pages():
        text = page(name)
        heads = [line for line in text.splitlines() if line.startswith("## ")]
        assert len(heads) == 6 and text.startswith(f"# {name}: ")
        assert (docs / f"{name}.md").read_text().rstrip() == text.rstrip()
        assert run(["explain", name.replace("_", "-")]) == 0
        assert capsys.readouterr().out.rstrip() == text.rstrip()
    assert run(["explain"]) == 0
    listed = capsys.readouterr().out
    assert all(first_line(name) in listed for name in pages())
