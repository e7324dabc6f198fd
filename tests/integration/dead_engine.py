"""An engine that dies: records the server-failures scenario into a directory, then kills itself. Run as a process.

Contiguous, 64 slots: eight sequences of 8 are placed, every second one ends, then one of 16 is refused with half of the
memory free. Clock and wall clock are fixed, so that whatever is made of the recording is always the same.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from kvmon.events import Contiguity, FailureOutcome, FailureReason, FinishReason
from kvmon.probe import PoolInfo, StreamProbe

STEP_NS = 20_000_000
BEGAN_NS = 5_000_000_000
BEGAN_WALL_NS = 1_767_323_045_000_000_000  # 2026-01-02 03:04:05 UTC


def record(directory: Path) -> StreamProbe:
    """Record the scenario; the probe is left open."""
    steps = 0

    def clock() -> int:
        return BEGAN_NS + steps * STEP_NS

    probe = StreamProbe(directory, "toy", config={"fidelity": "exact"}, clock=clock, wall=lambda: BEGAN_WALL_NS)
    pool = probe.attach_pool(PoolInfo("kv", 64, 131_072, 1, layout="contiguous", contiguity="required"))
    for request in range(1, 9):
        start = 8 * request - 7
        probe.arrived(request, clock(), 6, class_id=request % 2, limit=2)
        probe.admitted(request)
        probe.cache_hit(request, 0, 6)
        pool.alloc_run(start, 8)
        pool.assign_run(request, start, 8)
        pool.reserve(request, 8)
        probe.progress(request, 6, True)
    steps += 1
    probe.step(clock() - STEP_NS, STEP_NS, 48, 0, 0, 8, 0)
    for request in range(1, 9, 2):
        probe.finished(request, FinishReason.LENGTH, 2)
        pool.free_run(8 * request - 7, 8)
    probe.arrived(9, clock(), 14, class_id=1, limit=2)
    pool.failed(
        9,
        16,
        Contiguity.REQUIRED,
        32,
        0,
        8,
        FailureReason.NO_CONTIGUOUS_RUN,
        FailureOutcome.WAITS,
    )
    steps += 1
    probe.step(clock() - STEP_NS, STEP_NS, 0, 4, 28, 4, 1, 16)
    return probe


if __name__ == "__main__":
    kept = record(Path(sys.argv[1]))
    os.kill(os.getpid(), signal.SIGKILL)
