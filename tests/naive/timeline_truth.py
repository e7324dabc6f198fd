"""A recording of an engine, read as a timeline and at random instants, against the naive model of its events."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from kvmon.capture import CaptureWriter, Frames
from kvmon.capture.copying import copy_recording, select_streams
from kvmon.capture.recorded import read_recorded
from kvmon.events import Kind
from kvmon.replay.lives import open_lives
from kvmon.replay.moment import moments
from kvmon.replay.timeline import read_timelines
from kvmon.replay.when import parse_when
from kvmon.state import StreamState, scan
from tests.naive.state_at import assert_same_state
from tests.naive.timeline import NaiveTimeline, PoolFacts, frames_of
from tests.naive.timeline_numbers import assert_same_numbers

__all__ = ["Recorded"]


class Recorded:
    """The only stream in a recording directory, when its engine is done."""

    def __init__(self, directory: Path) -> None:
        (path,) = select_streams(directory)
        pieces = [piece for piece in read_recorded(path) if isinstance(piece, Frames)]
        self.directory = directory
        self.words = np.concatenate([piece.words for piece in pieces])
        self.table = scan(self.words)
        whole = StreamState()
        whole.apply(self.words)
        assert whole.fault_count == 0 and whole.converged_from == 0
        self._pools = dict(whole.pools)

    def capture(self, path: Path) -> Path:
        """A capture of it."""
        with CaptureWriter(path, checkpoint_operations=500) as writer:
            copy_recording(select_streams(self.directory), writer)
        return path

    def naive(self) -> NaiveTimeline:
        """A naive model that has seen nothing."""
        facts = {
            number: PoolFacts(
                unit_tokens=pool.unit_tokens,
                contiguous=pool.contiguity != "none",
                windowed=bool(pool.info.get("window_tokens")),
            )
            for number, pool in self._pools.items()
        }
        return NaiveTimeline({number: pool.capacity_units for number, pool in self._pools.items()}, facts)

    def compare_instants(self, source: Path, seed: int, count: int) -> int:
        """The state at random instants and before refusals, from a directory or a capture; how many were compared."""
        draw, compared = random.Random(seed), 0
        begin, end = int(self.table.times[0]), int(self.table.times[-1])
        instants = sorted(draw.randint(begin, end) for _ in range(count))
        naive, refused = self.naive(), 0
        with open_lives(source) as lives:
            (life,) = lives.lives
            for time_ns, events in frames_of(self.words, self.table):
                while instants and instants[0] < time_ns:
                    assert_same_state(life.state_at(instants.pop(0)), naive)
                    compared += 1
                naive.time_ns = time_ns
                for event in events:
                    if event.kind is Kind.ALLOC_FAILED:
                        refused += 1
                        if draw.random() < 0.2:
                            (moment,) = moments([life], parse_when(f"failure:{refused}"))
                            assert_same_state(moment.state, naive, whole=False)
                            compared += 1
                    naive.apply([event])
                    naive._note(event)
            assert_same_state(life.state_at(end), naive)
        return compared + 1

    def compare_curves(self, source: Path, buckets: int, *, but: frozenset[str] = frozenset()) -> None:
        """Every number of every bucket; see `assert_same_numbers`."""
        naive = self.naive()
        for time_ns, events in frames_of(self.words, self.table):
            naive.frame(time_ns, events)
        (timeline,) = read_timelines(source, buckets=buckets)
        assert_same_numbers(timeline, naive, but=but)
