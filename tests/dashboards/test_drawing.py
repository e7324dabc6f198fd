"""What somebody on call sees: every dashboard drawn from scenario runs, with Grafana's own libraries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmon.dashboards.source.palette import COLOURS, GROUPS
from tests.conftest import PrometheusBinaries
from tests.dashboards.asking import dashboards, panels
from tests.dashboards.drawing import Drawing, drawing
from tests.dashboards.history import History, history
from tests.rules.scenario_series import INTERVAL_S, lasting, scrape, setup_of

# The worst is not the first by name.
ENGINES = ("capacity", "leak", "preemption-storm", "stranded", "warm-cache")
SECONDS = 240


@pytest.mark.prometheus
@pytest.mark.slow  # a browser starts, and draws a hundred panels
def test_every_panel_is_drawn_and_means_what_its_colours_say(
    tmp_path: Path, prometheus_binaries: PrometheusBinaries, npm_packages: Path, chromium: Path
) -> None:
    """No panel fails, none is blank, a state has its colour everywhere, and the worst engine is on top.

    KVMON_SCREENSHOTS names a directory that takes the pictures.
    """
    runs = {name: scrape(lasting(setup_of(name), SECONDS), until_s=SECONDS, engine=name) for name in ENGINES}
    with history(prometheus_binaries, tmp_path, runs) as past, drawing(tmp_path, npm_packages, chromium) as drawn:
        for name in dashboards():
            show(drawn, past, name)
            assert drawn.complaints == []
            assert blank(drawn, name) == []
            LOOKS[name](drawn)
            if "KVMON_SCREENSHOTS" in os.environ:
                drawn.save(Path(os.environ["KVMON_SCREENSHOTS"]) / f"{name}.png")


def show(drawn: Drawing, past: History, name: str) -> None:
    """Draw a dashboard over the whole past."""
    page = dashboards()[name]
    span = (past.begins_s, past.ends_s, INTERVAL_S)
    drawn.show(page, {panel["title"]: past.answers(panel, *span, rate_s=60) for panel in panels(page)}, *span)


def blank(drawn: Drawing, name: str) -> list[str]:
    """Panels that say nothing but their title."""
    titles = [panel["title"] for panel in panels(dashboards()[name])]
    return [title for title in titles if not drawn.text(title).replace(title, "").strip()]


def fleet(drawn: Drawing) -> None:
    """The order, the words and colours of verdicts, and that a healthy engine is last."""
    words = drawn.text("Engines")
    order = sorted(ENGINES, key=words.index)
    assert order[-1] == "warm-cache"
    assert {*order[:2]} == {"leak", "stranded"}, "what is broken comes before what is slow"
    assert "healthy" in words
    assert has("bad", drawn.colours("Engines"))
    assert has("good", drawn.colours("Engines"))
    assert drawn.text("Engines up").split()[-1] == str(len(ENGINES))
    assert drawn.text("Pools in trouble").split()[-1] == str(len(ENGINES) - 1)


def pool(drawn: Drawing) -> None:
    """States, owners and reasons in their colours; what is absent says so."""
    states = drawn.colours("Where the memory is")
    assert all(has(GROUPS["state"][state], states) for state in ("active", "deferred", "cached"))
    assert has(GROUPS["reason"]["exhausted"], drawn.colours("Allocation failures by reason"))
    assert has(GROUPS["owner"]["finished"], drawn.colours("Active memory by owner"))
    assert "all_pinned" not in drawn.text("Allocation failures by reason"), "a reason that never was is not drawn"
    assert "capacity" in drawn.text("Where the memory is")
    assert "preemption storm" in drawn.text("Verdicts")
    assert drawn.text("Worst verdict").split()[-1] in ("leak", "stranded")


def incident(drawn: Drawing) -> None:
    """The same states in the same colours; no GPU is no zero."""
    assert has(GROUPS["state"]["active"], drawn.colours("Where the memory is"))
    assert "no GPU, or no engine that names it" in drawn.text("What the GPU's memory is for")
    assert "kvmon capture" in drawn.text("Before you restart")


def itself(drawn: Drawing) -> None:
    """All exporters, and what records each engine."""
    assert drawn.text("Exporters up").split()[-1] == str(len(ENGINES))
    assert drawn.text("Engines and adapters").count("exact") == len(ENGINES)
    assert "fine" in drawn.text("Collectors over time")


LOOKS = {"kvmon-fleet": fleet, "kvmon-pool": pool, "kvmon-incident": incident, "kvmon-itself": itself}


def has(name: str, found: set[str]) -> bool:
    """Whether a colour of the palette is among those that were found."""
    return COLOURS[name].removeprefix("#") in found
