"""Memory that is set aside for tokens to come keeps others out."""

from __future__ import annotations

from kvmon.diagnosis.finding import Evidence
from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.verdict import Holds, Verdict, explained
from kvmon.state.watch import R
from kvmon.units import counted

__all__ = ["VERDICT"]


def _share(row: list[int]) -> float:
    return row[R.RESERVED] / max(row[R.CAPACITY] * row[R.UNIT_TOKENS], 1)


def _holds(minute: Minute) -> Holds | None:
    refused = minute.explains("reservation")
    if refused is None or not refused.samples:
        return None
    share = _share(max(refused.samples, key=lambda row: row[R.NEED]))

    def sentence(row: list[int]) -> str:
        need = counted(row[R.NEED], "unit")
        return f"{share:.0%} of the pool is reserved for tokens to come while a request for {need} waits"

    return explained(minute, refused, sentence, Evidence("reserved share of the pool", share, "ratio"))


VERDICT = Verdict(
    "reservation",
    0,
    _holds,
    "memory that grows with the sequence: pages, or chunks; a reservation is never written in full",
    "lower the longest output that requests may ask for",
)
