"""Requests wait, and nothing is computed: no request can go on, and none will."""

from __future__ import annotations

from kvmon.diagnosis.finding import Evidence
from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.thresholds import DEADLOCK_S
from kvmon.diagnosis.verdict import Holds, Verdict
from kvmon.state.watch import W
from kvmon.units import counted

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    if not minute.of_stream:
        return None
    stuck = 0
    for row in reversed(minute.rows):
        if row[W.PROGRESS] or not row[W.WAITING] or not row[W.STUCK_NS]:
            break
        stuck += row[W.STUCK_NS]
    if stuck < DEADLOCK_S * 1e9:
        return None
    row = minute.now
    held = (row[W.ACTIVE] + row[W.DEFERRED]) / max(row[W.CAPACITY], 1)
    return Holds(
        "certain",
        f"{counted(row[W.WAITING], 'request')} waiting and not a token was computed for {stuck / 1e9:.0f} s, with "
        f"{held:.0%} of the pool held",
        (
            Evidence("waiting", float(row[W.WAITING]), "requests"),
            Evidence("running", float(row[W.RUNNING]), "requests"),
            Evidence("free", float(row[W.FREE]), "units"),
            Evidence("without progress", stuck / 1e9, "s"),
        ),
        weight=float(stuck),
    )


VERDICT = Verdict(
    "deadlock",
    12,
    _holds,
    "preemption when a running request cannot grow, or admission by what a request may need in full",
    "abort what another finding names, or else a request that holds memory; restart if none can be aborted",
    of_refusals=False,
)
