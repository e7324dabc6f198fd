"""`kvmon top` as it is typed: on engines that live, that died and that never were, in a terminal and in a pipe."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from kvmon.probe import PoolInfo, StreamProbe

ENGINE = Path(__file__).with_name("dead_engine.py")
GOLDEN = Path(__file__).parents[1] / "golden" / "top_dead.txt"
TIMEOUT = 90  # compiling kernels comes first where nothing is cached


def top(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `kvmon top` with its output in a pipe."""
    return subprocess.run(
        [sys.executable, "-m", "kvmon", "top", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=TIMEOUT,
        env={**_environment(), **environment},
    )


def _environment() -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("KVMON_DIR", "NO_COLOR", "COLUMNS", "LINES")
    }
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONIOENCODING": "utf-8"}


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory beside `rec`, the recording of an engine that was killed."""
    directory = tmp_path_factory.mktemp("top")
    (directory / "rec").mkdir()
    done = subprocess.run([sys.executable, str(ENGINE), str(directory / "rec")], env=_environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    return directory


def test_a_dead_directory_is_drawn_as_it_always_was(dead: Path) -> None:
    """The frame of a killed engine is the golden one: 80 columns, no colour, its last state, dead since when."""
    done = top("rec", "--once", cwd=dead, NO_COLOR="1", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert "\x1b[3" not in done.stdout
    assert "dead since 2026-01-02 03:04:05 UTC, last state" in done.stdout
    drawn = "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"
    if os.environ.get("KVMON_WRITE_GOLDEN"):
        GOLDEN.write_text(drawn, encoding="utf-8")
    assert drawn == GOLDEN.read_text(encoding="utf-8")


def test_a_pipe_gets_one_frame_without_being_asked(dead: Path) -> None:
    """Without a terminal `kvmon top` prints one frame and ends, the same as with --once."""
    assert top("rec", cwd=dead).stdout == top("rec", "--once", cwd=dead).stdout


def test_a_terminal_without_utf8_gets_ascii(dead: Path) -> None:
    """Where the output cannot take UTF-8, every character of the frame is ASCII."""
    done = top("rec", "--once", cwd=dead, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_json_holds_the_numbers_of_the_scenario(dead: Path) -> None:
    """The JSON of server-failures says F = 32 >= 16 > G = 8, 1 - L/F = 0.75 and lost(16) = 1."""
    done = top("rec", "--json", cwd=dead)
    (stream,) = json.loads(done.stdout)["streams"]
    (pool,) = stream["pools"]
    assert (stream["engine"], stream["condition"], stream["head_need"]) == ("toy", "dead", 16)
    assert (pool["units"]["free"], pool["largest_free"]) == (32, 8)
    assert (pool["external_fragmentation"], pool["lost"], pool["lost_size"]) == (0.75, 1.0, 16)
    assert pool["failures"] == {"no_contiguous_run": 1}
    assert sum(pool["units"].values()) == pool["capacity"] == 64
    assert sum(map(sum, pool["map"]["cells"])) == 64


def test_one_stream_can_be_named_by_its_own_directory(dead: Path) -> None:
    """`kvmon top DIR/STREAM` shows that stream."""
    assert "toy/0 kv" in top("rec/toy-0", "--once", cwd=dead).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "kvmon: no directory to watch: give the one the engine records into, or set KVMON_DIR"),
        (("nowhere",), 3, "kvmon: no directory nowhere: give the one the engine has in KVMON_DIR"),
        (("file",), 3, "kvmon: file is not a directory: give the one the engine has in KVMON_DIR"),
        (("empty",), 3, "kvmon: no engine has recorded in empty: start one with KVMON_DIR=empty"),
        (
            ("empty", "--once", "--json"),
            2,
            "kvmon: --once and --json exclude each other: --json prints one frame as it is",
        ),
        (("empty", "--interval", "0"), 2, "kvmon: an interval of 0 s is not possible: give 0.05 to 3600"),
        (("empty", "--stall-seconds", "0"), 2, "kvmon: stalled after 0 s is always: give more than 0"),
    ],
)
def test_what_cannot_be_watched_is_one_line(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    """A missing or empty directory and impossible options are one line with their exit code."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    done = top(*arguments, cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if "compiling" not in line]
    assert (done.returncode, lines, done.stdout) == (code, [message], "")


