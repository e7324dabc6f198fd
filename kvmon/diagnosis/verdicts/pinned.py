"""Cached content that is protected from eviction keeps requests out."""

from __future__ import annotations

from kvmon.diagnosis.finding import Evidence
from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.verdict import Holds, Verdict, explained
from kvmon.state.watch import R
from kvmon.units import counted

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    refused = minute.explains("pinned")
    if refused is None or not refused.samples:
        return None
    row = max(refused.samples, key=lambda row: row[R.NEED])
    share = row[R.PINNED] / max(row[R.CAPACITY], 1)

    def sentence(row: list[int]) -> str:
        return f"{share:.0%} of the pool is pinned and unused while a request for {counted(row[R.NEED], 'unit')} waits"

    return explained(minute, refused, sentence, Evidence("pinned share of the pool", share, "ratio"))


VERDICT = Verdict(
    "pinned",
    0,
    _holds,
    "a lower cap for pins, or pins that expire",
    "unpin the content that was hit least",
)
