"""`kvmon demo` as it is typed: it runs, can be scraped, says what happened, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from kvmon.cli.demo_engine import RecordedEngine
from kvmon.cli.demo_plan import make_plan
from kvmon.cli.watch import Watch

SECONDS, SPEED, SEED = 12.0, 4.0, 1
OPTIONS = ("--seconds", str(SECONDS), "--speed", str(SPEED), "--seed", str(SEED), "--plain")
TIMEOUT = 150  # compiling kernels comes first where nothing is cached


def start(*options: str, temporary: Path) -> subprocess.Popen[str]:
    """Start `kvmon demo`; its temporary directories are made in `temporary`."""
    return subprocess.Popen(
        [sys.executable, "-m", "kvmon", "demo", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(temporary),
            "COLUMNS": "200",
        },
    )


def first_line(process: subprocess.Popen[str], beginning: str) -> str:
    """The first line of the output with this beginning, without it."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return line.removeprefix(beginning).strip()
    raise AssertionError(f"no line begins with '{beginning}'")


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    tasks = Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.glob("*/children") for child in task.read_text(encoding="ascii").split()]


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()
    except OSError:
        return False


def totals(directory: Path) -> dict[str, tuple[object, ...]]:
    """What the recordings of both engines add up to."""
    watch = Watch(directory)
    watch.catch_up()
    screen = watch.screen()
    watch.close()
    return {
        stream.engine: (
            stream.counters,
            stream.pools[0].failures,
            stream.pools[0].units,
            stream.pools[0].map,
            stream.running,
            stream.waiting,
        )
        for stream in screen.streams
    }


def test_it_can_be_scraped_while_it_runs_and_says_what_happened(tmp_path: Path) -> None:
    """A run to its end: metrics of both engines while it runs, plain words at the end, exit code 0, nothing left."""
    process = start(*OPTIONS, temporary=tmp_path)
    try:
        recording = Path(first_line(process, "recording to "))
        address = first_line(process, "metrics at ")
        page = ""
        until = time.monotonic() + TIMEOUT
        while not all(f'kvmon_engine_up{{engine="{name}"' in page for name in ("contiguous", "paged")):
            assert time.monotonic() < until and process.poll() is None, page
            page = urllib.request.urlopen(address, timeout=10).read().decode()
            time.sleep(0.1)
        assert recording.is_dir()
        output, errors = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert re.search(r"^\S+ of 12\.0 s  \|  contiguous: \w+, free .* failures \d+.*  \|  paged: ", output, re.MULTILINE)
    assert re.search(r"^contiguous: \w+, .* lost\. paged: healthy, no request lost\.$", output, re.MULTILINE)
    assert "contiguous: every sequence is one block" in output
    assert "paged: pages of 16 tokens, anywhere" in output
    assert "kvmon capture DIR -o demo.kvmon" in output
    assert list(tmp_path.iterdir()) == []


def test_its_numbers_depend_on_the_seed_alone(tmp_path: Path) -> None:
    """The same seed and length give the same failures and the same map, at another speed and in other slices."""
    process = start(*OPTIONS, "--no-exporter", "--dir", str(tmp_path / "paced"), temporary=tmp_path)
    unpaced, other = tmp_path / "unpaced", tmp_path / "other"
    for directory, seed in ((unpaced, SEED), (other, SEED + 1)):
        directory.mkdir()
        for name, setup in make_plan(None, seed, SECONDS).setups.items():
            engine = RecordedEngine(directory, name, setup, seed)
            engine.serve(round(SECONDS * 1e9))
            engine.close()
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    assert totals(tmp_path / "paced") == totals(unpaced)
    assert totals(unpaced) != totals(other)


def test_a_scenario_runs_beside_its_twin_until_its_traffic_ends(tmp_path: Path) -> None:
    """The lesson that fails with half the memory free: the verdict of each engine is the catalogue's."""
    process = start("server-failures", "--plain", "--no-exporter", temporary=tmp_path)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    assert "contiguous: fragmentation, 1 request lost. paged: healthy, no request lost." in output
    assert "kvmon demo server-failures --keep" in output


