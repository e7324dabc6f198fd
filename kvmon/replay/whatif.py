"""What would have happened with another memory: the recorded demand, run through the simulator with a change.

Never a formula: every answer is a run of `serving`'s scheduler and allocators, measured as the recording was. Where the
demand is censored, or pages are finer than the names of the recording, there are two runs, and the answer is the range
between them.

Invariant: answers depend on the demand, the clock and the change alone; the same ones give the same answer, in this
process or another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvmon.allocators import PagedConfig
from kvmon.replay.calibration import Calibration, calibrate, follow_setup
from kvmon.replay.changes import UNCHANGED, Changed, WhatIf, changed
from kvmon.replay.demand import Case, Censored, Demand
from kvmon.replay.outcome import Outcome
from kvmon.replay.recordings import Recording
from kvmon.replay.simulated import check_units
from kvmon.replay.step_clock import StepClock, step_clock
from kvmon.serving import Workload
from kvmon.serving.scenarios import Setup

__all__ = ["Answer", "Comparison", "answer", "begin_comparison", "compare"]

LINGER_S = 60.0  # how long a run goes on when nothing can move any more, so that the diagnosis sees it
_STEPS_SPARE, _STEPS_TIMES = 100_000, 4  # steps that a run may take beyond what its tokens need


@dataclass(frozen=True)
class Answer:
    """One what-if: the engine that it means, and what its run did.

    least, most     the outcomes with as little and as much demand as the recording allows (`demand.Case`); equal where
                    nothing is left open
    ranges          why they differ, one line each; empty where they are one run
    """

    what_if: WhatIf
    engine: dict[str, Any]
    least: Outcome
    most: Outcome
    ranges: tuple[str, ...] = ()

    @property
    def definite(self) -> bool:
        """Whether there is one answer rather than a range."""
        return self.least == self.most

    @property
    def lost(self) -> tuple[int, int]:
        """Requests lost, at least and at most."""
        low, high = sorted((self.least.lost, self.most.lost))
        return low, high

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {
            "what_if": self.what_if.text,
            "engine": self.engine,
            "definite": self.definite,
            "ranges": list(self.ranges),
            "least": self.least.to_json(),
            "most": self.most.to_json(),
        }


@dataclass(frozen=True)
class Comparison:
    """A recording, how well it can be replayed, and its what-ifs.

    calibration     the replay without a change on the recorded step times
    clock           the formula that gives steps their time in what-ifs
    unchanged       the replay without a change on that formula: what the answers are to be held against
    assumptions     what every answer takes for granted, one line each
    """

    recorded: Outcome
    calibration: Calibration
    clock: StepClock
    censored: Censored
    assumptions: tuple[str, ...]
    unchanged: Answer
    answers: tuple[Answer, ...] = field(default=())

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the answers are to be taken with care, one line each; empty where there is no reason to."""
        found = list(self.calibration.reasons) if self.calibration.quality == "poor" else []
        if self.clock.poor:
            found.append(f"times of steps are doubtful: {self.clock.poor}")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {
            "recorded": self.recorded.to_json(),
            "calibration": self.calibration.to_json(),
            "clock": self.clock.to_json(),
            "censored": {name: getattr(self.censored, name) for name in ("hung_up", "failed", "running", "before")},
            "assumptions": list(self.assumptions),
            "doubts": list(self.doubts),
            "unchanged": self.unchanged.to_json(),
            "answers": [one.to_json() for one in self.answers],
        }


def begin_comparison(recording: Recording) -> Comparison:
    """Calibrate a recording, give it a clock, and replay it without a change on that.

    Raises InputError with what is missing where it cannot be replayed.
    """
    demand = recording.demand
    calibration = calibrate(recording)
    clock = step_clock(demand)
    return Comparison(
        recorded=calibration.recorded,
        calibration=calibration,
        clock=clock,
        censored=demand.censored,
        assumptions=(*demand.assumptions, _said_of(clock)),
        unchanged=answer(demand, clock, UNCHANGED),
    )


def compare(recording: Recording, what_ifs: Sequence[WhatIf]) -> Comparison:
    """Answer what-ifs of one recording. Raises InputError as above, and ConfigError for an impossible what-if, before
    anything runs."""
    engine = recording.demand.described()
    for what_if in what_ifs:
        changed(engine, what_if, recording.demand.hash_tokens)
    begun = begin_comparison(recording)
    answers = tuple(answer(recording.demand, begun.clock, what_if) for what_if in what_ifs)
    return Comparison(**{**vars(begun), "answers": answers})


def answer(demand: Demand, clock: StepClock, what_if: WhatIf) -> Answer:
    """Run one what-if. Raises ConfigError where it is impossible, InputError where nothing can be replayed."""
    engine = demand.described()
    new = changed(engine, what_if, demand.hash_tokens)
    ranges = _ranges(demand, new)
    most = _run(demand, clock, new, Case.MOST)
    least = _run(demand, clock, new, Case.LEAST) if ranges else most
    return Answer(what_if, new.to_json(), least, most, ranges)


def _run(demand: Demand, clock: StepClock, new: Changed, case: Case) -> Outcome:
    cached = isinstance(new.allocator, PagedConfig) and new.allocator.prefix_cache
    workload = demand.workload(case, page_tokens=new.allocator.unit_tokens if cached else 0)
    setup = Setup(
        workload,
        new.allocator,
        new.scheduler,
        clock.step_time,
        new.faults,
        token_bytes=demand.described().token_bytes,
        linger_s=LINGER_S,
    )
    check_units(setup)
    outcome, _ = follow_setup(
        setup, demand, on_recorded_steps=False, most_steps=_most_steps(workload, new.scheduler.token_budget)
    )
    return outcome


def _most_steps(workload: Workload, budget: int) -> int:
    """Steps after which a run that should have ended is called endless: a few times those of one request at a time."""
    output = np.minimum(workload.output_tokens, workload.token_limit).astype(np.int64)
    return _STEPS_SPARE + _STEPS_TIMES * int(output.sum() + (-(-workload.prompt_tokens // budget)).sum())


def _ranges(demand: Demand, new: Changed) -> tuple[str, ...]:
    """Why there are two runs, one line each."""
    found = []
    censored = demand.censored
    for count, what in (
        (censored.hung_up, "hung up: how long their answers would have become is not known"),
        (censored.failed, "failed or were refused: how long their answers would have become is not known"),
        (censored.running, "had not ended when the recording did"),
        (censored.before, "were there before the recording began"),
    ):
        if count:
            found.append(f"{count:,} requests {what}")
    cached = isinstance(new.allocator, PagedConfig) and new.allocator.prefix_cache
    if cached and demand.finer(new.allocator.unit_tokens):
        found.append(
            f"pages of {new.allocator.unit_tokens} tokens are finer than the recorded names of {demand.hash_tokens}: "
            "what prompts share within a name is not known"
        )
    return tuple(found)


def _said_of(clock: StepClock) -> str:
    if clock.source == "stated":
        return "steps take what the engine's own formula says"
    if clock.source == "found":
        return "steps take what a formula says that gives every recorded one to the nanosecond"
    if clock.source == "mean":
        return "every step takes the mean of the recorded ones"
    off = "" if clock.p95_relative_error is None else f", 95 % of them within {clock.p95_relative_error:.1%}"
    return f"steps take what a formula fitted to {clock.steps:,} recorded ones says{off} ('kvmon fit')"
