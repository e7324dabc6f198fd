"""Nothing that was published is lost when the writer is killed, at whatever instruction.

A child records and counts, in memory that the parent shares, each call that has returned. The parent kills it at a
random instant and reads the directory: every acknowledged record is there, in order, in the closed frames or in the
open tail.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest

from kvmon.events import Kind, decode
from kvmon.probe import PoolInfo, StreamProbe
from kvmon.recording import StreamReader, find_streams
from kvmon.state import ScanEnd, StreamState, scan

KILLS = 200
CAPACITY = 4096


def record_for_ever(directory: Path, acknowledged: memoryview) -> None:
    """What the child does: call k is about units that follow from k alone; `acknowledged[0]` calls have returned."""
    probe = StreamProbe(directory, "victim", budget=1 << 20)
    pool = probe.attach_pool(PoolInfo("gpu", CAPACITY, 4096, 16))
    call = 0
    while True:
        kind, units = call_at(call)
        if kind is Kind.STEP:
            probe.step(call, 1, 2, 3, 4, 5, 6)
        elif kind is Kind.ASSIGN:
            pool.assign(call + 1, units)
        elif len(units) == 1:
            pool.alloc_one(units[0])
        else:
            pool.alloc(units)
        call += 1
        acknowledged[0] = call


def call_at(call: int) -> tuple[Kind, list[int]]:
    """What call number `call` says."""
    if call % 19 == 18:
        return Kind.STEP, []
    first = call * 37 % (CAPACITY - 64) + 1
    count = (1, 1, 5, 40, 2)[call % 5]
    return (Kind.ASSIGN if call % 7 == 3 else Kind.ALLOC), [first + k * 3 % 61 for k in range(count)]


def said(directory: Path) -> tuple[list[tuple[Kind, tuple[int, ...]]], bool]:
    """Calls that a reader finds, in order, and whether the first of them is the first there was."""
    reader = StreamReader(find_streams(directory)[0])
    found: list[tuple[Kind, tuple[int, ...]]] = []
    first_segment = None
    while piece := reader.poll() or reader.open_tail():
        first_segment = first_segment or piece.header.index
        words = np.frombuffer(piece.data, np.uint32)
        assert scan(words).end is (ScanEnd.INCOMPLETE if piece.open_tail else ScanEnd.ALL)
        if piece.open_tail:
            state = StreamState()
            assert state.apply_open(words)
        for event in decode(words.tolist()):
            if event.kind in (Kind.ALLOC, Kind.ASSIGN):
                found.append((event.kind, event.units))
            elif event.kind is Kind.STEP:
                found.append((event.kind, ()))
    assert not reader.damaged
    return found, first_segment == 1


def killed(directory: Path, after_s: float) -> int:
    """Fork a writer, kill it `after_s` seconds after its first call, and give the number of calls that had returned."""
    directory.mkdir()
    shared = mmap.mmap(-1, 4096)
    acknowledged = memoryview(shared).cast("Q")
    child = os.fork()
    if child == 0:
        try:
            record_for_ever(directory, acknowledged)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 10
    while acknowledged[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.0002)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    calls = int(acknowledged[0])
    acknowledged.release()
    shared.close()
    return calls


@pytest.mark.parametrize("batch", range(4))
def test_nothing_acknowledged_is_lost(tmp_path: Path, batch: int) -> None:
    """Killed at random instants, the writer leaves every record whose call had returned, and at most one more."""
    rng = Random(batch)
    for kill in range(KILLS // 4):
        directory = tmp_path / str(kill)
        calls = killed(directory, rng.random() * 0.03)
        assert calls
        found, whole = said(directory)
        # the calls that fit the budget's newest segments: the last `len(found)` before the kill, or one more
        assert len(found) >= calls if whole else len(found) > 1000
        expected = [(kind, tuple(units)) for kind, units in map(call_at, range(calls + 1))]
        last = expected[-len(found) :] if len(found) <= calls + 1 else []
        assert found in (last, expected[-len(found) - 1 : -1])


def test_reader_follows_a_writer_to_its_death(tmp_path: Path) -> None:
    """While the writer lives the reader sees whole frames only; once the kernel drops the lock it sees the open
    tail too.
    """
    directory = tmp_path / "one"
    calls = killed(directory, 0.01)
    reader = StreamReader(find_streams(directory)[0])
    assert reader.alive() is False
    while reader.poll():
        pass
    assert not reader.ended()
    probe = StreamProbe(directory, "victim")
    assert probe.writing, "the lock of a dead writer does not keep the next one out"
    probe.tick()
    found, _ = said(directory)
    assert len(found) >= min(calls, 1000)
    probe.close()
