"""Following one stream: what is folded, what is counted, and what is said about the engine."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.events.totals import PoolTotal, StreamTotal
from kvmon.exporter.follow import Life, StreamFollower
from kvmon.exporter.follow.stream import Progress
from kvmon.probe import Loss
from kvmon.recording import StreamReader
from kvmon.recording.layout import HEADER_BYTES
from tests.toy_engine import FakeClock, ToyEngine


def follow(engine: ToyEngine, directory: Path, **options: object) -> StreamFollower:
    """A follower that has caught up with the only stream of a directory."""
    follower = StreamFollower(directory / "toy-0", clock=engine.clock, **options)  # type: ignore[arg-type]
    catch_up(follower)
    return follower


def catch_up(follower: StreamFollower) -> None:
    """Poll until there is nothing new."""
    while follower.poll() is not Progress.NOTHING:
        pass


def check_equals_the_engine(follower: StreamFollower, engine: ToyEngine) -> None:
    """State and counters are the truth that the engine knows."""
    pool = follower.state.pools[1]
    assert (pool.status & np.uint32((1 << 24) - 1)).tolist() == engine.references[1:]
    assert {i + 1 for i, word in enumerate(pool.status.tolist()) if word & 1 << 24} == engine.content
    assert follower.continuation.evicted(1) == engine.evicted
    assert follower.continuation.released(1) == engine.released
    assert follower.counts.pool(1, PoolTotal.FAILED_FIRST, 1) == engine.failures
    assert follower.counts.stream(StreamTotal.ARRIVED) == engine.last_request


def test_a_live_engine_is_followed_exactly(tmp_path: Path) -> None:
    """After every few steps state and counters are the engine's own truth."""
    engine = ToyEngine(tmp_path, clock=FakeClock())
    follower = follow(engine, tmp_path)
    for _ in range(40):
        engine.run(7)
        catch_up(follower)
        check_equals_the_engine(follower, engine)
    assert follower.caught_up and follower.life is Life.ALIVE
    assert follower.lost_events == 0 and follower.backlog_bytes == 0


def test_many_segments_change_nothing(tmp_path: Path) -> None:
    """Counters go on over the borders of segments."""
    engine = ToyEngine(tmp_path, budget=4 << 20, clock=FakeClock())
    engine.run(1500)
    assert len(list((tmp_path / "toy-0").glob("*.seg"))) > 5
    check_equals_the_engine(follow(engine, tmp_path), engine)


def test_recounting_gives_the_totals_of_the_probe(tmp_path: Path) -> None:
    """Header plus recount of one segment are the totals in the header of the next one."""
    from kvmon.exporter.follow.recount import Counts

    engine = ToyEngine(tmp_path, budget=4 << 20, clock=FakeClock())
    engine.run(1000)
    reader = StreamReader(tmp_path / "toy-0")
    counts = Counts()
    segments = 0
    while (piece := reader.poll()) is not None:
        words = np.frombuffer(piece.data, np.uint32)
        if piece.at.word == 0:
            before = counts.totals
            counts.begin_segment(piece.header.totals)
            assert piece.header.totals == before
            segments += 1
        counts.add(words, 0, len(words))
    assert segments > 3
    assert counts.totals[:16] == tuple(engine.probe.emitter.totals[:16])
    assert counts.totals[32:56] == tuple(engine.pool.totals)


def test_a_restarted_engine_begins_again(tmp_path: Path) -> None:
    """A new life of the engine has a new state, and counters from zero."""
    clock = FakeClock()
    first = ToyEngine(tmp_path, clock=clock)
    first.run(50)
    follower = follow(first, tmp_path)
    first.close()
    second = ToyEngine(tmp_path, clock=clock, seed=2)
    second.run(20)
    catch_up(follower)
    check_equals_the_engine(follower, second)
    assert follower.counts.stream(StreamTotal.STEPS) == 20


def test_earlier_lives_are_not_read(tmp_path: Path) -> None:
    """A follower that comes late begins with the present life of the engine."""
    clock = FakeClock()
    first = ToyEngine(tmp_path, clock=clock)
    first.run(50)
    first.close()
    second = ToyEngine(tmp_path, clock=clock, seed=2)
    second.run(20)
    check_equals_the_engine(follow(second, tmp_path), second)


def test_what_a_dead_engine_had_published_of_its_last_frame_is_folded(tmp_path: Path) -> None:
    """The open tail of a dead writer belongs to its state."""
    engine = ToyEngine(tmp_path, clock=FakeClock())
    engine.run(20)
    engine.pool.alloc([engine.free[0]])
    engine.references[engine.free[0]] = 1
    engine.content.discard(engine.free[0])
    engine.probe.emitter._writer.release()  # type: ignore[union-attr]
    follower = follow(engine, tmp_path)
    assert follower.life is Life.DEAD
    pool = follower.state.pools[1]
    assert (pool.status & np.uint32((1 << 24) - 1)).tolist() == engine.references[1:]


