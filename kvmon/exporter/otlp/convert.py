"""Families of a page as OpenTelemetry's metrics: the same names, labels and values, in its data model.

    gauge, info   Gauge, of 1 where it is info
    counter       Sum, cumulative and monotonic, since the engine's numbers count
    histogram     Histogram, cumulative, with the buckets of the catalogue

Names keep their suffix (`_total`, `_info`), so that a query works whichever way the numbers came. Units are UCUM's, and
left out where a receiver that turns them into suffixes would change a name. Pure: nothing is sent or remembered here.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from kvmon import __version__
from kvmon.exporter.families import CatalogFamily
from kvmon.exporter.page import Snapshot

__all__ = ["metrics_data"]

_SCOPE = InstrumentationScope("kvmon", __version__)
_UNITS = {"seconds": "s", "bytes": "By", "ratio": "1", "1": ""}
_CUMULATIVE = AggregationTemporality.CUMULATIVE


def metrics_data(snapshot: Snapshot, resource: Resource, *, began_ns: int, now_ns: int) -> MetricsData:
    """Every series of `snapshot`, taken at `now_ns`.

    `began_ns`: since when numbers count that are of no engine. Both are wall clock in ns.
    """
    start = _Start(snapshot.began, began_ns, now_ns)
    metrics = [_metric(family, start) for family in snapshot.families if family.rows]
    scope = ScopeMetrics(scope=_SCOPE, metrics=metrics, schema_url="")
    return MetricsData([ResourceMetrics(resource=resource, scope_metrics=[scope], schema_url="")])


class _Start:
    """When the number of a series began to count; never after `now`, which a stepped clock would make of it."""

    def __init__(self, of_rank: Mapping[tuple[str, str], int], otherwise: int, now: int) -> None:
        self._of_rank, self._otherwise, self.now = of_rank, otherwise, now

    def __call__(self, labels: Mapping[str, str]) -> int:
        """Wall clock in ns."""
        rank = (labels.get("engine", ""), labels.get("rank", ""))
        return min(self._of_rank.get(rank, self._otherwise), self.now)


def _metric(family: CatalogFamily, start: _Start) -> Metric:
    entry = family.entry
    data: Gauge | Sum | Histogram
    if entry.kind == "histogram":
        data = Histogram(_histogram_points(family, start), _CUMULATIVE)
    elif entry.kind == "counter":
        data = Sum(_points(family, start.now, start), _CUMULATIVE, is_monotonic=True)
    else:
        data = Gauge(_points(family, start.now))
    return Metric(entry.name, entry.help, _unit(entry.unit), data)


def _points(family: CatalogFamily, now: int, start: _Start | None = None) -> list[NumberDataPoint]:
    points = []
    for _, values, number in family.rows:
        labels = dict(zip(family.entry.labels, values, strict=True))
        began = start(labels) if start else 0
        points.append(
            NumberDataPoint(attributes=labels, start_time_unix_nano=began, time_unix_nano=now, value=float(number))
        )
    return points


def _histogram_points(family: CatalogFamily, start: _Start) -> list[HistogramDataPoint]:
    """The rows of each stand together: cumulative counts up to each bound and to infinity, count, sum."""
    points, bounds, rows = [], family.entry.buckets, family.rows
    width = len(bounds) + 3
    for first in range(0, len(rows), width):
        *buckets, (_, values, count), (_, _, total) = rows[first : first + width]
        labels = dict(zip(family.entry.labels, values, strict=True))
        cumulative = [number for _, _, number in buckets]
        points.append(
            HistogramDataPoint(
                attributes=labels,
                start_time_unix_nano=start(labels),
                time_unix_nano=start.now,
                count=int(count),
                sum=float(total),
                bucket_counts=[int(high - low) for low, high in pairwise((0.0, *cumulative))],
                explicit_bounds=bounds,
                # not known, and optional on the wire
                min=None,  # type: ignore[arg-type]
                max=None,  # type: ignore[arg-type]
            )
        )
    return points


def _unit(unit: str) -> str:
    return _UNITS.get(unit, "{" + unit.replace(" ", "_") + "}")
