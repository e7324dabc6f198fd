"""The simulator's loop: the scheduler's own step kernels under a clock, compiled as one.

    demand.order     int32 (n)         requests that arrive on their own, in order of arrival
    demand.pause     int64 (n + 1)     think time of a request behind the end of the one it follows
    demand.first     int32 (n + 1)     first follower of a request, 0 = none; demand.sibling: the next one of the same
    demand.patience  int64 (n + 1)     time from arrival until the client hangs up, 0 = never; one entry: nobody does
    demand.due       int64 (2n + 2, 2) a heap of (time, request) to arrive or, negative, to hang up; from index 1
    demand.errors    int64 (e, 4)      errors outside of the pool: time, bytes asked, free, reserved
    demand.steps     int64 (s, 2)      begin and duration of an engine's own steps, to be taken one by one; without a
                                       row steps take what their formula says

Invariant: a run stops only between two steps, so it can be resumed after the journal was drained, and what it does
never depends on whether a journal is kept. Of what happens at the same time own arrivals come first, then what is due,
then errors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.allocators.journal import ERROR, ON, USED, put4
from kvmon.allocators.refusal import FinishReason
from kvmon.jit import inner, kernel
from kvmon.serving.commit import abort, commit, room_for_step
from kvmon.serving.endings import next_transfer
from kvmon.serving.lifecycle import arrive, end_request, leave_running
from kvmon.serving.schedule import schedule
from kvmon.serving.state import (
    ARRIVAL,
    CHANGED,
    COMPUTED,
    CONTEXT_TOKENS,
    DECODE_TOKENS,
    DONE,
    ENDED,
    ENDED_BEFORE,
    LEVELS,
    PARKED,
    PHASE,
    PLANNED,
    PREFILL_TOKENS,
    QUEUED,
    QUOTAS,
    RUNNING,
    Serving,
)
from kvmon.serving.state import NOW as TALLY_NOW

__all__ = ["DEADLOCK", "FINISHED", "JOURNAL_FULL", "STEP_LIMIT", "TOO_LATE", "Demand", "new_clock", "run"]

# How a run stopped.
FINISHED = 0
JOURNAL_FULL = 1
DEADLOCK = 2
STEP_LIMIT = 3
TOO_LATE = 4

# Columns of the clock.
NOW = 0
NEXT = 1  # index into demand.order
STEPS_LEFT = 2
DUE = 3  # entries of the heap
HANG_UPS = 4  # those of them that hang up
NEXT_ERROR = 5
LINGER_NS = 6  # how long to go on when nothing can move any more
STUCK_SINCE = 7  # -1: not stuck
NEXT_STEP = 8  # index into demand.steps
UNTIL = 9  # what is due by then still happens when an engine's own steps are used up

_NEVER = np.iinfo(np.int64).max
_LATEST = float(2**62 - 1)  # the last nanosecond that a recording can hold
_POLL_NS = 100_000_000  # between two steps of an engine in which nothing can move
_ARRIVAL_WORDS = 64
_ERROR = int(FinishReason.ERROR)
_OUT_OF_MEMORY = 1


class Demand(NamedTuple):
    """What happens without the engine's doing; see the module for the arrays."""

    order: npt.NDArray[np.int32]
    pause: npt.NDArray[np.int64]
    first: npt.NDArray[np.int32]
    sibling: npt.NDArray[np.int32]
    patience: npt.NDArray[np.int64]
    due: npt.NDArray[np.int64]
    errors: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]


def new_clock(most_steps: int | None = None, linger_ns: int = 0, until_ns: int = 0) -> npt.NDArray[np.int64]:
    """A clock at 0 that stops after `most_steps`, or `linger_ns` after nothing could move any more; where it has an
    engine's own steps, not before what is due by `until_ns` has happened."""
    clock = np.zeros(10, np.int64)
    clock[UNTIL] = until_ns
    clock[STEPS_LEFT] = _NEVER if most_steps is None else most_steps
    clock[LINGER_NS] = linger_ns
    clock[STUCK_SINCE] = -1
    return clock


