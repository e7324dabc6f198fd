"""Views to draw: made up in every detail, or collected from a small recording."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvmon.probe import PoolInfo, PoolProbe, StreamProbe
from kvmon.recording import StreamReader, find_streams
from kvmon.report import DeviceView, FailureView, HolderView, MemoryMap, PoolView, Screen, StreamView
from kvmon.state import StreamState

GIB = 1 << 30
PARTS = {
    "kv_pool": 30 * GIB,
    "weights": 15 * GIB,
    "torch_other": 9 * GIB,
    "torch_slack": 7 * GIB,
    "rest": -GIB,
}


class Recorded:
    """An engine that records, and what its events add up to so far."""

    def __init__(self, directory: Path, info: PoolInfo) -> None:
        self.time = 1_000_000_000
        self.probe = StreamProbe(directory, "engine", clock=lambda: self.time)
        self.pool: PoolProbe = self.probe.attach_pool(info)
        self.state = StreamState()
        self._reader = StreamReader(find_streams(directory)[0])

    def step(self, running: int = 1, waiting: int = 0, need: int | None = None, seconds: float = 1.0) -> StreamState:
        """Close a step and fold everything."""
        self.time += int(seconds * 1e9)
        self.probe.step(self.time - 1000, 1000, 1, 2, 3, running, waiting, need)
        while piece := self._reader.poll():
            self.state.apply(np.frombuffer(piece.data, np.uint32))
        return self.state

    def hold(self, request: int, units: list[int], computed: int, *, decoding: bool = False, class_id: int = 0) -> None:
        """A request comes, is admitted, holds `units` and has `computed` tokens written."""
        self.probe.arrived(request, self.time, computed, class_id=class_id)
        self.probe.admitted(request)
        self.pool.alloc(units)
        self.pool.assign(request, units)
        self.probe.progress(request, computed, decoding)


@pytest.fixture
def paged(tmp_path: Path) -> Recorded:
    """A paged pool of 20 pages of 4 tokens."""
    return Recorded(tmp_path, PoolInfo("kv", 20, 64, 4))


@pytest.fixture
def contiguous(tmp_path: Path) -> Recorded:
    """A contiguous pool of 20 slots."""
    return Recorded(tmp_path, PoolInfo("kv", 20, 64, 1, layout="contiguous", contiguity="required"))


def pool_view() -> PoolView:
    """A contiguous pool in trouble: everything that can be shown is there."""
    codes = bytes([1] * 40 + [2] * 5 + [3] * 10 + [4] * 5 + [5] * 5 + [0] * 35)
    return PoolView(
        number=1,
        name="kv",
        layout="contiguous",
        contiguity="required",
        tier="gpu",
        capacity=100,
        unit_bytes=2048,
        unit_tokens=16,
        units={"active": 45, "cached": 10, "pinned": 5, "deferred": 5, "free": 35},
        largest_free=12,
        largest_after_eviction=20,
        external_fragmentation=0.657,
        lost=0.5,
        lost_size=15,
        slots={"written": 600, "tail": 40, "reserved": 80},
        page_utilization=600 / 720,
        unowned=3,
        failures={"no_contiguous_run": 7, "exhausted": 2},
        last_failure=FailureView(
            2.5, 17, 15, "required", 35, 10, 12, "no_contiguous_run", "waits", "request 17 needed 15 adjacent units"
        ),
        holders=(HolderView(4, 1, "running", 30, 470, 12.0), HolderView(9, 0, "running", 15, 240, 3.0)),
        map=MemoryMap(codes, bytes(255 if code else 0 for code in codes)),
    )


def stream_view(**changes: object) -> StreamView:
    """The engine of that pool."""
    view = StreamView(
        engine="toy",
        rank=0,
        condition="alive",
        silent_seconds=0.1,
        last_event_wall_ns=1_767_323_045_000_000_000,
        pid=7,
        converged=True,
        config={},
        lost_records=0,
        gaps=0,
        running=12,
        waiting=3,
        head_need=15,
        steps_per_second=61.2,
        tokens_per_second=4000.0,
        step_seconds=0.016,
        counters={
            "steps": 100,
            "prefill_tokens": 1000,
            "decode_tokens": 500,
            "arrived": 20,
            "preempted": 4,
            "lost_tokens": 70,
            "lookup_tokens": 200,
            "hit_tokens": 50,
            "output_tokens": 400,
        },
        pools=(pool_view(),),
        devices=(DeviceView("GPU-1", 0.5, 60 * GIB, 80 * GIB, PARTS, GIB, 2 * GIB),),
    )
    return replace(view, **changes)  # type: ignore[arg-type]


@pytest.fixture
def stream() -> StreamView:
    """One engine with one pool in trouble."""
    return stream_view()


@pytest.fixture
def screen(stream: StreamView) -> Screen:
    """A screen of three engines."""
    others = [replace(stream, engine=name) for name in ("second", "third")]
    return Screen("/recordings", 1_767_323_050_000_000_000, (stream, *others))
