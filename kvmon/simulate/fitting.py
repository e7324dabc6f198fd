"""Constants of the step-time model from steps that were timed: non-negative least squares, robust to pauses.

What is minimised is the sum of squared *relative* errors, so that a short decode step counts as much as a long prefill.
Weights start as 1 / measured, which bounds what a pause of any length can pull, and are 1 / fitted from then on, which
keeps the noise of a step from choosing its own weight. After each fit, steps are set aside whose relative error lies
further from the median than 5 robust standard deviations (1.4826 times the median absolute deviation) and than 1 %:
compilation, garbage collection, a machine that was suspended. Then the rest is fitted again, until no step changes
sides and the constants stand.

Non-negativity is exact: with four unknowns all supports are tried (a minimum of non-negative least squares is the plain
least-squares solution on the unknowns that are not zero; Lawson & Hanson, 1974, ch. 23). The base is kept at 1 ns or
more, because a step that takes no time never ends.

Invariant: a constant that the steps do not determine is 0 and named in `not_determined`, never a number by accident.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.errors import InputError
from kvmon.serving.step_time import StepTime

__all__ = ["CONSTANTS", "LEAST_STEPS", "Fit", "fit_step_time"]

#: The constants in the order of `StepTime`, as people read them.
CONSTANTS = ("base", "prefill token", "decode sequence", "context token")
#: Fewer steps than this are not fitted.
LEAST_STEPS = 20

_LEAST_BASE = 1.0
_CUT = 5 * 1.4826  # robust standard deviations from the median
_CLOSE = 0.01  # a step within 1 % is never set aside
_ROUNDS = 50
_INDEPENDENT = 1e-6  # share of a column that the others must leave unexplained

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """What was found. Ratios are of measured - fitted to fitted, over the steps that were used.

    steps_used / outliers / idle    steps in the fit; set aside by their error; without a token or without a duration
    r_squared                       share of the variance of durations explained; None where all last the same
    standard_errors                 of the constants in ns, in their order; 0 for one that is 0
    not_determined                  why, by constant, where the steps do not determine it
    """

    step_time: StepTime
    steps_used: int
    outliers: int
    idle: int
    r_squared: float | None
    median_relative_error: float
    p95_relative_error: float
    standard_errors: tuple[float, ...]
    not_determined: dict[str, str]

    @property
    def constants(self) -> tuple[float, ...]:
        """The constants in ns, in the order of CONSTANTS."""
        times = self.step_time
        return (times.base_ns, times.prefill_token_ns, times.decode_sequence_ns, times.context_token_ns)

    def quality(self) -> dict[str, Any]:
        """How good the fit is, ready for JSON."""
        return {
            "steps_used": self.steps_used,
            "steps_set_aside": self.outliers,
            "steps_idle": self.idle,
            "r_squared": self.r_squared,
            "median_relative_error": self.median_relative_error,
            "p95_relative_error": self.p95_relative_error,
            "standard_errors_ns": dict(zip(_keys(), self.standard_errors, strict=True)),
            "not_determined": {name.replace(" ", "_"): why for name, why in self.not_determined.items()},
        }


def fit_step_time(duration_ns: Floats, prefill: Floats, decode: Floats, context: Floats) -> Fit:
    """Fit the constants to steps: durations in ns, tokens of prefill, sequences that decode, tokens of context read.

    All float64 (n). Raises InputError where fewer than LEAST_STEPS steps have a token and a duration.
    """
    busy = (duration_ns > 0) & (prefill + decode > 0)
    idle = int(len(busy) - busy.sum())
    if len(busy) - idle < LEAST_STEPS:
        raise InputError(
            f"{len(busy) - idle} steps with tokens and a duration are too few to fit 4 constants: record at least "
            f"{LEAST_STEPS}, better thousands with prompts and answers of many lengths"
        )
    columns = np.column_stack([np.ones(len(busy)), prefill, decode, context])[busy]
    measured = duration_ns[busy]
    weights = 1 / measured
    used = np.ones(len(measured), np.bool_)
    before = np.zeros(len(CONSTANTS))
    for _ in range(_ROUNDS):
        usable, why = _independent(columns[used] * weights[used, None])
        constants = _non_negative(columns[used], measured[used], weights[used], usable)
        fitted = columns @ constants
        weights = 1 / fitted
        error = (measured - fitted) / fitted
        centre = np.median(error[used])
        spread = np.median(np.abs(error[used] - centre))
        inside = np.abs(error - centre) <= max(_CUT * spread, _CLOSE)
        if np.array_equal(inside, used) and np.allclose(constants, before, rtol=1e-9, atol=0):
            break
        used, before = inside, constants
    return _fit(constants, columns[used], measured[used], weights[used], usable, why, len(used) - int(used.sum()), idle)


def _independent(scaled: Floats) -> tuple[list[int], dict[str, str]]:
    """Columns that are no combination of the ones before them, and why the others are left out."""
    usable: list[int] = []
    why: dict[str, str] = {}
    for at, name in enumerate(CONSTANTS):
        column = scaled[:, at]
        size = float(np.linalg.norm(column))
        if size == 0:
            why[name] = f"no step had a {name}"
            continue
        if usable:
            known = scaled[:, usable] / np.linalg.norm(scaled[:, usable], axis=0)
            rest = column - known @ np.linalg.lstsq(known, column, rcond=None)[0]
            if np.linalg.norm(rest) < _INDEPENDENT * size:
                others = " and ".join(CONSTANTS[other] for other in usable)
                why[name] = f"it cannot be told apart from {others}: the steps are too much alike"
                continue
        usable.append(at)
    return usable, why


def _non_negative(columns: Floats, measured: Floats, weights: Floats, usable: list[int]) -> Floats:
    """The constants of least weighted squared error, none negative, the base at least 1 ns."""
    target = (measured - _LEAST_BASE * columns[:, 0]) * weights
    scaled = columns[:, usable] * weights[:, None]
    sizes = np.linalg.norm(scaled, axis=0)
    orthogonal, triangle = np.linalg.qr(scaled / sizes)
    reduced = orthogonal.T @ target
    best = np.zeros(len(usable))
    least = float(reduced @ reduced)
    for count in range(1, len(usable) + 1):
        for support in combinations(range(len(usable)), count):
            chosen = list(support)
            values = np.linalg.lstsq(triangle[:, chosen], reduced, rcond=None)[0]
            left = triangle[:, chosen] @ values - reduced
            if values.min() >= 0 and left @ left < least:
                least = float(left @ left)
                best = np.zeros(len(usable))
                best[chosen] = values
    constants = np.zeros(len(CONSTANTS))
    constants[usable] = best / sizes
    constants[0] += _LEAST_BASE
    return constants


def _fit(
    constants: Floats,
    columns: Floats,
    measured: Floats,
    weights: Floats,
    usable: list[int],
    why: dict[str, str],
    outliers: int,
    idle: int,
) -> Fit:
    fitted = columns @ constants
    error = np.abs(measured - fitted) / fitted
    around = float(((measured - measured.mean()) ** 2).sum())
    positive = [at for at in usable if constants[at] > _LEAST_BASE * (at == 0)]
    return Fit(
        StepTime(*constants.tolist()),
        steps_used=len(measured),
        outliers=outliers,
        idle=idle,
        r_squared=1 - float(((measured - fitted) ** 2).sum()) / around if around > 0 else None,
        median_relative_error=float(np.median(error)),
        p95_relative_error=float(np.quantile(error, 0.95)),
        standard_errors=_standard_errors(columns * weights[:, None], (measured - fitted) * weights, positive),
        not_determined=why,
    )


def _standard_errors(scaled: Floats, residual: Floats, positive: list[int]) -> tuple[float, ...]:
    """Standard errors of the constants that are not at their bound, by the usual formula of least squares."""
    errors = np.zeros(len(CONSTANTS))
    freedom = len(residual) - len(positive)
    if positive and freedom > 0:
        sizes = np.linalg.norm(scaled[:, positive], axis=0)
        inverse = np.linalg.pinv(scaled[:, positive] / sizes)
        errors[positive] = np.sqrt((inverse**2).sum(axis=1) * float(residual @ residual) / freedom) / sizes
    return tuple(errors.tolist())


def _keys() -> tuple[str, ...]:
    return tuple(name.replace(" ", "_") for name in CONSTANTS)
