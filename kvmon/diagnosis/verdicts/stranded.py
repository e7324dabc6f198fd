"""Memory of ended requests that waits for a transfer which does not come."""

from __future__ import annotations

from kvmon.diagnosis.finding import Evidence
from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.thresholds import NAMED_SHARE, STRANDED_WINDOWS
from kvmon.diagnosis.verdict import Holds, Verdict, explained
from kvmon.state.watch import R, W
from kvmon.units import counted

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    refused = minute.explains("stranded")
    share = minute.share(W.DEFERRED)
    if refused is not None and refused.samples:
        row = max(refused.samples, key=lambda row: row[R.NEED])
        share = row[R.DEFERRED] / max(row[R.CAPACITY], 1)

        def sentence(row: list[int]) -> str:
            return (
                f"{share:.0%} of the pool waits for transfers while a request for {counted(row[R.NEED], 'unit')} waits"
            )

        return explained(minute, refused, sentence, Evidence("deferred share of the pool", share, "ratio"))
    held = minute.of_last(STRANDED_WINDOWS, W.LEAST_DEFERRED)
    if len(held) < STRANDED_WINDOWS or min(held) < NAMED_SHARE * minute.now[W.CAPACITY] or not minute.known():
        return None
    return Holds(
        "likely",
        f"{share:.0%} of the pool waits for transfers of ended requests, and did for half a minute",
        (
            Evidence("deferred", float(minute.now[W.DEFERRED]), "units"),
            Evidence("deferred share of the pool", share, "ratio"),
        ),
        weight=share,
    )


VERDICT = Verdict(
    "stranded",
    0,
    _holds,
    "a timeout on transfers, and a release when the other side is gone",
    "restart the engine that should have fetched the blocks, or lower the transfer timeout",
    of_refusals=False,
)
