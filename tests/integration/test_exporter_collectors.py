"""`kvmon exporter` as a process: which collectors run, pages in files, pushes, and its log."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PrometheusBinaries
from tests.otlp_receiver import otlp_receiver, samples
from tests.servers import free_port, wait_for
from tests.toy_engine import ToyEngine

ROOT = Path(__file__).parents[2]
NAMES = "engine, diagnosis, memory, fragmentation, requests, trust, allocator, device"
NO_GPU = "--no-collector.device"


def environment(**more: str) -> dict[str, str]:
    """That of this process without what would change an exporter."""
    taken = ("KVMON_", "OTEL_")
    return {**{name: value for name, value in os.environ.items() if not name.startswith(taken)}, **more}


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    """An exporter that ends by itself."""
    command = [sys.executable, "-m", "kvmon", "exporter", *arguments]
    return subprocess.run(command, env=environment(**more), capture_output=True, timeout=120)


class Exporter:
    """A running `kvmon exporter` whose log goes to a file."""

    def __init__(self, log: Path, *arguments: str, **more: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "kvmon", "exporter", "--web.listen-address", "127.0.0.1:0", *arguments]
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stderr=file, env=environment(**more))
        self.port = 0

    def wait_until_ready(self) -> None:
        """Kernels may have to be compiled."""
        wait_for(self._listens, "it does not listen")
        wait_for(lambda: self.get("/-/ready")[0] == 200, "it is not ready")

    def _listens(self) -> bool:
        found = re.search(r"metrics at http://127\.0\.0\.1:(\d+)/", self.log.read_text())
        self.port = int(found.group(1)) if found else 0
        return self.port != 0

    def get(self, path: str) -> tuple[int, str]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def series(self, query: str = "") -> dict[str, float]:
        """Every series of a page with its value."""
        status, page = self.get(f"/metrics{query}")
        assert status == 200, page
        return series(page)

    def end(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        return self.process.wait(20)


@contextlib.contextmanager
def exporter(place: Path, *arguments: str, **more: str) -> Iterator[Exporter]:
    """An exporter that is ready, for the length of a block; its log is `place`/exporter.log."""
    running = Exporter(place / "exporter.log", *arguments, **more)
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.process.kill()
        running.process.wait()


@contextlib.contextmanager
def engine(directory: Path, name: str = "toy", rank: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A toy engine in a process of its own, recording."""
    command = [sys.executable, "-m", "tests.toy_engine", str(directory), name, str(rank)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def series(page: str) -> dict[str, float]:
    """Every series of a page with its value."""
    lines = (line for line in page.splitlines() if not line.startswith("#"))
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def steady(found: dict[str, float]) -> dict[str, float]:
    """Without what differs between two looks at engines that stand."""
    moving = ("kvmon_collector_duration", "kvmon_heartbeat_age")
    return {name: value for name, value in found.items() if not name.startswith(moving)}


def ran(found: dict[str, float]) -> set[str]:
    """Collectors that a page tells of."""
    return {name.split('"')[1] for name in found if name.startswith("kvmon_collector_success")}


# -- collectors --


def test_collectors_are_turned_off_left_out_and_asked_for(tmp_path: Path) -> None:
    """Options for good, parameters for one scrape; what cannot be asked is a 400 with the names."""
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    toy = ToyEngine(recordings)
    toy.run(40)
    with exporter(tmp_path, "--dir", str(recordings), NO_GPU, "--no-collector.allocator") as metrics:
        whole = metrics.series()
        assert ran(whole) == {"engine", "diagnosis", "memory", "fragmentation", "requests", "trust"}
        assert not any(name.startswith("kvmon_allocated_units_total") for name in whole)
        some = metrics.series("?collect[]=memory&collect%5B%5D=engine")
        assert ran(some) == {"engine", "memory"}
        assert any(name.startswith("kvmon_memory_bytes") for name in some)
        assert not any(name.startswith("kvmon_steps_total") for name in some)
        assert ran(metrics.series("?exclude[]=memory")) == ran(whole) - {"memory"}
        for query, message in (
            ("?collect[]=memory&exclude[]=engine", "collect[] and exclude[] exclude each other: give one of them\n"),
            ("?collect[]=memry", f"there is no collector 'memry': give one of {NAMES}\n"),
            ("?exclude[]=", f"there is no collector '': give one of {NAMES}\n"),
            ("?collect[]=device", "the collector 'device' is off: start the exporter with --collector.device\n"),
        ):
            assert metrics.get(f"/metrics{query}") == (400, message)
        assert steady(metrics.series()) == steady(whole), "what was asked in between changed nothing"
        assert metrics.end() == 0
    with exporter(tmp_path, "--dir", str(recordings), "--collector.disable-defaults", "--collector.trust") as metrics:
        assert ran(metrics.series()) == {"trust"}
    toy.close()


def test_what_has_no_room_is_counted_and_told_once(tmp_path: Path) -> None:
    """With a small budget the page stays small, says how much is missing, and the log says of whom."""
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    toy = ToyEngine(recordings)
    toy.run(40)
    with exporter(tmp_path, "--dir", str(recordings), NO_GPU, "--series-budget", "30") as metrics:
        first, second = metrics.series(), metrics.series()
        assert sum('rank="0"' in name for name in first) == first["kvmon_series"] == 30
        assert second["kvmon_series_dropped_total"] == 2 * first["kvmon_series_dropped_total"] > 0
        told = [line for line in metrics.log.read_text().splitlines() if "raise --series-budget" in line]
        assert len(told) == len(set(told)) > 0 and all("of=toy/0" in line for line in told)
    toy.close()


def test_help_names_every_collector_and_what_it_tells() -> None:
    """Each has a switch and a sentence."""
    page = " ".join(run("--help").stdout.decode().split())
    for name in NAMES.split(", "):
        assert f"--collector.{name} / --no-collector.{name}" in page
    assert "Where the KV memory is: states, slots, owners, ages." in page


# -- a page in a file --


def test_a_page_in_a_file_is_that_of_a_scrape(tmp_path: Path, prometheus_binaries: PrometheusBinaries) -> None:
    """One that runs, one that was killed; the file is for everyone, promtool likes it, and nothing else is said."""
    recordings, file = tmp_path / "recordings", tmp_path / "kvmon.prom"
    recordings.mkdir()
    with engine(recordings, "dead") as killed:
        wait_for(lambda: (recordings / "dead-0").is_dir(), "no recording")
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    toy = ToyEngine(recordings)
    toy.run(40)
    done = run("--dir", str(recordings), NO_GPU, "--textfile", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert file.stat().st_mode & 0o777 == 0o644
    with exporter(tmp_path, "--dir", str(recordings), NO_GPU) as metrics:
        page = metrics.series()
    written = series(file.read_text())
    assert steady(written) == steady(page) and written.keys() == page.keys()
    assert written['kvmon_engine_up{engine="toy",rank="0"}'] == 1
    assert {name: value for name, value in written.items() if 'engine="dead"' in name} == {
        'kvmon_engine_up{engine="dead",rank="0"}': 0
    }
    checked = subprocess.run(
        [prometheus_binaries.promtool, "check", "metrics"], input=file.read_bytes(), capture_output=True
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
    toy.close()


def test_page_after_page_the_counters_go_on(tmp_path: Path) -> None:
    """As cron does it: each run continues the numbers of the last, also of what is gone from the recording since."""
    toy = ToyEngine(tmp_path, budget=1 << 20)
    toy.run(50)
    before = series(run("--dir", str(tmp_path), NO_GPU, "--textfile", "-").stdout.decode())
    toy.run(6000)
    after = series(run("--dir", str(tmp_path), NO_GPU, "--textfile", "-").stdout.decode())
    counters = [name for name in before if re.match(r"\w+(_total|_bucket|_count|_sum)\b", name)]
    assert len(counters) > 40
    assert all(after[name] >= before[name] for name in counters)
    assert after['kvmon_steps_total{engine="toy",rank="0"}'] == 6050
    toy.close()


# -- pushes --


def test_what_is_pushed_is_what_is_scraped(tmp_path: Path) -> None:
    """A receiver gets every sample of the page while it runs, and the last numbers when it ends."""
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    toy = ToyEngine(recordings)
    toy.run(40)
    with otlp_receiver() as receiver:
        options = ("--otlp.endpoint", receiver.url, "--otlp.interval", "0.2")
        with exporter(tmp_path, "--dir", str(recordings), NO_GPU, *options) as metrics:
            page = metrics.series()
            ready = len(receiver.requests)
            wait_for(lambda: len(receiver.requests) > ready, "nothing was pushed")
            pushed = samples(receiver.requests[-1])
            assert steady(pushed) == steady(page) and pushed.keys() == page.keys()
            toy.run(3)
            wait_for(lambda: metrics.series()['kvmon_steps_total{engine="toy",rank="0"}'] == 43, "it does not follow")
            assert metrics.end() == 0
        assert samples(receiver.requests[-1])['kvmon_steps_total{engine="toy",rank="0"}'] == 43
    toy.close()


def test_a_receiver_that_is_down_disturbs_nothing(tmp_path: Path) -> None:
    """Scrapes are answered, the log says it once, SIGTERM ends it in order."""
    options = ("--otlp.endpoint", f"http://127.0.0.1:{free_port()}", "--otlp.interval", "0.05")
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    with exporter(
        tmp_path, "--dir", str(recordings), *options, "--log.format", "json", OTEL_EXPORTER_OTLP_TIMEOUT="0.1"
    ) as metrics:
        wait_for(lambda: "cannot be pushed" in metrics.log.read_text(), "it is not said")
        time.sleep(0.5)  # some more pushes fail meanwhile
        assert metrics.series()["kvmon_series"] == 0
        start = time.monotonic()
        assert metrics.end() == 0 and time.monotonic() - start < 5
        events = [json.loads(line) for line in metrics.log.read_text().splitlines()]
        assert sum("push" in event["msg"] for event in events) == 1


def test_without_the_sdk_it_says_what_to_install(tmp_path: Path) -> None:
    """One line, before anything is started."""
    code = (
        "import sys; sys.modules['opentelemetry'] = None; from kvmon.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    arguments = ["exporter", "--dir", str(tmp_path), "--otlp.endpoint", "http://localhost:4318"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == "kvmon: OTLP needs the OpenTelemetry SDK: pip install 'kvmon[otlp]'\n"


# -- the log --


@pytest.mark.parametrize("format", ["json", "logfmt"])
def test_every_line_of_the_log_is_an_event(tmp_path: Path, format: str) -> None:
    """Start, engines that come and go, a stranger's garbage, the end: one line each, whoever says it."""
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    with (
        engine(recordings) as running,
        exporter(tmp_path, "--dir", str(recordings), "--log.level", "debug", "--log.format", format) as metrics,
    ):
        with socket.create_connection(("127.0.0.1", metrics.port)) as stranger:
            stranger.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
            stranger.recv(100)
        running.kill()
        running.wait()
        wait_for(lambda: "an engine is gone" in metrics.log.read_text(), "it is not said")
        assert metrics.end() == 0
    lines = metrics.log.read_text().splitlines()
    if format == "json":
        events = [json.loads(line) for line in lines]
        assert all({"ts", "level", "msg", "logger"} <= event.keys() for event in events)
        text = [
            f"{event['msg']} {event.get('engine')} {event.get('directory')} {event.get('version')}" for event in events
        ]
    else:
        assert all(re.match(r"ts=\S+Z level=(debug|info|warning|error) msg=\S", line) for line in lines)
        text = lines
    assert "metrics at http://127.0.0.1:" in text[0] and re.search(r"\d+\.\d+", text[0].partition("/metrics")[2])
    assert str(recordings) in text[1]
    for said in ("an engine is followed", "an engine is gone"):
        assert sum(said in line and "toy" in line for line in text) == 1, said
    assert any("asyncio" in line and "debug" in line for line in lines)


# Many command lines in one process, because the imports cost more than what is tested.
MANY = """
import contextlib, io, json, sys
from kvmon.cli.main import run
results = []
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = run(arguments)
    results.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""


def test_bad_input_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    """What cannot work is said before anything starts, with what to do next, and nothing is written."""
    link = tmp_path / "link.prom"
    link.symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "none" / "kvmon.prom"
    cases: list[tuple[tuple[str, ...], int, str]] = [
        (("--collector.memry",), 2, f"there is no collector 'memry': give one of {NAMES}"),
        (("--no-collector.memry",), 2, f"there is no collector 'memry': give one of {NAMES}"),
        (
            ("--collector.disable-defaults",),
            2,
            f"every collector is off: turn one on with --collector.NAME, of {NAMES}",
        ),
        (("--series-budget", "0"), 2, "give 1 or more"),
        (("--max-series", "21"), 2, "give more than the 21 about kvmon itself, or 0 for no limit"),
        (("--max-series", "-1"), 2, "or 0 for no limit"),
        (("--textfile", "kvmon.txt"), 2, "does not end in .prom: node_exporter would not read it"),
        (("--textfile", str(out)), 3, "no directory"),
        (("--textfile", str(link)), 3, "is a link"),
        (("--textfile", "-", "--web.max-requests", "3"), 2, "--web.max-requests does not go with --textfile"),
        (("--textfile", "-", "--otlp.endpoint", "http://x"), 2, "--otlp.endpoint does not go with --textfile"),
        (("--otlp.endpoint", "localhost:4318"), 2, "is no OTLP endpoint: give one such as http://localhost:4318"),
        (("--otlp.endpoint", "http://x", "--otlp.interval", "0"), 2, "give more than 0 seconds"),
        (("--log.level", "loud"), 2, "'loud' is not one of"),
    ]
    arguments = [["exporter", "--dir", str(tmp_path), *options] for options, _, _ in cases]
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        input=json.dumps(arguments),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    results = json.loads(done.stdout)
    for (options, code, message), (found, stdout, stderr) in zip(cases, results, strict=True):
        assert (found, message in stderr, stderr.count("\n"), stdout) == (code, True, 1, ""), (options, stderr)
    assert sorted(tmp_path.iterdir()) == before
