"""Memory that belongs to no live request and does not come back."""

from __future__ import annotations

from kvmon.diagnosis.finding import Evidence
from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.thresholds import LEAK_WINDOWS, PERSISTENT_WINDOWS
from kvmon.diagnosis.verdict import Holds, Verdict
from kvmon.state.watch import W
from kvmon.units import counted

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    owned = minute.of_last(LEAK_WINDOWS, W.LEAST_UNOWNED)
    orphans = min(owned) if len(owned) == LEAK_WINDOWS and minute.exact and minute.known(LEAK_WINDOWS) else 0
    residuals = [row[W.MOST_RESIDUAL] for row in minute.rows[-PERSISTENT_WINDOWS:] if row[W.CLAIMS]]
    claimed = max(residuals) if len(residuals) == PERSISTENT_WINDOWS else 0
    if orphans <= 0 and not -(1 << 62) < claimed < 0:
        return None
    missing = -claimed if claimed < 0 else orphans
    before = minute.rows[0][W.UNOWNED]
    evidence = [
        Evidence("units lost for three windows", float(missing), "units"),
        Evidence("capacity", float(minute.now[W.CAPACITY]), "units"),
    ]
    if orphans > 0:
        evidence.append(Evidence("units without an owner at the end", float(minute.now[W.UNOWNED]), "units"))
        evidence.append(Evidence("units without an owner a minute before", float(max(before, 0)), "units"))
    if claimed < 0:
        evidence.append(Evidence("residual of the engine's own numbers", float(claimed), "units"))
    grows = f"; a minute before {max(before, 0):,} were" if orphans > 0 and minute.now[W.UNOWNED] > before else ""
    said = "no live request owns them" if orphans > 0 else "the engine's own numbers do not reach the capacity"
    return Holds(
        "certain" if orphans > 0 else "likely",
        f"{counted(missing, 'unit')} {'is' if missing == 1 else 'are'} gone: {said}{grows}",
        tuple(evidence),
        weight=float(missing),
    )


VERDICT = Verdict(
    "leak",
    11,
    _holds,
    "memory that is given back on every path, aborts and errors too",
    "restart the engine before the lost units matter; the rate tells how long that is",
    of_refusals=False,
)
