"""The simulator's loop: the scheduler's own step kernels under a clock, compiled as one.

Invariant: a run stops only between two steps, so it can be resumed after the journal was drained, and what it does
never depends on whether a journal is kept. `clock` int64 (3): time now (ns), next request to arrive, steps left.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvmon.allocators.journal import ON, USED
from kvmon.jit import kernel
from kvmon.serving.commit import commit, room_for_step
from kvmon.serving.lifecycle import arrive
from kvmon.serving.schedule import schedule
from kvmon.serving.state import (
    ARRIVAL,
    CHANGED,
    CONTEXT_TOKENS,
    DECODE_TOKENS,
    PLANNED,
    PREFILL_TOKENS,
    QUEUED,
    RUNNING,
    Serving,
)

__all__ = ["DEADLOCK", "FINISHED", "JOURNAL_FULL", "STEP_LIMIT", "run"]

# How a run stopped.
FINISHED = 0
JOURNAL_FULL = 1
DEADLOCK = 2
STEP_LIMIT = 3

# Columns of the clock.
NOW = 0
NEXT = 1
STEPS_LEFT = 2

_ARRIVAL_WORDS = 32


@kernel
def run(serving: Serving, clock: npt.NDArray[np.int64], step_time: npt.NDArray[np.float64]) -> int:
    """Run until everybody has ended, the journal needs room, nothing can move any more, or the steps are used up.

    `step_time` float64 (4): base, prefill token, decode sequence, context token, in ns. Deadlock: a step that plans
    nothing and changes nothing while somebody runs or waits; arrivals free no memory, so it would stay that way.
    """
    tally = serving.tally
    facts = serving.facts
    journal = serving.journal
    nobody = serving.nobody
    last = facts.shape[0] - 1
    while True:
        while clock[NEXT] <= last and facts[clock[NEXT], ARRIVAL] <= clock[NOW]:
            if journal.state[ON] and journal.state[USED] + _ARRIVAL_WORDS > journal.words.size:
                return JOURNAL_FULL
            arrive(serving, clock[NEXT])
            clock[NEXT] += 1
        if tally[RUNNING] == 0 and tally[QUEUED] == 0:
            if clock[NEXT] > last:
                return FINISHED
            clock[NOW] = facts[clock[NEXT], ARRIVAL]
            continue
        if journal.state[ON] and journal.state[USED] + room_for_step(serving) > journal.words.size:
            return JOURNAL_FULL
        if clock[STEPS_LEFT] == 0:
            return STEP_LIMIT
        clock[STEPS_LEFT] -= 1
        schedule(serving)
        duration = np.int64(
            step_time[0]
            + tally[PREFILL_TOKENS] * step_time[1]
            + tally[DECODE_TOKENS] * step_time[2]
            + tally[CONTEXT_TOKENS] * step_time[3]
        )
        stuck = tally[PLANNED] == 0 and tally[CHANGED] == 0
        commit(serving, clock[NOW], duration, nobody)
        clock[NOW] += duration
        if stuck and (tally[RUNNING] > 0 or tally[QUEUED] > 0):
            return DEADLOCK
