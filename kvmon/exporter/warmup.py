"""Compile or load every kernel that following and scraping need, on a few made-up frames.

So that the first scrape of a busy machine is as fast as the others. The compiler itself takes 150 MB that it never
gives back: where compiled code is kept on disk, a child process compiles, and only the result is loaded here.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from array import array

import numpy as np

from kvmon.events import Kind, RequestState, encode
from kvmon.events.wire import checksum
from kvmon.exporter.follow.recount import Counts
from kvmon.jit import is_cached
from kvmon.state import StreamState
from kvmon.state.kernels import fold

__all__ = ["compile_apart", "warm_up"]


def compile_apart(stopping: threading.Event) -> None:
    """Let a child process compile; it is killed when `stopping` is set. What it could not do is done by `warm_up`."""
    if not is_cached(fold):
        return
    with contextlib.suppress(OSError):
        child = subprocess.Popen([sys.executable, "-m", "kvmon.exporter.warmup"], stdin=subprocess.DEVNULL)
        while child.poll() is None:
            if stopping.wait(0.05):
                child.kill()


def warm_up() -> None:
    """Fold and survey a pool that never was. Takes a second, and up to a minute where nothing was compiled before."""
    pool = {"name": "warm-up", "capacity_units": 64, "unit_bytes": 1, "unit_tokens": 16, "fresh": True}
    pool["contiguity"] = "required"
    records = [
        *encode(Kind.POOL_ATTACHED, pool=1, restated=0, text=json.dumps(pool)),
        *encode(Kind.REQUEST_ARRIVED, request=1, at=1, class_id=0, prompt=20, limit=None, intended=None),
        *encode(Kind.REQUEST_ADMITTED, request=1),
        *encode(Kind.ALLOC, units=(1, 2)),
        *encode(Kind.ASSIGN, request=1, group=0, units=(1, 2)),
        *encode(
            Kind.AUDIT_REQUEST,
            request=1,
            state=RequestState.RUNNING,
            class_id=0,
            at=1,
            prompt=20,
            computed=1,
            decoding=1,
        ),
    ]
    words = [*records, *encode(Kind.TICK, seq=0, words=len(records) + 6, time=1, checksum=1)]
    words[-1] = checksum(array("I", words[:-1]).tobytes())
    frame = np.frombuffer(array("I", words).tobytes(), np.uint32)
    state, counts = StreamState(), Counts()
    state.apply(frame)
    counts.add(frame, 0, len(frame))
    state.pools[1].survey((1,))


if __name__ == "__main__":
    warm_up()
