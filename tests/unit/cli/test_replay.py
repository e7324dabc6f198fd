"""`kvmon replay --json` and `--html` as scripts use them: documented fields, the same bytes, no half-written file."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvmon.capture import CaptureWriter
from kvmon.capture.pieces import StreamFacts
from kvmon.cli.main import run
from kvmon.replay import simulated
from kvmon.serving.scenarios import find
from kvmon.state import scan
from tests.unit.replay.replaying import words_of

DOCS = Path(__file__).parents[3] / "docs" / "replay.md"


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fragmentation that loses requests."""
    path = tmp_path_factory.mktemp("replay") / "post-incident.kvmon"
    assert run(["simulate", "--scenario", "post-incident", "--seed", "3", "--out", str(path), "--json"]) == 0
    return path


def capture_without_description(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As of an adapter that says too little of its engine to run it again."""
    described = simulated.engine_config
    monkeypatch.setattr(simulated, "engine_config", lambda *of: {**described(*of), "max_sequences": "many"})
    with CaptureWriter(path, force=True, wall=lambda: 0) as writer:
        sink = writer.add_stream(StreamFacts("foreign"))
        for words in words_of(find("post-incident").setups(3)[0][""]):
            sink.write(words)
    return path


def documented() -> dict[str, set[str]]:
    """Objects of the table in docs/replay.md, with their fields."""
    section = DOCS.read_text(encoding="utf-8").split("## For machines")[1]
    rows = re.findall(r"^\| (.*?) \| (.*?) \|$", section, re.MULTILINE)
    return {
        name.strip("`"): set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)|;.*", "", fields)))
        for name, fields in rows
        if "`" in fields
    }


def objects(said: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The same objects of what was printed."""
    (what_if,) = said["what_if"]
    comparison = what_if["comparison"]
    answers = [
        comparison["unchanged"],
        *comparison["answers"],
        *(one["helps"] for one in what_if["proposals"] if one["helps"]),
    ]
    return {
        "the whole": [said],
        "findings": said["findings"],
        "findings.evidence": [part for one in said["findings"] for part in one["evidence"]],
        "findings.events": [part for one in said["findings"] for part in one["events"]],
        "findings.completeness": [one["completeness"] for one in said["findings"]],
        "streams": said["streams"],
        "what_if": [what_if],
        "what_if.proposals": what_if["proposals"],
        "what_if.comparison": [comparison],
        "what_if.comparison.calibration": [comparison["calibration"]],
        "what_if.comparison.clock": [comparison["clock"]],
        "what_if.comparison.censored": [comparison["censored"]],
        "an answer": answers,
        "an outcome": [comparison["recorded"], *(one[case] for one in answers for case in ("least", "most"))],
    }


@pytest.mark.parametrize("options", [[], ["--what-if", "pool=+20%"]])
def test_json_has_the_documented_fields(capture: Path, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    """Every object of the table, with those fields and no other; the schema is the one that the page names."""
    assert run(["replay", str(capture), "--json", *options]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["schema"] == int(re.findall(r"one object of schema (\d+)", DOCS.read_text(encoding="utf-8"))[0])
    printed, fields = objects(said), documented()
    assert fields.keys() == printed.keys()
    for name, found in printed.items():
        for one in found:
            assert one.keys() == fields[name], name


def test_without_what_ifs_json_says_null(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The field is there, and unknown."""
    assert run(["replay", str(capture), "--json", "--no-what-if"]) == 1
    assert json.loads(capsys.readouterr().out)["what_if"] is None


def test_two_processes_write_the_same_bytes(capture: Path, tmp_path: Path) -> None:
    """Page and JSON with what-ifs, whatever the order of their sets."""
    made = []
    for seed in ("1", "2"):
        page = tmp_path / f"{seed}.html"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-m", "kvmon", "replay", str(capture)]
        subprocess.run([*command, "--html", str(page)], env=environment, capture_output=True)
        said = subprocess.run([*command, "--json"], env=environment, capture_output=True)
        assert said.returncode == 1
        made.append((page.read_bytes(), said.stdout))
    assert made[0] == made[1]
    assert b"avoids fragmentation" in made[0][0]


def test_a_recording_that_cannot_be_replayed_has_a_report_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By itself; asked for a change, it is one line, and no report."""
    source, page = capture_without_description(tmp_path / "x.kvmon", monkeypatch), tmp_path / "x.html"
    assert run(["replay", str(source), "--html", str(page)]) == 1
    text = page.read_text(encoding="utf-8")
    assert "Not replayed: foreign-0 cannot be replayed: what the recording says of its engine cannot be run" in text
    page.unlink()
    capsys.readouterr()
    assert run(["replay", str(source), "--html", str(page), "--what-if", "pool=+20%"]) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "cannot be run" in said[0]
    assert sorted(tmp_path.iterdir()) == [source]


def test_without_a_pool_the_report_says_so(tmp_path: Path) -> None:
    """The begin is lost: nothing was found, which is no proof of health."""
    source, page = tmp_path / "x.kvmon", tmp_path / "x.html"
    words = np.concatenate(words_of(find("post-incident").setups(3)[0][""]))
    with CaptureWriter(source, wall=lambda: 0) as writer:
        writer.add_stream(StreamFacts("late")).write(words[int(scan(words).ends[3000]) :])
    assert run(["replay", str(source), "--html", str(page)]) == 0
    assert "No pool was seen: the recording has lost its begin" in page.read_text(encoding="utf-8")
    assert run(["replay", str(source), "--html", str(page), "--force", "--what-if", "pool=+20%"]) == 3


def test_a_long_recording_is_replayed_only_when_asked(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then its requests are not even read."""
    from kvmon.replay import asked, recordings

    def unread(*_: object) -> None:
        raise AssertionError("read in vain")

    page = tmp_path / "x.html"
    monkeypatch.setattr(asked, "MOST_STEPS", 1000)
    with monkeypatch.context() as patched:
        patched.setattr(recordings, "read_recordings", unread)
        assert run(["replay", str(capture), "--html", str(page)]) == 1
    assert "11,344 steps are not replayed unless asked for" in page.read_text(encoding="utf-8")
    assert run(["replay", str(capture), "--html", str(page), "--force", "--what-if", "pool=+300%"]) == 1
    assert "pool=+300%" in page.read_text(encoding="utf-8")


def test_of_what_is_too_long_nothing_but_the_diagnosis_is_kept(
    capture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same findings, in memory that does not grow; and the line that says how to replay it all the same."""
    from kvmon.replay import asked
    from kvmon.replay.recordings import read_recordings

    (whole,), (bounded,) = read_recordings(capture), read_recordings(capture, most_steps=1000)
    assert bounded.stream.findings == whole.stream.findings
    assert bounded.stream.refusals() == whole.stream.refusals()
    assert (len(whole.demand) > 0, len(bounded.demand), len(bounded.trail), bounded.outcome) == (True, 0, 0, None)
    assert bounded.steps == whole.steps == 11_344
    assert run(["replay", str(capture), "--json"]) == 1
    replayed = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(asked, "MOST_STEPS", 1000)
    assert run(["replay", str(capture), "--json"]) == 1
    unread = json.loads(capsys.readouterr().out)
    assert unread["findings"] == replayed["findings"]
    assert [one["missing"] for one in unread["what_if"]] == [
        "11,344 steps are not replayed unless asked for: add --what-if pool=+25%, or another one"
    ]


@pytest.mark.parametrize(
    ("options", "code", "why"),
    [
        (["--what-if", "frobnicate=1"], 2, "nothing called 'frobnicate'"),
        (["--what-if", "block=0"], 2, "a block of 0 tokens is none"),
        (["--sweep", "block"], 2, "is no range"),
        (["--no-what-if", "--what-if", "pool=+20%"], 2, "--no-what-if asks for none"),
        (["--json"], 2, "one of them at a time"),
        (["--also", "x"], 2, "give --sweep too"),
    ],
)
def test_an_impossible_request_writes_nothing(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, why: str
) -> None:
    """One line, its exit code, no file."""
    assert run(["replay", str(capture), "--html", str(tmp_path / "x.html"), *options]) == code
    said = capsys.readouterr().err.splitlines()
    assert why in said[-1] and not any("Traceback" in line for line in said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["empty", "foreign", "newer", "cut", "missing", "folder", "fifo"])
def test_a_source_that_cannot_be_read_writes_nothing(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """One line that names it, exit code 3, no file; one that is cut off has a report of what can be read."""
    source, page = tmp_path / "x.kvmon", tmp_path / "x.html"
    data = capture.read_bytes()
    if kind == "folder":
        source.mkdir()
    elif kind == "fifo":
        os.mkfifo(source)
    elif kind != "missing":
        head = data[:8] + struct.pack("<I", 99) + data[12:60]
        newer = head + struct.pack("<I", zlib.crc32(head)) + data[64:]
        source.write_bytes({"empty": b"", "foreign": b"PK\x03\x04" * 99, "newer": newer, "cut": data[:-25_000]}[kind])
    code = run(["replay", str(source), "--html", str(page)])
    said = capsys.readouterr()
    if kind == "cut":
        assert code == 1 and "Without a change" in page.read_text(encoding="utf-8")
        assert "part that can be read" in said.err
        return
    assert code == 3 and len(said.err.splitlines()) == 1 and "x.kvmon" in said.err, said
    assert [path for path in tmp_path.iterdir() if path != source] == []


def test_an_output_that_cannot_be_is_refused_before_anything_is_read(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is there, a directory that is none, a link, a folder: one line, and what was there stays."""
    from kvmon.replay import timeline

    monkeypatch.setattr(timeline, "read_timelines", lambda *_, **__: pytest.fail("read in vain"))
    there, link = tmp_path / "there.html", tmp_path / "link.html"
    there.write_text("mine")
    link.symlink_to(there)
    for output, options, why in (
        (there, [], "--force"),
        (tmp_path / "none" / "x.html", [], "no directory"),
        (there / "x.html", [], "there.html"),
        (link, ["--force"], "is a link"),
        (tmp_path, ["--force"], "is no file"),
    ):
        assert run(["replay", str(capture), "--html", str(output), *options]) == 3, output
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and why in said[0]
    assert sorted(tmp_path.iterdir()) == [link, there] and there.read_text() == "mine"


def test_killed_in_the_middle_it_leaves_no_half_report(capture: Path, tmp_path: Path) -> None:
    """SIGKILL while it reads and replays: the name is not taken, or still has what it had."""
    page = tmp_path / "x.html"
    page.write_text("before")
    command = [sys.executable, "-m", "kvmon", "replay", str(capture), "--force", "--html", str(page)]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".x.html.*")) and started.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    assert started.wait(10) == -signal.SIGKILL
    assert page.read_text() == "before"
