"""One page of metrics: run every collector, time it, survive it, encode what came.

A collector that fails loses its own families and is named by `kvmon_collector_success 0`; the rest of the page
stands. The page is made of one look at all ranks, while nothing is folded. A scrape may ask for some of the collectors;
the others are not run, and nothing is said about them. What is said about kvmon itself is always there, and the limit
of series is that of the whole page: it leaves room for this first.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from kvmon import __version__
from kvmon.exporter.collectors import COLLECTORS, Collector, CollectorClass
from kvmon.exporter.drops import Drops
from kvmon.exporter.encode import Encoder
from kvmon.exporter.families import CatalogFamily
from kvmon.exporter.selection import collectors_of_scrape
from kvmon.exporter.source import View

__all__ = ["Page", "Snapshot", "own_series"]

_LOG = logging.getLogger(__name__)
_PLAIN = (
    "kvmon_directories_missing",
    "kvmon_streams_unreadable",
    "kvmon_series",
    "kvmon_series_dropped_total",
)


class Snapshot(NamedTuple):
    """Every family as of one moment, those without a series included, and since when each rank's numbers count.

    `began`: wall clock in ns, by engine and rank.
    """

    families: list[CatalogFamily]
    began: dict[tuple[str, str], int]


def own_series(collectors: int) -> int:
    """Series about kvmon itself on a page of so many collectors."""
    return 1 + len(_PLAIN) + 2 * collectors


class Page:
    """Renders the whole exposition.

    `look` makes the view of a scrape; `still` is held while it is looked at; `missing` counts recording directories
    that cannot be read, `unreadable` streams. `max_series` limits the page; 0 is no limit. `clock` times the
    collectors, in seconds.
    """

    def __init__(
        self,
        look: Callable[[], View],
        still: AbstractContextManager[object],
        *,
        missing: Callable[[], int] = lambda: 0,
        unreadable: Callable[[], int] = lambda: 0,
        collectors: Sequence[CollectorClass] = COLLECTORS,
        max_series: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        version: str = __version__,
        python: str = platform.python_version(),
    ) -> None:
        self._look = look
        self._still = still
        self._missing, self._unreadable = missing, unreadable
        self._clock = clock
        self._facts = (version, python)
        self._max_series = max_series
        self._view = View([], 0)
        self._collectors = {make.name: make(lambda: self._view) for make in collectors}
        self._known = tuple(dict.fromkeys([*(collector.name for collector in COLLECTORS), *self._collectors]))
        self._encoder = Encoder()
        self._drops = Drops()
        self._failing: set[str] = set()

    def render(self, openmetrics: bool, collect: Sequence[str] = (), exclude: Sequence[str] = ()) -> bytes:
        """The page as of now, as OpenMetrics or as Prometheus' text format.

        `collect` or `exclude` choose among the collectors of the page. Raises ConfigError for what cannot be chosen.
        """
        with self._still:  # for the encoding too: a fold beside it would only make both wait for the interpreter
            collected = self._collect(collect, exclude).families
            families = [family for family in collected if family.rows]
            return self._encoder.openmetrics(families) if openmetrics else self._encoder.text(families)

    def snapshot(self, collect: Sequence[str] = (), exclude: Sequence[str] = ()) -> Snapshot:
        """What a page is made of, as of now."""
        with self._still:
            return self._collect(collect, exclude)

    def _collect(self, collect: Sequence[str], exclude: Sequence[str]) -> Snapshot:
        chosen = collectors_of_scrape(self._known, tuple(self._collectors), collect, exclude)
        durations, success = CatalogFamily("kvmon_collector_duration_seconds"), CatalogFamily("kvmon_collector_success")
        families: list[CatalogFamily] = []
        view = self._view = self._look()
        if self._max_series:
            view.limit(self._max_series - own_series(len(chosen)))
        budgets = view.budgets
        self._drops.begin()
        for name in chosen:
            start = self._clock()
            fine = self._run(self._collectors[name], families)
            durations.add((name,), self._clock() - start)
            success.add((name,), float(fine))
            self._drops.note(name, budgets)
        families += self._own()
        began = {rank.labels: rank.follower.began_ns for rank in view.ranks}
        self._view = View([], 0)
        return Snapshot([*families, durations, success], began)

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
        build = CatalogFamily("kvmon_build_info")
        build.add(self._facts, 1)
        values = (
            self._missing(),
            self._unreadable() + self._view.hidden,
            sum(rank.budget.used for rank in self._view.ranks),
            self._drops.total,
        )
        families = [CatalogFamily(name) for name in _PLAIN]
        for family, value in zip(families, values, strict=True):
            family.add((), value)
        return [build, *families]
