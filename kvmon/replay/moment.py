"""The exact state at a moment: of every life that was there, or of each at a moment of its own.

`failure:N` is the instant before that refusal, in the middle of its frame; every other moment is after the last frame
that ended at or before it. A capture is entered at the checkpoint before it. Invariant: nothing is said of a moment
whose past is not known; then it is an error that says from when to when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvmon.capture.pieces import apply_piece
from kvmon.diagnosis import cause_of
from kvmon.errors import ConfigError, InputError
from kvmon.replay.findings import Refusal
from kvmon.replay.lives import Life
from kvmon.replay.timeline import edges_between, read_timeline
from kvmon.replay.timeline_model import Failure, Timeline
from kvmon.replay.when import When, rfc3339
from kvmon.state import StreamState
from kvmon.state.watch import R
from kvmon.units import counted, format_clock

__all__ = ["Moment", "find_failure", "moments", "spoken_time", "until"]

Ints = npt.NDArray[np.int64]

_MS = 1_000_000


@dataclass
class Moment:
    """The state of one life at `time_ns` of its engine's clock; `failure` where the moment is a refused allocation.

    `frame_ns`: the end of the last whole frame that is in it.
    """

    life: Life
    time_ns: int
    state: StreamState
    frame_ns: int
    failure: Failure | None = None

    @classmethod
    def at(cls, life: Life, time_ns: int) -> Moment:
        """After the last frame that ended at or before this time. Raises ConfigError where there is none."""
        state = life.state_at(time_ns)
        return cls(life, time_ns, state, state.time_ns)

    @classmethod
    def before(cls, life: Life, failure: Failure) -> Moment:
        """The instant before this allocation was refused."""
        refusal = failure.refusal
        state, frame_ns = life.state_within(refusal.time_ns, refusal.frame, refusal.word)
        return cls(life, refusal.time_ns, state, frame_ns, failure)

    @property
    def begin_ns(self) -> int:
        """The first frame of the life: from it people count."""
        return self.life.first_ns or 0


def moments(lives: Sequence[Life], when: When) -> list[Moment]:
    """The moment in each of these lives that has it. Times are the same for all of them, on the wall clock: they count
    from the first frame and to the last one of all. Failures and the worst moment are each life's own.

    Raises ConfigError where no life has that moment, InputError where nothing is known at it.
    """
    there = [life for life in lives if life.first_ns is not None and life.last_ns is not None]
    if not there:
        raise InputError("no stream has a frame that can be read: 'kvmon verify' says what is there")
    if when.kind == "failure":
        found = _failures(there, when.value)
    elif when.kind == "worst":
        found = _worst(there)
    else:
        found = [
            Moment.at(life, time_ns)
            for life, time_ns in zip(there, _times(there, when), strict=True)
            if (life.first_ns or 0) <= time_ns <= (life.last_ns or 0)
        ]
        if not found:
            raise ConfigError(f"--at {when.text} is outside of what was recorded: {_range(there)}")
    for moment in found:
        _known(moment)
    return found


def find_failure(life: Life, number: int) -> Failure | None:
    """The refused allocation of this number, from 1, or from -1 at the end; None where there are not so many."""
    first = life.begin()[0].refused
    if number < 0:
        number += 1 + _refused(life) - first
    if number < 1:
        return None
    times = life.stored_ns()
    low, high = 0, len(times)  # the last stored state with fewer refusals
    while low < high:
        middle = (low + high) // 2
        if life.begin(times[middle])[0].refused - first < number:
            low = middle + 1
        else:
            high = middle
    state, pieces = life.begin(times[low - 1] if low else None)
    rows: list[list[int]] = []
    state.log_to(lambda refusals, windows: rows.extend(refusals[refusals[:, R.KIND] == R.REFUSED].tolist()))
    before = state.refused - first
    for piece in pieces:
        apply_piece(state, piece)
        if state.refused - first >= number:
            state.drain()
            row = rows[number - before - 1]
            exact = state.config.get("fidelity", "exact") == "exact"
            return Failure(number, Refusal.of_row(row, cause_of(np.array(row, np.int64), exact), None))
        state.drain()
        before += len(rows)
        rows.clear()
    return None


def until(moment: Moment, progress: Callable[[int], None] = lambda words: None) -> Timeline:
    """What happened from the first frame to the moment, in one bucket, with the findings that there were by then.

    Of a refused allocation the frame in which it was refused is not in it.
    """
    first = moment.begin_ns
    edges = edges_between(first - 1, max(moment.frame_ns, first), 1)
    return read_timeline(moment.life, edges, columns=1, cells=1, progress=progress)


def spoken_time(life: Life, time_ns: int) -> str:
    """`+1:30.0 (2026-11-23T08:45:04.500Z)`: since the first frame, and on the wall clock where the recording has one,
    else ns of the engine's."""
    since = format_clock((time_ns - (life.first_ns or 0)) / 1e9)
    clock = rfc3339(life.facts.wall_time_ns(time_ns)) if life.facts.wall_ns else f"{time_ns} ns"
    return f"+{since} ({clock})"