def test_the_list_names_what_can_be_shown_and_why_the_rest_cannot(tmp_path: Path) -> None:
    """Scenarios with what they show and how long they take; those of the simulator alone with the reason."""
    process = start("--list", temporary=tmp_path)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    assert re.search(r"^post-incident +fragmentation +.* \d+ (s|min)$", output, re.MULTILINE)
    assert "space (it compares models, and the reference engine has one)" in output
    assert "kvmon simulate --scenario NAME" in output


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopping_it_leaves_nothing_behind(how: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM end it with 130, its engines with it, and its directories are gone."""
    process = start("--seconds", "300", "--speed", "0.1", "--plain", temporary=tmp_path)
    try:
        first_line(process, "metrics at ")
        engines = children(process.pid)
        assert len(engines) == 2
        process.send_signal(how)
        _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 130, errors
    finally:
        process.kill()
    assert not any(Path(f"/proc/{engine}").exists() for engine in engines)
    assert list(tmp_path.iterdir()) == []


def test_killing_it_ends_the_engines(tmp_path: Path) -> None:
    """After SIGKILL the engines notice that nobody is there any more, and end their recordings."""
    process = start("--seconds", "300", "--speed", "0.1", "--plain", "--no-exporter", temporary=tmp_path)
    recording = Path(first_line(process, "recording to "))
    engines = children(process.pid)
    time.sleep(0.5)
    process.kill()
    process.communicate()
    until = time.monotonic() + 20
    while any(lives(engine) for engine in engines):
        assert time.monotonic() < until, "the engines outlive their parent"
        time.sleep(0.05)
    assert {stream.name for stream in recording.iterdir()} >= {"contiguous-0", "paged-0"}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--seconds", "0"), 2, "0 s is no length for a demo: give 0.5 to 3600"),
        (("--speed", "0"), 2, "0 times real speed is not possible: give 0.1 to 100"),
        (("--seed", "-1"), 2, "-1 is no seed: give 0 or more"),
        (("--no-exporter", "--port", "1"), 2, "--no-exporter and --port exclude each other: give one of them"),
        (("leek",), 2, "did you mean leak"),
        (("leak-healthy",), 2, "the demo shows 'leak-healthy' beside 'leak': run 'kvmon demo leak'"),
        (("--list", "--speed", "2"), 2, "--speed does not go with --list: a list runs nothing"),
        (("--dir", "/proc/kvmon"), 4, "cannot make /proc/kvmon: No such file or directory; give another --dir"),
    ],
)
def test_what_cannot_run_is_one_line(options: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    """Impossible options are one line with their exit code."""
    process = start(*options, "--plain", temporary=tmp_path)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, output) == (code, "")
    assert errors.startswith("kvmon: ") and message in errors and errors.count("\n") == 1


def test_a_taken_port_is_an_error_only_when_it_was_asked_for(tmp_path: Path) -> None:
    """`--port` that is in use is one line; without the option any free port will do."""
    first = start("--seconds", "300", "--speed", "0.1", "--plain", temporary=tmp_path)
    try:
        taken = first_line(first, "metrics at ").rpartition(":")[2].partition("/")[0]
        second = start("--seconds", "1", "--plain", "--port", taken, temporary=tmp_path)
        _, errors = second.communicate(timeout=TIMEOUT)
        assert second.returncode == 4
        assert f"cannot listen on 127.0.0.1:{taken}: the port is in use" in errors
        third = start("--seconds", "1", "--plain", temporary=tmp_path)
        assert first_line(third, "metrics at ").rpartition(":")[2].partition("/")[0] != taken
        third.communicate(timeout=TIMEOUT)
        assert third.returncode == 0
    finally:
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=TIMEOUT)
