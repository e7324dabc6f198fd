"""More work than memory: nothing that could be given back would have let the request in."""

from __future__ import annotations

from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.verdict import Holds, Verdict, explained
from kvmon.diagnosis.verdicts import head_of_line
from kvmon.state.watch import R
from kvmon.units import counted

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    def sentence(row: list[int]) -> str:
        need = counted(row[R.NEED], "unit")
        short = row[R.NEED] - row[R.FREE] - row[R.EVICTABLE]
        if short <= 0:
            return f"admission held a request for {need} back, for what running ones may still need"
        return f"a request for {need} is {short:,} short, and no waste would have let it in"

    others = () if head_of_line.VERDICT.holds(minute) else ("head_of_line",)
    return explained(minute, minute.explains("capacity", *others), sentence)


VERDICT = Verdict(
    "capacity",
    20,
    _holds,
    "a larger pool, a smaller cache type, or fewer requests at once",
    "send part of the traffic elsewhere, or bound the number of running requests",
)
