"""Requests preempt each other, and most of what is computed was computed before."""

from __future__ import annotations

from kvmon.diagnosis.finding import Evidence
from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.thresholds import STORM_PREEMPTIONS, STORM_SHARE
from kvmon.diagnosis.verdict import Holds, Verdict
from kvmon.state.watch import W
from kvmon.units import counted

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    if not minute.of_stream:
        return None
    preempted, lost, prefill = minute.total(W.PREEMPTED), minute.total(W.LOST), minute.total(W.PREFILL)
    if preempted < STORM_PREEMPTIONS or not prefill or lost < STORM_SHARE * prefill:
        return None
    finished, share = minute.total(W.FINISHED), min(lost / prefill, 1.0)
    return Holds(
        "likely",
        f"{counted(preempted, 'preemption')} in a minute threw away {lost:,} tokens, {share:.0%} of those prefilled; "
        f"{counted(finished, 'request')} finished",
        (
            Evidence("preemptions in the minute", float(preempted), "preemptions"),
            Evidence("tokens lost by them", float(lost), "tokens"),
            Evidence("prefilled tokens", float(prefill), "tokens"),
            Evidence("finished requests", float(finished), "requests"),
        ),
        weight=float(lost),
    )


VERDICT = Verdict(
    "preemption_storm",
    13,
    _holds,
    "admission by the full need of a request, so that what runs can end",
    "lower the number of running requests until preemptions stop",
    of_refusals=False,
)
