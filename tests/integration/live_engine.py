"""The toy engine as one that everything is known about: requests that wait for memory, claims, and a GPU.

`python -m tests.integration.live_engine DIR ENGINE` runs it in real time until it is killed, and prints `ready`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from kvmon.events import FailureOutcome, FailureReason
from tests.toy_engine import ToyEngine

GIB = 1 << 30
STEP_S = 0.02


class LiveEngine(ToyEngine):
    """Now and then a request waits for a few steps, and the engine says how its pool and its GPU are."""

    waiting: int | None = None
    steps = 0

    def step(self) -> None:
        """As the toy engine's, with what it lacks around it."""
        self.steps += 1
        if self.steps % 25 == 0:
            self._wait()
        elif self.steps % 25 == 5 and self.waiting is not None:
            self.probe.admitted(self.waiting)
            self.probe.finished(self.waiting, 1, 0)
            self.waiting = None
        if self.steps % 50 == 0:
            self.pool.claims(len(self.free), 0, self.units - len(self.free), 0)
            self.probe.device_sample(
                0, 60 * GIB, 30 * GIB, 100 * GIB, 50 * GIB, 48 * GIB, GIB, largest_free=GIB, retries=0, uuid="GPU-1"
            )
        super().step()

    def _wait(self) -> None:
        self.last_request += 1
        self.waiting = self.last_request
        self.probe.arrived(self.waiting, self.clock(), 4096, limit=8)
        need, reason, outcome = self.units, int(FailureReason.EXHAUSTED), int(FailureOutcome.WAITS)
        self.pool.failed(self.waiting, need, 0, len(self.free), 0, None, reason, outcome)


def main() -> None:
    """Run in real time until killed."""
    engine = LiveEngine(Path(sys.argv[1]), sys.argv[2], units=4096)
    print("ready", flush=True)
    while True:
        engine.run(1)
        time.sleep(STEP_S)


if __name__ == "__main__":
    main()
