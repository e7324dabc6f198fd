"""Does a PromQL expression parse, and does it name only what the catalogue has: metrics, labels, values of labels.

    problems('sum by (engine) (rate(kvmon_preemptions_total{rank="0"}[5m]))')   # []
    problems('kvmon_verdict{verdict="leek"}')    # ["kvmon_verdict{verdict} is never 'leek'"]

Besides the catalogue an expression may use the labels that Prometheus adds (`job`, `instance`), its own series (`up`,
`ALERTS`), and what the recording rules record. Grafana's variables stand for what they usually are: a variable in a
range is 5m, one in a label's value can be anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import promql_parser

from kvmon.alerts import recorded
from kvmon.catalog import ENUMERATIONS, METRICS, Metric

__all__ = ["problems"]

_TARGET = frozenset({"job", "instance"})
_PROMETHEUS = {
    "up": _TARGET,
    "scrape_duration_seconds": _TARGET,
    "scrape_samples_scraped": _TARGET,
    "ALERTS": _TARGET
    | {"alertname", "alertstate", "severity", "engine", "rank", "pool", "verdict", "gpu", "collector"},
}
_SAMPLES: dict[str, Metric] = {sample: metric for metric in METRICS for sample in metric.samples}
_VARIABLE = re.compile(r"\$(\w+|\{\w+(?::\w+)?\})")
_RANGE = re.compile(r"([\[:]\s*)" + _VARIABLE.pattern)
_NAME = re.compile(r"\w*")


def problems(expression: str) -> list[str]:
    """What is wrong with an expression, a line each; empty where nothing is."""
    try:
        tree = promql_parser.parse(_RANGE.sub(r"\g<1>5m", expression))
    except ValueError as error:
        return [f"does not parse: {error}"]
    known = recorded()
    found: list[str] = []
    allowed: set[str] = set()
    for node in _nodes(tree):
        if isinstance(node, promql_parser.VectorSelector):
            labels = _labels_of(node.name, known)
            if labels is None:
                found.append(f"'{node.name}' is neither in the catalogue nor recorded")
            else:
                allowed |= labels
                found += _wrong_matchers(node, labels)
    made = {str(node.args[1].val) for node in _nodes(tree) if _is_call(node, "label_replace", "label_join")}
    for node in _nodes(tree):
        found += [f"no series here has the label '{label}'" for label in _grouping(node) if label not in allowed | made]
    return list(dict.fromkeys(found))


def _labels_of(name: str | None, known: dict[str, tuple[str, ...]]) -> frozenset[str] | None:
    """Labels of the series called `name`; None where there is no such series."""
    if name is None:
        return None
    if name in _PROMETHEUS:
        return frozenset(_PROMETHEUS[name])
    if name in known:
        return frozenset(known[name])
    metric = _SAMPLES.get(name)
    if metric is None:
        return None
    return _TARGET | set(metric.labels) | ({"le"} if name.endswith("_bucket") else set())


def _wrong_matchers(node: Any, labels: frozenset[str]) -> Iterator[str]:
    metric = _SAMPLES.get(node.name)
    for matcher in node.matchers.matchers:
        if matcher.name not in labels:
            yield f"{node.name} has no label '{matcher.name}'"
            continue
        values = ENUMERATIONS.get((metric.name, matcher.name)) if metric is not None else None
        if metric is not None and matcher.name == "le":
            values = (*(f"{bound:g}" for bound in metric.buckets), "+Inf")
        if values is None or "$" in matcher.value:
            continue
        regular = matcher.op in (promql_parser.MatchOp.Re, promql_parser.MatchOp.NotRe)
        alternatives = matcher.value.split("|") if regular else [matcher.value]
        for value in alternatives:
            if value and _NAME.fullmatch(value) is None and regular:
                if not any(re.fullmatch(value, known) for known in values):
                    yield f"{node.name}{{{matcher.name}}} never matches '{value}'"
            elif value and value not in values:
                yield f"{node.name}{{{matcher.name}}} is never '{value}'"


def _grouping(node: Any) -> list[str]:
    """Labels that an aggregation or a binary operation groups or matches by."""
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
        return list(node.modifier.labels)
    if isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None:
        matching = node.modifier.matching
        return [*(matching.labels if matching is not None else ()), *(node.modifier.group_labels or ())]
    return []


def _is_call(node: Any, *names: str) -> bool:
    return isinstance(node, promql_parser.Call) and node.func.name in names


def _nodes(node: Any) -> Iterator[Any]:
    """Every node below and including this one."""
    yield node
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if hasattr(node, name) and not isinstance(getattr(node, name), str):
            yield from _nodes(getattr(node, name))
    for argument in getattr(node, "args", ()):
        yield from _nodes(argument)
