"""A quota keeps requests of its class out while memory is free."""

from __future__ import annotations

from kvmon.diagnosis.finding import Evidence
from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.verdict import Holds, Verdict, explained
from kvmon.state.watch import R
from kvmon.units import counted

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    refused = minute.explains("partition")

    def sentence(row: list[int]) -> str:
        left = (row[R.FREE] + row[R.EVICTABLE]) / max(row[R.CAPACITY], 1)
        who = f"class {row[R.CLASS]} is" if row[R.CLASS] >= 0 else "a class is"
        need = counted(row[R.NEED], "unit")
        return f"{who} at its quota: a request for {need} was kept out with {left:.0%} of the pool free"

    more: tuple[Evidence, ...] = ()
    if refused is not None and refused.samples and refused.samples[0][R.CLASS] >= 0:
        more = (Evidence("class", float(refused.samples[0][R.CLASS]), "class"),)
    return explained(minute, refused, sentence, *more)


VERDICT = Verdict(
    "partition",
    0,
    _holds,
    "a quota that fits the load of its class, or none",
    "raise the quota of that class if its requests matter as much as what the rest of the pool is kept for",
)
