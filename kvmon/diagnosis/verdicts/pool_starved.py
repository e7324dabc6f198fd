"""One of several pools is too small for a request while another has room."""

from __future__ import annotations

from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.verdict import Holds, Verdict, explained
from kvmon.state.watch import R
from kvmon.units import counted

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    def sentence(row: list[int]) -> str:
        return f"a request needs {counted(row[R.NEED], 'unit')} of this pool, which has {row[R.CAPACITY]:,} in all"

    return explained(minute, minute.explains("pool_starved"), sentence)


VERDICT = Verdict(
    "pool_starved",
    0,
    _holds,
    "a larger share of the memory for this pool: it bounds every request, however empty the other one is",
    "abort the request that needs it, or restart with a larger second pool",
)
