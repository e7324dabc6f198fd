"""Alerts on what users feel, from raw numbers and whatever the cause: requests lost, slow to begin, or not served at
all; and on memory that is held for too long, or that the engine's own numbers do not account for.

Never on usage: a full pool with a warm prefix cache is healthy.
"""

from __future__ import annotations

from kvmon.alerts.recording import last
from kvmon.alerts.rule import ON_RANK, POOL, RANK, Alert, Severity, looked_up
from kvmon.alerts.thresholds import Thresholds, duration_text

__all__ = ["request_alerts"]

_ENGINE = "{{ $labels.engine }}/{{ $labels.rank }}"
_POOL = _ENGINE + ", pool {{ $labels.pool }}"


def request_alerts(limits: Thresholds) -> list[Alert]:
    """The alerts of this topic, for these thresholds."""
    return [
        _lost("warning", limits),
        _lost("critical", limits),
        _slow("warning", limits),
        _slow("critical", limits),
        _no_progress(limits),
        _held_too_long(limits),
        _unbalanced(limits),
    ]


def _lost(severity: Severity, limits: Thresholds) -> Alert:
    return Alert(
        "KvmonRequestsLost",
        severity,
        f"rank:kvmon_memory_lost_requests:arrived_ratio >= {limits[f'lost_share_{severity}']}",
        holds=limits.duration("lost_for"),
        keep=limits.duration("keep_firing"),
        what="requests are refused or aborted for want of KV memory",
        summary=f"{_ENGINE}: {{{{ $value | humanizePercentage }}}} of the requests are lost for want of memory",
        description=(
            f"Engine {_ENGINE} refused or aborted {{{{ $value | humanizePercentage }}}} of the requests that arrive in "
            "a minute because they found no KV memory. Their clients had an error."
        ),
        command="kvmon why --since 10m",
    )


def _slow(severity: Severity, limits: Thresholds) -> Alert:
    seconds = f"{limits['slow_wait']:g} s"
    arrivals = looked_up("kvmon_requests_arrived_total", "humanize", *RANK)
    return Alert(
        "KvmonRequestsSlowToBegin",
        severity,
        f"rank:kvmon_kv_wait_seconds:slow_ratio >= {limits[f'slow_share_{severity}']}",
        holds=limits.duration("slow_for"),
        keep=limits.duration("keep_firing"),
        what=f"requests wait for KV memory for longer than {seconds} before they begin",
        summary=f"{_ENGINE}: {{{{ $value | humanizePercentage }}}} of the requests wait for memory for over {seconds}",
        description=(
            f"{{{{ $value | humanizePercentage }}}} of the requests of engine {_ENGINE} waited for KV memory for "
            f"longer than {seconds} before their first token was begun, in the last "
            f"{duration_text(limits.duration('rate_window'))}; {arrivals} requests arrived since the engine started."
        ),
        command="kvmon why --since 10m",
    )


def _no_progress(limits: Thresholds) -> Alert:
    running = looked_up("kvmon_requests", "humanize", *RANK, only="state=running")
    waiting = looked_up("kvmon_requests", "humanize", *RANK, only="state=waiting")
    window = duration_text(limits.duration("progress_window"))
    return Alert(
        "KvmonNoProgress",
        "critical",
        f"(rank:kvmon_requests:sum > 0) and {ON_RANK} (rank:kvmon_tokens:rate == 0) "
        f"unless {ON_RANK} ({last('kvmon_engine_stalled', limits)} == 1)",
        holds=limits.duration("progress_for"),
        keep=limits.duration("keep_firing"),
        what="requests are in the engine, it makes steps, and computes no token",
        summary=f"{_ENGINE}: {{{{ $value | humanize }}}} requests, and no token is computed",
        description=(
            f"Engine {_ENGINE} has {{{{ $value | humanize }}}} requests ({running} running, {waiting} waiting) and "
            f"computed no token for {window}. It lives and makes steps, so health checks are green."
        ),
        command="kvmon holders --by state",
    )


def _held_too_long(limits: Thresholds) -> Alert:
    owned = looked_up("kvmon_owned_memory_bytes", "humanize1024", *POOL, only="owner=finished", unit="B")
    return Alert(
        "KvmonMemoryHeldTooLong",
        "warning",
        f"({last('kvmon_oldest_allocation_age_seconds', limits)} >= {limits.seconds('hold_age')}) "
        f"unless {ON_RANK} (kvmon_engine_up == 0)",
        holds=limits.duration("hold_for"),
        what="memory has been active for longer than any answer takes",
        summary=f"{_POOL}: memory is held since {{{{ $value | humanizeDuration }}}}",
        description=(
            f"The oldest active memory of pool {{{{ $labels.pool }}}} of engine {_ENGINE} was allocated "
            f"{{{{ $value | humanizeDuration }}}} ago; an answer takes less than "
            f"{duration_text(limits.duration('hold_age'))}. Held by requests that have ended: {owned}."
        ),
        command="kvmon holders --by state,age",
    )


def _unbalanced(limits: Thresholds) -> Alert:
    return Alert(
        "KvmonPoolUnbalanced",
        "warning",
        f"({last('kvmon_residual_units', limits)} != 0) unless {ON_RANK} (kvmon_engine_up == 0)",
        holds=limits.duration("residual_for"),
        keep=limits.duration("keep_firing"),
        what="the engine's numbers about its pool do not sum to the capacity",
        summary=f"{_POOL}: the engine's numbers miss the capacity by {{{{ $value | humanize }}}} units",
        description=(
            f"What engine {_ENGINE} says about pool {{{{ $labels.pool }}}} (available, evictable, protected, in "
            "flight) differs in sum from the capacity by {{ $value | humanize }} units. Negative: units are lost. "
            "Positive: some are counted, or given back, twice."
        ),
        command="kvmon verify $KVMON_DIR",
    )
