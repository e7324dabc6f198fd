"""A killed exporter leaves no trace in the counters of a real Prometheus."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.conftest import PrometheusBinaries
from tests.servers import exporter, free_port, prometheus, wait_for
from tests.toy_engine import ToyEngine

pytestmark = [pytest.mark.prometheus, pytest.mark.slow]  # slow: Prometheus has to see two deaths, 13 s


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
