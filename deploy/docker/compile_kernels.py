"""Compile, while an image is built, every kernel that the exporter and the commands of somebody on call need.

It records an engine that never was with the real probe and runs the commands on it, so that `kvmon why` in a pod
answers in a second and not after half a minute of compiling. Everything is written to NUMBA_CACHE_DIR. Kernels are
known by the path of their source, so a copy of the sources beside the installed package must not get in its way.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from numba.core.caching import UserProvidedCacheLocator

import kvmon.state
from kvmon.events import FailureOutcome, FailureReason, FinishReason
from kvmon.probe import PoolInfo, StreamProbe

COMMANDS = ("status {dir}", "why {dir}", "holders {dir}", "capture {dir} -o {file}", "verify {file}", "replay {file}")
_UNITS, _STEPS = 64, 200


def record(directory: Path) -> None:
    """Requests that come, wait for memory once, and end."""
    probe = StreamProbe(directory, "warmup", config={"fidelity": "exact", "adapter": "warmup"}, budget=1 << 20)
    pool = probe.attach_pool(PoolInfo("kv", _UNITS, 4096, 16))
    for request in range(1, _STEPS + 1):
        units = [(request * 4 + at) % _UNITS + 1 for at in range(4)]
        now = time.monotonic_ns()
        probe.arrived(request, now, 60, limit=8)
        if request % 50 == 0:
            pool.failed(request, 80, 0, 40, 0, None, int(FailureReason.EXHAUSTED), int(FailureOutcome.REFUSED))
            probe.finished(request, int(FinishReason.REFUSED), 0)
        else:
            probe.admitted(request)
            pool.alloc(units)
            pool.assign(request, units)
            pool.cache(units[:2])
            probe.progress(request, 60, True)
            probe.finished(request, int(FinishReason.STOP), 8)
            pool.unshare(units[::-1])
        probe.step(now, 1_000_000, 60, 1, 60, 1, 0)
    probe.close()


def run(*words: str, cwd: Path) -> None:
    """A module of the installed package, from a folder that has no other. Exits where it fails."""
    done = subprocess.run([sys.executable, "-m", *words], cwd=cwd, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # 1: a command found something
        sys.exit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr}")


def main() -> None:
    """Run everything once, and see that it was the installed package that was compiled."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        run("kvmon.exporter.warmup", cwd=place)
        directory, file = place / "recording", place / "warm-up.kvmon"
        directory.mkdir(mode=0o700)
        record(directory)
        for command in COMMANDS:
            run("kvmon", *command.format(dir=directory, file=file).split(), cwd=place)
    kernels = UserProvidedCacheLocator.get_suitable_cache_subpath(kvmon.state.__file__)
    if not list((Path(os.environ["NUMBA_CACHE_DIR"]) / kernels).glob("*.nbc")):
        sys.exit(f"no kernels of {Path(kvmon.__file__).parent} were kept: another copy of kvmon was compiled")


if __name__ == "__main__":
    main()