@inner
def _before(due: npt.NDArray[np.int64], a: int, b: int) -> bool:
    """By time; at the same time arrivals before hang-ups, and lower numbers first."""
    if due[a, 0] != due[b, 0]:
        return bool(due[a, 0] < due[b, 0])
    if (due[a, 1] > 0) != (due[b, 1] > 0):
        return bool(due[a, 1] > 0)
    return bool(abs(due[a, 1]) < abs(due[b, 1]))


@inner
def _swap(due: npt.NDArray[np.int64], a: int, b: int) -> None:
    for column in range(2):
        kept = due[a, column]
        due[a, column] = due[b, column]
        due[b, column] = kept


@inner
def _push(demand: Demand, clock: npt.NDArray[np.int64], time_ns: int, what: int) -> None:
    due = demand.due
    clock[DUE] += 1
    at = clock[DUE]
    due[at, 0] = time_ns
    due[at, 1] = what
    clock[HANG_UPS] += what < 0
    while at > 1 and _before(due, at, at >> 1):
        _swap(due, at, at >> 1)
        at >>= 1


@inner
def _pop(demand: Demand, clock: npt.NDArray[np.int64]) -> int:
    due = demand.due
    what = due[1, 1]
    last = clock[DUE]
    _swap(due, 1, last)
    clock[DUE] = last - 1
    clock[HANG_UPS] -= what < 0
    at = 1
    while 2 * at < last:
        child = 2 * at
        if child + 1 < last and _before(due, child + 1, child):
            child += 1
        if not _before(due, child, at):
            break
        _swap(due, at, child)
        at = child
    return int(what)


@inner
def _let_in(serving: Serving, demand: Demand, clock: npt.NDArray[np.int64], request: int) -> None:
    arrive(serving, request)
    if demand.patience.size > 1 and demand.patience[request]:
        _push(demand, clock, serving.facts[request, ARRIVAL] + demand.patience[request], -request)


@inner
def _call_followers(serving: Serving, demand: Demand, clock: npt.NDArray[np.int64]) -> None:
    """Whoever follows a request that has ended is due after its pause."""
    tally = serving.tally
    request = tally[ENDED]
    tally[ENDED] = 0
    while request:
        follower = demand.first[request]
        while follower:
            _push(demand, clock, clock[NOW] + demand.pause[follower], follower)
            follower = demand.sibling[follower]
        request = serving.facts[request, ENDED_BEFORE]


@inner
def _fail_elsewhere(serving: Serving, error: npt.NDArray[np.int64]) -> None:
    """Something else than the pool runs out of memory: the request with the longest context dies of it."""
    if serving.journal.state[ON]:
        put4(serving.journal, ERROR, _OUT_OF_MEMORY, error[1], error[2], error[3])
    longest = -1
    for i in range(serving.tally[RUNNING]):
        computed = serving.live[serving.running[i], COMPUTED]
        if longest < 0 or computed > serving.live[serving.running[longest], COMPUTED]:
            longest = np.int64(i)
    if longest >= 0:
        request = serving.running[longest]
        end_request(serving, request, _ERROR)
        leave_running(serving, longest)


