"""Alerts on engines that are gone, hang or say nothing, and on what of their recording is missing.

A dead engine's numbers vanish from the page, `kvmon_engine_up 0` stays for as long as its recording lies there. So it
is missed only for a while after it was last seen alive: an engine taken out of service does not alert for ever, and one
that is started again within the time that a model takes to load does not alert at all, unless requests died with it.
"""

from __future__ import annotations

from kvmon.alerts.recording import last
from kvmon.alerts.rule import ON_RANK, RANK, Alert, Severity, looked_up
from kvmon.alerts.thresholds import Thresholds, duration_text

__all__ = ["engine_alerts"]

_ENGINE = "{{ $labels.engine }}/{{ $labels.rank }}"


def engine_alerts(limits: Thresholds) -> list[Alert]:
    """The alerts of this topic, for these thresholds."""
    return [
        _down("warning", limits),
        _down("critical", limits),
        _stalled(limits),
        _silent(limits),
        _lost_events(limits),
        _converging(limits),
    ]


def _down(severity: Severity, limits: Thresholds) -> Alert:
    memory = limits.duration("engine_memory")
    gone = f"({last('kvmon_engine_up', limits)} == 0) and {ON_RANK} (max_over_time(kvmon_engine_up[{memory}]) == 1)"
    working = f"sum by (job, instance, engine, rank) (last_over_time(kvmon_requests[{memory}])) > 0"
    critical = severity == "critical"
    how = "with requests in it" if critical else f"for {duration_text(limits.duration('engine_gone_for'))}"
    lost = (
        "It had requests when it was last seen; their clients have no answer."
        if critical
        else "Whether it had work when it went, the alert of the same name with severity critical tells."
    )
    return Alert(
        "KvmonEngineDown",
        severity,
        f"{gone} and {ON_RANK} ({working})" if critical else gone,
        holds=limits.duration("engine_down_for" if critical else "engine_gone_for"),
        what="the engine's process is gone" + (", with requests in it" if critical else " and did not come back"),
        summary=f"{_ENGINE} is gone {how}",
        description=(
            f"The process of engine {_ENGINE} at {{{{ $labels.instance }}}} is gone: its numbers ended with it. {lost} "
            "What it recorded until its last step is still there. The alert ends when the engine is back, when its "
            f"recording is removed, or {duration_text(memory)} after it was last seen."
        ),
        command="kvmon replay $KVMON_DIR",
    )


def _stalled(limits: Thresholds) -> Alert:
    age = looked_up("kvmon_heartbeat_age_seconds", "humanizeDuration", *RANK)
    running = looked_up("kvmon_requests", "humanize", *RANK, only="state=running")
    waiting = looked_up("kvmon_requests", "humanize", *RANK, only="state=waiting")
    return Alert(
        "KvmonEngineStalled",
        "critical",
        f"({last('kvmon_engine_stalled', limits)} == 1) unless {ON_RANK} (kvmon_engine_up == 0)",
        holds=limits.duration("stalled_for"),
        what="the engine lives and has work, and makes no step",
        summary=f"{_ENGINE} has work and makes no step",
        description=(
            f"Engine {_ENGINE} lives, has {running} requests running and {waiting} waiting, and has recorded nothing "
            f"for {age}. Its numbers stand still as they were."
        ),
        command="kvmon top --once",
    )


def _silent(limits: Thresholds) -> Alert:
    return Alert(
        "KvmonEngineSilent",
        "warning",
        f"({last('kvmon_engine_up', limits)} == 1) unless {ON_RANK} {last('kvmon_pool_info', limits)}",
        holds=limits.duration("silent_for"),
        what="the engine lives, and nothing is known about its memory",
        summary=f"{_ENGINE} lives, and no pool of it is recorded",
        description=(
            f"Engine {_ENGINE} at {{{{ $labels.instance }}}} lives and has said nothing about its KV memory for "
            f"{duration_text(limits.duration('silent_for'))}: its adapter is attached to nothing, or its recording "
            "cannot be read. No other alert can fire for it."
        ),
        command="kvmon doctor",
    )


def _lost_events(limits: Thresholds) -> Alert:
    window = limits.duration("lost_events_window")
    return Alert(
        "KvmonEventsLost",
        "warning",
        f"increase(kvmon_events_lost_total[{window}]) > 0",
        holds=limits.duration("lost_events_for"),
        keep=limits.duration("keep_firing"),
        what="events of an engine were lost: its numbers have a gap",
        summary=f"{_ENGINE}: about {{{{ $value | humanize }}}} events were lost",
        description=(
            f"In the last {duration_text(window)} about {{{{ $value | humanize }}}} events of engine {_ENGINE} could "
            "not be recorded, or were overwritten before they were read. Numbers that need the whole past are absent "
            "until a sweep has made the gap good."
        ),
        command="kvmon doctor",
    )


def _converging(limits: Thresholds) -> Alert:
    return Alert(
        "KvmonConverging",
        "warning",
        f"({last('kvmon_converging', limits)} == 1) "
        f"and {ON_RANK} ({last('kvmon_heartbeat_age_seconds', limits)} < {limits.seconds('fresh')})",
        holds=limits.duration("converging_for"),
        what="the engine works, and its past is still not known as a whole",
        summary=f"{_ENGINE}: numbers are absent for {duration_text(limits.duration('converging_for'))}",
        description=(
            f"After a late start or a gap the numbers of engine {_ENGINE} that need its whole past are absent until a "
            "complete sweep over its units has been recorded. It makes steps, and none was complete for "
            f"{duration_text(limits.duration('converging_for'))}."
        ),
        command="kvmon doctor",
    )
