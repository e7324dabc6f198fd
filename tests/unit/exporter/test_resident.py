"""Memory that was needed once goes back, and what it was of still works."""

from __future__ import annotations

import json
import subprocess
import sys

from kvmon.exporter import resident

SMAPS = """\
7f00-7f10 r--p 00000000 fe:00 11 /lib/libllvmlite.so
Rss: 100 kB
Private_Dirty: 0 kB
Anonymous: 0 kB
Swap: 0 kB
7f10-7f40 r-xp 00000010 fe:00 11 /lib/libllvmlite.so
Private_Dirty: 0 kB
Anonymous: 0 kB
7f40-7f50 r--p 00000040 fe:00 11 /lib/libllvmlite.so
Private_Dirty: 4 kB
Anonymous: 4 kB
7f50-7f60 rw-p 00000050 fe:00 11 /lib/libllvmlite.so
Anonymous: 0 kB
7f60-7f70 rw-p 00000000 00:00 0
Anonymous: 16 kB
7f70-7f80 r-xp 00000000 fe:00 12 /lib/libother.so
Anonymous: 0 kB
7f80-7f90 r-xp 00000000 fe:00 11 /lib/libllvmlite.so
Anonymous: 0 kB
"""
PROGRAM = """
import json, numba
from kvmon.exporter.resident import give_memory_back
from kvmon.exporter.warmup import warm_up

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024

warm_up()
before = resident()
give_memory_back()
after = resident()
warm_up()
compiled = numba.njit(lambda x: x + 1)(41)
print(json.dumps([before, after, compiled]))
"""


def test_only_pages_that_nobody_wrote_to_are_dropped() -> None:
    """Of the compiler's library alone, and not what the loader has changed in it."""
    assert list(resident._unwritten(SMAPS.splitlines(keepends=True))) == [
        (0x7F00, 0x7F10),
        (0x7F10, 0x7F40),
        (0x7F80, 0x7F90),
    ]


def test_the_process_is_smaller_and_kernels_and_compiler_still_work() -> None:
    """Tens of megabytes go; what needs them again reads them again."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, after, compiled = json.loads(done.stdout)
    assert compiled == 42
    assert before - after > 30, done.stdout
