"""Rules as YAML: files for Prometheus, or a PrometheusRule object for Kubernetes' Prometheus operator.

Invariant: the same rules give the same bytes, so that a generated file can be reviewed; nothing here touches a disk.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import yaml

from kvmon.alerts.groups import Group
from kvmon.alerts.rule import Alert, Recording
from kvmon.alerts.runbooks import DEFAULT_RUNBOOK_URL

__all__ = ["FORMATS", "Format", "written"]

Format = Literal["prometheus", "prometheusrule"]
FORMATS: tuple[Format, ...] = get_args(Format)

_WIDTH = 118
_MADE = "# Made by `kvmon alerts`; change its thresholds (`kvmon alerts --thresholds FILE`), not this file.\n"


class _Dumper(yaml.SafeDumper):
    """Block style for what is long, so that a changed word is a changed line."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = ">" if len(text) > _WIDTH - 20 else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _text)


def written(
    groups: list[Group], form: Format = "prometheus", *, runbook_url: str = DEFAULT_RUNBOOK_URL
) -> dict[str, str]:
    """Text of each file by its name: recording rules and alerts apart, or one object that holds both."""
    if form == "prometheusrule":
        body: dict[str, Any] = {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {
                "name": "kvmon",
                "labels": {"app.kubernetes.io/name": "kvmon", "app.kubernetes.io/component": "monitoring"},
            },
            "spec": {"groups": [_group(group, runbook_url) for group in groups]},
        }
        return {"kvmon-prometheusrule.yml": _yaml(body)}
    parts = {"kvmon-rules.yml": True, "kvmon-alerts.yml": False}
    return {
        name: _yaml({"groups": [_group(group, runbook_url) for group in groups if group.records is records]})
        for name, records in parts.items()
    }


def _yaml(body: dict[str, Any]) -> str:
    return _MADE + yaml.dump(body, Dumper=_Dumper, sort_keys=False, width=_WIDTH, allow_unicode=True)


def _group(group: Group, runbook_url: str) -> dict[str, Any]:
    return {
        "name": group.name,
        "rules": [_alert(rule, runbook_url) if isinstance(rule, Alert) else _recording(rule) for rule in group.rules],
    }


def _recording(rule: Recording) -> dict[str, Any]:
    return {"record": rule.record, "expr": rule.expr}


def _alert(rule: Alert, runbook_url: str) -> dict[str, Any]:
    labels: dict[str, str] = {"severity": rule.severity}
    if rule.verdict:
        labels["verdict"] = rule.verdict
    return {
        "alert": rule.name,
        "expr": rule.expr,
        "for": rule.holds,
        **({"keep_firing_for": rule.keep} if rule.keep and rule.keep != "0s" else {}),
        "labels": labels,
        "annotations": {
            "summary": rule.summary,
            "description": rule.description,
            "command": rule.command,
            "runbook_url": f"{runbook_url}/{rule.name}",
        },
    }
