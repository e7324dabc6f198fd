"""Does a PromQL expression parse, and does it name only what is there: metrics, labels, values of labels?

    problems('sum by (engine) (rate(kvmon_preemptions_total{rank="0"}[5m]))')   # []
    problems("kvmon_leak_total")   # ["'kvmon_leak_total' is no metric of kvmon: ..."]

There are the metrics of the catalogue, the labels that Prometheus adds and its own series, and what a caller knows
besides. Grafana's variables stand for what they usually are: one in a range is 5m, one in a label's value anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import promql_parser

from kvmon.catalog import ENUMERATIONS, METRICS, Metric
from kvmon.dashboards.source.trouble import nearest

__all__ = ["metrics_in", "problems"]

_TARGET = ("job", "instance")
_PROMETHEUS: dict[str, tuple[str, ...]] = {
    "up": _TARGET,
    "scrape_duration_seconds": _TARGET,
    "scrape_samples_scraped": _TARGET,
}
_SAMPLES: dict[str, Metric] = {sample: metric for metric in METRICS for sample in metric.samples}
_VARIABLE = r"\$(?:\w+|\{\w+(?::\w+)?\})"
_RANGE = re.compile(rf"(?<=[\[:])\s*{_VARIABLE}")
_OFFSET = re.compile(rf"\boffset\s+{_VARIABLE}")
_PLAIN = re.compile(r"\w*")


def problems(
    expression: str, *, shown: Iterable[str] = (), known: Mapping[str, Iterable[str]] | None = None
) -> list[str]:
    """What is wrong with an expression, a line each; empty where nothing is.

    `shown` are labels that whoever shows the result names; `known` are series besides those of the catalogue, with
    their labels.
    """
    try:
        tree = _parsed(expression)
    except ValueError as error:
        return [f"is no PromQL: {' '.join(str(error).split())}"]
    besides = {**_PROMETHEUS, **(known or {})}
    nodes = list(_nodes(tree))
    found: list[str] = []
    labels: set[str] = set()
    for node in nodes:
        if isinstance(node, promql_parser.VectorSelector):
            of_series = _labels(node.name, besides)
            if of_series is None:
                hint = nearest(str(node.name), [*_SAMPLES, *besides])
                found.append(f"'{node.name}' is no metric of kvmon: {hint}")
            else:
                labels |= of_series
                found += _wrong_matchers(node, of_series)
    labels |= {str(node.args[1].val) for node in nodes if _calls(node, "label_replace", "label_join")}
    used = {label for node in nodes for label in _grouped_by(node)} | set(shown)
    found += [f"no series here has the label '{label}': {nearest(label, labels)}" for label in sorted(used - labels)]
    return list(dict.fromkeys(found))


def metrics_in(expression: str) -> set[str]:
    """Names of the series that an expression asks for."""
    return {str(node.name) for node in _nodes(_parsed(expression)) if isinstance(node, promql_parser.VectorSelector)}


def _parsed(expression: str) -> Any:
    return promql_parser.parse(_OFFSET.sub("offset 5m", _RANGE.sub("5m", expression)))


def _labels(name: str | None, besides: Mapping[str, Iterable[str]]) -> set[str] | None:
    """Labels of the series called `name`; None where there is no such series."""
    if name in besides:
        return set(besides[str(name)])
    metric = _SAMPLES.get(name or "")
    if metric is None:
        return None
    return {*_TARGET, *metric.labels, *(("le",) if str(name).endswith("_bucket") else ())}


def _wrong_matchers(node: Any, labels: set[str]) -> Iterator[str]:
    metric = _SAMPLES.get(node.name)
    for matcher in node.matchers.matchers:
        if matcher.name not in labels:
            yield f"{node.name} has no label '{matcher.name}': {nearest(matcher.name, labels)}"
        elif metric is not None and "$" not in matcher.value:
            values = ENUMERATIONS.get((metric.name, matcher.name), ())
            if matcher.name == "le":
                values = (*(f"{bound:g}" for bound in metric.buckets), "+Inf")
            regular = matcher.op in (promql_parser.MatchOp.Re, promql_parser.MatchOp.NotRe)
            for value in matcher.value.split("|") if regular else [matcher.value]:
                if values and value and not _is_one_of(value, values, regular):
                    yield f"the label '{matcher.name}' of {node.name} is never '{value}': {nearest(value, values)}"


def _is_one_of(value: str, values: Iterable[str], regular: bool) -> bool:
    if regular and _PLAIN.fullmatch(value) is None:
        return any(re.fullmatch(value, known) for known in values)
    return value in values


def _grouped_by(node: Any) -> list[str]:
    """Labels that an aggregation or a binary operation groups or matches by."""
    modifier = getattr(node, "modifier", None)
    if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
        return list(modifier.labels)
    if isinstance(node, promql_parser.BinaryExpr) and modifier is not None:
        matching = modifier.matching
        return [*(matching.labels if matching is not None else ()), *(modifier.group_labels or ())]
    return []


def _calls(node: Any, *names: str) -> bool:
    return isinstance(node, promql_parser.Call) and node.func.name in names


def _nodes(node: Any) -> Iterator[Any]:
    """Every node below and including this one."""
    yield node
    below = [getattr(node, name, None) for name in ("lhs", "rhs", "expr", "param", "vector_selector")]
    for part in [*below, *getattr(node, "args", ())]:
        if part is not None and not isinstance(part, str):
            yield from _nodes(part)
