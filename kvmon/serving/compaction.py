"""The kernel that slides all contiguous blocks together, towards the first unit.

Invariant: afterwards the blocks tile 1..used in the order of their old addresses and everything free is one run. A
block may overlap its old place, as memmove may, so each move is journalled as the old block given back and the new one
taken.
"""

from __future__ import annotations

from kvmon.allocators.journal import ALLOC_RUN, ASSIGN_RUN, COMPACT, COPY, COPY_SLIDE, FREE_RUN, ON, put2, put3, put5
from kvmon.allocators.run_pool import gather_free
from kvmon.jit import inner
from kvmon.serving.state import (
    COMPACTED_NOW,
    COMPACTED_TOKENS,
    COMPACTIONS,
    COMPUTED,
    RUNNING,
    SEAT,
    START,
    UNITS,
    Serving,
)

__all__ = ["compact"]


@inner
def compact(serving: Serving) -> None:
    """Slide every block as far down as it goes, once a step at most."""
    tally = serving.tally
    held = serving.held
    journal_on = serving.journal.state[ON]
    moved_units = 0
    moved_tokens = 0
    end = 1
    lowest = 0
    while True:
        following = 0
        mover = 0
        for i in range(tally[RUNNING]):
            request = serving.running[i]
            start = held[serving.live[request, SEAT], START]
            if start > lowest and (following == 0 or start < following):
                following = start
                mover = request
        if mover == 0:
            break
        lowest = following
        seat = serving.live[mover, SEAT]
        units = held[seat, UNITS]
        if following != end:
            held[seat, START] = end
            moved_units += units
            moved_tokens += serving.live[mover, COMPUTED]
            if journal_on:
                put5(serving.journal, COPY, mover, following, end, serving.live[mover, COMPUTED], COPY_SLIDE)
                put3(serving.journal, FREE_RUN, mover, following, units)
                put3(serving.journal, ALLOC_RUN, mover, end, units)
                put3(serving.journal, ASSIGN_RUN, mover, end, units)
        end += units
    gather_free(serving.runs)
    tally[COMPACTED_NOW] = 1
    tally[COMPACTIONS] += 1
    tally[COMPACTED_TOKENS] += moved_tokens
    if journal_on:
        put2(serving.journal, COMPACT, moved_units, moved_tokens)
