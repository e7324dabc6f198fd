"""`kvmon metrics`: the catalogue for people, as docs/metrics.md and for machines.

All three are drawn from `kvmon.catalog`; nothing is said here that is not said there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from kvmon.catalog import ENUMERATIONS, FIDELITIES, METRICS, SERIES_BUDGET, TOPICS, Metric
from kvmon.errors import ConfigError

__all__ = ["as_json", "as_markdown", "as_text", "command"]


@click.command("metrics")
@click.option("--markdown", is_flag=True, help="Print the page docs/metrics.md.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON array.")
def command(markdown: bool, json_: bool) -> None:
    """List every metric that `kvmon exporter` serves, with its meaning, unit and labels."""
    if markdown and json_:
        raise ConfigError("--markdown and --json exclude each other: give one of them")
    click.echo(as_markdown() if markdown else as_json() if json_ else as_text(), nl=False)


def as_text() -> str:
    """The catalogue as paragraphs, one a metric."""
    entries = (
        f"{metric.name}{{{', '.join(metric.labels)}}}  {metric.kind}, {metric.unit}\n    {metric.help}\n"
        for metric in METRICS
    )
    return "\n".join(entries)


def as_json() -> str:
    """The catalogue as a JSON array of objects."""
    rows = [
        {
            "name": metric.name,
            "kind": metric.kind,
            "topic": metric.topic,
            "unit": metric.unit,
            "labels": {label: list(ENUMERATIONS.get((metric.name, label), ())) for label in metric.labels},
            "fidelity": list(metric.fidelity),
            "buckets": list(metric.buckets),
            "help": metric.help,
        }
        for metric in METRICS
    ]
    return json.dumps(rows, indent=2) + "\n"


def as_markdown() -> str:
    """The page docs/metrics.md."""
    return "\n".join(_markdown_lines()) + "\n"


def _markdown_lines() -> Iterator[str]:
    yield from (
        "# Metrics",
        "",
        "Written by `kvmon metrics --markdown`; change `kvmon/catalog.py`, not this page.",
        "",
        "Names are stable. A number that the source cannot know is absent, never zero. Every metric of an engine has",
        f"the labels `engine` and `rank`; one rank with one pool exposes at most {SERIES_BUDGET} series.",
        "",
        "What an adapter sees is its fidelity; the last column lists which of them know the number.",
        "",
    )
    for fidelity, meaning in FIDELITIES.items():
        yield f"- `{fidelity}`: {meaning}"
    for topic, heading in TOPICS.items():
        yield from ("", f"## {heading}", "", "| metric | kind | unit | labels | meaning | fidelity |")
        yield "| --- | --- | --- | --- | --- | --- |"
        yield from (_markdown_row(metric) for metric in METRICS if metric.topic == topic)


def _markdown_row(metric: Metric) -> str:
    labels = []
    for label in metric.labels:
        values = ENUMERATIONS.get((metric.name, label))
        labels.append(f"`{label}`" if values is None else f"`{label}` ({', '.join(values)})")
    buckets = f" Buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}." if metric.buckets else ""
    fidelity = "any" if len(metric.fidelity) == len(FIDELITIES) else ", ".join(metric.fidelity)
    cells = (f"`{metric.name}`", metric.kind, metric.unit, ", ".join(labels), metric.help + buckets, fidelity)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
