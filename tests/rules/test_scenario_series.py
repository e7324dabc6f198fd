"""What is scraped of a scenario is what its exporter says: the same each time, and what a replay of it says too."""

from __future__ import annotations

import pytest

from kvmon.diagnosis import HEALTHY, Diagnosis
from kvmon.replay.simulated import record_setup
from kvmon.state import StreamState
from tests.rules.scenario_series import INTERVAL_S, Scraped, lasting, scrape, setup_of

UP = 'kvmon_engine_up{engine="sim",rank="0"}'
STEPS = 'kvmon_steps_total{engine="sim",rank="0"}'


def without_machine_time(scraped: Scraped) -> list[dict[str, float]]:
    """The pages without what depends on the machine."""
    return [
        {name: value for name, value in page.items() if not name.startswith("kvmon_collector_duration_seconds")}
        for page in scraped.pages
    ]


@pytest.mark.parametrize("name", ["fragmentation", "pool-starved", "telemetry-untrusted"])
def test_the_same_run_gives_the_same_samples(name: str) -> None:
    """Seed and arguments decide, nothing else; another seed is another run."""
    pages = without_machine_time(scrape(name))
    assert without_machine_time(scrape(name)) == pages
    assert without_machine_time(scrape(name, seed=3)) != pages


@pytest.mark.parametrize("name", ["fragmentation", "cache-thrash", "pool-starved", "not-kv", "warm-cache"])
def test_the_last_page_says_what_a_replay_says(name: str) -> None:
    """The verdicts that hold in the last minute, pool by pool."""
    state, diagnosis = StreamState(), Diagnosis()
    diagnosis.follow(state)
    record_setup(lambda words: state.apply(words, verify_checksums=False), setup_of(name))
    holding = diagnosis.as_of_now().holding
    expected = {
        (pool.name, verdict) for number, pool in state.pools.items() for verdict in holding[number] or [HEALTHY]
    }
    shown = {
        (series.split('pool="')[1].split('"')[0], series.split('verdict="')[1].split('"')[0])
        for series in scrape(name).pages[-1]
        if series.startswith("kvmon_verdict{")
    }
    assert shown == expected


def test_counters_never_fall_and_end_at_the_truth() -> None:
    """Over many segments of a recording."""
    scraped = scrape(lasting(setup_of("reclaim-failed"), 600), until_s=600)
    counters = [name for name in scraped.samples if name.partition("{")[0].endswith(("_total", "_count", "_bucket"))]
    assert len(counters) > 30
    for name in counters:
        values = [value for value in scraped.samples[name] if value is not None]
        assert values == sorted(values), name
    assert scraped.times_s == [float(number * INTERVAL_S) for number in range(41)]


def test_what_becomes_of_the_engine() -> None:
    """It goes on idle or hung with its numbers, and is gone without them when it was killed or closed."""
    for after, up, counted in (
        ("idle", 1.0, True),
        ("hung", 1.0, True),
        ("killed", 0.0, False),
        ("closed", 0.0, False),
    ):
        page = scrape("warm-cache", until_s=60, after=after, after_s=60).pages[-1]
        assert page[UP] == up and (STEPS in page) is counted
        assert page.get('kvmon_engine_stalled{engine="sim",rank="0"}') == (1.0 if counted else None)


def test_more_of_the_same_traffic() -> None:
    """A run goes on with its own requests, one that is stuck stays stuck, and what is long enough stays as it is."""
    setup = setup_of("server-failures")
    longer = lasting(setup, 60)
    assert len(longer.workload) == 60 * len(setup.workload)
    assert scrape(longer).times_s[-1] >= 60
    stuck = scrape(lasting(setup_of("deadlock"), 300), until_s=300)
    assert stuck.pages[-1]['kvmon_requests{engine="sim",rank="0",state="running"}'] == 2
    assert len(lasting(setup_of("choosing"), 10).workload) == len(setup_of("choosing").workload)


def test_losses_are_told() -> None:
    """What the recording lacks is counted as the probe would have counted it."""
    lost = scrape("telemetry-untrusted", seed=1).samples['kvmon_events_lost_total{engine="sim",rank="0"}']
    assert lost[1] == 0 and (lost[-1] or 0) > 100
