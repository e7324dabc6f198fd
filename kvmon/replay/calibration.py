"""How far a replay without any change is from what was recorded: what a what-if of this recording is worth.

The demand is run through the simulator's scheduler and allocator, configured as the engine was, on the engine's own
step times. What the reference engine and the simulator recorded comes back step by step, in every allocation; of other
engines the distance is measured, because their allocators are others.

Invariant: both sides are measured by the same code; a distance that cannot be known is None.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.replay.demand import Case, Demand
from kvmon.replay.followed import Followed
from kvmon.replay.outcome import Outcome
from kvmon.replay.recordings import Recording
from kvmon.replay.simulated import record_setup
from kvmon.replay.trail import Trail
from kvmon.serving.scenarios import Setup

__all__ = ["Calibration", "calibrate", "follow_setup"]

Ints = npt.NDArray[np.int64]

_OURS = "reference"  # the adapter of the reference engine and of the simulator

# Where a replay is close enough that its answers can be relied upon without a word.
GOOD_CURVE = 0.03  # mean distance of the memory curves, share of the pool
GOOD_PEAK = 0.05  # of the pool
GOOD_REQUESTS = 0.02  # of the requests: finished, lost, hung up
GOOD_PREEMPTIONS = 0.2  # of the preemptions, or this many
FEW_PREEMPTIONS = 3
GOOD_HITS = 0.03  # of the tokens looked up


@dataclass(frozen=True)
class Calibration:
    """One replay without a change against its recording.

    quality             `exact`: the same allocations in every step; `good` or `poor`: see `reasons`
    reasons             what is far off, one line each
    steps               steps of the recording in which somebody was there
    different_steps     those of them in which the replay did anything else; None for engines that are not ours, whose
                        events of one step stand in another order
    other_memory_steps  those of them in which requests held another number of units at most, or at the end; None where
                        units are not told
    first_different_ns  the first step that is not the same, by the most that can be told
    curve_mean_ratio, curve_most_ratio  distance of the memory in use, as a share of the pool: mean over time, largest
    recorded, replayed  the outcomes
    """

    quality: str
    reasons: tuple[str, ...]
    steps: int
    different_steps: int | None
    other_memory_steps: int | None
    first_different_ns: int | None
    curve_mean_ratio: float | None
    curve_most_ratio: float | None
    recorded: Outcome = field(repr=False)
    replayed: Outcome = field(repr=False)

    @property
    def exact(self) -> bool:
        """Whether nothing differs."""
        return self.quality == "exact"

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`; the outcomes stand elsewhere."""
        return {
            "quality": self.quality,
            "reasons": list(self.reasons),
            "steps": self.steps,
            "different_steps": self.different_steps,
            "other_memory_steps": self.other_memory_steps,
            "first_different_ns": self.first_different_ns,
            "curve_mean_ratio": self.curve_mean_ratio,
            "curve_most_ratio": self.curve_most_ratio,
            "replayed": self.replayed.to_json(),
        }


def follow_setup(setup: Setup, demand: Demand, *, on_recorded_steps: bool, most_steps: int) -> tuple[Outcome, Trail]:
    """Run a setup of a demand and measure it; its trail names requests as the recording does."""
    numbers = np.arange(len(setup.workload) + 1)
    if len(setup.workload) == len(demand):
        numbers[1:] = demand.request
    followed = Followed(numbers=numbers)
    result = record_setup(
        followed.write,
        setup,
        recorded=demand.recorded_steps() if on_recorded_steps else None,
        most_steps=most_steps,
    )
    cut = result.step_limit_reached and not on_recorded_steps
    return followed.outcome(len(setup.workload), cut_short=cut), followed.trail()


def calibrate(recording: Recording) -> Calibration:
    """Replay without a change. Raises InputError with what is missing where this cannot be replayed."""
    demand, recorded = recording.demand, recording.outcome
    engine = demand.described()
    assert recorded is not None, "a demand that can be replayed has a pool"
    setup = Setup(
        demand.workload(Case.RECORDED),
        engine.allocator,
        engine.scheduler,
        faults=engine.faults,
        token_bytes=engine.token_bytes,
    )
    replayed, trail = follow_setup(setup, demand, on_recorded_steps=True, most_steps=len(demand.steps) + 1)
    return _compared(recording, recorded, replayed, trail)


