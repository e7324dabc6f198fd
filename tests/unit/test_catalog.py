"""The catalogue of metrics: conventions, labels, budget, and the page made from it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.core import (
    Metric as Family,
)
from prometheus_client.registry import Collector

from kvmon import catalog
from kvmon.catalog import METRICS, Metric
from kvmon.cli import main, metrics
from kvmon.errors import ConfigError
from kvmon.events.kinds import FAILURE_REASONS, FinishReason
from tests.conftest import PrometheusBinaries

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
NAMES = [metric.name for metric in METRICS]
FREE_LABELS = {"engine", "rank", "pool", "gpu", "collector"}
FAMILIES = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
    "info": InfoMetricFamily,
}


def family(metric: Metric) -> Family:
    """One sample of a metric as the exporter would serve it."""
    if metric.kind == "info":
        info = InfoMetricFamily(metric.family, metric.help)
        info.add_metric([], dict.fromkeys(metric.labels, "x"))
        return info
    made = FAMILIES[metric.kind](metric.family, metric.help, labels=metric.labels)
    values = ["x"] * len(metric.labels)
    if metric.kind == "histogram":
        bounds = [*(str(float(bound)) for bound in metric.buckets), "+Inf"]
        made.add_metric(values, buckets=[(bound, 1.0) for bound in bounds], sum_value=1.0)
    else:
        made.add_metric(values, 1.0)
    return made


class WholeCatalogue(Collector):
    """Serves one sample of every metric."""

    def collect(self) -> list[Family]:
        """The families in the catalogue's order."""
        return [family(metric) for metric in METRICS]


def test_promtool_accepts_every_metric(prometheus_binaries: PrometheusBinaries) -> None:
    """`promtool check metrics` finds no fault with a page that holds the whole catalogue."""
    registry = CollectorRegistry()
    registry.register(WholeCatalogue())
    done = subprocess.run(
        [prometheus_binaries.promtool, "check", "metrics"], input=generate_latest(registry), capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout + done.stderr == b""


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_the_exposition_has_the_names_of_the_catalogue(metric: Metric) -> None:
    """The client library exposes a metric under exactly the names that users query."""
    assert {sample.name for sample in family(metric).samples} == set(metric.samples)


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_a_name_tells_its_kind_and_unit(metric: Metric) -> None:
    """Names carry the prefix, the suffix of their kind and a base unit at the end."""
    assert re.fullmatch(r"kvmon_[a-z_]+[a-z]", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.name.endswith("_info") == (metric.kind == "info")
    assert metric.name.endswith("_ratio") == (metric.unit == "ratio")
    assert "total" not in metric.labels and "type" not in metric.labels
    if metric.unit in ("bytes", "seconds", "tokens", "units"):
        assert metric.unit in metric.family.split("_")


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_labels_are_bounded(metric: Metric) -> None:
    """A label names an engine, rank, pool, GPU or collector, or takes values from an enumeration."""
    for label in metric.labels:
        known = label in FREE_LABELS or (metric.name, label) in catalog.ENUMERATIONS
        assert known or (metric.kind == "info" and label in catalog.INFO_LABELS), label


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_an_entry_is_complete(metric: Metric) -> None:
    """Help is a sentence, the topic exists, some fidelity knows the number; buckets rise, in histograms alone."""
    assert metric.help.endswith(".") and "\n" not in metric.help
    assert metric.topic in catalog.TOPICS
    assert metric.fidelity and set(metric.fidelity) <= set(catalog.FIDELITIES)
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert len(metric.buckets) <= 8 and list(metric.buckets) == sorted(set(metric.buckets))


def test_a_rank_stays_within_its_budget() -> None:
    """All series of one rank with one pool fit the budget."""
    assert sum(metric.series for metric in METRICS if "rank" in metric.labels) <= catalog.SERIES_BUDGET


def test_enumerations_are_those_of_the_event_stream() -> None:
    """Reasons are spelled as the events spell them, and every enumeration belongs to a label of a metric."""
    assert catalog.ENUMERATIONS["kvmon_allocation_failures_total", "reason"] == FAILURE_REASONS
    finish = tuple(reason.name.lower() for reason in FinishReason)
    assert catalog.ENUMERATIONS["kvmon_requests_finished_total", "reason"] == finish
    for (name, label), values in catalog.ENUMERATIONS.items():
        assert label in catalog.metric(name).labels
        assert len(values) == len(set(values))


def test_names_are_unique_and_found() -> None:
    """A metric is found by its name; an unknown name says where to look."""
    assert len(set(NAMES)) == len(NAMES)
    assert catalog.metric("kvmon_preemptions_total").kind == "counter"
    with pytest.raises(ConfigError, match="'kvmon metrics' lists them"):
        catalog.metric("kvmon_gpu_cache_usage_perc")


def test_the_documentation_is_up_to_date() -> None:
    """docs/metrics.md is what `kvmon metrics --markdown` prints; `make docs` writes it."""
    assert DOCS.read_text(encoding="utf-8") == metrics.as_markdown()


def test_every_form_holds_every_metric() -> None:
    """Text, JSON and Markdown all list the whole catalogue."""
    assert [row["name"] for row in json.loads(metrics.as_json())] == NAMES
    for page in (metrics.as_text(), metrics.as_markdown()):
        assert [name for name in NAMES if name not in page] == []


def test_two_forms_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """`--markdown` and `--json` together are a usage error, not a silent choice."""
    assert main.run(["metrics", "--markdown", "--json"]) == 2
    assert capsys.readouterr().err == "kvmon: --markdown and --json exclude each other: give one of them\n"
