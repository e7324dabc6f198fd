"""Alerts on what `kvmon_verdict` says: one for each verdict that needs a person.

Several verdicts may hold at once. Of those that explain why requests are refused or wait, the first in the catalogue's
order alerts and the others are silent: whoever aborts a request that never fits need not be told that there is a
deadlock too. What is wrong in itself (a double free, a leak, an error that is not about KV memory, numbers that cannot
be trusted) alerts whatever else holds. A verdict alone warns; it is critical when requests pay for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmon.alerts.rule import ON_RANK, POOL, RANK, Alert, Severity, looked_up
from kvmon.alerts.thresholds import Thresholds, duration_text
from kvmon.catalog import ENUMERATIONS

__all__ = ["VERDICTS", "verdict_alerts"]

_HELD = "pool_verdict:kvmon_verdict:held_ratio"
_ALONE = frozenset({"double_free", "leak", "not_kv", "telemetry_untrusted"})
"""Verdicts that no other one explains."""
_NO_CAUSE = frozenset({"double_free", "not_kv", "telemetry_untrusted"})
"""Verdicts that explain no other one."""
_ONCE = frozenset({"double_free", "not_kv", "telemetry_untrusted"})
"""Verdicts of which once is enough."""


@dataclass(frozen=True, slots=True)
class _Said:
    """How the alert of a verdict speaks: its name, a line for lists, and a sentence about the engine with numbers.

    `urgent`: it is critical in itself. `paid`: it becomes critical when requests pay for it.
    """

    name: str
    what: str
    sentence: str
    urgent: bool = False
    paid: bool = True


def _of_pool(name: str, form: str, unit: str = "", only: str = "") -> str:
    return looked_up(name, form, *POOL, only=only, unit=unit)


def _of_rank(name: str, form: str) -> str:
    return looked_up(name, form, *RANK)


def _bytes(name: str) -> str:
    return looked_up(name, "humanize1024", *POOL, unit="B", otherwise="an unknown amount")


def _state(state: str) -> str:
    return _of_pool("kvmon_memory_bytes", "humanize1024", "B", f"state={state}")


_ROOM = f"capacity {_bytes('kvmon_memory_capacity_bytes')}, free {_state('free')}"

VERDICTS: dict[str, _Said] = {
    "fragmentation": _Said(
        "KvmonFragmentation",
        "enough memory is free, and in no single run",
        "requests need their memory in one piece: the largest free block is "
        f"{_bytes('kvmon_largest_free_block_bytes')} with {_state('free')} free",
    ),
    "never_fits": _Said(
        "KvmonNeverFits",
        "a request is larger than the pool",
        f"a request needs more than the whole pool has ({_bytes('kvmon_memory_capacity_bytes')}): it waits for ever, "
        "and all behind it, or it was refused",
    ),
    "pool_starved": _Said(
        "KvmonPoolStarved",
        "one of several pools is too small while another has room",
        f"this pool ({_ROOM}) bounds every request, however empty the engine's other one is",
    ),
    "partition": _Said(
        "KvmonPartition",
        "a quota keeps requests of its class out",
        f"a class of requests is at its quota while the pool has room ({_ROOM})",
    ),
    "reclaim_failed": _Said(
        "KvmonReclaimFailed",
        "memory that could have been evicted was not",
        "requests were refused although eviction would have made room: the largest block after it is "
        f"{_bytes('kvmon_largest_free_block_after_eviction_bytes')}",
    ),
    "reservation": _Said(
        "KvmonReservation",
        "memory set aside keeps others out",
        f"slots reserved for tokens to come keep requests out ({_ROOM}), and most are never written",
    ),
    "pinned": _Said(
        "KvmonPinned",
        "protected content keeps requests out",
        f"{_state('pinned')} of cached content are pinned and unused while requests wait ({_ROOM})",
    ),
    "stranded": _Said(
        "KvmonStranded",
        "memory of ended requests waits for a transfer that does not come",
        f"{_state('deferred')} belong to requests that have ended and wait for a transfer ({_ROOM})",
    ),
    "tail_waste": _Said(
        "KvmonTailWaste",
        "pages are too large for the sequences",
        f"{_of_pool('kvmon_page_utilization_ratio', 'humanizePercentage')} of the active slots hold a token: the "
        "unfilled rest of last pages would have let requests in",
    ),
    "double_free": _Said(
        "KvmonDoubleFree",
        "memory is given back twice: answers may mix",
        "memory was given back twice, so that two requests may write to the same units; residual "
        f"{_of_pool('kvmon_residual_units', 'humanize')} units",
        urgent=True,
    ),
    "leak": _Said(
        "KvmonLeak",
        "memory belongs to nobody and does not come back",
        f"units are held that no live request owns: {_of_pool('kvmon_unowned_units', 'humanize')} without an owner, "
        f"residual {_of_pool('kvmon_residual_units', 'humanize')} units",
    ),
    "deadlock": _Said(
        "KvmonDeadlock",
        "requests wait and nothing is computed",
        "requests wait and no token was computed for "
        + _of_rank("kvmon_stuck_seconds", "humanizeDuration")
        + f" of the last minute ({_ROOM}); it does not end by itself",
        urgent=True,
    ),
    "preemption_storm": _Said(
        "KvmonPreemptionStorm",
        "requests preempt each other, and work is done again",
        _of_rank("kvmon_recomputed_ratio", "humanizePercentage")
        + " of what is prefilled was computed before and thrown away by a preemption",
    ),
    "not_kv": _Said(
        "KvmonNotKv",
        "out of memory, and not of KV memory",
        f"the engine reported an out-of-memory error of another allocator while its KV pool had room ({_ROOM})",
        paid=False,
    ),
    "cache_thrash": _Said(
        "KvmonCacheThrash",
        "the prefix cache forgets what is asked for again",
        _of_rank("kvmon_forgotten_ratio", "humanizePercentage")
        + " of the looked-up prompt tokens had been cached and were evicted meanwhile",
    ),
    "head_of_line": _Said(
        "KvmonHeadOfLine",
        "a large request at the head keeps small ones out",
        f"a large request at the head of the queue needs {_bytes('kvmon_head_need_bytes')} and keeps smaller ones "
        f"out that would fit ({_ROOM})",
    ),
    "capacity": _Said(
        "KvmonCapacity",
        "more work than memory",
        f"requests do not fit and no waste explains it ({_ROOM})",
    ),
    "telemetry_untrusted": _Said(
        "KvmonTelemetryUntrusted",
        "the engine's numbers and its events disagree, or events are missing",
        f"the engine's own numbers are off by {_of_pool('kvmon_drift_units', 'humanize')} units, or its usage gauge "
        "is, or events are missing",
        paid=False,
    ),
}
"""Every verdict but `healthy`, in the catalogue's order."""


