"""Families from the catalogue: the only way into the exposition.

A name that the catalogue does not hold is an error, and so is a wrong number of labels. What is not known (None),
what the stream's fidelity cannot know, and what the budget of series has no room for stays out; the last is counted.
Histograms go in whole or not at all. Nothing is computed here. Rows are plain tuples, because making and encoding the
client library's samples was half of what a scrape cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from kvmon.catalog import Metric, metric
from kvmon.errors import InvariantError
from kvmon.state import Histogram

__all__ = ["Budget", "CatalogFamily", "Row", "bucket_counts"]

Row = tuple[str, tuple[str, ...], float]
"""A sample: its name, the values of its labels, its number."""


@dataclass
class Budget:
    """Series that something may still have in this scrape, what it sees (fidelity), and what had no room.

    A rank has one, which takes from that of the page (`whole`) too where there is a limit for all ranks together. The
    first series without room closes it: what comes earlier, and is needed first, never gives way to something smaller.
    """

    left: int
    fidelity: str = "exact"
    whole: Budget | None = None
    used: int = 0
    dropped: int = 0

    def take(self, series: int) -> bool:
        """Whether there is room for so many series, which are then used up."""
        if series > self.left:
            self.left = 0
        elif self.whole is None or self.whole.take(series):
            self.left -= series
            self.used += series
            return True
        self.dropped += series
        return False


@dataclass(eq=False, slots=True)
class CatalogFamily:
    """One metric of the catalogue, being filled for one scrape.

    `rows` are its samples: name, values of the entry's labels (then the bound of a bucket), number.
    """

    name: str
    entry: Metric = field(init=False)
    rows: list[Row] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Raises ConfigError for a name that the catalogue does not hold."""
        self.entry = metric(self.name)

    def add(self, labels: tuple[str, ...], value: float | None, budget: Budget | None = None) -> None:
        """One series of a gauge, counter or info metric; `budget` is that of the rank it is about, if any."""
        if value is not None and self._admitted(labels, budget, 1):
            self.rows.append((self.name, labels, value))

    def add_histogram(self, labels: tuple[str, ...], durations: Histogram | None, budget: Budget) -> None:
        """All series of one histogram of durations."""
        if durations is None or not self._admitted(labels, budget, self.entry.series):
            return
        bucket, total, count = (f"{self.name}{suffix}" for suffix in ("_bucket", "_sum", "_count"))
        buckets = bucket_counts(durations, self.entry.buckets)
        self.rows += [(bucket, (*labels, bound), value) for bound, value in buckets]
        self.rows.append((count, labels, buckets[-1][1]))
        self.rows.append((total, labels, durations.sum_seconds))

    def _admitted(self, labels: tuple[str, ...], budget: Budget | None, series: int) -> bool:
        entry = self.entry
        if len(labels) != len(entry.labels):
            raise InvariantError(f"{self.name} has the labels {', '.join(entry.labels)}, not {len(labels)} of them")
        return budget is None or (budget.fidelity in entry.fidelity and budget.take(series))


def bucket_counts(durations: Histogram, bounds: tuple[float, ...]) -> list[tuple[str, float]]:
    """Cumulative counts up to each bound (seconds, powers of two of a millisecond) and up to infinity."""
    cumulative = durations.counts.cumsum().tolist()
    return [(text, float(cumulative[slot])) for text, slot in _slots(bounds)]


@cache
def _slots(bounds: tuple[float, ...]) -> tuple[tuple[str, int], ...]:
    """How each bound is written, and the last slot of the counts that lies below it."""
    slots = [(repr(float(bound)), round(bound * 1000).bit_length() - 1) for bound in bounds]
    return (*slots, ("+Inf", -1))
