"""A request that is larger than the pool: it can never get in, and what waits behind it starves."""

from __future__ import annotations

from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.verdict import Holds, Verdict, explained
from kvmon.state.watch import R

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    def sentence(row: list[int]) -> str:
        tokens = row[R.NEED] * row[R.UNIT_TOKENS]
        whole = row[R.CAPACITY] * row[R.UNIT_TOKENS]
        return f"a request needs {tokens:,} tokens of a pool of {whole:,}: it can never fit"

    return explained(minute, minute.explains("never_fits"), sentence)


VERDICT = Verdict(
    "never_fits",
    0,
    _holds,
    "a maximum model length that the pool holds, so that such a request is refused at once",
    "abort that request if it waits: the queue behind it moves; if it was refused, its client has to ask for less",
)
