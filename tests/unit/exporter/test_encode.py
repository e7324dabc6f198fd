"""The encoder writes what prometheus_client writes, byte for byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from kvmon.exporter.encode import Encoder


class Registry:
    """What the library's encoders take: something with `collect`."""

    def __init__(self, families: list[Family]) -> None:
        self.families = families

    def collect(self) -> list[Family]:
        """The families."""
        return self.families


VALUES = st.one_of(
    st.floats(allow_nan=False), st.integers(-(2**40), 2**63), st.sampled_from([1e6, 999_999, 1_000_000, 0, -0.0])
)
TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)


@st.composite
def families(draw: st.DrawFn) -> list[Family]:
    """Families of every kind that the catalogue has, with labels and values of any sort."""
    found: list[Family] = []
    for index in range(draw(st.integers(0, 4))):
        name, text = f"kvmon_{index}", draw(TEXT)
        kind = draw(st.sampled_from(["gauge", "counter", "info", "histogram"]))
        rows = draw(st.lists(st.tuples(TEXT, TEXT), unique=True, max_size=3))
        if kind == "info":
            info = InfoMetricFamily(name, text)
            for row in rows:
                info.add_metric([], {"b": row[0], "a": row[1]})
            found.append(info)
        elif kind == "histogram":
            histogram = HistogramMetricFamily(name, text, labels=["b", "a"])
            for row in rows:
                histogram.add_metric(row, [("0.128", draw(VALUES)), ("+Inf", draw(VALUES))], draw(VALUES))
            found.append(histogram)
        else:
            made = (GaugeMetricFamily if kind == "gauge" else CounterMetricFamily)(name, text, labels=["b", "a"])
            for row in rows:
                made.add_metric(row, draw(VALUES))
            found.append(made)
    return found


@given(families())
def test_text_is_the_librarys(found: list[Family]) -> None:
    """Prometheus' text format, whatever the labels, help and values are."""
    encoder = Encoder()
    for _ in range(2):
        assert encoder.text(found) == generate_latest(Registry(found))  # type: ignore[arg-type]


@given(families())
def test_openmetrics_is_the_librarys(found: list[Family]) -> None:
    """OpenMetrics, whatever the labels, help and values are."""
    encoder = Encoder()
    for _ in range(2):
        assert encoder.openmetrics(found) == openmetrics.generate_latest(Registry(found))  # type: ignore[no-untyped-call]


def test_what_is_written_can_be_read_back() -> None:
    """Labels with quotes, backslashes and newlines survive the way through a parser."""
    gauge = GaugeMetricFamily("kvmon_x", "A number.", labels=["engine"])
    name = 'a"b\\c\nd'
    gauge.add_metric([name], 2.5)
    read = list(text_string_to_metric_families(Encoder().text([gauge]).decode()))
    assert [(sample.labels, sample.value) for sample in read[0].samples] == [({"engine": name}, 2.5)]
