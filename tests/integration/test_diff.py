"""`kvmon diff` from the command line: its three forms, in words and for machines, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvmon.cli.main import run
from tests.integration.test_capture_verify import kvmon


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A leak, an engine without one, and what is no capture."""
    folder = tmp_path_factory.mktemp("diff")
    for name in ("leak", "leak-healthy"):
        assert run(["simulate", "--scenario", name, "--out", str(folder / f"{name}.kvmon")]) == 0
    (folder / "foreign.kvmon").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    (folder / "cut.kvmon").write_bytes((folder / "leak.kvmon").read_bytes()[:-10])
    (folder / "empty").mkdir()
    return folder


def test_the_verdict_comes_first_in_eighty_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two captures: the headline, both sides, then groups; code 1 as something has changed."""
    code, out, err = kvmon(capsys, "diff", folder / "leak-healthy.kvmon", folder / "leak.kvmon")
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0].startswith("leak is new: ") and max(map(len, lines)) <= 80
    assert f"A: {folder / 'leak-healthy.kvmon'}" in lines and "simulator-0" in lines
    assert any("pool without an owner, most" in line and "points" in line for line in lines)
    _, every, _ = kvmon(capsys, "diff", folder / "leak-healthy.kvmon", folder / "leak.kvmon", "--all")
    assert len(every.splitlines()) > len(lines) and max(map(len, every.splitlines())) <= 80


def test_nothing_that_matters_is_code_0(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A capture beside itself."""
    code, out, err = kvmon(capsys, "diff", folder / "leak.kvmon", folder / "leak.kvmon")
    assert (code, err) == (0, "") and out.startswith("nothing that matters has changed\n")


def test_stretches_of_one_capture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With bounds behind an @, or on both sides of one moment: the same."""
    path = folder / "leak.kvmon"
    code, text, _ = kvmon(capsys, "diff", path, "--since", "+30s", "--json")
    since = json.loads(text)
    other, text, _ = kvmon(capsys, "diff", f"{path}@..30s", f"{path}@30s..", "--json")
    bounded = json.loads(text)
    assert code == other == 1
    assert since["streams"] == bounded["streams"] and since["schema"] == 1
    (stream,) = since["streams"]
    assert stream["before"]["end_ns"] == stream["after"]["begin_ns"]
    assert stream["before"]["seconds"] == pytest.approx(30, abs=0.1)
    assert {"group", "name", "label", "words", "before", "after", "unit"} == set(stream["changes"][0])


def test_two_processes_say_the_same(folder: Path) -> None:
    """Byte for byte, whatever the seed of hashes."""
    command = [Path(sys.executable).with_name("kvmon"), "diff", "leak-healthy.kvmon", "leak.kvmon", "--json"]
    said = {
        subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1 and b'"schema": 1' in next(iter(said))


def test_of_a_damaged_capture_what_is_sound_is_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what is missing is said."""
    code, out, _ = kvmon(capsys, "diff", folder / "leak.kvmon", folder / "cut.kvmon")
    assert code in (0, 1) and "not seen: " in out and "the index at the end is damaged" in out


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["leak.kvmon"], 2, "two sides are needed"),
        (["leak.kvmon", "leak.kvmon", "--since", "+1s"], 2, "two sides are needed"),
        (["leak.kvmon@..9s", "--since", "+1s"], 2, "--since divides all of A"),
        (["leak.kvmon", "--since", "soon"], 2, "soon"),
        (["leak.kvmon", "--since", "worst"], 2, "bounds no stretch of time"),
        (["leak.kvmon@x", "leak.kvmon"], 2, "'@x' is no stretch of time"),
        (["leak.kvmon@+2h..", "leak.kvmon"], 2, "holds nothing from +2h"),
        (["leak.kvmon@9s..3s", "leak.kvmon"], 2, "holds nothing from 9s until 3s"),
        (["leak.kvmon", "leak.kvmon", "--stream", "nobody-0"], 2, "simulator-0"),
        (["gone.kvmon", "leak.kvmon"], 3, "gone.kvmon is not there"),
        (["leak.kvmon", "foreign.kvmon"], 3, "foreign.kvmon"),
        (["leak.kvmon", "empty"], 3, "empty"),
        (["/dev/null", "leak.kvmon"], 3, "is neither a capture nor a directory"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], code: int, why: str, folder: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With its exit code, and nothing on standard output."""
    monkeypatch.chdir(folder)
    found, out, err = kvmon(capsys, "diff", *arguments)
    assert (found, out) == (code, "") and why in err and err.count("\n") == 1
