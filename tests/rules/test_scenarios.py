"""Every scenario and its twin through the exporter's own page and promtool: what fires, and what stays silent.

Each incident fires the alert of its verdict and of no other one; each twin fires nothing, or what its own diagnosis is
allowed to be. The series are scraped, not typed; runs that are too short go on with the same traffic.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmon.alerts import alerts_of, load_thresholds, rule_groups
from kvmon.serving.scenarios import SCENARIOS, find
from tests.conftest import PrometheusBinaries
from tests.rules.expected import NAMES, SECONDS, SHORTER_S, expected
from tests.rules.promtool import Fired, case_of, check_cases, described_in
from tests.rules.scenario_series import lasting, scrape, setup_of

GROUPS = rule_groups(load_thresholds())


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("-healthy")])
def test_an_incident_fires_its_alert_and_no_other_verdicts(name: str) -> None:
    """In the table that promtool proves below."""
    verdict = find(name).verdict
    assert {fired.verdict for fired in expected(name)} - {""} == {verdict} - {"healthy"}


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-healthy")])
def test_a_twin_fires_what_its_diagnosis_may_be_at_most(name: str) -> None:
    """And nothing at all where it may only be healthy, symptoms included."""
    allowed = set(find(name).healthy) - {"healthy"}
    assert {fired.verdict for fired in expected(name)} - {""} <= allowed
    assert allowed or not expected(name)


def test_every_verdict_has_a_scenario_that_fires_its_alert() -> None:
    """No verdict's alert is untested."""
    fired = {alert.verdict for name in NAMES for alert in expected(name)} - {""}
    assert fired == {alert.verdict for alert in alerts_of(GROUPS)} - {""}


@pytest.mark.prometheus
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_what_fires_in_a_scenario_and_in_its_twin(
    name: str, prometheus_binaries: PrometheusBinaries, tmp_path: Path
) -> None:
    """promtool finds just these alerts in what was scraped."""
    cases = {}
    for run in (name, find(name).twin().name):
        seconds = SHORTER_S.get(run, SECONDS)
        scraped = scrape(lasting(setup_of(run), seconds), until_s=seconds)
        cases[run] = (case_of(run, scraped), expected(run))
    assert check_cases(prometheus_binaries, GROUPS, cases, tmp_path) == ""


@pytest.mark.prometheus
def test_an_alert_tells_the_numbers_of_its_engine(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """The description is written when the alert is sent, with what the page says then; what is not known is not 0."""
    scraped = scrape(lasting(setup_of("fragmentation"), SECONDS), until_s=SECONDS)
    told = described_in(prometheus_binaries, GROUPS, case_of("told", scraped), tmp_path)
    said = told[Fired("KvmonFragmentation", "warning", "fragmentation")]
    assert said.startswith(
        "Engine sim, rank 0, pool kv: requests need their memory in one piece: the largest free block"
    )
    assert "held at 100% of the looks" in said and "unknown" not in said
    (lost,) = (scraped.pages[-1][name] for name in scraped.pages[-1] if name.startswith("kvmon_memory_lost_requests{"))
    assert f"and {lost:g} requests were lost" in said
    assert "% of the requests that arrive" in told[Fired("KvmonRequestsLost", "warning")]
