"""The encoder writes what prometheus_client writes, byte for byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from kvmon.catalog import Metric, MetricKind
from kvmon.exporter.encode import Encoder
from kvmon.exporter.families import Row


class Registry:
    """What the library's encoders take: something with `collect`."""

    def __init__(self, families: list[Family]) -> None:
        self.families = families

    def collect(self) -> list[Family]:
        """The families."""
        return self.families


class Ours:
    """A family for the encoder, and the same one in the library's words."""

    def __init__(self, entry: Metric) -> None:
        self.entry = entry
        self.rows: list[Row] = []
        if entry.kind == "info":
            self.theirs: Family = InfoMetricFamily(entry.family, entry.help)
        elif entry.kind == "histogram":
            self.theirs = HistogramMetricFamily(entry.family, entry.help, labels=entry.labels)
        else:
            made = GaugeMetricFamily if entry.kind == "gauge" else CounterMetricFamily
            self.theirs = made(entry.family, entry.help, labels=entry.labels)

    def add(self, labels: tuple[str, ...], *values: float) -> None:
        """One series; of a histogram a bucket, all, and the sum."""
        entry, name = self.entry, self.entry.name
        if isinstance(self.theirs, HistogramMetricFamily):
            bounds = [*(repr(bound) for bound in entry.buckets), "+Inf"]
            buckets = list(zip(bounds, values, strict=False))
            self.theirs.add_metric(labels, buckets, values[-1])
            self.rows += [(f"{name}_bucket", (*labels, bound), value) for bound, value in buckets]
            self.rows += [(f"{name}_count", labels, values[len(bounds) - 1]), (f"{name}_sum", labels, values[-1])]
            return
        self.rows.append((name, labels, values[0]))
        if isinstance(self.theirs, InfoMetricFamily):
            self.theirs.add_metric([], dict(zip(entry.labels, labels, strict=True)))
        else:
            self.theirs.add_metric(labels, values[0])  # type: ignore[attr-defined]


VALUES = st.one_of(
    st.floats(allow_nan=False), st.integers(-(2**40), 2**63), st.sampled_from([1e6, 999_999, 1_000_000, 0, -0.0])
)
TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
SUFFIX = {"counter": "_total", "info": "_info"}


@st.composite
def families(draw: st.DrawFn) -> list[Ours]:
    """Families of every kind that the catalogue has, with labels and values of any sort."""
    found: list[Ours] = []
    for index in range(draw(st.integers(0, 4))):
        kind: MetricKind = draw(st.sampled_from(["gauge", "counter", "info", "histogram"]))
        buckets = (0.128,) if kind == "histogram" else ()
        name = f"kvmon_{index}{SUFFIX.get(kind, '')}"
        made = Ours(Metric(name, kind, "memory", "1", ("b", "a"), ("exact",), draw(TEXT), buckets))
        for row in draw(st.lists(st.tuples(TEXT, TEXT), unique=True, max_size=3)):
            made.add(row, *([1] if kind == "info" else [draw(VALUES) for _ in range(3)]))
        found.append(made)
    return found


def registry(found: list[Ours]) -> Registry:
    """The library's families."""
    return Registry([family.theirs for family in found])


@given(families())
def test_text_is_the_librarys(found: list[Ours]) -> None:
    """Prometheus' text format, whatever the labels, help and values are."""
    encoder = Encoder()
    for _ in range(2):
        assert encoder.text(found) == generate_latest(registry(found))  # type: ignore[arg-type]


@given(families())
def test_openmetrics_is_the_librarys(found: list[Ours]) -> None:
    """OpenMetrics, whatever the labels, help and values are."""
    encoder = Encoder()
    for _ in range(2):
        assert encoder.openmetrics(found) == openmetrics.generate_latest(registry(found))  # type: ignore[no-untyped-call]


def test_what_is_written_can_be_read_back() -> None:
    """Labels with quotes, backslashes and newlines survive the way through a parser."""
    gauge = Ours(Metric("kvmon_x", "gauge", "memory", "1", ("engine",), ("exact",), "A number."))
    name = 'a"b\\c\nd'
    gauge.add((name,), 2.5)
    read = list(text_string_to_metric_families(Encoder().text([gauge]).decode()))
    assert [(sample.labels, sample.value) for sample in read[0].samples] == [({"engine": name}, 2.5)]
