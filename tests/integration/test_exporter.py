"""`kvmon exporter` as a process: engines that come, die and restart, and bad input."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import PrometheusBinaries

ROOT = Path(__file__).parents[2]


class Exporter:
    """A running `kvmon exporter`, scraped over HTTP."""

    def __init__(self, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kvmon", "exporter", "--web.listen-address", "127.0.0.1:0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = re.search(r"http://127.0.0.1:(\d+)", line)
        assert found, line
        self.port = int(found.group(1))

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def series(self) -> dict[str, float]:
        """Every series with its value."""
        lines = (line for line in self.get("/metrics")[1].splitlines() if not line.startswith("#"))
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    def wait_until_ready(self) -> None:
        """Up to two minutes, because kernels may have to be compiled."""
        wait_for(lambda: self.get("/-/ready")[0] == 200, 120)

    def end(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        _, _ = self.process.communicate(timeout=20)
        return self.process.returncode


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until it is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@contextlib.contextmanager
def exporter(*arguments: str) -> Iterator[Exporter]:
    """An exporter for the length of a block; it must end in order."""
    running = Exporter(list(arguments))
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


@contextlib.contextmanager
def engines(directory: Path, *names: tuple[str, int]) -> Iterator[dict[tuple[str, int], subprocess.Popen[str]]]:
    """Toy engines in processes of their own, recording."""
    running = {}
    try:
        for name, rank in names:
            command = [sys.executable, "-m", "tests.toy_engine", str(directory), name, str(rank)]
            running[name, rank] = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for process in running.values():
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield running
    finally:
        for process in running.values():
            process.kill()
            process.communicate()


def test_of_two_engines_with_two_ranks_the_killed_one_vanishes(
    tmp_path: Path, prometheus_binaries: PrometheusBinaries
) -> None:
    """After SIGKILL a rank keeps `kvmon_engine_up 0` alone within two scrapes; the others go on."""
    names = [("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    with engines(tmp_path, *names) as running, exporter("--dir", str(tmp_path)) as metrics:
        metrics.wait_until_ready()
        wait_for(lambda: sum(name.startswith("kvmon_steps_total") for name in metrics.series()) == 4)
        page = metrics.get("/metrics")[1]
        checked = subprocess.run(
            [prometheus_binaries.promtool, "check", "metrics"], input=page, capture_output=True, text=True
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
        running["one", 1].send_signal(signal.SIGKILL)
        running["one", 1].wait()
        time.sleep(1)  # scrapes come seconds apart
        metrics.series()
        found = metrics.series()
        dead = {name: value for name, value in found.items() if 'engine="one"' in name and 'rank="1"' in name}
        assert dead == {'kvmon_engine_up{engine="one",rank="1"}': 0}
        for name, rank in names[:1] + names[2:]:
            assert found[f'kvmon_engine_up{{engine="{name}",rank="{rank}"}}'] == 1
        assert sum(name.startswith("kvmon_steps_total") for name in found) == 3
        assert metrics.end() == 0


def test_a_stopped_engine_is_stalled_and_not_dead(tmp_path: Path) -> None:
    """A process that hangs (SIGSTOP) with work pending stays visible and says so."""
    with (
        engines(tmp_path, ("hung", 0)) as running,
        exporter("--dir", str(tmp_path), "--stall-seconds", "0.7") as metrics,
    ):
        metrics.wait_until_ready()
        stalled = 'kvmon_engine_stalled{engine="hung",rank="0"}'
        wait_for(lambda: metrics.series().get(stalled) == 0)
        running["hung", 0].send_signal(signal.SIGSTOP)
        wait_for(lambda: metrics.series()[stalled] == 1)
        found = metrics.series()
        assert found['kvmon_engine_up{engine="hung",rank="0"}'] == 1
        assert any(name.startswith("kvmon_memory_bytes") for name in found)
        running["hung", 0].send_signal(signal.SIGCONT)
        wait_for(lambda: metrics.series()[stalled] == 0)


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and stderr of an exporter that should not start."""
    clean = {name: value for name, value in os.environ.items() if name != "KVMON_DIR"}
    done = subprocess.run(
        [sys.executable, "-m", "kvmon", "exporter", *arguments],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_bad_input_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    """What cannot work is said before anything starts, with what to do next."""
    file = tmp_path / "file"
    file.touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = [
            ((), 2, "no recording directory: give --dir or set KVMON_DIR"),
            (("--dir", str(tmp_path / "none")), 3, "no directory"),
            (("--dir", str(file)), 3, "is not a directory"),
            (("--dir", str(tmp_path), "--web.listen-address", f"127.0.0.1:{port}"), 4, "the port is in use"),
            (("--dir", str(tmp_path), "--web.listen-address", "nonsense"), 2, "is no address to listen on"),
            (("--dir", str(tmp_path), "--web.telemetry-path", "metrics"), 2, "cannot be the telemetry path"),
            (("--dir", str(tmp_path), "--stall-seconds", "0"), 2, "give more than 0"),
            (("--dir", str(tmp_path), "--state-dir", str(tmp_path / "none")), 4, "cannot write to the state directory"),
        ]
        for arguments, code, message in cases:
            found, stderr = run(*arguments)
            assert (found, message in stderr, stderr.count("\n")) == (code, True, 1), (arguments, stderr)
    assert run(KVMON_DIR=str(tmp_path / "from the environment"))[0] == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without permission")
def test_a_directory_without_permission_is_said(tmp_path: Path) -> None:
    """A directory of somebody else is one line and exit code 3."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    code = (
        "import os, sys; import kvmon.cli.exporter, kvmon.exporter.app, kvmon.exporter.server, kvmon.exporter.sidecar;"
        "from kvmon.cli.main import run; os.setgid(65534); os.setuid(65534);"
        f"sys.exit(run(['exporter', '--dir', {str(closed)!r}]))"
    )
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4, done.stderr
    assert "no permission to read" in done.stderr and done.stderr.count("\n") == 1