@kernel
def run(serving: Serving, demand: Demand, clock: npt.NDArray[np.int64], step_time: npt.NDArray[np.float64]) -> int:
    """Run until everybody has ended, the journal needs room, nothing can move any more, the steps are used up, or the
    clock runs over.

    With steps of an engine it ends when they are used up and what was due by `clock[UNTIL]` has happened. `step_time`
    float64 (4): base, prefill token, decode sequence, context token, in ns. Deadlock: a step that plans nothing and
    changes nothing while somebody runs or waits, with no hang-up, transfer or error ahead; arrivals free no memory, so
    it would stay that way, except that they may go ahead of others by their class.
    """
    tally = serving.tally
    facts = serving.facts
    journal = serving.journal
    nobody = serving.nobody
    order = demand.order
    given = demand.steps.shape[0]
    while True:
        begins = clock[NOW]
        if clock[NEXT_STEP] < given:
            begins = max(begins, demand.steps[clock[NEXT_STEP], 0])
        while True:
            arrival = np.int64(_NEVER)
            if clock[NEXT] < order.size:
                arrival = facts[order[clock[NEXT]], ARRIVAL]
            due = demand.due[1, 0] if clock[DUE] else np.int64(_NEVER)
            error = demand.errors[clock[NEXT_ERROR], 0] if clock[NEXT_ERROR] < len(demand.errors) else np.int64(_NEVER)
            coming = min(arrival, due, error)
            if coming > begins:
                break
            if journal.state[ON]:
                words = _ARRIVAL_WORDS if coming == arrival else room_for_step(serving)
                if journal.state[USED] + words > journal.words.size:
                    return JOURNAL_FULL
            clock[NOW] = max(clock[NOW], coming)
            tally[TALLY_NOW] = clock[NOW]
            if coming == arrival:
                _let_in(serving, demand, clock, order[clock[NEXT]])
                clock[NEXT] += 1
            elif coming == due:
                what = _pop(demand, clock)
                if what > 0:
                    facts[what, ARRIVAL] = due
                    _let_in(serving, demand, clock, what)
                elif serving.live[-what, PHASE] != DONE:
                    abort(serving, -what)
            else:
                _fail_elsewhere(serving, demand.errors[clock[NEXT_ERROR]])
                clock[NEXT_ERROR] += 1
            _call_followers(serving, demand, clock)
        clock[NOW] = begins
        if tally[RUNNING] == 0 and tally[QUEUED] == 0:
            # Who still wanted to hang up has ended.
            if arrival == _NEVER and clock[DUE] == clock[HANG_UPS]:
                return FINISHED
            if clock[NEXT_STEP] < given:
                clock[NEXT_STEP] += 1  # an engine's empty step, after the last one hung up
                continue
            clock[NOW] = coming
            continue
        if journal.state[ON] and journal.state[USED] + room_for_step(serving) > journal.words.size:
            return JOURNAL_FULL
        if given and clock[NEXT_STEP] == given and coming <= clock[UNTIL]:
            clock[NOW] = coming
            continue
        if clock[STEPS_LEFT] == 0 or (given and clock[NEXT_STEP] == given):
            return STEP_LIMIT
        clock[STEPS_LEFT] -= 1
        tally[TALLY_NOW] = clock[NOW]
        schedule(serving)
        takes = (
            step_time[0]
            + tally[PREFILL_TOKENS] * step_time[1]
            + tally[DECODE_TOKENS] * step_time[2]
            + tally[CONTEXT_TOKENS] * step_time[3]
        )
        if clock[NOW] + takes > _LATEST:
            return TOO_LATE
        duration = np.int64(takes)
        if given:
            duration = demand.steps[clock[NEXT_STEP], 1]
            clock[NEXT_STEP] += 1
        stuck = tally[PLANNED] == 0 and tally[CHANGED] == 0
        commit(serving, clock[NOW], duration, nobody)
        clock[NOW] += duration
        if tally[ENDED]:
            _call_followers(serving, demand, clock)
        if given or not stuck or (tally[RUNNING] == 0 and tally[QUEUED] == 0):
            clock[STUCK_SINCE] = -1  # steps of an engine come when they came
            continue
        transfer = next_transfer(serving) if tally[PARKED] else np.int64(_NEVER)
        overtaken = coming != _NEVER and (serving.config[LEVELS] or serving.config[QUOTAS])
        if clock[HANG_UPS] or transfer != _NEVER or error != _NEVER or overtaken:
            clock[NOW] = max(clock[NOW], min(coming, transfer))
            continue
        if clock[STUCK_SINCE] < 0:
            clock[STUCK_SINCE] = clock[NOW] - duration
        if clock[NOW] - clock[STUCK_SINCE] >= clock[LINGER_NS]:
            return DEADLOCK
        clock[NOW] = max(clock[NOW], min(coming, clock[NOW] + _POLL_NS))
