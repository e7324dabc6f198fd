"""What-ifs of an incident: how fast its demand is replayed, and what a second process gains for a sweep."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from kvmon.capture import CaptureWriter, StreamFacts
from kvmon.replay.calibration import calibrate
from kvmon.replay.recordings import Recording, read_recordings
from kvmon.replay.simulated import record_setup
from kvmon.replay.sweep import parse_sweep, sweep
from kvmon.serving.scenarios import find
from tests.benchmarks.table import Row, best_of

SCENARIO, SEED = "post-incident", 3
RANGES = "allocator=paged block=16,32,64,128 pool=50%..200%:1%"
START_LIMIT = (
    "a process starts in about two seconds and is given the demand: that pays from some ten seconds of work on"
)


def recorded(path: Path) -> Recording:
    """The incident, as `kvmon simulate` records it."""
    with CaptureWriter(path, wall=lambda: 0) as writer:
        record_setup(writer.add_stream(StreamFacts("bench")).write, find(SCENARIO).setups(SEED)[0][""])
    (found,) = read_recordings(path)
    return found


def rows() -> list[Row]:
    """A calibration, a sweep by one process, and the same by two."""
    with tempfile.TemporaryDirectory() as directory:
        recording = recorded(Path(directory) / "x.kvmon")
    what_ifs = parse_sweep(RANGES)
    calibrate(recording)
    alone = best_of(5, lambda: calibrate(recording))
    sweep([recording], what_ifs[:1], executor="none")
    one = best_of(1, lambda: sweep([recording], what_ifs, executor="none"))
    start = time.perf_counter()
    sweep([recording], what_ifs, workers=2)
    two = time.perf_counter() - start
    requests = len(recording.demand)
    return [
        Row(
            f"what-if: replay of {requests} requests, {recording.steps:,} steps, without a change",
            f"{alone * 1e3:.0f} ms, {recording.steps / alone / 1e6:.2f} M steps/s",
        ),
        Row(f"what-if: sweep of {len(what_ifs)}, one process", f"{one:.1f} s, {one / len(what_ifs) * 1e3:.0f} ms each"),
        Row(f"what-if: sweep of {len(what_ifs)}, two processes", f"{two:.1f} s", limit=START_LIMIT),
    ]
