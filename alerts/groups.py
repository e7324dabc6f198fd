"""All rules in the groups in which Prometheus evaluates them, in the order in which people read them: symptoms first.

Invariant: a rule stands once; recording rules stand in the first group, so that what an alert reads was recorded in the
same or the evaluation before.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmon.alerts.device_alerts import device_alerts
from kvmon.alerts.engine_alerts import engine_alerts
from kvmon.alerts.exporter_alerts import exporter_alerts
from kvmon.alerts.recording import recordings
from kvmon.alerts.request_alerts import request_alerts
from kvmon.alerts.rule import Alert, Recording
from kvmon.alerts.thresholds import Thresholds
from kvmon.alerts.verdict_alerts import verdict_alerts

__all__ = ["Group", "alerts_of", "rule_groups"]


@dataclass(frozen=True, slots=True)
class Group:
    """A group of rules under one name."""

    name: str
    rules: tuple[Recording | Alert, ...]

    @property
    def records(self) -> bool:
        """Whether it holds recording rules."""
        return isinstance(self.rules[0], Recording)


def rule_groups(limits: Thresholds) -> list[Group]:
    """Every rule, for these thresholds."""
    return [
        Group("kvmon-rules", tuple(recordings(limits))),
        Group("kvmon-requests", tuple(request_alerts(limits))),
        Group("kvmon-engines", tuple(engine_alerts(limits))),
        Group("kvmon-verdicts", tuple(verdict_alerts(limits))),
        Group("kvmon-gpus", tuple(device_alerts(limits))),
        Group("kvmon-exporters", tuple(exporter_alerts(limits))),
    ]


def alerts_of(groups: list[Group]) -> list[Alert]:
    """The alerts among them, in their order."""
    return [rule for group in groups for rule in group.rules if isinstance(rule, Alert)]
