"""Alerts on the exporter itself: while it is down or misses something, the other alerts are silent for it."""

from __future__ import annotations

from kvmon.alerts.recording import last
from kvmon.alerts.rule import ON_TARGET, Alert, looked_up
from kvmon.alerts.thresholds import Thresholds, duration_text

__all__ = ["exporter_alerts"]

_INSTANCE = "{{ $labels.instance }}"


def exporter_alerts(limits: Thresholds) -> list[Alert]:
    """The alerts of this topic, for these thresholds."""
    memory = limits.duration("exporter_memory")
    trouble = limits.duration("exporter_trouble_for")
    took = looked_up("kvmon_collector_duration_seconds", "humanizeDuration", "job", "instance", "collector")
    return [
        Alert(
            "KvmonExporterDown",
            "critical",
            f"(up == 0) and {ON_TARGET} last_over_time(kvmon_build_info[{memory}])",
            holds=limits.duration("exporter_down_for"),
            what="an exporter cannot be scraped: nobody watches its engines",
            summary=f"the exporter {_INSTANCE} cannot be scraped",
            description=(
                f"Prometheus cannot scrape {_INSTANCE} (job {{{{ $labels.job }}}}), which served kvmon's metrics "
                f"within the last {duration_text(memory)}. Every alert about its engines is silent until it is "
                "back; what they record is kept and read then."
            ),
            command="kvmon status",
        ),
        Alert(
            "KvmonCollectorFailing",
            "warning",
            f"{last('kvmon_collector_success', limits)} == 0",
            holds=trouble,
            what="a collector of the exporter fails: its metrics are missing",
            summary=f"the collector {{{{ $labels.collector }}}} of {_INSTANCE} fails",
            description=(
                f"The collector {{{{ $labels.collector }}}} of the exporter {_INSTANCE} failed in every scrape for "
                f"{duration_text(trouble)}, the last time after {took}. Its metrics are missing; all others are "
                "served. The exporter's log has the reason, once."
            ),
            command="kvmon doctor",
        ),
        Alert(
            "KvmonSeriesDropped",
            "warning",
            f"increase(kvmon_series_dropped_total[{limits.duration('rate_window')}]) > 0",
            holds=trouble,
            what="the budget of series is used up: numbers are missing",
            summary=f"{_INSTANCE} keeps series out of its page",
            description=(
                f"The exporter {_INSTANCE} left out about {{{{ $value | humanize }}}} series in the last "
                f"{duration_text(limits.duration('rate_window'))}, because a rank or the page had more than its "
                "budget. What was left out is not known to any alert or dashboard."
            ),
            command="kvmon status",
        ),
        Alert(
            "KvmonDirectoryMissing",
            "warning",
            f"{last('kvmon_directories_missing', limits)} > 0",
            holds=trouble,
            what="a recording directory cannot be read",
            summary=f"{_INSTANCE} cannot read {{{{ $value | humanize }}}} of its directories",
            description=(
                f"The exporter {_INSTANCE} cannot read {{{{ $value | humanize }}}} of the directories that it follows "
                "(gone, not mounted, or no permission). The last numbers of their engines stay, and are old."
            ),
            command="kvmon doctor",
        ),
        Alert(
            "KvmonStreamsUnreadable",
            "warning",
            f"{last('kvmon_streams_unreadable', limits)} > 0",
            holds=trouble,
            what="a recording of an engine cannot be read, or is hidden by another one",
            summary=f"{_INSTANCE} leaves out {{{{ $value | humanize }}}} recordings",
            description=(
                f"The exporter {_INSTANCE} leaves out {{{{ $value | humanize }}}} recordings: no permission, written "
                "by a newer kvmon, or a second one of the same engine and rank. The exporter's log names them."
            ),
            command="kvmon doctor",
        ),
    ]
