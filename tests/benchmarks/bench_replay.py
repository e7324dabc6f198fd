"""Timelines of long captures: how long they take, that their memory does not depend on the length, and the way to a
moment.

The captures are of a simulated engine with 65,536 pages, a prefix cache and audits, busy and never full for long.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kvmon.allocators import PagedConfig
from kvmon.capture import CaptureReader, CaptureWriter, StreamFacts
from kvmon.replay.lives import open_lives
from kvmon.replay.simulated import record_setup
from kvmon.serving.scenarios.scenario import Setup
from kvmon.serving.scenarios.traffic import at_load
from kvmon.serving.workloads import SharedPrefixes
from tests.benchmarks.table import Row

PAGES, PAGE = 65_536, 16
REQUESTS = 39_000  # 10 M unit-operations
LENGTHS = "uniform:200-1500/gamma:300,0.87"
SEEKS = 200
# In a process of its own: the most memory that it ever had is its own alone.
MEASURED = """
import json, sys, time
from pathlib import Path
from kvmon.replay.timeline import read_timelines
path = Path(sys.argv[1])
read_timelines(path, buckets=10, columns=4, window=(None, 2_000_000_000))
start = time.perf_counter()
read_timelines(path)
took = time.perf_counter() - start
(most,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([took, int(most.split()[1]) * 1024]))
"""
MEMORY_LIMIT = (
    "three chunks are on their way and one is folded, 4 MiB of words each with their columns, whatever the file"
)
SEEK_LIMIT = (
    "the worst of many seeks lies just before a checkpoint and folds all of a chunk behind it; to try next: "
    "checkpoints of what has changed since the one before, which are smaller and may stand closer"
)


def recorded(path: Path, requests: int) -> int:
    """Write a capture of so many requests; its unit-operations."""
    prefixes = SharedPrefixes(8, 320)
    work = at_load(1, requests, LENGTHS, pool_tokens=PAGES * PAGE, load=0.05, prefixes=prefixes)
    with CaptureWriter(path, wall=lambda: 0) as writer:
        record_setup(writer.add_stream(StreamFacts("bench")).write, Setup(work, PagedConfig(PAGES, PAGE)))
    with CaptureReader(path) as reader:
        return reader.streams[0].unit_operations


def measured(path: Path) -> tuple[float, float]:
    """Seconds and bytes of the default timeline."""
    done = subprocess.run([sys.executable, "-c", MEASURED, str(path)], capture_output=True, check=True, text=True)
    seconds, size = json.loads(done.stdout)
    return seconds, size


def seeks(path: Path) -> list[float]:
    """Milliseconds to the state at random times, ascending."""
    draw, took = random.Random(2), []
    with open_lives(path) as source:
        (life,) = source.lives
        life.state_at(life.last_ns or 0)
        for _ in range(SEEKS):
            time_ns = draw.randint(life.first_ns or 0, life.last_ns or 0)
            begin = time.perf_counter()
            life.state_at(time_ns)
            took.append((time.perf_counter() - begin) * 1e3)
    return sorted(took)


def rows() -> list[Row]:
    """Of 10 M and of 100 M unit-operations."""
    with tempfile.TemporaryDirectory() as directory:
        short, long = Path(directory) / "short.kvmon", Path(directory) / "long.kvmon"
        operations, more = recorded(short, REQUESTS) / 1e6, recorded(long, 10 * REQUESTS) / 1e6
        (seconds, size), (longer, larger) = min(measured(short) for _ in range(3)), measured(long)
        took, far = seeks(short), seeks(long)
    p50, p99 = took[SEEKS // 2], took[SEEKS * 99 // 100]
    figure = f"{seconds:.1f} s, {operations / seconds:.0f} M unit-operations/s"
    return [
        Row(f"timeline of {operations:.0f} M unit-operations", figure, "10 s", seconds <= 10),
        Row(f"timeline of {more:.0f} M unit-operations", f"{longer:.1f} s"),
        Row(
            f"timeline: memory for {operations:.0f} M and for {more:.0f} M unit-operations",
            f"{size / 2**20:.0f} and {larger / 2**20:.0f} MiB",
            "the same",
            larger <= 1.1 * size,
            MEMORY_LIMIT,
        ),
        Row(
            f"state at a time, of {operations:.0f} M unit-operations",
            f"{p50:.0f} ms, p99 {p99:.0f} ms",
            "20 ms",
            p99 <= 20,
            SEEK_LIMIT,
        ),
        Row(f"state at a time, of {more:.0f} M", f"{far[SEEKS // 2]:.0f} ms, p99 {far[SEEKS * 99 // 100]:.0f} ms"),
    ]
