"""A trace through a pool of a given size: how many requests ran at once, and what that cost.

The simulator's own scheduler and allocator, never a formula. Invariant: the numbers are those of `kvmon simulate` with
the same engine; the most that ran at once is counted here, from the steps of the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.events import Kind, field_offsets
from kvmon.events.wire import LONG
from kvmon.replay.simulated import record_setup
from kvmon.serving.scenarios import Setup
from kvmon.simulate import Result
from kvmon.state import scan

__all__ = ["Ran", "run_capacity"]

_STEP_WORDS, _TICK_WORDS = 17, 6
_TICK_HEAD = LONG << 27 | Kind.TICK << 19 | (_TICK_WORDS - 1)
_RUNNING = field_offsets(Kind.STEP)["running"]


@dataclass(frozen=True)
class Ran:
    """`most_running`: requests that had memory at the end of a step, the most of them; `mean_running`: over steps."""

    most_running: int
    mean_running: float
    result: Result

    def as_json(self) -> dict[str, Any]:
        """Plain data; the whole result of the simulator beside."""
        return {
            "most_running": self.most_running,
            "mean_running": round(self.mean_running, 3),
            "result": self.result.to_json(),
        }


def run_capacity(setup: Setup) -> Ran:
    """Simulate `setup` to its end."""
    most, total, steps = 0, 0, 0

    def count(words: npt.NDArray[np.uint32]) -> None:
        nonlocal most, total, steps
        ends = scan(words, verify=False).ends
        # a frame ends with one or the other, and no field of a STEP can look like the head of a TICK
        ends = ends[words[ends - _TICK_WORDS] != _TICK_HEAD]
        running = words[ends - _STEP_WORDS + _RUNNING].astype(np.int64) - 1
        most = max(most, int(running.max(initial=0)))
        total += int(running.sum())
        steps += len(running)

    result = record_setup(count, setup)
    return Ran(most, total / steps if steps else 0.0, result)
