"""Cumulative numbers of the fold over the death of the exporter: nothing twice, nothing lost, nothing falls."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.exporter.follow import StreamFollower
from kvmon.exporter.follow.continuation import Continuation, Saved
from kvmon.exporter.follow.stream import Progress
from kvmon.exporter.statefile import StateFiles
from kvmon.state.units import IDLE, LIFETIME, REUSE
from tests.toy_engine import FakeClock, ToyEngine


def follower_of(stream: Path, clock: FakeClock, files: StateFiles | None = None) -> StreamFollower:
    """A follower that has caught up, continued from `files`."""

    def continued(epoch: bytes) -> Saved | None:
        return files.load(stream, epoch) if files else None

    follower = StreamFollower(stream, clock=clock, continued=continued)
    while follower.poll() is not Progress.NOTHING:
        pass
    return follower


def numbers(continuation: Continuation) -> dict[str, object]:
    """Everything that is continued."""
    histograms = {which: continuation.histogram(1, which) for which in (LIFETIME, IDLE, REUSE)}
    return {
        "records": continuation.records_read,
        "missing": continuation.missing_frames,
        "released": continuation.released(1),
        "evicted": continuation.evicted(1),
        "waits": continuation.waits().counts.tolist(),
        "histograms": {which: (h.counts.tolist(), h.sum_seconds) for which, h in histograms.items()},
    }


@settings(max_examples=25)
@given(data=st.data())
def test_a_killed_exporter_goes_on_where_it_was(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """However often the exporter dies and however old its file is, its numbers are those of one that never died."""
    directory = tmp_path_factory.mktemp("kill")
    clock = FakeClock()
    engine = ToyEngine(directory, clock=clock, budget=1 << 20, seed=data.draw(st.integers(0, 99)))
    stream, files = directory / "toy-0", StateFiles()
    never_died = StreamFollower(stream, clock=clock)
    mortal = follower_of(stream, clock, files)
    for _ in range(data.draw(st.integers(1, 4))):
        for _ in range(data.draw(st.integers(0, 3))):
            engine.run(data.draw(st.integers(1, 60)))
            for follower in (never_died, mortal):
                while follower.poll() is not Progress.NOTHING:
                    pass
            saved = mortal.saved()
            if saved is not None and data.draw(st.booleans()):
                assert files.save(stream, saved)
        engine.run(data.draw(st.integers(0, 60)))
        mortal = follower_of(stream, clock, files)
    while never_died.poll() is not Progress.NOTHING:
        pass
    assert numbers(mortal.continuation) == numbers(never_died.continuation)
    assert mortal.continuation.evicted(1) == engine.evicted
    assert mortal.continuation.released(1) == engine.released
    assert mortal.began_ns == never_died.began_ns


def test_a_file_of_an_older_kvmon_continues_what_it_holds(tmp_path: Path) -> None:
    """It does not say since when its numbers count: then since the oldest segment; nonsense is as good as no file."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, clock=clock, wall=lambda: 77)
    engine.run(100)
    stream, files = tmp_path / "toy-0", StateFiles()
    first = follower_of(stream, clock)
    saved = first.saved()
    assert saved is not None and files.save(stream, saved) and saved.began == 77
    file = files.path_of(stream)
    fields = json.loads(file.read_text())
    del fields["began"]
    file.write_text(json.dumps(fields))
    after = follower_of(stream, clock, files)
    assert after.began_ns == 77 and numbers(after.continuation) == numbers(first.continuation)
    for nonsense in (-1, "now", 1.5, None):
        file.write_text(json.dumps({**fields, "began": nonsense}))
        assert files.load(stream, saved.epoch) is None


