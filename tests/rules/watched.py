"""Scrapes of a real sidecar that watches engines of a test's own, on a clock that the test moves.

Between two scrapes the test does what it likes to the engines and their directories; what is scraped is the exporter's
page. For what no scenario has: exporters and recordings in trouble, devices, engines that come back.
"""

from __future__ import annotations

from collections.abc import Callable

from kvmon.exporter.sidecar import Sidecar
from tests.rules.scenario_series import INTERVAL_S, Scraped, parse_page
from tests.toy_engine import FakeClock, ToyEngine

__all__ = ["joined", "missed", "stepping", "watch"]


def watch(sidecar: Sidecar, clock: FakeClock, between: Callable[[int], None], scrapes: int) -> Scraped:
    """Scrape so many times, `INTERVAL_S` apart; `between(n)` happens before the n-th and has as much time to pass."""
    times, pages = [], []
    for number in range(scrapes):
        due = clock.now + INTERVAL_S * 1_000_000_000
        between(number)
        clock.now = due
        while sidecar.poll() or not sidecar.followers.caught_up:
            clock.now += 1_000
        clock.now += 1_000
        sidecar.poll()
        times.append(float(number * INTERVAL_S))
        pages.append(parse_page(sidecar.render(False).decode()))
    return Scraped(times, pages)


def stepping(engine: ToyEngine, steps: int = 10) -> Callable[[int], None]:
    """An engine that makes so many steps between two scrapes."""
    return lambda number: engine.run(steps, INTERVAL_S / (steps + 1))


def joined(*runs: Scraped) -> Scraped:
    """One run after the other, as one Prometheus sees them."""
    pages = [page for run in runs for page in run.pages]
    return Scraped([float(number * INTERVAL_S) for number in range(len(pages))], pages)


def missed(run: Scraped, *scrapes: int) -> Scraped:
    """The same with some scrapes that got no answer."""
    return Scraped(run.times_s, [{} if number in scrapes else page for number, page in enumerate(run.pages)])
