"""What the engine says of itself and what it does disagree, or part of the events is missing."""

from __future__ import annotations

from kvmon.diagnosis.finding import Evidence
from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.thresholds import DRIFT_SHARE, GAUGE_OFF, PERSISTENT_WINDOWS
from kvmon.diagnosis.verdict import Holds, Verdict
from kvmon.state.watch import W
from kvmon.units import counted

__all__ = ["VERDICT"]

_NONE = (1 << 63) - 1


def _least(minute: Minute, column: int) -> int:
    """The least of a column in the last windows, where each of them has claims and the past was known; else 0."""
    rows = minute.rows[-PERSISTENT_WINDOWS:]
    if len(rows) < PERSISTENT_WINDOWS or not all(row[W.CLAIMS] and row[W.KNOWN] for row in rows) or not minute.exact:
        return 0
    least = min(row[column] for row in rows)
    return 0 if least == _NONE else least


def _holds(minute: Minute) -> Holds | None:
    gauge, drift, gaps = (
        _least(minute, W.LEAST_GAUGE) / 1e6,
        _least(minute, W.LEAST_DRIFT),
        minute.total(W.GAPS) if minute.of_stream else 0,
    )
    lost = max((row[W.UNOWNED] for row in minute.rows), default=0) / max(minute.now[W.CAPACITY], 1)
    reasons, evidence = [], []
    if gauge >= GAUGE_OFF + max(lost, 0.0):
        reasons.append(f"the engine's usage gauge is off by {gauge:.0%} of the pool")
        evidence.append(Evidence("gauge less use, at the least", gauge, "ratio"))
    if drift >= max(DRIFT_SHARE * minute.now[W.CAPACITY], 1) and not minute.total(W.DOUBLES):
        reasons.append(f"the engine claims {counted(drift, 'unit')} more or fewer than its events add up to")
        evidence.append(Evidence("drift, at the least", float(drift), "units"))
    if gaps:
        reasons.append("events are missing")
        evidence.append(Evidence("gaps in the minute", float(gaps), "gaps"))
    refused = minute.refused.get("telemetry_untrusted")
    if refused is not None and refused.count:
        reasons.append("the engine reports an accounting error")
        evidence.append(Evidence("accounting errors", float(refused.count), "failures"))
    if not reasons:
        return None
    said = "; ".join(reasons)
    return Holds("certain" if gaps else "likely", said, tuple(evidence), weight=gauge + drift + gaps)


VERDICT = Verdict(
    "telemetry_untrusted",
    30,
    _holds,
    "a gauge that counts what it says, and a recording without losses",
    "do not act on the engine's own gauge; look at the events, and at what the probe lost",
    of_refusals=False,
)
