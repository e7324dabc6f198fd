"""Families from the catalogue: the only way into the exposition.

A name that the catalogue does not hold is an error, and so is a wrong number of labels. What is not known (None),
what the stream's fidelity cannot know, and what the budget of series has no room for stays out; the last is counted.
Histograms go in whole or not at all. Nothing is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

from kvmon.catalog import Metric, metric
from kvmon.errors import InvariantError
from kvmon.state import Histogram

__all__ = ["Budget", "CatalogFamily", "bucket_counts"]

_FAMILIES = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}


@dataclass
class Budget:
    """Series that one rank may still expose in this scrape, what it sees (fidelity), and what had no room."""

    left: int
    fidelity: str = "exact"
    used: int = 0
    dropped: int = 0

    def take(self, series: int) -> bool:
        """Whether there is room for so many series, which are then used up."""
        if series > self.left:
            self.dropped += series
            return False
        self.left -= series
        self.used += series
        return True


@dataclass(eq=False)
class CatalogFamily:
    """One metric of the catalogue, being filled for one scrape."""

    name: str
    entry: Metric = field(init=False)
    family: Family = field(init=False)

    def __post_init__(self) -> None:
        """Raises ConfigError for a name that the catalogue does not hold."""
        entry = self.entry = metric(self.name)
        if entry.kind == "histogram":
            self.family = HistogramMetricFamily(entry.family, entry.help, labels=entry.labels)
        elif entry.kind == "info":
            self.family = InfoMetricFamily(entry.family, entry.help)
        else:
            self.family = _FAMILIES[entry.kind](entry.family, entry.help, labels=entry.labels)
        self._sample = entry.name

    def add(self, labels: tuple[str, ...], value: float | None, budget: Budget | None = None) -> None:
        """One series of a gauge, counter or info metric; `budget` is that of the rank it is about, if any."""
        if value is None or not self._admitted(labels, budget, 1):
            return
        self.family.samples.append(Sample(self._sample, dict(zip(self.entry.labels, labels, strict=True)), value))

    def add_histogram(self, labels: tuple[str, ...], durations: Histogram | None, budget: Budget) -> None:
        """All series of one histogram of durations."""
        if durations is None or not self._admitted(labels, budget, self.entry.series):
            return
        family = self.family
        if isinstance(family, HistogramMetricFamily):
            family.add_metric(labels, bucket_counts(durations, self.entry.buckets), durations.sum_seconds)

    def _admitted(self, labels: tuple[str, ...], budget: Budget | None, series: int) -> bool:
        if len(labels) != len(self.entry.labels):
            raise InvariantError(
                f"{self.name} has the labels {', '.join(self.entry.labels)}, not {len(labels)} of them"
            )
        if budget is None:
            return True
        return budget.fidelity in self.entry.fidelity and budget.take(series)


def bucket_counts(durations: Histogram, bounds: tuple[float, ...]) -> list[tuple[str, float]]:
    """Cumulative counts up to each bound (seconds, powers of two of a millisecond) and up to infinity."""
    cumulative = durations.counts.cumsum()
    buckets = [(repr(float(bound)), float(cumulative[round(bound * 1000).bit_length() - 1])) for bound in bounds]
    return [*buckets, ("+Inf", float(cumulative[-1]))]
