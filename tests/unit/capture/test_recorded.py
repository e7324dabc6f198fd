"""Pieces of a recording: everything that is there, what is missing named, of the living and of the dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from kvmon.capture import CaptureReader, CaptureWriter, Frames, Hole, Tail
from kvmon.capture.copying import copy_recording, select_streams
from kvmon.capture.recorded import Life, read_recorded, segment_times
from kvmon.capture.verification import verify_path
from kvmon.recording.layout import HEADER_BYTES
from kvmon.state import StreamState, scan
from tests.toy_engine import SECOND, FakeClock
from tests.unit.capture.traffic import record, same, words_of

ROOT = Path(__file__).parents[3]


def numbers(path: Path) -> list[int]:
    """Numbers of all frames of a recorded stream."""
    return [int(n) for piece in read_recorded(path) if isinstance(piece, Frames) for n in piece.table.numbers]


def capture(directory: Path, path: Path, *, last_ns: int | None = None) -> CaptureReader:
    """All streams of a recording as a capture, opened."""
    with CaptureWriter(path, force=True) as writer:
        copy_recording(select_streams(directory), writer, last_ns=last_ns)
    return CaptureReader(path)


def test_every_frame_comes_once_in_order(tmp_path: Path) -> None:
    """A recording over several segments gives each of its frames once, and the life they belong to first."""
    engine = record(tmp_path, 1500, budget=16 << 20)
    pieces = list(read_recorded(tmp_path / "toy-0"))
    assert isinstance(pieces[0], Life) and pieces[0].facts.engine == "toy"
    assert not any(isinstance(piece, Hole) for piece in pieces)
    assert numbers(tmp_path / "toy-0") == list(range(engine.probe.emitter.frame))
    assert len(segment_times(tmp_path / "toy-0")) > 1


def test_retired_segments_are_a_hole(tmp_path: Path) -> None:
    """What the budget took away is named with the number of its frames, and the capture begins to be verified later."""
    record(tmp_path, 6000, budget=256 << 10, units=64)
    _, hole, *rest = read_recorded(tmp_path / "toy-0")
    assert isinstance(hole, Hole) and not hole.damaged
    first = next(piece for piece in rest if isinstance(piece, Frames))
    assert (hole.frame, hole.frames) == (0, int(first.table.numbers[0]))
    (report,) = verify_path(tmp_path).streams
    assert report.verified_from is not None and report.verified_from > hole.frames
    assert report.faults == [] and report.clean


def test_two_lives_are_two_streams(tmp_path: Path) -> None:
    """An engine that came back counts its frames anew: its second life is a stream of its own."""
    record(tmp_path, 40)
    record(tmp_path, 60, seed=2)
    reader = capture(tmp_path, tmp_path / "x.kvmon")
    assert [stream.frames for stream in reader.streams] == [40, 60]
    assert len({stream.facts.epoch for stream in reader.streams}) == 2
    assert [report.clean for report in verify_path(tmp_path).streams] == [True, True]
    reader.close()


def test_a_capture_says_what_the_recording_says(tmp_path: Path) -> None:
    """The words, the state and the report of a capture are those of the recording."""
    record(tmp_path, 700, close=False)
    with capture(tmp_path, tmp_path / "x.kvmon") as reader:
        (stream,) = reader.streams
        got = [piece.words for piece in reader.pieces(stream) if isinstance(piece, Frames)]
        words = words_of(tmp_path / "toy-0")
        assert (np.concatenate(got) == words).all()
        state = StreamState()
        state.apply(words)
        assert same(reader.fold(stream), state)
    one, other = verify_path(tmp_path).streams, verify_path(tmp_path / "x.kvmon").streams
    assert [a.as_json() for a in one] == [
        {**b.as_json(), "recounts": a.recounts} for a, b in zip(one, other, strict=True)
    ]


def test_the_last_minutes_know_their_past(tmp_path: Path) -> None:
    """A capture of the end of a recording begins with the state at that point, and ends with the same state."""
    record(tmp_path, 4000, budget=8 << 20)
    with (
        capture(tmp_path, tmp_path / "all.kvmon") as everything,
        capture(tmp_path, tmp_path / "end.kvmon", last_ns=10 * SECOND) as end,
    ):
        (whole,), (part,) = everything.streams, end.streams
        assert part.frames < whole.frames
        assert part.first_time_ns is not None and part.last_time_ns is not None
        assert part.last_time_ns - part.first_time_ns >= 10 * SECOND - SECOND // 50
        assert same(end.fold(part), everything.fold(whole))
        assert same(end.state_at(part, part.first_time_ns), everything.state_at(whole, part.first_time_ns))
        assert part.facts.totals != whole.facts.totals
    (report,) = verify_path(tmp_path / "end.kvmon").streams
    assert report.clean and report.verified_from == report.first_frame


def test_a_damaged_frame_is_a_hole(tmp_path: Path) -> None:
    """A changed word is named by frame and word; the frames around it are kept."""
    record(tmp_path, 50)
    (segment,) = (tmp_path / "toy-0").glob("*.seg")
    table = scan(words_of(tmp_path / "toy-0"))
    with open(segment, "r+b") as file:
        file.seek(HEADER_BYTES + 4 * int(table.ends[19]))
        file.write(b"\0\0\0\0")
    holes = [piece for piece in read_recorded(tmp_path / "toy-0") if isinstance(piece, Hole)]
    assert [(hole.frame, hole.frames, hole.word, hole.damaged) for hole in holes] == [(20, 1, 0, True)]
    assert numbers(tmp_path / "toy-0") == [n for n in range(50) if n != 20]


def test_a_segment_with_a_damaged_header_is_a_hole(tmp_path: Path) -> None:
    """A segment that cannot be opened is named, and what follows it is read."""
    record(tmp_path, 2500, budget=8 << 20)
    segments = sorted((tmp_path / "toy-0").glob("*.seg"))
    with open(segments[1], "r+b") as file:
        file.seek(40)
        file.write(b"XXXX")
    holes = [piece for piece in read_recorded(tmp_path / "toy-0") if isinstance(piece, Hole)]
    assert any("damaged header" in hole.reason for hole in holes)
    got = numbers(tmp_path / "toy-0")
    assert got[-1] == 2499 and len(got) < 2500


def test_a_living_engine_is_captured_up_to_now(tmp_path: Path) -> None:
    """Reading a stream that goes on being written ends, with whole frames."""
    engine = record(tmp_path, 100, close=False, clock=FakeClock())
    with capture(tmp_path, tmp_path / "x.kvmon") as reader:
        assert reader.streams[0].frames == 100
    engine.run(50)
    with capture(tmp_path, tmp_path / "x.kvmon") as reader:
        assert reader.streams[0].frames == 150
    engine.close()


def test_a_killed_engine_loses_nothing(tmp_path: Path) -> None:
    """After SIGKILL the capture holds every published record, those of the unclosed frame included."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from tests.toy_engine import ToyEngine\n"
        "engine = ToyEngine(Path(sys.argv[1])); engine.run(200)\n"
        "engine.pool.alloc_one(engine.free[0] if hasattr(engine, 'free') else 200)\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "ready"
    os.kill(child.pid, signal.SIGKILL)
    child.wait(10)
    child.stdout.close()
    time.sleep(0.01)
    with capture(tmp_path, tmp_path / "x.kvmon") as reader:
        (stream,) = reader.streams
        pieces = list(reader.pieces(stream))
        assert stream.frames == 200
        assert isinstance(pieces[-1], Tail) and len(pieces[-1].words) == 1
    (report,) = verify_path(tmp_path / "x.kvmon").streams
    assert report.open_records


def test_the_key_never_gets_in(tmp_path: Path) -> None:
    """The secret of the page hashes stays in the recording directory."""
    record(tmp_path, 30)
    secret = bytes(range(100, 132))
    (tmp_path / "key").write_bytes(secret)
    capture(tmp_path, tmp_path / "x.kvmon").close()
    assert secret not in (tmp_path / "x.kvmon").read_bytes()
    assert (tmp_path / "key").read_bytes() == secret
