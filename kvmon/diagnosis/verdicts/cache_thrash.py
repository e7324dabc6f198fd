"""The prefix cache forgets what is asked for again: content is computed over and over."""

from __future__ import annotations

from kvmon.diagnosis.finding import Evidence
from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.thresholds import FORGOTTEN_SHARE, LOOKUP_TOKENS
from kvmon.diagnosis.verdict import Holds, Verdict
from kvmon.state.watch import W

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    if not minute.of_stream:
        return None
    lookup, forgotten, evicted = minute.total(W.LOOKUP), minute.total(W.FORGOTTEN), minute.total(W.EVICTED)
    if lookup < LOOKUP_TOKENS or not evicted or forgotten < FORGOTTEN_SHARE * lookup:
        return None
    hit = minute.total(W.HIT)
    return Holds(
        "likely",
        f"{forgotten / lookup:.0%} of the looked-up prompt tokens had been there before and were evicted meanwhile; "
        f"{hit / lookup:.0%} were found",
        (
            Evidence("looked up", float(lookup), "tokens"),
            Evidence("found", float(hit), "tokens"),
            Evidence("asked for before and evicted", float(forgotten), "tokens"),
            Evidence("evicted", float(evicted), "units"),
        ),
        weight=float(forgotten),
    )


VERDICT = Verdict(
    "cache_thrash",
    15,
    _holds,
    "a pool that holds the working set, requests of a conversation on one rank, or pins for hot prefixes",
    "send each conversation to the same rank, so that its history is cached once",
    of_refusals=False,
)
