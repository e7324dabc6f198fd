"""One page of metrics: run every collector, time it, survive it, encode what came.

A collector that fails loses its own families and is named by `kvmon_collector_success 0`; the rest of the page
stands. The page is made of one look at all ranks, while nothing is folded.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from kvmon import __version__
from kvmon.exporter.collectors import COLLECTORS, Collector, Source
from kvmon.exporter.encode import Encoder
from kvmon.exporter.families import CatalogFamily
from kvmon.exporter.source import View

__all__ = ["Page"]

_LOG = logging.getLogger(__name__)


class Page:
    """Renders the whole exposition.

    `look` makes the view of a scrape; `still` is held while it is looked at; `missing` counts recording directories
    that cannot be read, `unreadable` streams. `clock` times the collectors, in seconds.
    """

    def __init__(
        self,
        look: Callable[[], View],
        still: AbstractContextManager[object],
        *,
        missing: Callable[[], int] = lambda: 0,
        unreadable: Callable[[], int] = lambda: 0,
        collectors: Sequence[Callable[[Source], Collector]] = COLLECTORS,
        clock: Callable[[], float] = time.perf_counter,
        version: str = __version__,
        python: str = platform.python_version(),
    ) -> None:
        self._look = look
        self._still = still
        self._missing, self._unreadable = missing, unreadable
        self._clock = clock
        self._facts = (version, python)
        self._view = View([], 0)
        self._collectors = [make(lambda: self._view) for make in collectors]
        self._encoder = Encoder()
        self._dropped = 0
        self._failing: set[str] = set()

    def render(self, openmetrics: bool) -> bytes:
        """The page as of now, as OpenMetrics or as Prometheus' text format."""
        families = [entry.family for entry in self.collect() if entry.family.samples]
        return self._encoder.openmetrics(families) if openmetrics else self._encoder.text(families)

    def collect(self) -> list[CatalogFamily]:
        """Every family as of now, those without a series included."""
        durations, success = CatalogFamily("kvmon_collector_duration_seconds"), CatalogFamily("kvmon_collector_success")
        families: list[CatalogFamily] = []
        with self._still:
            self._view = self._look()
            for collector in self._collectors:
                start = self._clock()
                fine = self._run(collector, families)
                durations.add((collector.name,), self._clock() - start)
                success.add((collector.name,), float(fine))
            families += self._own()
            self._view = View([], 0)
        return [*families, durations, success]

    def _run(self, collector: Collector, families: list[CatalogFamily]) -> bool:
        try:
            families += list(collector.collect())
        except Exception:  # whatever it is, the other collectors' numbers are worth more than a blank page
            if collector.name not in self._failing:
                _LOG.exception("the collector '%s' failed; the others are served all the same", collector.name)
                self._failing.add(collector.name)
            return False
        self._failing.discard(collector.name)
        return True

    def _own(self) -> list[CatalogFamily]:
        """What is said about kvmon itself."""
        ranks = self._view.ranks
        self._dropped += sum(rank.budget.dropped for rank in ranks)
        build = CatalogFamily("kvmon_build_info")
        build.add(self._facts, 1)
        plain = {
            "kvmon_directories_missing": self._missing(),
            "kvmon_streams_unreadable": self._unreadable() + self._view.hidden,
            "kvmon_series": sum(rank.budget.used for rank in ranks),
            "kvmon_series_dropped_total": self._dropped,
        }
        families = [CatalogFamily(name) for name in plain]
        for family, value in zip(families, plain.values(), strict=True):
            family.add((), value)
        return [build, *families]
