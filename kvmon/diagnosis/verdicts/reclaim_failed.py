"""Memory that could have been evicted was not: the request was refused with enough free and evictable units."""

from __future__ import annotations

from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.verdict import Holds, Verdict, explained
from kvmon.state.watch import R
from kvmon.units import counted

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    def sentence(row: list[int]) -> str:
        return (
            f"a request for {counted(row[R.NEED], 'unit')} was refused with {row[R.FREE]:,} free and "
            f"{row[R.EVICTABLE]:,} that could have been evicted"
        )

    return explained(minute, minute.explains("reclaim_failed"), sentence)


VERDICT = Verdict(
    "reclaim_failed",
    0,
    _holds,
    "eviction on demand, at the moment a request needs the memory",
    "reset the prefix cache: what is cached is free at once, at the price of cold prompts",
)
