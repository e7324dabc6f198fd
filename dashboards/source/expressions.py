"""Does a query parse, and does it name only what the catalogue has: metrics, labels, values of labels?

A source writes `kvmon_memory_bytes{<pool>, state="active"}`; `<pool>` stands for the labels that the variables of
every dashboard choose. Besides the catalogue there are the labels that Prometheus adds and its own series.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import promql_parser

from kvmon.catalog import ENUMERATIONS, METRICS, Metric
from kvmon.dashboards.source.palette import VERDICTS_BY_GRAVITY
from kvmon.dashboards.source.trouble import SourceError, nearest

__all__ = ["VARIABLES", "expanded", "metrics_in", "problems", "selector"]

VARIABLES = ("job", "instance", "engine", "rank", "pool")
"""The variables of every dashboard, each narrowed by those before it."""

_TARGET = ("job", "instance")
_PROMETHEUS: dict[str, tuple[str, ...]] = {
    "up": _TARGET,
    "scrape_duration_seconds": _TARGET,
    "scrape_samples_scraped": _TARGET,
}
_SAMPLES: dict[str, Metric] = {sample: metric for metric in METRICS for sample in metric.samples}
# The gravest verdict has the highest number. A deadlock and a want of capacity come after what explains them.
_JUDGED = """
    6 * kvmon_verdict{<pool>, verdict=~"<bad>", verdict!="deadlock"} or 5 * kvmon_verdict{<pool>, verdict="deadlock"}
    or 4 * kvmon_verdict{<pool>, verdict=~"<unsure>"}
    or 3 * kvmon_verdict{<pool>, verdict=~"<warn>", verdict!="capacity"}
    or 2 * kvmon_verdict{<pool>, verdict="capacity"} or kvmon_verdict{<pool>, verdict="healthy"}
"""
_STANDS_FOR = re.compile(r"<(\w+)>")
_RANGE = re.compile(r"(?<=[\[:])\s*\$(?:\w+|\{\w+\})")
_OFFSET = re.compile(r"\boffset\s+\$(?:\w+|\{\w+\})")
_LEGEND_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def selector(last: str) -> str:
    """Matchers for the variables up to `last`; empty for none."""
    names = VARIABLES[: VARIABLES.index(last) + 1] if last else ()
    return ", ".join(f'{name}=~"${name}"' for name in names)


def expanded(expression: str) -> str:
    """The query with everything in angle brackets written out. Raises SourceError for what stands for nothing."""
    known = {
        "judged": _JUDGED,
        "exporter": selector("instance"),
        "rank": selector("rank"),
        "pool": selector("pool"),
        **{gravity: "|".join(names) for gravity, names in VERDICTS_BY_GRAVITY.items()},
    }

    def write_out(found: re.Match[str]) -> str:
        if found[1] not in known:
            raise SourceError(f"<{found[1]}> stands for nothing: {nearest(found[1], known)}")
        return known[found[1]]

    return " ".join(_STANDS_FOR.sub(write_out, _STANDS_FOR.sub(write_out, expression)).split())


def problems(expression: str, legend: str = "") -> list[str]:
    """What is wrong with a query and its legend, a line each; empty where nothing is."""
    try:
        tree = promql_parser.parse(_OFFSET.sub("offset 5m", _RANGE.sub("5m", expression)))
    except ValueError as error:
        return [f"is no PromQL: {' '.join(str(error).split())}"]
    nodes = list(_nodes(tree))
    found: list[str] = []
    labels: set[str] = set()
    for node in nodes:
        if isinstance(node, promql_parser.VectorSelector):
            of_series = _labels(node.name)
            if of_series is None:
                hint = nearest(str(node.name), [*_SAMPLES, *_PROMETHEUS])
                found.append(f"'{node.name}' is no metric of kvmon: {hint}")
            else:
                labels |= of_series
                found += _wrong_matchers(node, of_series)
    labels |= {str(node.args[1].val) for node in nodes if _calls(node, "label_replace", "label_join")}
    used = {label for node in nodes for label in _grouped_by(node)} | set(_LEGEND_LABEL.findall(legend))
    found += [f"no series here has the label '{label}': {nearest(label, labels)}" for label in sorted(used - labels)]
    return list(dict.fromkeys(found))


def metrics_in(expression: str) -> set[str]:
    """Names of the series that a query asks for."""
    tree = promql_parser.parse(_OFFSET.sub("offset 5m", _RANGE.sub("5m", expression)))
    return {str(node.name) for node in _nodes(tree) if isinstance(node, promql_parser.VectorSelector)}


def _labels(name: str | None) -> set[str] | None:
    """Labels of the series called `name`; None where there is no such series."""
    if name in _PROMETHEUS:
        return set(_PROMETHEUS[name])
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
            values = ENUMERATIONS.get((metric.name, matcher.name))
            regular = matcher.op in (promql_parser.MatchOp.Re, promql_parser.MatchOp.NotRe)
            for value in matcher.value.split("|") if regular else [matcher.value]:
                if values is not None and value and value not in values:
                    yield f"the label '{matcher.name}' of {node.name} is never '{value}': {nearest(value, values)}"


def _grouped_by(node: Any) -> list[str]:
    """Labels that an aggregation or a binary operation groups or matches by."""
    modifier = getattr(node, "modifier", None)
    if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
        return list(modifier.labels)
    if isinstance(node, promql_parser.BinaryExpr) and modifier is not None and modifier.matching is not None:
        return list(modifier.matching.labels)
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
