"""Constants from timed steps: exact where the steps are exact, plain where the steps do not say."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvmon.errors import InputError
from kvmon.serving import StepTime
from kvmon.simulate.fitting import CONSTANTS, LEAST_STEPS, Fit, fit_step_time

Floats = npt.NDArray[np.float64]


def steps(seed: int, count: int = 400) -> tuple[Floats, Floats, Floats]:
    """Prefill tokens, decoding sequences and context of a busy engine: chunks of prompts in a third of the steps."""
    random = np.random.default_rng(seed)
    decode = random.integers(1, 256, count).astype(np.float64)
    prefill = np.where(random.random(count) < 0.3, random.integers(1, 2048, count), 0).astype(np.float64)
    context = np.floor(decode * random.uniform(100, 4000, count))
    return prefill, decode, context


def durations(times: StepTime, columns: tuple[Floats, Floats, Floats]) -> Floats:
    """What the clock says of each step."""
    return np.array([times.duration_ns(*step) for step in zip(*columns, strict=True)], np.float64)


constants = st.one_of(st.just(0.0), st.floats(1.0, 1e6))


@given(
    times=st.builds(StepTime, st.floats(1e3, 1e9), constants, constants, constants),
    seed=st.integers(0, 2**32),
)
def test_the_constants_of_a_clock_come_back(times: StepTime, seed: int) -> None:
    """Steps timed by a clock give its constants within 1 %, or within what a nanosecond of rounding leaves of them."""
    columns = steps(seed)
    measured = durations(times, columns)
    fit = fit_step_time(measured, *columns)
    assert fit.not_determined == {} and fit.outliers == 0
    assert np.abs(durations(fit.step_time, columns) - measured).max() < 0.01 * measured.max()
    true = (times.base_ns, times.prefill_token_ns, times.decode_sequence_ns, times.context_token_ns)
    for name, value, found, error in zip(CONSTANTS, true, fit.constants, fit.standard_errors, strict=True):
        assert found == pytest.approx(value, rel=0.01, abs=6 * error + 1e-6 * measured.max()), name
    assert fit.median_relative_error < 0.01


def test_default_constants_come_back_to_a_thousandth() -> None:
    """The clock of the simulator, from 400 of its own steps."""
    columns = steps(1)
    fit = fit_step_time(durations(StepTime(), columns), *columns)
    assert fit.constants == pytest.approx((6_000_000.0, 30_000.0, 20_000.0, 40.0), rel=0.001)
    assert fit.r_squared == pytest.approx(1)
    assert fit.p95_relative_error < 1e-6


@pytest.mark.parametrize("share", [0.01, 0.05, 0.15])
def test_pauses_are_set_aside(share: float) -> None:
    """Steps that compiled or were suspended, up to minutes long, move the constants by no more than the noise does."""
    columns = steps(2, 2000)
    random = np.random.default_rng(3)
    measured = durations(StepTime(), columns) * random.normal(1, 0.02, 2000)
    paused = random.random(2000) < share
    measured[paused] += random.uniform(5e7, 6e10, int(paused.sum()))
    fit = fit_step_time(measured, *columns)
    assert fit.constants == pytest.approx((6_000_000.0, 30_000.0, 20_000.0, 40.0), rel=0.03)
    assert fit.outliers == pytest.approx(int(paused.sum()), abs=5)
    assert fit.median_relative_error == pytest.approx(0.0135, rel=0.15)
    for value, true, error in zip(fit.constants, (6e6, 3e4, 2e4, 40.0), fit.standard_errors, strict=True):
        assert 0 < error < 0.02 * true and abs(value - true) < 5 * error


def objective(fit_constants: tuple[float, ...], columns: Floats, measured: Floats, weights: Floats) -> float:
    """Sum of squared weighted errors."""
    return float((((measured - columns @ np.array(fit_constants)) * weights) ** 2).sum())


@given(seed=st.integers(0, 2**32), noise=st.floats(0, 0.3))
def test_no_other_constants_fit_better(seed: int, noise: float) -> None:
    """Around the answer, in every direction that stays non-negative, the weighted error only grows."""
    random = np.random.default_rng(seed)
    columns = steps(seed)
    true = StepTime(*(random.uniform(0, 1, 4) * random.integers(0, 2, 4) * (6e6, 3e4, 2e4, 40.0) + (1e5, 0, 0, 0)))
    measured = durations(true, columns) * (1 + noise * random.uniform(-1, 1, 400))
    fit = fit_step_time(measured, *columns)
    assume(fit.outliers == 0)
    matrix = np.column_stack([np.ones(400), *columns])
    weights = 1 / (matrix @ np.array(fit.constants))
    least = objective(fit.constants, matrix, measured, weights)
    for directions in product((-1e-3, 0, 1e-3), repeat=4):
        moved = np.array(fit.constants) + np.array(directions) * (6e6, 3e4, 2e4, 40.0)
        if moved.min() >= 0 and moved[0] >= 1:
            assert objective(tuple(moved), matrix, measured, weights) >= least * (1 - 1e-9)


def fitted(prefill: Any, decode: Any, context: Any) -> Fit:
    """A fit of exact steps with some columns of our own."""
    columns = tuple(np.broadcast_to(np.asarray(column, np.float64), 400) for column in (prefill, decode, context))
    return fit_step_time(durations(StepTime(), columns), *columns)


def test_what_the_steps_do_not_determine_is_said() -> None:
    """No prefill at all, always as many sequences, context in step with sequences: the constant is 0 and says why."""
    prefill, decode, context = steps(4)
    silent = fitted(0, decode, context)
    assert silent.not_determined == {"prefill token": "no step had a prefill token"}
    assert silent.step_time.prefill_token_ns == 0
    assert silent.constants[2:] == pytest.approx((20_000.0, 40.0), rel=0.001)
    constant = fitted(prefill, 8, context)
    assert constant.not_determined["decode sequence"].startswith("it cannot be told apart from base")
    assert constant.step_time.base_ns == pytest.approx(6_000_000 + 8 * 20_000, rel=0.001)
    together = fitted(prefill, decode, 1000 * decode)
    assert together.not_determined["context token"].startswith("it cannot be told apart from base and prefill")
    assert together.step_time.decode_sequence_ns == pytest.approx(20_000 + 40_000, rel=0.001)
    alike = fitted(16, 8, 100)
    assert set(alike.not_determined) == set(CONSTANTS[1:])
    assert alike.r_squared is None
    assert alike.quality()["not_determined"]["prefill_token"].endswith("too much alike")


def test_idle_steps_count_for_nothing() -> None:
    """Steps without a token or without a duration are left out and counted; too few others are refused."""
    prefill, decode, context = steps(5)
    measured = durations(StepTime(), (prefill, decode, context))
    prefill[:50] = decode[:50] = 0
    measured[50:70] = 0
    fit = fit_step_time(measured, prefill, decode, context)
    assert (fit.idle, fit.steps_used, fit.outliers) == (70, 330, 0)
    few = LEAST_STEPS - 1
    with pytest.raises(InputError, match=r"19 steps .* too few"):
        fit_step_time(measured[70 : 70 + few], prefill[70 : 70 + few], decode[70 : 70 + few], context[70 : 70 + few])


def test_the_base_stays_a_time() -> None:
    """Where prompts explain everything the base is 1 ns and no less, so that the clock can be used."""
    prefill = np.arange(1.0, 401.0)
    nothing = np.zeros(400)
    fit = fit_step_time(prefill * 1000 - 500, prefill, nothing, nothing)
    assert fit.step_time.base_ns == 1
    assert fit.step_time.prefill_token_ns == pytest.approx(1000, rel=0.02)