def _times(lives: Sequence[Life], when: When) -> list[int]:
    """The moment on the clock of each life."""
    if when.kind == "clock":
        return [when.value] * len(lives)
    if when.kind == "wall" and not any(life.facts.wall_ns for life in lives):
        raise ConfigError(f"--at {when.text}: the recording has no wall clock, it was simulated; {_range(lives)}")
    wall = when.value
    if when.kind == "begin":
        wall += min(life.facts.wall_time_ns(life.first_ns or 0) for life in lives)
    elif when.kind == "end":
        wall = max(life.facts.wall_time_ns(life.last_ns or 0) for life in lives) - wall
    return [wall - life.facts.wall_time_ns(0) for life in lives]


def _range(lives: Sequence[Life]) -> str:
    first = min(lives, key=lambda life: life.facts.wall_time_ns(life.first_ns or 0))
    last = max(lives, key=lambda life: life.facts.wall_time_ns(life.last_ns or 0))
    began = first.facts.wall_time_ns(first.first_ns or 0)
    took = format_clock((last.facts.wall_time_ns(last.last_ns or 0) - began) / 1e9)
    begin_ns = first.first_ns or 0
    if first.facts.wall_ns:
        begin_ns += -began % _MS  # as it is written it has to be within
    clocks = (spoken_time(life, ns).partition(" ")[2] for life, ns in ((first, begin_ns), (last, last.last_ns or 0)))
    return f"give +0:00.0 {next(clocks)} to +{took} {next(clocks)}"


def _failures(lives: Sequence[Life], number: int) -> list[Moment]:
    found = []
    for life in lives:
        failure = find_failure(life, number)
        if failure is not None:
            found.append(Moment.before(life, failure))
    if not found:
        counts = [_refused(life) - life.begin()[0].refused for life in lives]
        there = "; ".join(
            f"{life.name} has {counted(count, 'refused allocation')}" for life, count in zip(lives, counts, strict=True)
        )
        raise ConfigError(f"--at failure:{number}: there is none: {there}")
    return found


def _refused(life: Life) -> int:
    """Refused allocations up to the end, counted as the state counts them."""
    times = life.stored_ns()
    state, pieces = life.begin(times[-1] if times else None)
    for piece in pieces:
        apply_piece(state, piece)
    return state.refused


def _worst(lives: Sequence[Life]) -> list[Moment]:
    found = []
    for life in lives:
        edges = edges_between((life.first_ns or 0) - 1, life.last_ns or 0, 1)
        time_ns = read_timeline(life, edges, columns=1, cells=1).worst_ns
        if time_ns is not None:
            found.append(Moment.at(life, time_ns))
    if not found:
        raise InputError("no stream has a moment whose past is known: there is no worst one")
    return found


def _known(moment: Moment) -> None:
    if moment.state.converged:
        return
    life = moment.life
    edges = edges_between((life.first_ns or 0) - 1, life.last_ns or 0, 1)
    gaps = read_timeline(life, edges, columns=1, cells=1).gaps
    around = next((gap for gap in gaps if gap.begin_ns <= moment.time_ns <= gap.end_ns), None)
    when = spoken_time(life, moment.time_ns)
    if around is None:
        raise InputError(f"nothing is known of {life.name} at {when}: no audit has gone round once")
    begin, end = (spoken_time(life, time_ns) for time_ns in (around.begin_ns, around.end_ns))
    raise InputError(f"nothing is known of {life.name} at {when}: {around.reason}, from {begin} to {end}")
