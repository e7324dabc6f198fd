"""The rules as a whole: they parse, name only what the catalogue has, say what to do, and are what is committed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from kvmon.alerts import Alert, alerts_of, load_thresholds, recorded, rule_groups, runbooks, written
from kvmon.alerts.thresholds import seconds_of
from kvmon.catalog import ENUMERATIONS, METRICS
from kvmon.cli.main import VERBS
from kvmon.dashboards.source import promql
from tests.conftest import PrometheusBinaries
from tests.rules.expected import NAMES, expected
from tests.rules.promtool import check_rules

FOLDER = Path(__file__).parents[2] / "alerts"
GROUPS = rule_groups(load_thresholds())
ALERTS = alerts_of(GROUPS)
RULES = [rule for group in GROUPS for rule in group.rules]
BY_TEXT = sorted({alert.name for alert in ALERTS})


def test_what_is_committed_is_what_the_code_makes() -> None:
    """`kvmon alerts -o alerts --force` writes the two files anew."""
    for name, text in written(GROUPS).items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, (
            f"{name} is old: run 'kvmon alerts -o alerts --force'"
        )


@pytest.mark.prometheus
def test_promtool_finds_no_fault(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """Also with other thresholds and another place for the runbooks."""
    (tmp_path / "mine.yml").write_text("verdict_window: 20s\nverdict_for: 0s\nkeep_firing: 0s\n", encoding="ascii")
    made = []
    for number, groups in enumerate((GROUPS, rule_groups(load_thresholds(tmp_path / "mine.yml")))):
        for name, text in written(groups, runbook_url="https://wiki.example/kvmon").items():
            made.append(tmp_path / f"{number}-{name}")
            made[-1].write_text(text, encoding="utf-8")
    assert check_rules(prometheus_binaries, made) == ""


def problems(expression: str) -> list[str]:
    """What is wrong with an expression that may use what the rules record, and Prometheus' series of alerts."""
    alerts = ("alertname", "alertstate", "severity", "engine", "rank", "pool", "verdict", "gpu", "collector")
    return promql.problems(expression, known={**recorded(), "ALERTS": ("job", "instance", *alerts)})


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{getattr(rule, 'name', '')}{getattr(rule, 'record', '')}")
def test_an_expression_names_only_what_the_catalogue_has(rule: object) -> None:
    """Metrics, labels and values of labels; recorded series by the rules that record them."""
    assert problems(rule.expr) == []  # type: ignore[attr-defined]


def test_recorded_names_say_level_metric_and_operation() -> None:
    """As kubernetes-mixin has them; the metric is one of the catalogue's, or a plain word where it is of several."""
    names = {metric.family for metric in METRICS} | {"kvmon_tokens"}
    for name, labels in recorded().items():
        level, metric, operation = name.split(":")
        assert level in {"rank", "pool", "pool_verdict"} and operation
        assert metric in names
        assert ("pool" in labels) == level.startswith("pool") and {"job", "instance", "engine", "rank"} <= set(labels)


def test_every_verdict_but_healthy_has_an_alert() -> None:
    """And it carries the verdict as a label."""
    verdicts = set(ENUMERATIONS["kvmon_verdict", "verdict"]) - {"healthy"}
    assert {alert.verdict for alert in ALERTS} - {""} == verdicts


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert.name}-{alert.severity}")
def test_an_alert_says_what_a_person_needs(alert: Alert) -> None:
    """It waits before it fires, says who is meant, and names a command that exists."""
    assert seconds_of(alert.holds) > 0
    said = alert.summary + alert.description
    assert "$labels" in alert.summary and "$labels" in alert.description and len(alert.what) < 80
    for name in re.findall(r"kvmon_[a-z_]+", said):
        assert any(name in metric.samples for metric in METRICS), name
    _check_command(alert.command)


def test_a_critical_alert_of_two_comes_with_its_warning() -> None:
    """One name, one runbook: where there are two severities, the critical one is the later or narrower of the two."""
    by_name: dict[str, list[Alert]] = {}
    for alert in ALERTS:
        by_name.setdefault(alert.name, []).append(alert)
    for alerts in by_name.values():
        assert [alert.severity for alert in alerts] in (["warning"], ["critical"], ["warning", "critical"])


def test_no_alert_looks_at_usage_alone() -> None:
    """Memory in use is no trouble: no alert compares an amount of it, or its share of the capacity, with anything."""
    usage = {
        "kvmon_memory_bytes",
        "kvmon_memory_used_high_bytes",
        "kvmon_memory_capacity_bytes",
        "kvmon_gpu_memory_bytes",
    }
    for rule in RULES:
        assert not usage & set(re.findall(r"kvmon_[a-z_]+", rule.expr))


# -- runbooks --


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    """By name; an alert of two severities has one."""
    assert sorted(runbooks()) == BY_TEXT


@pytest.mark.parametrize("name", BY_TEXT)
def test_a_runbook_says_how_to_confirm_and_what_to_do(name: str) -> None:
    """Symptom, confirmation, causes, levers and what it is not; commands, metrics and links that exist."""
    text = runbooks()[name]
    assert text.startswith(f"# {name}: ") and text.endswith("\n")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == ["Symptom", "How to confirm", "Causes", "Levers, safest first", "What it is not"]
    commands = re.findall(r"`(kvmon [^`]+)`", text)
    assert commands or name in {"KvmonGpuOverclaimed"}
    for command in commands:
        _check_command(command)
    for metric in re.findall(r"\b(kvmon_[a-z_]+)", text):
        assert any(metric in (entry.name, *entry.samples) for entry in METRICS), metric
    for expression in re.findall(r"`([^`]*(?:rate|deriv|quantile)\([^`]*)`", text):
        assert problems(expression) == []
    for selector in re.findall(r"`(kvmon_[a-z_]+\{[^`]*\})`", text):
        assert problems(selector.replace("=...", '=""')) == []
    for shown, target in re.findall(r"\[(\w+)\]\((\w+)\.md\)", text):
        assert target in BY_TEXT and shown in {target, "down"}
    verdict = next(alert.verdict for alert in ALERTS if alert.name == name)
    assert not verdict or f"`kvmon explain {verdict}`" in text


def _check_command(command: str) -> None:
    """Raise where this is no command line of kvmon's as it stands: verb, options, values and arguments."""
    _, verb, *rest = shlex.split(command)
    if verb == "explain":
        assert not rest or rest[0] in ENUMERATIONS["kvmon_verdict", "verdict"]
    VERBS[verb].load().make_context(verb, ["1" if word == "CLASS" else word for word in rest])


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    """In a scenario's row, or by name in a test of engines and exporters."""
    fired = {alert.name for name in NAMES for alert in expected(name)}
    for module in ("test_engines.py", "test_exporters.py"):
        fired |= set(re.findall(r'"(Kvmon\w+)"', (Path(__file__).parent / module).read_text(encoding="utf-8")))
    assert fired == set(BY_TEXT)


def test_a_prometheus_rule_object_holds_the_same_rules() -> None:
    """What the operator reads: kind, name, labels, and the groups of both files in their order."""
    text = written(GROUPS, "prometheusrule")
    (body,) = (yaml.safe_load(content) for content in text.values())
    files = [yaml.safe_load(content)["groups"] for content in written(GROUPS).values()]
    assert (body["apiVersion"], body["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert body["metadata"]["name"] == "kvmon" and body["metadata"]["labels"]
    assert body["spec"]["groups"] == [group for groups in files for group in groups]
