"""The engine's time: the machine's own, or a model of how long a step takes.

Invariant: time never runs backwards, and a step is over after it began. Under `ModelClock` an engine does the same on
every machine; under `WallClock` it takes as long as it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from kvmon.serving import StepTime

__all__ = ["Clock", "ModelClock", "WallClock"]


class Clock(Protocol):
    """Nanoseconds of the engine's time."""

    def now(self) -> int:
        """The time now."""

    def end_of_step(self, start_ns: int, prefill_tokens: int, decode_tokens: int, context_tokens: int) -> int:
        """How long the step that began at `start_ns` took (ns), now that it is over."""


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


class ModelClock:
    """Time that passes by `step_time` alone; `now_ns` may be moved forward to the next arrival.

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
