"""The engine's time: the machine's own, or a model of how long a step takes.

Invariant: time never runs backwards, and a step is over after it began. Under `ModelClock` an engine does the same on
every machine; under `WallClock` it takes as long as it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from kvmon.serving import StepTime

__all__ = ["Clock", "ModelClock", "MovableClock", "PassingClock", "WallClock"]


class Clock(Protocol):
    """Nanoseconds of the engine's time."""

    def now(self) -> int:
        """The time now."""

    def end_of_step(self, start_ns: int, prefill_tokens: int, decode_tokens: int, context_tokens: int) -> int:
        """How long the step that began at `start_ns` took (ns), now that it is over."""


class MovableClock(Clock, Protocol):
    """A clock of its own beginning, for a driver: it stands still between two steps, and `now_ns` may be moved forward
    to the next arrival."""

    now_ns: int


class WallClock:
    """The machine's monotonic clock."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock

    def now(self) -> int:
        """The time now."""
        return self._clock()

    def end_of_step(self, start_ns: int, prefill_tokens: int, decode_tokens: int, context_tokens: int) -> int:
        """As long as it took."""
        return max(self._clock() - start_ns, 0)


class PassingClock:
    """Real time since it was made. Moving it forward waits until then; what passed between two steps is seen in the
    next one, so that whoever arrives by the begin of a step has been let in."""

    def __init__(self) -> None:
        self._base = time.monotonic_ns()
        self._now = 0

    @property
    def now_ns(self) -> int:
        """The time at the end of the last step, or that it was moved to."""
        return self._now

    @now_ns.setter
    def now_ns(self, moment: int) -> None:
        """Wait until then; a moment that has passed is now."""
        ahead = moment - (time.monotonic_ns() - self._base)
        if ahead > 0:
            time.sleep(ahead / 1e9)
        self._now = max(moment, time.monotonic_ns() - self._base)

    def now(self) -> int:
        """The time now."""
        return self._now

    def end_of_step(self, start_ns: int, prefill_tokens: int, decode_tokens: int, context_tokens: int) -> int:
        """As long as it took, with what happened before it since the last one."""
        self._now = max(time.monotonic_ns() - self._base, start_ns)
        return self._now - start_ns


class ModelClock:
    """Time that passes by `step_time` alone.

    `recorded` gives the time that is recorded for a time of the model, for whoever shows it faster than it is.
    """

    def __init__(self, step_time: StepTime, recorded: Callable[[int], int] = int) -> None:
        self.now_ns = 0
        self._step_time = step_time
        self._recorded = recorded

    def now(self) -> int:
        """The time now, as it is recorded."""
        return self._recorded(self.now_ns)

    def end_of_step(self, start_ns: int, prefill_tokens: int, decode_tokens: int, context_tokens: int) -> int:
        """Let the step's time pass."""
        self.now_ns += self._step_time.duration_ns(prefill_tokens, decode_tokens, context_tokens)
        return self.now() - start_ns
