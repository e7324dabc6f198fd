"""How long a demo runs and how fast: what was asked for, or what shows it in the better part of a minute.

How long a scenario's traffic lasts is asked of the simulator, whose engines live through the same time as these do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvmon.cli.demo_plan import CONTEST_SECONDS, Plan

if TYPE_CHECKING:
    from kvmon.serving.scenarios import Setup
    from kvmon.simulate import Result

__all__ = ["CONTEST_SPEED", "Pace", "pace_of", "shown_seconds", "work_seconds"]

CONTEST_SPEED = 3.0

_SHORTEST, _LONGEST = 8.0, 40.0  # seconds in which a scenario is shown where nothing else was asked for

# Of a step of the tiny model on one core of a small machine, in seconds: its fixed part, a decoding sequence, a token
# of a prompt, and a token of context, which pages gather before they read it. For a rough idea only.
_STEP, _SEQUENCE, _PROMPT, _CONTIGUOUS, _PAGED = 1.2e-3, 1.2e-4, 1e-5, 1.5e-7, 2.7e-7


@dataclass(frozen=True)
class Pace:
    """`seconds` of the engines' time, `speed` times as fast as real."""

    seconds: float
    speed: float


def pace_of(plan: Plan, scenario: str | None, seconds: float | None, speed: float | None) -> Pace:
    """The pace of a plan, None standing for what was not asked for."""
    if scenario is None:
        return Pace(seconds or CONTEST_SECONDS, speed or CONTEST_SPEED)
    from kvmon.cli.record import run_setup

    length = max(run_setup(setup).duration_s for setup in plan.setups.values())
    length = length if seconds is None else min(seconds, length)
    return Pace(length, speed or length / shown_seconds(length))


def shown_seconds(length: float) -> float:
    """In how many seconds so much of the engines' time is shown, if the machine can compute it."""
    return min(max(length, _SHORTEST), _LONGEST)


def work_seconds(setup: Setup, result: Result) -> float:
    """About how long the model computes for this, on one core of a small machine."""
    from kvmon.allocators import PagedConfig

    work = setup.workload
    output = work.output_tokens.clip(max=work.token_limit).astype(float)
    context = float((output * (work.prompt_tokens + output / 2)).sum())
    token = _PAGED if isinstance(setup.allocator, PagedConfig) else _CONTIGUOUS
    prompts = max(result.computed_tokens - float(output.sum()), 0.0)
    return result.steps * _STEP + float(output.sum()) * _SEQUENCE + prompts * _PROMPT + context * token