def verdict_alerts(limits: Thresholds) -> list[Alert]:
    """An alert or two for each verdict."""
    return [alert for verdict in VERDICTS for alert in _alerts(verdict, limits)]


def _alerts(verdict: str, limits: Thresholds) -> list[Alert]:
    said = VERDICTS[verdict]
    if said.urgent:
        return [_alert(verdict, "critical", "verdict_urgent_for", _holds(verdict, limits), limits)]
    holds = "verdict_urgent_for" if verdict in _ONCE else "verdict_for"
    found = [_alert(verdict, "warning", holds, _holds(verdict, limits), limits)]
    if said.paid:
        expression = f"({_holds(verdict, limits)}) and {ON_RANK} ({_paid(limits)})"
        found.append(_alert(verdict, "critical", "verdict_critical_for", expression, limits))
    return found


def _holds(verdict: str, limits: Thresholds) -> str:
    """The verdict holds, its engine is not dead, and nothing explains it."""
    share = limits["verdict_share"]
    least = "> 0" if verdict in _ONCE else f">= {share}"
    expression = f'{_HELD}{{verdict="{verdict}"}} {least} unless {ON_RANK} (kvmon_engine_up == 0)'
    causes = _explained_by(verdict)
    if not causes:
        return expression
    return f'{expression} unless {ON_RANK} ({_HELD}{{verdict=~"{"|".join(causes)}"}} >= {share})'


def _explained_by(verdict: str) -> list[str]:
    """The verdicts that stand before this one and explain it."""
    if verdict in _ALONE:
        return []
    order = [name for name in ENUMERATIONS["kvmon_verdict", "verdict"] if name in VERDICTS]
    return [name for name in order[: order.index(verdict)] if name not in _NO_CAUSE]


def _paid(limits: Thresholds) -> str:
    """Requests pay: somebody waits nearly always, or too many are lost."""
    waits, lost = limits["cost_wait_ratio"], limits["cost_lost_share"]
    return f"pool:kvmon_memory_wait_ratio:avg >= {waits} or rank:kvmon_memory_lost_requests:arrived_ratio >= {lost}"


def _alert(verdict: str, severity: Severity, holds: str, expression: str, limits: Thresholds) -> Alert:
    said = VERDICTS[verdict]
    waits = looked_up("kvmon_memory_wait_ratio", "humanizePercentage", *POOL, otherwise="an unknown share")
    lost = looked_up("kvmon_memory_lost_requests", "humanize", *POOL)
    window = duration_text(limits.duration("verdict_window"))
    return Alert(
        name=said.name,
        severity=severity,
        expr=expression,
        holds=limits.duration(holds),
        keep=limits.duration("keep_firing"),
        what=said.what,
        summary=f"{{{{ $labels.engine }}}}/{{{{ $labels.rank }}}}, pool {{{{ $labels.pool }}}}: {said.what}",
        description=(
            "Engine {{ $labels.engine }}, rank {{ $labels.rank }}, pool {{ $labels.pool }}: "
            f"{said.sentence}. It held at {{{{ $value | humanizePercentage }}}} of the looks at the last {window}. In "
            f"the last minute somebody waited for memory for {waits} of the time, and {lost} requests were lost for "
            "want of it."
        ),
        command=_COMMANDS.get(verdict, "kvmon why"),
        verdict=verdict,
    )


_COMMANDS = {
    "partition": "kvmon holders --by class",
    "pinned": "kvmon holders",
    "stranded": "kvmon holders",
    "double_free": "kvmon verify $KVMON_DIR",
    "leak": "kvmon verify $KVMON_DIR",
    "deadlock": "kvmon holders --by state",
    "preemption_storm": "kvmon status",
    "not_kv": "kvmon replay $KVMON_DIR",
    "cache_thrash": "kvmon status",
    "telemetry_untrusted": "kvmon verify $KVMON_DIR",
}
"""The command that shows most, by verdict; where requests are refused that is `kvmon why`."""
