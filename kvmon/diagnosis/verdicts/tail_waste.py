"""The unfilled rest of last pages keeps requests out: pages are too large for the sequences."""

from __future__ import annotations

from kvmon.diagnosis.finding import Evidence
from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.verdict import Holds, Verdict, explained
from kvmon.state.watch import R

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    refused = minute.explains("tail_waste")
    if refused is None or not refused.samples:
        return None
    row = max(refused.samples, key=lambda row: row[R.NEED])
    share = row[R.TAIL] / max(row[R.CAPACITY] * row[R.UNIT_TOKENS], 1)

    def sentence(row: list[int]) -> str:
        return f"{share:.0%} of the slots are the unfilled rest of pages of {row[R.UNIT_TOKENS]} while requests wait"

    return explained(minute, refused, sentence, Evidence("tail share of the slots", share, "ratio"))


VERDICT = Verdict(
    "tail_waste",
    0,
    _holds,
    "smaller pages: a page of B tokens wastes B/2 of a sequence on average, and shares no prefix shorter than B",
    "none without a restart: the page size is fixed when the engine starts",
)