def test_an_unknown_engine_is_one_line(dead: Path) -> None:
    """`--engine` with a name that never recorded says which there are."""
    done = top("rec", "--once", "--engine", "other", cwd=dead)
    assert done.returncode == 3
    assert "no engine 'other'" in done.stderr
    assert "toy" in done.stderr


def test_a_stream_of_a_newer_format_does_not_hide_the_others(dead: Path, tmp_path: Path) -> None:
    """One stream that cannot be read is a line above the others; alone it is an error."""
    shutil.copytree(dead / "rec" / "toy-0", tmp_path / "newer-0")
    with next((tmp_path / "newer-0").glob("*.seg")).open("r+b") as segment:
        segment.seek(8)
        segment.write(struct.pack("<I", 99))
    alone = top(".", "--once", cwd=tmp_path)
    assert alone.returncode == 3
    assert "has format 99" in alone.stderr
    shutil.copytree(dead / "rec" / "toy-0", tmp_path / "toy-0")
    both = top(".", "--once", cwd=tmp_path)
    assert both.returncode == 0
    assert "has format 99" in both.stdout
    assert "toy/0 kv dead since" in both.stdout


def test_a_live_engine_is_alive_and_then_idle_and_then_ended(tmp_path: Path) -> None:
    """The condition follows the engine: work pending, nothing to do, closed in order."""
    probe = StreamProbe(tmp_path, "here")
    pool = probe.attach_pool(PoolInfo("kv", 100, 4096, 16))
    probe.arrived(1, 5, 20)
    probe.admitted(1)
    pool.alloc([1, 2])
    pool.assign(1, [1, 2])
    probe.step(1, 2, 3, 0, 5, 1, 0)
    assert "here/0 kv alive" in top(".", "--once", cwd=tmp_path).stdout
    time.sleep(0.6)
    assert "stalled: work pending, silent for" in top(".", "--once", "--stall-seconds", "0.5", cwd=tmp_path).stdout
    probe.step(2, 2, 0, 0, 0, 0, 0)
    assert "here/0 kv idle" in top(".", "--once", cwd=tmp_path).stdout
    probe.close()
    assert "here/0 kv ended since" in top(".", "--once", cwd=tmp_path).stdout


class Terminal:
    """`kvmon top` in a terminal of its own."""

    def __init__(self, directory: Path, columns: int, lines: int) -> None:
        self.master, slave = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kvmon", "top", str(directory), "--interval", "0.1"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**_environment(), "TERM": "xterm-256color"},
        )

    def resize(self, columns: int, lines: int) -> None:
        """Give the window another size."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read_until(self, pattern: str, *, fresh: bool = False) -> str:
        """Read what is drawn until `pattern` is seen."""
        if fresh:
            self.seen = ""
        until = time.monotonic() + TIMEOUT
        while not (re.search(pattern, self.seen) or re.search(pattern, _plain(self.seen))):
            assert time.monotonic() < until, f"'{pattern}' was not drawn:\n{self.seen[-2000:]}"
            readable, _, _ = select.select([self.master], [], [], 1.0)
            if readable:
                self.seen += os.read(self.master, 65536).decode("utf-8", "replace")
        return self.seen

    def close(self) -> None:
        """End it and let the terminal go."""
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.mark.parametrize("leave", ["q", signal.SIGINT, signal.SIGTERM])
def test_a_terminal_is_drawn_resized_and_left_as_it_was(dead: Path, leave: str | signal.Signals) -> None:
    """The live screen follows the window's size; q, Ctrl-C and SIGTERM end it with 0 and give the terminal back."""
    terminal = Terminal(dead / "rec", 80, 24)
    try:
        terminal.read_until("q quits")
        assert "\x1b[?1049h" in terminal.seen
        assert max(map(len, _plain(terminal.seen).split("\n"))) == 80
        terminal.resize(120, 40)
        terminal.read_until(" {40,}q quits", fresh=True)
        if isinstance(leave, signal.Signals):
            terminal.process.send_signal(leave)
        else:
            os.write(terminal.master, leave.encode())
        terminal.read_until(re.escape("\x1b[?1049l"))
        assert terminal.process.wait(TIMEOUT) == 0
        assert termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        terminal.close()


def _plain(drawn: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn).replace("\r", "")
