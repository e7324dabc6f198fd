"""A reader that did not see everything: it says that it does not know, until a sweep of the audit closes, and then
knows all of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.probe import PoolInfo, StreamProbe
from kvmon.recording import StreamReader, find_streams
from kvmon.state import StreamState, scan
from tests.naive.watched_engine import OFTEN, REQUEST_ACTS, UNIT_ACTS, Engine, check

Words = npt.NDArray[np.uint32]
POOLS = (
    PoolInfo("gpu", 300, 4096, 16),
    PoolInfo("slots", 60, 512, 1, layout="contiguous", contiguity="required"),
)
ACTS = (*UNIT_ACTS, *REQUEST_ACTS, *OFTEN, *OFTEN)


def live(engine: Engine, rng: Random, steps: int) -> None:
    """Random steps under load; requests come and go, so that some end while nobody looks."""
    for _ in range(steps):
        for _ in range(12):
            engine.act(rng.choice(ACTS), rng.getrandbits(32))
        while len(engine.requests) > 12:
            engine.act("finish", rng.getrandbits(32))
        engine.step()


def record(directory: Path, seed: int, steps: int, budget: int = 64 << 20) -> Engine:
    """A recording of a random life, left open."""
    engine = Engine(StreamProbe(directory, "toy", budget=budget), POOLS)
    live(engine, Random(seed), steps)
    assert engine.probe.lost == 0
    return engine


def frames_of(directory: Path) -> list[Words]:
    """The frames of a recording, one array each."""
    reader, frames = StreamReader(find_streams(directory)[0]), []
    while piece := reader.poll():
        words = np.frombuffer(piece.data, np.uint32)
        begin = 0
        for end in scan(words).ends.tolist():
            frames.append(words[begin:end])
            begin = end
    return frames


def facts(state: StreamState) -> dict[str, object]:
    """Every fact of a state that does not depend on when one began to look."""
    rows = state.requests
    known: dict[str, object] = {}
    for number, pool in state.pools.items():
        known[f"status {number}"] = pool.status.tolist()
        known[f"owners {number}"] = pool.owners.tolist()
        known[f"counts {number}"] = (pool.units, pool.shared, pool.unowned, pool.largest_free)
    for row in np.flatnonzero(rows.id).tolist():
        since = int(rows.decoding[row])
        known[f"request {rows.id[row]}"] = (
            int(rows.state[row]),
            int(rows.class_id[row]),
            int(rows.arrived[row]),
            int(rows.prompt[row]),
            int(rows.limit[row]),
            int(rows.reserved[row]),
            int(rows.computed[row]) + (state.steps - since if since >= 0 else 0),
            [state.table(row, pool).tolist() for pool in state.pools],
            rows.units[row].tolist(),
        )
    return known


class Frames(list[Words]):
    """Frames that do not fill the screen when an example fails."""

    def __repr__(self) -> str:
        return f"{len(self)} frames"


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    """One recording for all examples: about sixty sweeps, with the pools restated twice."""
    directory = tmp_path_factory.mktemp("late")
    record(directory, 5, 640)
    return Frames(frames_of(directory))


def compare(frames: Frames, lost: set[int], until: int) -> tuple[int, int]:
    """Fold with and without the lost frames; steps until the late one knew, and frames at which both were compared."""
    full, late = StreamState(verify=True), StreamState(verify=True)
    compared, missing, unknown = 0, False, 0
    for number, words in enumerate(frames[:until]):
        full.apply(words)
        assert full.converged
        if number in lost:
            missing = True
            continue
        late.apply(words)
        if missing:
            assert not late.converged, "nobody can know what a lost frame held"
            missing = False
        if late.converged:
            compared += 1
            assert facts(late) == facts(full)
        else:
            unknown += 1
    assert late.converged
    wrong = [
        fault for fault in late.faults() if fault.kind.name not in ("UNOWNED", "TOKENS_BEYOND_UNITS", "FRAME_MISSING")
    ]
    assert not wrong, "what was missed is no fault of the engine"
    return unknown, compared


@settings(max_examples=12)
@given(first=st.integers(1, 120))
def test_reader_that_starts_in_mid_load(frames: Frames, first: int) -> None:
    """It knows nothing until a sweep closes that it saw begin, then everything, at every frame from there on."""
    unknown, compared = compare(frames, set(range(first)), 400)
    assert unknown
    assert compared


@settings(max_examples=12)
@given(st.lists(st.tuples(st.integers(0, 130), st.integers(1, 25)), min_size=1, max_size=3))
def test_reader_that_lost_ranges(frames: Frames, ranges: list[tuple[int, int]]) -> None:
    """Each lost range makes it forget what it knew; after the next whole sweep it knows all again, ended requests
    included.
    """
    lost = {number for first, count in ranges for number in range(first, first + count)}
    _, compared = compare(frames, lost, 400)
    assert compared


def follow(directory: Path) -> StreamState:
    """Fold what a directory holds."""
    reader, state = StreamReader(find_streams(directory)[0]), StreamState(verify=True)
    while piece := reader.poll():
        if not piece.follows and state.next_frame is not None:
            state.gap()
        state.apply(np.frombuffer(piece.data, np.uint32))
    return state


def test_reader_that_finds_only_the_last_two_segments(tmp_path: Path) -> None:
    """Two segments are enough: every one restates the pools, and sweeps flow all the time."""
    engine = record(tmp_path / "", 3, 600, budget=4 << 20)
    stream = find_streams(tmp_path)[0]
    segments = sorted(stream.glob("*.seg"))
    assert len(segments) > 3
    for path in segments[:-2]:
        path.unlink()
    state = follow(tmp_path)
    assert state.converged
    check(state, engine)


def test_reader_that_lost_segments_in_the_middle(tmp_path: Path) -> None:
    """A hole of whole segments is named with its number of frames, and closes."""
    engine = record(tmp_path, 4, 600, budget=4 << 20)
    segments = sorted(find_streams(tmp_path)[0].glob("*.seg"))
    copy = tmp_path / "copy"
    shutil.copytree(find_streams(tmp_path)[0], copy / "toy-0")
    for path in segments[1:3]:
        (copy / "toy-0" / path.name).unlink()
    state = follow(copy)
    assert state.missing_frames > 0
    assert state.gaps > 0
    assert state.converged
    check(state, engine)


def test_retirement_keeps_the_budget_and_the_truth(tmp_path: Path) -> None:
    """However long an engine runs, the disk holds no more than the budget, and it is enough to know everything."""
    budget = 256 << 10
    engine = record(tmp_path, 8, 1500, budget=budget)
    files = list(find_streams(tmp_path)[0].glob("*.seg"))
    assert sum(path.stat().st_size for path in files) <= budget
    assert min(int(path.stem) for path in files) > 1
    state = follow(tmp_path)
    assert state.converged
    check(state, engine)


def test_reader_that_lags_behind_retirement(tmp_path: Path) -> None:
    """A reader whose next segments are gone says what it missed and shows no number before it knows again."""
    engine = Engine(StreamProbe(tmp_path, "toy", budget=256 << 10), POOLS)
    rng = Random(2)
    live(engine, rng, 20)
    reader, state = StreamReader(find_streams(tmp_path)[0]), StreamState(verify=True)
    piece = reader.poll()
    assert piece is not None
    state.apply(np.frombuffer(piece.data, np.uint32))
    assert state.converged
    live(engine, rng, 900)
    seen_unknown = False
    while piece := reader.poll():
        if not piece.follows:
            state.gap()
            assert not state.converged
            seen_unknown = True
        state.apply(np.frombuffer(piece.data, np.uint32))
    assert seen_unknown
    assert reader.skipped_segments > 0
    assert state.converged
    check(state, engine)