def test_segments_that_went_while_it_was_down_are_made_good(tmp_path: Path) -> None:
    """Evictions in segments that nobody read are exact; what cannot be known is counted as lost, and nothing falls."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, clock=clock, budget=256 << 10)
    stream, files = tmp_path / "toy-0", StateFiles(tmp_path)
    engine.run(100)
    before = follower_of(stream, clock, files)
    saved = before.saved()
    assert saved is not None and files.save(stream, saved)
    engine.run(3000)
    after = follower_of(stream, clock, files)
    assert after.state.converged
    assert after.continuation.evicted(1) == engine.evicted
    assert before.continuation.released(1) < after.continuation.released(1) < engine.released
    assert after.continuation.missing_frames > 100


def test_without_a_file_counting_begins_once_the_picture_is_whole(tmp_path: Path) -> None:
    """A late first start says nothing before a sweep closed, and counts exactly from then on."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, clock=clock, budget=256 << 10, audit=False)
    engine.run(1500)
    late = follower_of(tmp_path / "toy-0", clock)
    assert not late.continuation.known and late.saved() is None
    engine.probe.audit_from(engine)
    while not late.continuation.known:
        engine.run(1)
        late.poll()
    evicted, released = engine.evicted, engine.released
    engine.run(200)
    while late.poll() is not Progress.NOTHING:
        pass
    assert late.continuation.evicted(1) == engine.evicted - evicted
    assert late.continuation.released(1) == engine.released - released


def test_the_file_of_another_life_counts_for_nothing(tmp_path: Path) -> None:
    """A restarted engine's counters begin at zero, whatever was saved of the life before."""
    clock = FakeClock()
    stream, files = tmp_path / "toy-0", StateFiles()
    first = ToyEngine(tmp_path, clock=clock)
    first.run(100)
    saved = follower_of(stream, clock, files).saved()
    assert saved is not None and files.save(stream, saved)
    first.close()
    second = ToyEngine(tmp_path, clock=clock, seed=5)
    second.run(30)
    follower = follower_of(stream, clock, files)
    assert follower.continuation.evicted(1) == second.evicted
    assert follower.continuation.released(1) == second.released


@pytest.fixture
def saved_file(tmp_path: Path) -> tuple[StateFiles, Path, Saved]:
    """A saved file with something in it."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, clock=clock)
    engine.run(100)
    stream, files = tmp_path / "toy-0", StateFiles()
    saved = follower_of(stream, clock).saved()
    assert saved is not None and files.save(stream, saved)
    return files, stream, saved


def test_a_file_says_what_was_saved(saved_file: tuple[StateFiles, Path, Saved]) -> None:
    """Loading gives back every number; the file is for its owner alone and leaves nothing beside it."""
    files, stream, saved = saved_file
    loaded = files.load(stream, saved.epoch)
    assert loaded is not None
    assert (loaded.epoch, loaded.frame) == (saved.epoch, saved.frame)
    assert np.array_equal(loaded.anchor, saved.anchor)
    assert np.array_equal(loaded.stream, saved.stream) and np.array_equal(loaded.pools, saved.pools)
    assert files.path_of(stream).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in stream.iterdir() if "exporter" in path.name] == ["exporter.json"]


def test_a_damaged_file_is_none(saved_file: tuple[StateFiles, Path, Saved]) -> None:
    """Cut anywhere, of another version, another shape or no JSON at all: it counts for nothing and raises nothing."""
    files, stream, saved = saved_file
    path = files.path_of(stream)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert files.load(stream, saved.epoch) is None
    fields = json.loads(whole)
    for name, value in (
        ("version", 2),
        ("frame", -1),
        ("stream", [1, 2]),
        ("pools", [[1]]),
        ("pools", [[-1] * len(fields["pools"][0])]),
        ("epoch", "zz"),
        ("content", []),
        ("stream", [2**70] * len(fields["stream"])),
    ):
        path.write_text(json.dumps({**fields, name: value}), encoding="ascii")
        assert files.load(stream, saved.epoch) is None, name
    path.write_text("[" * 100_000, encoding="ascii")
    assert files.load(stream, saved.epoch) is None


def test_a_place_that_cannot_be_written_is_said(saved_file: tuple[StateFiles, Path, Saved], tmp_path: Path) -> None:
    """Saving into a directory that is gone answers False."""
    _, stream, saved = saved_file
    assert not StateFiles(tmp_path / "gone").save(stream, saved)


def test_streams_of_two_directories_have_two_files(tmp_path: Path) -> None:
    """In one state directory the same stream name of two recordings names two files."""
    files = StateFiles(tmp_path)
    assert files.path_of(Path("/a/toy-0")) != files.path_of(Path("/b/toy-0"))