def _compared(recording: Recording, recorded: Outcome, replayed: Outcome, trail: Trail) -> Calibration:
    before = recording.trail
    here, there = _paired(before.start, trail.start)
    same = before.digest[here] == trail.digest[there]
    different = max(len(before), len(trail)) - int(same.sum()) + int(before.tail != trail.tail)
    exact = different == 0 and not recording.demand.gaps
    ours = exact or recording.stream.state.config.get("adapter") == _OURS
    if not ours:  # another engine tells the events of a step in another order: memory alone can be compared
        same = np.ones(len(here), np.bool_)
    other = mean = most = None
    if recorded.peak_units is not None and len(here):
        distance = np.abs(before.most[here] - trail.most[there]) / recorded.capacity_units
        weight = np.maximum(before.duration[here], 1)
        mean, most = float(np.average(distance, weights=weight)), float(distance.max())
        as_much = (before.held[here] == trail.held[there]) & (before.most[here] == trail.most[there])
        other = len(before) - int(as_much.sum())
        same = same if ours else as_much
    first = before.start[~_marked(len(before), here[same])]
    reasons = () if exact else _reasons(recorded, replayed, mean, len(here) / max(len(before), 1))
    return Calibration(
        quality="exact" if exact else "poor" if reasons or recording.demand.gaps else "good",
        reasons=(*recording.demand.gaps, *reasons),
        steps=len(before),
        different_steps=different if ours else None,
        other_memory_steps=other,
        first_different_ns=int(first[0]) if len(first) else None,
        curve_mean_ratio=mean,
        curve_most_ratio=most,
        recorded=recorded,
        replayed=replayed,
    )


def _paired(first: Ints, second: Ints) -> tuple[Ints, Ints]:
    """Places of the steps that both have, by their begin."""
    if len(first) == len(second) and (first == second).all():
        return np.arange(len(first)), np.arange(len(second))
    _, here, there = np.intersect1d(first, second, return_indices=True)
    return here, there


def _marked(count: int, places: Ints) -> npt.NDArray[np.bool_]:
    marks = np.zeros(count, np.bool_)
    marks[places] = True
    return marks


def _reasons(recorded: Outcome, replayed: Outcome, curve: float | None, paired: float) -> tuple[str, ...]:
    """What is too far off for answers to be relied upon."""
    found = []
    if paired < 1 - GOOD_REQUESTS:
        found.append(f"only {paired:.0%} of the steps have a counterpart")
    if curve is not None and curve > GOOD_CURVE:
        found.append(f"memory in use differs by {curve:.1%} of the pool on average")
    if recorded.peak_ratio is not None and replayed.peak_ratio is not None:
        peak = abs(recorded.peak_ratio - replayed.peak_ratio)
        if peak > GOOD_PEAK:
            found.append(f"the peak differs by {peak:.1%} of the pool")
    for what, was, now in (
        ("finished", recorded.finished, replayed.finished),
        ("lost", recorded.lost, replayed.lost),
        ("hung up", recorded.hung_up, replayed.hung_up),
    ):
        if abs(was - now) > GOOD_REQUESTS * recorded.requests:
            found.append(f"{now:,} requests instead of {was:,} are {what}")
    off = abs(recorded.preemptions - replayed.preemptions)
    if off > max(GOOD_PREEMPTIONS * recorded.preemptions, FEW_PREEMPTIONS):
        found.append(f"{replayed.preemptions:,} preemptions instead of {recorded.preemptions:,}")
    was_hit, now_hit = recorded.hit_ratio or 0.0, replayed.hit_ratio or 0.0
    if abs(was_hit - now_hit) > GOOD_HITS:
        found.append(f"{now_hit:.1%} of the tokens looked up are found instead of {was_hit:.1%}")
    return tuple(found)
