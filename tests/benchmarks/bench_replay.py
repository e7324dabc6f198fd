"""Reports of long captures: how long they take, that their memory does not depend on the length, and the way to a
moment.

The captures are of a simulated engine with 65,536 pages, a prefix cache and audits, busy and never full for long.
"""

from __future__ import annotations

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
import sys
from kvmon.cli.main import run
code = run(sys.argv[1:])
(most,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(most.split()[1]) * 1024, file=sys.stderr)
sys.exit(code)
"""
MEMORY_LIMIT = (
    "the requests of a recording are kept to be replayed unless it has more than 200,000 steps; where a what-if is "
    "asked for they are kept whatever the length, about 2 KiB each of these"
)
SEEK_LIMIT = (
    "a third is the checkpoint, 3 MiB of it, half the fold behind it; to try next: checkpoints of what has changed "
    "since the one before, which are smaller and may stand closer"
)
SMALLER = "pool=-90%"


def recorded(path: Path, requests: int) -> int:
    """Write a capture of so many requests; its unit-operations."""
    prefixes = SharedPrefixes(8, 320)
    work = at_load(1, requests, LENGTHS, pool_tokens=PAGES * PAGE, load=0.05, prefixes=prefixes)
    with CaptureWriter(path, wall=lambda: 0) as writer:
        record_setup(writer.add_stream(StreamFacts("bench")).write, Setup(work, PagedConfig(PAGES, PAGE)))
    with CaptureReader(path) as reader:
        return reader.streams[0].unit_operations


def measured(path: Path, *options: str, best_of: int = 1) -> tuple[float, float]:
    """Seconds and bytes of `kvmon replay`, a whole process; the best of several."""
    found = []
    for _ in range(best_of):
        start = time.perf_counter()
        command = [sys.executable, "-c", MEASURED, "replay", str(path), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        took = time.perf_counter() - start
        if done.returncode not in (0, 1):
            raise RuntimeError(done.stderr)
        found.append((took, int(done.stderr.splitlines()[-1])))
    return min(found)


def seeks(path: Path) -> list[float]:
    """Milliseconds to the state at random times, the better of two, ascending."""
    draw, took = random.Random(2), []
    with open_lives(path) as source:
        (life,) = source.lives
        life.state_at(life.last_ns or 0)
        for _ in range(SEEKS):
            time_ns = draw.randint(life.first_ns or 0, life.last_ns or 0)
            once = []
            for _ in range(2):
                begin = time.perf_counter()
                life.state_at(time_ns)
                once.append((time.perf_counter() - begin) * 1e3)
            took.append(min(once))
    return sorted(took)


def rows() -> list[Row]:
    """Of 10 M and of 100 M unit-operations."""
    with tempfile.TemporaryDirectory() as directory:
        short, long = Path(directory) / "short.kvmon", Path(directory) / "long.kvmon"
        page = ("--html", str(Path(directory) / "report.html"), "--force", "--no-what-if")
        operations, more = recorded(short, REQUESTS) / 1e6, recorded(long, 10 * REQUESTS) / 1e6
        measured(short, *page)  # compiles what is not compiled yet
        text, text_size = measured(short, best_of=3)
        drawn, drawn_size = measured(short, *page, best_of=3)
        changed, _ = measured(short, "--what-if", SMALLER, best_of=2)
        long_text, long_text_size = measured(long)
        long_drawn, long_drawn_size = measured(long, *page)
        html = (Path(directory) / "report.html").stat().st_size
        took, far = seeks(short), seeks(long)
    p50, p99, far_p99 = took[SEEKS // 2], took[SEEKS * 99 // 100], far[SEEKS * 99 // 100]
    small, large = f"{operations:.0f} M unit-operations", f"{more:.0f} M"
    mib = 2**20
    return [
        Row(f"replay of {small}, in the terminal", f"{text:.1f} s", "10 s", text <= 10),
        Row(f"replay of {small}, --html", f"{drawn:.1f} s", "10 s", drawn <= 10),
        Row(f"replay of {small}, --what-if {SMALLER}, calibrated first", f"{changed:.1f} s", "10 s", changed <= 10),
        Row(f"replay of {large}, in the terminal; --html", f"{long_text:.1f} s; {long_drawn:.1f} s"),
        Row(f"replay of {large}, --html: the file", f"{html / mib:.1f} MiB", "8 MiB", html <= 8 * mib),
        Row(
            f"replay, in the terminal: memory for {operations:.0f} M and for {more:.0f} M",
            f"{text_size / mib:.0f} and {long_text_size / mib:.0f} MiB",
            "the same",
            long_text_size <= 1.1 * text_size,
            MEMORY_LIMIT,
        ),
        Row(
            f"replay, --html: memory for {operations:.0f} M and for {more:.0f} M",
            f"{drawn_size / mib:.0f} and {long_drawn_size / mib:.0f} MiB",
            "the same",
            long_drawn_size <= 1.1 * drawn_size,
        ),
        Row(f"state at a time, of {small}", f"{p50:.0f} ms, p99 {p99:.0f} ms", "20 ms", p99 <= 20, SEEK_LIMIT),
        Row(
            f"state at a time, of {large}",
            f"{far[SEEKS // 2]:.0f} ms, p99 {far_p99:.0f} ms",
            "20 ms",
            far_p99 <= 20,
        ),
    ]
