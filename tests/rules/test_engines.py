"""Engines that die, hang, come back, say nothing or lose events: which alerts fire, when they end, and when none does.

Everything is scraped from a real exporter page; the engines are scenarios that are killed, stopped or closed, and the
toy engine of the exporter's tests.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kvmon.alerts import load_thresholds, rule_groups
from kvmon.exporter.sidecar import Sidecar
from kvmon.probe import StreamProbe
from tests.conftest import PrometheusBinaries
from tests.rules.promtool import Case, Fired, case_of, check_cases
from tests.rules.scenario_series import INTERVAL_S, Scraped, lasting, scrape, setup_of
from tests.rules.watched import joined, missed, stepping, watch
from tests.toy_engine import FakeClock, ToyEngine

pytestmark = pytest.mark.prometheus

GROUPS = rule_groups(load_thresholds())
DOWN, GONE = Fired("KvmonEngineDown", "critical"), Fired("KvmonEngineDown", "warning")
STALLED = Fired("KvmonEngineStalled", "critical")
BUSY = "warm-cache"  # healthy, and at work all the time


def busy(seconds: float, **after: object) -> Scraped:
    """A healthy engine with work until `seconds`, and what becomes of it."""
    return scrape(lasting(setup_of(BUSY), seconds), until_s=seconds, **after)


def fires(binaries: PrometheusBinaries, place: Path, scraped: Scraped, *alerts: Fired, ends_with: object = None) -> str:
    """What promtool says against it that just these alerts fire, and at the end those of `ends_with`."""
    case = case_of("case", scraped, at_end=ends_with)
    return check_cases(binaries, GROUPS, {"case": (case, set(alerts))}, place)


def test_an_engine_that_dies_at_work(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """Critical, from one minute on; its series are gone with the next scrape, and the warning follows in its time."""
    scraped = busy(120, after="killed", after_s=300)
    dead = [page for page in scraped.pages if page.get('kvmon_engine_up{engine="sim",rank="0"}') == 0]
    assert len(dead) > 15 and not any(name.startswith("kvmon_memory_bytes") for page in dead for name in page)
    assert fires(prometheus_binaries, tmp_path, scraped, DOWN, ends_with=[DOWN]) == ""


def test_a_dead_engine_is_not_missed_for_ever(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """An hour after it was last seen both alerts have ended, although its recording still lies there."""
    scraped = busy(120, after="killed", after_s=3_900)
    assert fires(prometheus_binaries, tmp_path, scraped, DOWN, GONE, ends_with=[]) == ""


def test_an_engine_that_is_taken_out_of_service(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """Drained and closed in order: nobody is woken; a warning after a quarter of an hour says that it did not come
    back."""
    scraped = scrape(BUSY, idle_s=30, after="closed", after_s=1_200)
    assert fires(prometheus_binaries, tmp_path, scraped, GONE) == ""


def test_a_rolling_deployment(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """Drained, gone for five minutes while the next one loads its model, and back: nothing fires."""
    scraped = joined(scrape(BUSY, idle_s=30, after="closed", after_s=300), busy(300))
    assert fires(prometheus_binaries, tmp_path, scraped) == ""


def test_a_recording_that_is_removed_ends_the_alert(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """Whoever takes an engine away for good removes its directory, and the alert is over within a minute."""
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    clock = FakeClock()
    engine = ToyEngine(recordings, clock=clock, units=4096)
    sidecar = Sidecar([recordings], clock=clock)
    alive = watch(sidecar, clock, stepping(engine), 4)
    engine.close()
    gone = watch(sidecar, clock, lambda number: None, 12)
    shutil.rmtree(recordings / "toy-0")
    after = watch(sidecar, clock, lambda number: None, 6)
    sidecar.stop()
    assert not any(name.startswith("kvmon_engine_up") for name in after.pages[-1])
    assert fires(prometheus_binaries, tmp_path, joined(alive, gone, after), DOWN, ends_with=[]) == ""


def test_an_engine_that_hangs(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """It keeps its series, and another alert fires than for a dead one; requests in it are no second alert."""
    scraped = busy(120, after="hung", after_s=300)
    assert scraped.pages[-1]['kvmon_engine_stalled{engine="sim",rank="0"}'] == 1
    assert any(name.startswith("kvmon_memory_bytes") for name in scraped.pages[-1])
    assert fires(prometheus_binaries, tmp_path, scraped, STALLED, ends_with=[STALLED]) == ""


def test_an_idle_engine_is_neither_dead_nor_hung(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """A quarter of an hour without a request fires nothing."""
    assert fires(prometheus_binaries, tmp_path, scrape("two-phase", after_s=900)) == ""


def test_what_was_wrong_before_an_engine_went_idle_is_history(
    prometheus_binaries: PrometheusBinaries, tmp_path: Path
) -> None:
    """The page repeats the verdict of its last minute for as long as it idles; the alert ends all the same."""
    setup = lasting(setup_of("capacity"), 300)
    scraped = scrape(setup, after_s=1_200)
    assert scraped.pages[-1]['kvmon_verdict{engine="sim",pool="kv",rank="0",verdict="capacity"}'] == 1
    capacity = {Fired("KvmonCapacity", severity, "capacity") for severity in ("warning", "critical")}
    assert fires(prometheus_binaries, tmp_path, scraped, *capacity, ends_with=[]) == ""


def test_scrapes_that_are_missed_change_nothing(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """One scrape in six without an answer: the incident fires as it would have, and a healthy run stays silent."""
    reservation = {Fired("KvmonReservation", severity, "reservation") for severity in ("warning", "critical")}
    incident = scrape(lasting(setup_of("reservation"), 900), until_s=900)
    healthy = busy(900)
    cases: dict[str, tuple[Case, set[Fired]]] = {
        "incident": (case_of("incident", missed(incident, *range(3, 60, 6))), reservation),
        "healthy": (case_of("healthy", missed(healthy, *range(3, 60, 6))), set()),
    }
    assert check_cases(prometheus_binaries, GROUPS, cases, tmp_path) == ""


def test_a_restarted_exporter_raises_no_alert(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """It reads the recording again and goes on; counters continue, so nothing looks like a loss or a stop."""
    recordings, state = tmp_path / "recordings", tmp_path / "state"
    recordings.mkdir()
    state.mkdir()
    clock = FakeClock()
    engine = ToyEngine(recordings, clock=clock, units=4096)
    runs = []
    for _ in range(3):
        sidecar = Sidecar([recordings], clock=clock, state_dir=state)
        runs += [watch(sidecar, clock, stepping(engine), 12), Scraped([0.0], [{}])]
        sidecar.stop()
    assert fires(prometheus_binaries, tmp_path, joined(*runs)) == ""


def test_an_engine_that_says_nothing(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """A probe that holds its stream, and no pool in a quarter of an hour; it ends when the pool is told."""
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    clock = FakeClock()
    probe = StreamProbe(recordings, "silent", config={"fidelity": "exact"}, clock=clock)
    probe.tick()
    sidecar = Sidecar([recordings], clock=clock)
    silent = watch(sidecar, clock, lambda number: None, 60)
    probe.close()
    engine = ToyEngine(recordings, "silent", clock=clock, units=4096)
    told = watch(sidecar, clock, stepping(engine), 8)
    sidecar.stop()
    alert = Fired("KvmonEngineSilent", "warning")
    assert fires(prometheus_binaries, tmp_path, joined(silent, told), alert, ends_with=[]) == ""


def test_events_that_are_lost(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """A stretch of a run that was not recorded: the loss is told, and that numbers are not to be trusted."""
    setup = setup_of("telemetry-untrusted", seed=1)
    assert setup.lost_s
    scraped = scrape(lasting(setup, 600), until_s=600)
    fired = {Fired("KvmonEventsLost", "warning"), Fired("KvmonTelemetryUntrusted", "warning", "telemetry_untrusted")}
    assert fires(prometheus_binaries, tmp_path, scraped, *fired) == ""


def test_a_past_that_stays_unknown(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """An exporter that comes when the begin is overwritten, and an engine that does not audit itself."""
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    clock = FakeClock()
    engine = ToyEngine(recordings, clock=clock, units=4096, audit=False, budget=128 << 10)
    engine.run(2_000, 0.01)
    assert not (recordings / "toy-0" / "00000001.seg").exists()
    sidecar = Sidecar([recordings], clock=clock)
    scraped = watch(sidecar, clock, stepping(engine, 4), 70)
    sidecar.stop()
    assert fires(prometheus_binaries, tmp_path, scraped, Fired("KvmonConverging", "warning")) == ""


def test_memory_that_is_held_for_an_hour(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """A leak that takes the whole pool, on an engine that nobody looks at for more than an hour."""
    setup = lasting(setup_of("leak"), 4_500)
    scraped = scrape(setup, interval_s=60, until_s=4_500)
    ages = scraped.samples['kvmon_oldest_allocation_age_seconds{engine="sim",pool="kv",rank="0"}']
    assert max(age for age in ages if age is not None) > 3_600 + 300 and INTERVAL_S < 60
    fired = [
        Fired("KvmonMemoryHeldTooLong", "warning"),
        Fired("KvmonLeak", "warning", "leak"),
        Fired("KvmonLeak", "critical", "leak"),
        Fired("KvmonPoolUnbalanced", "warning"),
        Fired("KvmonNoProgress", "critical"),
    ]
    assert fires(prometheus_binaries, tmp_path, scraped, *fired) == ""