def test_a_dead_engine_is_known_by_name_alone(tmp_path: Path) -> None:
    """Where nobody wants what the dead left, nothing is folded, and a new life is followed from its beginning."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, clock=clock)
    engine.run(20)
    engine.close()
    follower = follow(engine, tmp_path, fold_dead=False)
    assert (follower.life, follower.engine, follower.state.pools) == (Life.DEAD, "toy", {})
    again = ToyEngine(tmp_path, clock=clock, seed=3)
    again.run(10)
    catch_up(follower)
    check_equals_the_engine(follower, again)
    again.close()
    catch_up(follower)
    assert follower.life is Life.DEAD and follower.state.pools == {}


def test_a_life_that_goes_on_after_a_full_disk_is_followed_again(tmp_path: Path) -> None:
    """A probe that had to let its stream go for a while is dead meanwhile, and goes on with the same numbers."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, clock=clock)
    engine.run(100)
    follower = follow(engine, tmp_path, fold_dead=False)
    engine.probe.emitter._stop(Loss.DISK)
    catch_up(follower)
    assert follower.life is Life.DEAD and follower.state.pools == {}
    clock.advance(2)
    engine.run(80)
    catch_up(follower)
    assert follower.life is Life.ALIVE and follower.state.converged
    assert follower.continuation.evicted(1) == engine.evicted
    assert follower.lost_events > 0


def test_an_engine_with_work_and_no_event_is_stalled(tmp_path: Path) -> None:
    """Stalled needs work and silence; the last state stays, and the next step ends it."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, clock=clock)
    engine.run(20)
    follower = follow(engine, tmp_path, stall_seconds=5)
    clock.advance(4)
    assert (follower.poll(), follower.life) == (Progress.NOTHING, Life.ALIVE)
    clock.advance(2)
    assert (follower.poll(), follower.life) == (Progress.NOTHING, Life.STALLED)
    assert follower.state.pools[1].active > 0
    engine.run(1)
    catch_up(follower)
    assert follower.life is Life.ALIVE


def test_an_idle_engine_is_not_stalled(tmp_path: Path) -> None:
    """Silence without work is no stall, however long."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, clock=clock)
    engine.run(5)
    for request in list(engine.tables):
        engine.finish(request)
    engine.probe.step(clock(), 1, 0, 0, 0, 0, 0)
    follower = follow(engine, tmp_path, stall_seconds=5)
    clock.advance(3600)
    follower.poll()
    assert follower.life is Life.ALIVE


def flip(path: Path, word: int) -> None:
    """Damage one word of a segment."""
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + 4 * word)
        raw = file.read(4)
        file.seek(HEADER_BYTES + 4 * word)
        file.write(bytes(byte ^ 0x55 for byte in raw))


def test_a_bad_tail_is_read_again_before_it_is_called_damaged(tmp_path: Path) -> None:
    """Words that arrive late are no damage; words that stay wrong are a gap."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, clock=clock)
    engine.run(5)
    follower = follow(engine, tmp_path)
    segment = tmp_path / "toy-0" / "00000001.seg"
    at = engine.probe.emitter.at
    engine.run(1)
    flip(segment, at)
    catch_up(follower)
    assert follower.state.gaps == 0 and follower.state.next_frame == 5
    flip(segment, at)
    catch_up(follower)
    check_equals_the_engine(follower, engine)

    at = engine.probe.emitter.at
    engine.run(1)
    flip(segment, at)
    catch_up(follower)
    clock.advance(2)
    catch_up(follower)
    assert (follower.state.damaged_frames, follower.state.converged) == (1, False)
    engine.run(60)
    catch_up(follower)
    assert follower.state.converged
    assert follower.counts.stream(StreamTotal.STEPS) == engine.probe.emitter.totals[StreamTotal.STEPS] - 1


@settings(max_examples=30)
@given(word=st.integers(0, 4000), runs=st.integers(20, 60))
def test_damage_anywhere_is_a_gap_and_never_an_error(
    word: int, runs: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One wrong word costs a frame or two; after a sweep the state is the truth again."""
    directory = tmp_path_factory.mktemp("damage")
    clock = FakeClock()
    engine = ToyEngine(directory, clock=clock)
    engine.run(runs)
    flip(directory / "toy-0" / "00000001.seg", word % engine.probe.emitter.at)
    follower = StreamFollower(directory / "toy-0", clock=clock)
    for _ in range(3):
        catch_up(follower)
        clock.advance(2)
    engine.run(80)
    catch_up(follower)
    pool = follower.state.pools.get(1)
    assert (
        pool is None
        or not follower.state.converged
        or pool.status.tolist() == [word & 0x7FFFFFF for word in engine.status(1, 1, engine.units)]
    )


def test_a_reader_that_lags_sees_a_gap_and_recovers(tmp_path: Path) -> None:
    """Segments that were retired unread are counted as lost, and evictions in them are made good."""
    engine = ToyEngine(tmp_path, budget=256 << 10, clock=FakeClock())
    engine.run(50)
    follower = follow(engine, tmp_path)
    engine.run(3000)
    catch_up(follower)
    engine.run(60)
    catch_up(follower)
    assert follower.state.converged
    assert follower.lost_events > 100
    assert follower.continuation.evicted(1) == engine.evicted
    assert follower.counts.stream(StreamTotal.ARRIVED) == engine.last_request
    assert 0 < follower.continuation.released(1) < engine.released


def test_a_stream_that_may_not_be_read_says_why(tmp_path: Path) -> None:
    """A newer format is a problem of this stream, in one line, not an error."""
    engine = ToyEngine(tmp_path, clock=FakeClock())
    engine.run(1)
    follower = follow(engine, tmp_path)
    engine.close()
    segment = tmp_path / "toy-0" / "00000002.seg"
    segment.write_bytes((tmp_path / "toy-0" / "00000001.seg").read_bytes())
    with segment.open("r+b") as file:
        file.seek(8)
        file.write(b"\x63")
    follower = StreamFollower(tmp_path / "toy-0")
    catch_up(follower)
    assert follower.problem is not None and "upgrade kvmon" in follower.problem
    os.unlink(segment)
    catch_up(follower)
    assert follower.problem is None
