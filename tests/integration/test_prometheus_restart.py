"""A killed exporter leaves no trace in the counters of a real Prometheus."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import PrometheusBinaries
from tests.toy_engine import ToyEngine

pytestmark = [pytest.mark.prometheus, pytest.mark.slow]  # slow: Prometheus has to see two deaths, 13 s


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Wait until it is so; kernels may have to be compiled."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        assert time.monotonic() < end, what
        time.sleep(0.1)


@contextlib.contextmanager
def exporter(directory: Path, port: int) -> Iterator[None]:
    """An exporter that is killed, not stopped, at the end of the block."""
    command = [sys.executable, "-m", "kvmon", "exporter", "--dir", str(directory)]
    process = subprocess.Popen([*command, "--web.listen-address", f"127.0.0.1:{port}"], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _get(f"http://127.0.0.1:{port}/-/ready") is not None, "the exporter is not ready")
        yield
    finally:
        process.kill()
        process.wait()


def _get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return bytes(answer.read())


class Prometheus:
    """A running Prometheus that scrapes one target five times a second."""

    def __init__(self, port: int) -> None:
        self.port = port

    def query(self, expression: str) -> list[dict[str, object]]:
        """The result of an instant query."""
        address = f"http://127.0.0.1:{self.port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        result = json.loads(_get(address))["data"]["result"]
        assert isinstance(result, list)
        return result

    def value(self, expression: str) -> float | None:
        """The value of a query with one series; None while there is none."""
        result = self.query(expression)
        return float(result[0]["value"][1]) if result else None  # type: ignore[index]

    def resets(self, name: str) -> float | None:
        """How often Prometheus saw a counter fall."""
        return self.value(f"sum(resets({name}[10m]))")


@contextlib.contextmanager
def prometheus(binaries: PrometheusBinaries, place: Path, target: int) -> Iterator[Prometheus]:
    """A Prometheus of its own."""
    config = place / "prometheus.yml"
    scrape = {"job_name": "kvmon", "scrape_interval": "200ms", "scrape_timeout": "200ms"}
    scrape["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]  # type: ignore[assignment]
    config.write_text(json.dumps({"scrape_configs": [scrape]}), encoding="ascii")
    port = free_port()
    options = [f"--config.file={config}", f"--storage.tsdb.path={place / 'data'}", "--log.level=error"]
    options.append(f"--web.listen-address=127.0.0.1:{port}")
    process = subprocess.Popen([binaries.prometheus, *options], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _get(f"http://127.0.0.1:{port}/-/ready") != b"", "Prometheus is not ready")
        yield Prometheus(port)
    finally:
        process.kill()
        process.wait()


COUNTERS = (
    "kvmon_evicted_units_total",
    "kvmon_released_units_total",
    "kvmon_allocated_units_total",
    "kvmon_cache_inserted_units_total",
    "kvmon_steps_total",
    "kvmon_requests_arrived_total",
    "kvmon_prefix_hit_tokens_total",
    "kvmon_events_read_total",
    "kvmon_block_lifetime_seconds_count",
    "kvmon_block_lifetime_seconds_sum",
    "kvmon_block_lifetime_seconds_bucket",
    "kvmon_reuse_gap_seconds_count",
)


def test_a_killed_exporter_changes_no_increase(tmp_path: Path, prometheus_binaries: PrometheusBinaries) -> None:
    """Killed twice, once with most segments retired while it was down: no counter falls, and all end at the truth."""
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    engine = ToyEngine(recordings, budget=512 << 10)
    port = free_port()

    def work(rounds: int) -> None:
        for _ in range(rounds):
            engine.run(5)
            time.sleep(0.02)

    with prometheus(prometheus_binaries, tmp_path, port) as server:

        def scraped(name: str, value: float) -> None:
            wait_for(lambda: server.value(name) == value, f"{name} is {server.value(name)}, not {value}", 20)

        def segments() -> set[str]:
            return {path.name for path in recordings.glob("toy-0/*.seg")}

        with exporter(recordings, port):
            work(60)
            scraped("kvmon_evicted_units_total", engine.evicted)
            work(60)
        engine.run(100)
        with exporter(recordings, port):
            scraped("kvmon_evicted_units_total", engine.evicted)
            scraped("kvmon_released_units_total", engine.released)
            work(60)
            scraped("kvmon_released_units_total", engine.released)
            assert [server.resets(name) for name in COUNTERS] == [0] * len(COUNTERS)
            work(10)
            time.sleep(1)
        before = segments()
        engine.run(2500)
        assert not before & segments(), "every segment that the exporter knew is gone"
        with exporter(recordings, port):
            scraped("kvmon_steps_total", engine.probe.emitter.totals[0])
            work(10)
            scraped("kvmon_evicted_units_total", engine.evicted)
            scraped("kvmon_allocated_units_total", engine.pool.totals[1])
            scraped("kvmon_requests_arrived_total", engine.last_request)
            assert [server.resets(name) for name in COUNTERS] == [0] * len(COUNTERS)
            lost = server.value("kvmon_events_lost_total")
            assert lost is not None and lost > 0, "what nobody read is said"
    engine.close()
