"""A large request waits at the head of the queue, and all behind it with it, while enough is free for them."""

from __future__ import annotations

from kvmon.diagnosis.finding import Evidence
from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.thresholds import FITTING_REQUESTS, FREE_FOR_OTHERS, HEAD_WAITS_S
from kvmon.diagnosis.verdict import Holds, Verdict, explained
from kvmon.state.watch import R, W
from kvmon.units import counted

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    refused = minute.refused.get("head_of_line")
    if refused is None or refused.waited_s < HEAD_WAITS_S or not refused.samples:
        return None
    blocked = max(
        (row[W.FITTING] for row in minute.rows if row[W.FREE] + row[W.CACHED] >= FREE_FOR_OTHERS * row[W.CAPACITY]),
        default=0,
    )
    if blocked < FITTING_REQUESTS:
        return None

    def sentence(row: list[int]) -> str:
        free = (row[R.FREE] + row[R.EVICTABLE]) / max(row[R.CAPACITY], 1)
        return (
            f"a request for {counted(row[R.NEED], 'unit')} waits at the head with {free:.0%} of the pool free, and "
            f"{blocked:,} behind it would fit"
        )

    more = Evidence("requests behind it that would fit", float(blocked), "requests")
    return explained(minute, refused, sentence, more, sure=False)


VERDICT = Verdict(
    "head_of_line",
    16,
    _holds,
    "a lower priority or a queue of its own for long requests",
    "abort or divert the request at the head of the queue",
)
