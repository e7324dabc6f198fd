"""The docs: what is generated is what the code gives, and no link leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvmon.cli.record import run_setup
from kvmon.cli.simulate_output import comparison
from kvmon.serving.scenarios import PAPER, SCENARIOS, find

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_figure_shows_what_the_simulator_gives() -> None:
    """Every share of 4 % or more stands in the figure as it is simulated now, and as it was published."""
    drawn = set(re.findall(r">(\d+\.\d)<", (ROOT / "docs" / "paged-vs-standard.svg").read_text()))
    rows = comparison({name: run_setup(setup) for name, setup in find("paged-vs-standard").setups(0)[0].items()})
    shares = [share for row in rows for name, share in row.items() if name not in ("policy", "batch")]
    shares += [share for paper in PAPER.values() for share in paper[:4]]
    wanted = {f"{share:.1f}" for share in shares if isinstance(share, float) and share >= 4}
    assert drawn == wanted


def test_the_catalogue_page_names_every_scenario() -> None:
    """One row each, with its verdict."""
    page = (ROOT / "docs" / "scenarios.md").read_text()
    for scenario in SCENARIOS.values():
        assert f"| `{scenario.name}` | `{scenario.verdict}` |" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links and pictures of a page exist."""
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
