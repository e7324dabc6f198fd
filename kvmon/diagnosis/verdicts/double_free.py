"""Memory that is given back twice: two requests may write to the same units."""

from __future__ import annotations

from kvmon.diagnosis.finding import Evidence
from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.thresholds import PERSISTENT_WINDOWS
from kvmon.diagnosis.verdict import Holds, Verdict
from kvmon.state.watch import W
from kvmon.units import counted

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    doubles = minute.total(W.DOUBLES)
    residuals = [row[W.LEAST_RESIDUAL] for row in minute.rows[-PERSISTENT_WINDOWS:] if row[W.CLAIMS]]
    claimed = min(residuals) if len(residuals) == PERSISTENT_WINDOWS else 0
    claimed = claimed if 0 < claimed < 1 << 62 else 0
    if not doubles and not claimed:
        return None
    evidence = []
    if doubles:
        evidence.append(Evidence("units freed or handed out twice", float(doubles), "units"))
    if claimed:
        evidence.append(Evidence("residual of the engine's own numbers", float(claimed), "units"))
    what = f"{counted(doubles, 'unit')} freed or handed out twice in a minute" if doubles else "units are counted twice"
    more = f"; the engine has {claimed:,} more than the capacity" if claimed else ""
    return Holds("certain" if doubles else "likely", what + more, tuple(evidence), weight=float(doubles + claimed))


VERDICT = Verdict(
    "double_free",
    10,
    _holds,
    "one owner for each reference: a unit is freed on one path only",
    "restart before content is corrupted: answers may already mix",
    of_refusals=False,
)
