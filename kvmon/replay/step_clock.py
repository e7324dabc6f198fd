"""The clock of a what-if: how long a step takes that the engine never took.

The recorded times cannot be replayed one by one once batches differ, so steps take what a formula says
(`serving.step_time`): the one that the engine itself states, or constants fitted to its own steps.

Invariant: how far the formula is from the recorded steps is part of it; a formula that explains little says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.errors import InputError
from kvmon.replay.demand import Demand
from kvmon.serving.step_time import StepTime
from kvmon.simulate import fit_step_time

__all__ = ["StepClock", "step_clock"]

Floats = npt.NDArray[np.float64]

_POOR_P95 = 0.25  # relative error of a step that makes times of a what-if doubtful
_DIGITS = (3, 6, 9)  # significant ones of round constants
_POOR_ASIDE = 0.05  # share of the steps that the fit had to set aside


@dataclass(frozen=True)
class StepClock:
    """A formula for the time of a step.

    source      `stated` by the engine; `found`: constants that give every recorded step to the nanosecond; `fitted` to
                the steps; or `mean` of too few steps to fit
    p95_relative_error  95th percentile of |recorded - formula| / formula over the recorded steps, None without one
    poor        why times that follow from it are doubtful; empty where they are not
    """

    step_time: StepTime
    source: str
    steps: int
    p95_relative_error: float | None
    poor: str = ""

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        said = asdict(self)
        said["step_time_ns"] = said.pop("step_time")
        return said


def step_clock(demand: Demand) -> StepClock:
    """The formula that a what-if of this demand runs on. Raises InputError where it cannot be replayed."""
    stated = demand.described().step_time
    steps = demand.steps
    duration, prefill, decode, context = (
        column.astype(np.float64) for column in (steps.duration_ns, steps.prefill, steps.decode, steps.context)
    )
    busy = (duration > 0) & (prefill + decode > 0)
    if stated is not None:
        fitted = (
            stated.base_ns
            + prefill * stated.prefill_token_ns
            + decode * stated.decode_sequence_ns
            + context * stated.context_token_ns
        )
        error = float(np.quantile((np.abs(duration - fitted) / fitted)[busy], 0.95)) if busy.any() else None
        poor = "" if error is None or error <= _POOR_P95 else _far(error)
        return StepClock(stated, "stated", int(busy.sum()), error, poor)
    try:
        fit = fit_step_time(duration, prefill, decode, context)
    except InputError:
        mean = float(duration[busy].mean()) if busy.any() else StepTime().base_ns
        return StepClock(
            StepTime(max(mean, 1.0), 0.0, 0.0, 0.0),
            "mean",
            int(busy.sum()),
            None,
            f"{int(busy.sum())} steps are too few to fit a clock: every step takes their mean",
        )
    found = _exact(fit.constants, duration[busy], prefill[busy], decode[busy], context[busy])
    if found is not None:
        return StepClock(found, "found", fit.steps_used, 0.0)
    poor = ""
    if fit.p95_relative_error > _POOR_P95:
        poor = _far(fit.p95_relative_error)
    elif fit.outliers > _POOR_ASIDE * fit.steps_used:
        poor = f"{fit.outliers:,} of {fit.outliers + fit.steps_used:,} steps took far longer than the formula says"
    return StepClock(fit.step_time, "fitted", fit.steps_used, fit.p95_relative_error, poor)


def _exact(
    constants: tuple[float, ...], duration: Floats, prefill: Floats, decode: Floats, context: Floats
) -> StepTime | None:
    """Round constants that give every step exactly, as an engine has whose clock is a formula; None where none do."""
    for digits in _DIGITS:
        base, token, sequence, read = (float(f"{value:.{digits}g}") for value in constants)
        if base >= 1 and (np.floor(base + prefill * token + decode * sequence + context * read) == duration).all():
            return StepTime(base, token, sequence, read)
    return None


def _far(error: float) -> str:
    return f"one step in 20 is more than {error:.0%} off the formula"
