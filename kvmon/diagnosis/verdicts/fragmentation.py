"""Fragmentation: enough memory is free for the request, and in no single run."""

from __future__ import annotations

from kvmon.diagnosis.minute import Minute
from kvmon.diagnosis.verdict import Holds, Verdict, explained
from kvmon.state.watch import R
from kvmon.units import counted

__all__ = ["VERDICT"]


def _holds(minute: Minute) -> Holds | None:
    def sentence(row: list[int]) -> str:
        largest = f"the largest block was {row[R.LARGEST]:,}" if row[R.LARGEST] >= 0 else "no run was long enough"
        return f"a request needed {counted(row[R.NEED], 'unit')} in one piece with {row[R.FREE]:,} free, and {largest}"

    return explained(minute, minute.explains("fragmentation"), sentence)


VERDICT = Verdict(
    "fragmentation",
    0,
    _holds,
    "pages: a sequence in pages needs no run of free units; growth by smaller chunks or compaction softens it",
    "let the engine drain for a few seconds so that neighbouring blocks merge, or admit fewer long requests",
)
