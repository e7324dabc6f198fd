"""What a rule is, before it becomes YAML: recording rules and alerts as data, and the pieces of PromQL they share.

Invariant: every rule that matches engines keeps the labels that name one of them (`RANK`, and `POOL` where it is about
a pool), so that an alert says which engine it is about. Nothing here is written to a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvmon.catalog import metric

__all__ = [
    "ON_POOL",
    "ON_RANK",
    "ON_TARGET",
    "POOL",
    "RANK",
    "TARGET",
    "Alert",
    "Recording",
    "Severity",
    "looked_up",
]

Severity = Literal["warning", "critical"]
"""warning: somebody looks during the day. critical: somebody is woken."""

TARGET = ("job", "instance")
RANK = (*TARGET, "engine", "rank")
POOL = (*RANK, "pool")
"""Labels of a series about a scrape target, one rank of an engine, one pool of it."""

ON_TARGET = f"on ({', '.join(TARGET)})"
ON_RANK = f"on ({', '.join(RANK)})"
ON_POOL = f"on ({', '.join(POOL)})"


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording rule: the series `record` with `labels`, and what it is in words."""

    record: str
    expr: str
    labels: tuple[str, ...]
    what: str


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert. `name` and `severity` together are unique, `name` names its runbook.

    holds       how long the expression has to be true (`for`)
    keep        how long it goes on firing afterwards (`keep_firing_for`); empty: not at all
    what        a line for lists; summary and description are templates of Prometheus
    command     the kvmon command to run first
    verdict     the verdict it is about; empty for a symptom
    """

    name: str
    severity: Severity
    expr: str
    holds: str
    what: str
    summary: str
    description: str
    command: str
    verdict: str = ""
    keep: str = ""


def looked_up(
    name: str, form: str, *labels: str, only: str = "", unit: str = "", otherwise: str = "an unknown number"
) -> str:
    """A template that asks for the value of a metric when the alert is told: of the same series by `labels`, and by
    `only` (`state=free`), written by the template function `form` and followed by `unit`. Where there is no such number
    it says `otherwise`, never zero.

    Raises ConfigError for a name that the catalogue does not have.
    """
    metric(name)
    matchers = [f"{label}=%q" for label in labels]
    if only:
        label, _, value = only.partition("=")
        matchers.append(f'{label}=\\"{value}\\"')
    query = f'printf "{name}{{{",".join(matchers)}}}" {" ".join(f"$labels.{label}" for label in labels)} | query'
    return f"{{{{ with {query} }}}}{{{{ . | first | value | {form} }}}}{unit}{{{{ else }}}}{otherwise}{{{{ end }}}}"
