"""Each incident is seen on a dashboard: its verdict, and a panel that is far from that of its twin."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kvmon.serving.scenarios import SCENARIOS
from tests.conftest import PrometheusBinaries
from tests.dashboards.asking import Json, dashboards, numbers, panels
from tests.dashboards.history import History, history
from tests.rules.scenario_series import INTERVAL_S, lasting, scrape, setup_of

RATE_S = 60
SECONDS = 120
INCIDENTS = [name for name, scenario in SCENARIOS.items() if scenario.verdict != "healthy"]


class Told(NamedTuple):
    """Where an incident shows: a panel, a query, perhaps one series of it. It is higher than in the twin."""

    page: str
    panel: str
    letter: str = "A"
    value: str = ""
    seed: int = 0


BY_VERDICT = {
    "fragmentation": Told("kvmon-pool", "Allocation failures by reason", value="no_contiguous_run"),
    "never_fits": Told("kvmon-pool", "Largest free block against what the head of the queue needs", "D"),
    # one refusal, before anybody looks, and then nothing for ever
    "pool_starved": Told("kvmon-incident", "Stuck"),
    "partition": Told("kvmon-pool", "Allocation failures by reason", value="partition_full"),
    "reclaim_failed": Told("kvmon-pool", "Allocation failures by reason", value="evictable_not_reclaimed"),
    "reservation": Told("kvmon-pool", "What active slots hold", "C"),
    "pinned": Told("kvmon-pool", "Where the memory is", "B"),
    "stranded": Told("kvmon-pool", "Where the memory is", "C"),
    "tail_waste": Told("kvmon-pool", "What active slots hold", "B"),
    "double_free": Told("kvmon-pool", "Residual"),
    "leak": Told("kvmon-pool", "Without an owner"),
    "deadlock": Told("kvmon-incident", "Stuck"),
    "preemption_storm": Told("kvmon-incident", "Preemptions"),
    "not_kv": Told("kvmon-incident", "Requests that arrived and ended", value="error"),
    "cache_thrash": Told("kvmon-pool", "Found and forgotten", "B"),
    "head_of_line": Told("kvmon-pool", "Allocation failures by reason", value="exhausted"),
    "capacity": Told("kvmon-pool", "Time in which somebody waited for memory"),
    # an odd seed: events are lost; with an even one the engine's own gauge lies, which the verdict alone shows
    "telemetry_untrusted": Told("kvmon-itself", "Events that were lost", seed=1),
}
VISIBLE = 0.15
"""Of the height of a panel that both are drawn in: what nobody overlooks who compares two."""


@pytest.mark.prometheus
@pytest.mark.slow  # fifty-six runs are simulated, scraped and asked about
def test_every_incident_differs_visibly_from_its_healthy_twin(
    tmp_path: Path, prometheus_binaries: PrometheusBinaries
) -> None:
    """Its verdict has a row, which the twin lacks unless it is the price of the cure; its panel is far higher."""
    runs = {
        name: scrape(lasting(setup_of(name, BY_VERDICT[SCENARIOS[of].verdict].seed), SECONDS), engine=name)
        for of in INCIDENTS
        for name in (of, f"{of}-healthy")
    }
    with history(prometheus_binaries, tmp_path, runs) as past:
        ends = {name: past.begins_s + run.times_s[-1] for name, run in runs.items()}
        unseen = [line for name in INCIDENTS for line in not_seen(past, name, ends)]
    assert unseen == []


def not_seen(past: History, name: str, ends: dict[str, float]) -> Iterator[str]:
    """What does not tell an incident from its twin."""
    verdict, twin = SCENARIOS[name].verdict, f"{name}-healthy"
    timeline = Told("kvmon-pool", "Verdicts", value=verdict)
    held = {engine: len(shown(past, timeline, engine, ends[engine])) for engine in (name, twin)}
    if not held[name] or (held[twin] and verdict not in SCENARIOS[name].healthy):
        yield f"{name}: {verdict} holds at {held[name]} looks, and at {held[twin]} in the twin"
    told = BY_VERDICT[verdict]
    curves = [shown(past, told, engine, ends[engine]) for engine in (name, twin)]
    height = max((abs(value) for curve in curves for value in curve), default=0.0)
    sick, well = (sum(curve) / len(curve) if curve else 0.0 for curve in curves)
    if not height or (sick - well) / height < VISIBLE:
        yield f"{name}: '{told.panel}' is {sick:g} in the mean, {well:g} in the twin, {height:g} high"


def shown(past: History, told: Told, engine: str, end_s: float) -> list[float]:
    """The numbers of a curve, from the first minute on, when rates have all that they need."""
    panel = next(panel for panel in panels(PAGES[told.page]) if panel["title"] == told.panel)
    begin_s = past.begins_s + RATE_S
    answers = past.answers(panel, begin_s, end_s, INTERVAL_S, RATE_S, engine)
    series = [row for row in answers[told.letter] if told.value in ("", *row["metric"].values())]
    return [value for row in series for value in numbers(row) if math.isfinite(value)]


PAGES: dict[str, Json] = dashboards()
