"""An export is whole or not there: limits, a full disk and a kill at any instant leave nothing under its name."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from kvmon.replay.export.parquet import FILES
from tests.unit.adapters.driven import OPTIONS
from tests.unit.replay.exported import rows_of
from tests.unit.replay.exported_trace import check_trace
from tests.unit.replay.recorded import Recorded

NAMES = ("out", "out.json")
KILLS = 2


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture that takes a moment to export."""
    return Recorded(OPTIONS["no-cache"], 3, 4000).capture(tmp_path_factory.mktemp("whole") / "x.kvmon", every=100_000)


def export(capture: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """`kvmon export` as a process of its own."""
    command = [sys.executable, "-m", "kvmon", "export", str(capture), "-o", str(out), "--every", "frame", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def done(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and standard error, but for the word that kernels are compiled."""
    _, said = process.communicate(timeout=120)
    lines = [line for line in said.splitlines(keepends=True) if "compiling kernels" not in line]
    return process.returncode, "".join(lines)


def limited(process: subprocess.Popen[str], bytes_: int) -> tuple[int, str]:
    """The same of one that may not write longer files."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (bytes_, bytes_))
    return done(process)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_may_not_grow_is_one_line(name: str, capture: Path, tmp_path: Path) -> None:
    """As on a full disk: what to do, a documented exit code, and nothing left; what was there before stays."""
    code, said = limited(export(capture, tmp_path / name), 4096)
    assert code == 4 and said.count("\n") == 1 and said.startswith("kvmon: cannot write")
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_where_the_new_one_fails(capture: Path, tmp_path: Path) -> None:
    """--force replaces an export only by a whole one."""
    assert done(export(capture, tmp_path / "out")) == (0, "")
    rows = rows_of(tmp_path / "out", "events", "count(*) n")
    limited(export(capture, tmp_path / "out", "--force"), 4096)
    assert rows_of(tmp_path / "out", "events", "count(*) n") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", NAMES)
def test_a_kill_leaves_no_half_export(name: str, capture: Path, tmp_path: Path) -> None:
    """At random instants: under the name is everything or nothing, and the next export takes the name."""
    draw = Random(7)
    begin = time.monotonic()
    assert done(export(capture, tmp_path / name)) == (0, "")
    took = time.monotonic() - begin
    for _ in range(KILLS):
        process = export(capture, tmp_path / name, "--force")
        time.sleep(took * draw.uniform(0.3, 1.0))
        process.send_signal(signal.SIGKILL)
        done(process)
        if name == "out":
            assert {file.name for file in (tmp_path / name).iterdir()} == set(FILES)
            assert rows_of(tmp_path / name, "streams", "refused")
        else:
            check_trace(tmp_path / name)
    assert done(export(capture, tmp_path / name, "--force")) == (0, "")
