"""Prometheus rules for kvmon's metrics: recording rules, alerts, and a runbook for each alert.

    files = written(rule_groups(load_thresholds()), "prometheus")

Everything is data until `written` makes YAML of it; writing files is the command line's affair.
"""

from __future__ import annotations

from kvmon.alerts.groups import Group, alerts_of, rule_groups
from kvmon.alerts.recording import recorded
from kvmon.alerts.rule import Alert, Recording
from kvmon.alerts.runbooks import DEFAULT_RUNBOOK_URL, check_runbook_url, runbook, runbooks
from kvmon.alerts.thresholds import Threshold, Thresholds, load_thresholds
from kvmon.alerts.written import FORMATS, Format, written

__all__ = [
    "DEFAULT_RUNBOOK_URL",
    "FORMATS",
    "Alert",
    "Format",
    "Group",
    "Recording",
    "Threshold",
    "Thresholds",
    "alerts_of",
    "check_runbook_url",
    "load_thresholds",
    "recorded",
    "rule_groups",
    "runbook",
    "runbooks",
    "written",
]
