"""`kvmon alerts`: list the alerts, read their runbooks, and write the rule files that Prometheus loads.

Wiring only: thresholds and rules come from `kvmon.alerts`. Files appear whole or not at all, all of them together.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmon.cli.output_files import write_files
from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from kvmon.alerts import Alert, Format, Group, Recording, Thresholds

__all__ = ["as_json", "as_markdown", "command"]

_FILES_ONLY = {"form": "--format", "runbook_url": "--runbook-url", "with_runbooks": "--runbooks", "force": "--force"}


@click.command("alerts")
@click.argument("alert", required=False)
@click.option(
    "-o", "--out", "directory", metavar="DIR", type=click.Path(path_type=Path, readable=False), help="Write files here."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["prometheus", "prometheusrule"]),
    default="prometheus",
    show_default=True,
    help="Rule files, or an object for Kubernetes' Prometheus operator.",
)
@click.option(
    "--thresholds",
    metavar="FILE",
    type=click.Path(path_type=Path, readable=False),
    help="YAML: thresholds that are other ones here.",
)
@click.option(
    "--runbook-url",
    metavar="PREFIX",
    help="Where the runbooks are, such as https://wiki.example/kvmon.  [default: the exporter itself]",
)
@click.option("--runbooks", "with_runbooks", is_flag=True, help="Write the runbooks too, into DIR/runbooks.")
@click.option("--force", is_flag=True, help="Replace files that say something else.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object.")
@click.option("--markdown", is_flag=True, help="Print the table of docs/alerts.md.")
@click.pass_context
def command(
    context: click.Context,
    /,
    alert: str | None,
    directory: Path | None,
    form: Format,
    thresholds: Path | None,
    runbook_url: str | None,
    with_runbooks: bool,
    force: bool,
    as_json_: bool,
    markdown: bool,
) -> None:
    """List the alerts, or print the runbook of ALERT; with -o, write rules and alerts for Prometheus into DIR.

    Thresholds are commented in the package's thresholds.yml; a file of your own holds a line for each that is to be
    another one, such as 'verdict_for: 5m'.
    """
    if alert is not None:
        _read(context, alert)
        return
    if as_json_ and markdown:
        raise ConfigError("--markdown and --json exclude each other: give one of them")
    if directory is None:
        for name, flag in _FILES_ONLY.items():
            if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                raise ConfigError(f"{flag} is about files: it goes with -o DIR")

    from kvmon.alerts import load_thresholds, rule_groups

    limits = load_thresholds(thresholds)
    groups = rule_groups(limits)
    files: list[Path] = []
    if directory is not None:
        files = _write(directory, groups, form, runbook_url, with_runbooks=with_runbooks, force=force)
    if as_json_:
        click.echo(as_json(groups, limits, files), nl=False)
    elif markdown:
        click.echo(as_markdown(groups), nl=False)
    elif directory is not None:
        click.echo("\n".join(f"wrote {path}" for path in files))
    else:
        click.echo(_as_text(groups), nl=False)


def as_json(groups: list[Group], limits: Thresholds, files: list[Path]) -> str:
    """Alerts, recording rules, thresholds with their ranges, and the files that were written."""
    from kvmon.alerts import alerts_of

    body: dict[str, Any] = {
        "alerts": [_described(alert) for alert in alerts_of(groups)],
        "recording_rules": [asdict(rule) for rule in _recordings(groups)],
        "thresholds": [{**asdict(entry), "value": limits[name]} for name, entry in limits.described.items()],
        "files": [str(path) for path in files],
    }
    return json.dumps(body, indent=2) + "\n"


def as_markdown(groups: list[Group]) -> str:
    """Two tables: the alerts with their severities, and the recording rules."""
    from kvmon.alerts import alerts_of

    rows: dict[str, list[Alert]] = {}
    for alert in alerts_of(groups):
        rows.setdefault(alert.name, []).append(alert)
    lines = ["| alert | severity and `for` | fires when | verdict | first command |", "| --- | --- | --- | --- | --- |"]
    for name, alerts in rows.items():
        severities = ", ".join(f"{alert.severity} {alert.holds}" for alert in alerts)
        link = f"[{name}](../alerts/runbooks/{name}.md)"
        verdict = f"`{alerts[0].verdict}`" if alerts[0].verdict else ""
        lines.append(f"| {link} | {severities} | {alerts[0].what} | {verdict} | `{alerts[0].command}` |")
    lines += ["", "| recorded | labels | what |", "| --- | --- | --- |"]
    for rule in _recordings(groups):
        lines.append(f"| `{rule.record}` | {', '.join(f'`{label}`' for label in rule.labels)} | {rule.what} |")
    return "\n".join(lines) + "\n"


def _as_text(groups: list[Group]) -> str:
    from kvmon.alerts import alerts_of

    alerts = alerts_of(groups)
    width = max(len(alert.name) for alert in alerts)
    rows = (f"{alert.name:<{width}}  {alert.severity:<8}  {alert.holds:>3}  {alert.what}\n" for alert in alerts)
    return "".join(rows)


def _recordings(groups: list[Group]) -> list[Recording]:
    from kvmon.alerts import Recording

    return [rule for group in groups for rule in group.rules if isinstance(rule, Recording)]


def _described(alert: Alert) -> dict[str, str]:
    fields = asdict(alert)
    return {"name": fields.pop("name"), "for": fields.pop("holds"), "keep_firing_for": fields.pop("keep"), **fields}


def _read(context: click.Context, alert: str) -> None:
    """Print a runbook. Raises ConfigError where an option was given that it does not heed."""
    for name in context.params:
        if name != "alert" and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise ConfigError(f"a runbook is printed as it is: give '{alert}' without options")

    from kvmon.alerts import runbook

    click.echo(runbook(alert).rstrip())


def _write(
    directory: Path, groups: list[Group], form: Format, runbook_url: str | None, *, with_runbooks: bool, force: bool
) -> list[Path]:
    """Write every file or none, and say which."""
    from kvmon.alerts import DEFAULT_RUNBOOK_URL, check_runbook_url, runbooks, written

    prefix = DEFAULT_RUNBOOK_URL if runbook_url is None else check_runbook_url(runbook_url)
    texts = {directory / name: text for name, text in written(groups, form, runbook_url=prefix).items()}
    if with_runbooks:
        texts |= {directory / "runbooks" / f"{name}.md": text for name, text in runbooks().items()}
    write_files(texts, "the rules", force=force)
    return list(texts)
