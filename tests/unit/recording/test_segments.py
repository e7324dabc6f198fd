"""Writer and reader of segments: what is written is read, in order, with every hole named."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kvmon.errors import NewerFormatError, RecordingError
from kvmon.recording import Header, Position, StreamReader, StreamWriter, WriterLock, find_streams, is_alive
from kvmon.recording.layout import CLOSED, CURSOR, HEADER_BYTES, TOTAL_SLOTS, stream_name
from kvmon.recording.writer import SegmentWriter

TOTALS = [0] * TOTAL_SLOTS


def publish(segment: SegmentWriter, at: int, words: list[int], *, close: bool = True) -> int:
    """Store words, then the cursor, as a probe does."""
    for word in words:
        segment.words[at] = word
        at += 1
    segment.live[CURSOR] = at
    if close:
        segment.live[CLOSED] = at
    return at


def words_of(reader: StreamReader) -> list[int]:
    """Everything a reader hands out now."""
    found: list[int] = []
    while piece := reader.poll():
        found += memoryview(piece.data).cast("I").tolist()
    return found


def test_header_comes_back(tmp_path: Path) -> None:
    """Every field of a header is read as it was written; one changed byte is noticed."""
    header = Header("vllm", 3, 7, 99, 1000, 5, 6, 42, b"b" * 16, b"e" * 16, tuple(range(TOTAL_SLOTS)))
    page = header.pack()
    assert len(page) == HEADER_BYTES
    assert Header.unpack(page, "x") == header
    damaged = bytearray(page)
    damaged[30] ^= 1
    with pytest.raises(RecordingError, match="damaged"):
        Header.unpack(bytes(damaged), "x")
    newer = bytearray(page)
    newer[8] = 200
    with pytest.raises(NewerFormatError, match="upgrade"):
        Header.unpack(bytes(newer), "x")
    with pytest.raises(RecordingError, match="no segment"):
        Header.unpack(b"short", "x")


def test_reader_sees_closed_frames_as_they_come(tmp_path: Path) -> None:
    """Words appear to a reader once their frame is closed, never before, across segments and in order."""
    writer = StreamWriter(tmp_path, "toy")
    reader = StreamReader(writer.path)
    assert reader.poll() is None
    segment = writer.next_segment(0, TOTALS)
    at = publish(segment, 0, [1, 2, 3])
    publish(segment, at, [4], close=False)
    assert words_of(reader) == [1, 2, 3]
    assert reader.backlog_words() == 1
    publish(segment, at, [4, 5])
    assert words_of(reader) == [4, 5]
    publish(writer.next_segment(2, TOTALS), 0, [6])
    assert words_of(reader) == [6]
    assert reader.position == Position(2, 1)
    assert not reader.ended()
    writer.close()
    assert reader.ended()


def test_open_tail_of_a_dead_writer(tmp_path: Path) -> None:
    """What a writer published of a frame that it never closed is handed out once it is dead, and only then."""
    writer = StreamWriter(tmp_path, "toy")
    segment = writer.next_segment(0, TOTALS)
    publish(segment, publish(segment, 0, [1, 2]), [3, 4], close=False)
    reader = StreamReader(writer.path)
    assert words_of(reader) == [1, 2]
    assert reader.open_tail() is None
    writer.release()
    tail = reader.open_tail()
    assert tail is not None
    assert tail.open_tail
    assert memoryview(tail.data).cast("I").tolist() == [3, 4]
    assert reader.open_tail() is None


@pytest.mark.parametrize("in_order", [True, False])
def test_next_life_follows_the_open_tail(tmp_path: Path, in_order: bool) -> None:
    """When an engine comes back, the tail that its last life left is read before the first frame of the new one."""
    first = StreamWriter(tmp_path, "toy")
    publish(first.next_segment(0, TOTALS), 0, [1, 2], close=False)
    (first.close if in_order else first.release)()
    second = StreamWriter(tmp_path, "toy")
    publish(second.next_segment(0, TOTALS), 0, [3])
    reader, pieces = StreamReader(second.path), []
    while piece := reader.poll():
        pieces.append((memoryview(piece.data).cast("I").tolist(), piece.open_tail, piece.header.epoch))
    assert pieces == [([1, 2], True, first.epoch), ([3], False, second.epoch)]
    second.close()


def test_retired_segments_are_named_as_missing(tmp_path: Path) -> None:
    """The budget bounds the files; a reader that is too late goes on with a piece that does not follow."""
    writer = StreamWriter(tmp_path, "toy", budget=256 << 10)
    publish(writer.next_segment(0, TOTALS), 0, [1])
    reader = StreamReader(writer.path)
    assert words_of(reader) == [1]
    for number in range(2, 10):
        publish(writer.next_segment(number, TOTALS), 0, [number])
        assert sum(path.stat().st_size for path in writer.path.glob("*.seg")) <= 256 << 10
    piece = reader.poll()
    assert piece is not None
    assert not piece.follows
    assert piece.header.index == 6
    assert reader.skipped_segments == 4
    assert words_of(reader) == [7, 8, 9]


def test_space_is_taken_ahead(tmp_path: Path) -> None:
    """A segment has all of its blocks before the first word: a full disk is an error then, never a signal later."""
    writer = StreamWriter(tmp_path, "toy", budget=1 << 20)
    segment = writer.next_segment(0, TOTALS)
    status = segment.path.stat()
    assert status.st_blocks * 512 >= status.st_size == writer.segment_bytes


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_segments_belong_to_the_group_of_the_directory(tmp_path: Path) -> None:
    """Not to the main group of the engine, which a sidecar is not in."""
    engine, shared = 2000, 12345
    place = tmp_path / "recordings"
    place.mkdir()
    os.chown(place, -1, shared)
    place.chmod(0o2770)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o011)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([shared])
            os.setgid(engine)
            os.setuid(engine)
            StreamWriter(place, "toy", group_readable=True).next_segment(0, [0] * TOTAL_SLOTS)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    made = [path.stat() for path in place.rglob("*")]
    assert len(made) > 2
    assert {status.st_gid for status in made} == {shared}


@pytest.mark.parametrize(("group", "mode", "directory"), [(False, 0o600, 0o700), (True, 0o640, 0o750)])
def test_modes(tmp_path: Path, group: bool, mode: int, directory: int) -> None:
    """Files are for their owner, or for the group where that is asked, whatever the umask."""
    before = os.umask(0o077)
    try:
        writer = StreamWriter(tmp_path, "toy", group_readable=group)
        writer.next_segment(0, TOTALS)
    finally:
        os.umask(before)
    assert stat.S_IMODE(writer.path.stat().st_mode) == directory
    for path in writer.path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_file_cut_from_outside(tmp_path: Path) -> None:
    """A segment that somebody cut is read as far as it goes, without an endless loop."""
    writer = StreamWriter(tmp_path, "toy")
    segment = writer.next_segment(0, TOTALS)
    publish(segment, 0, list(range(1, 2000)))
    copy = tmp_path / "copy" / "toy-0"
    copy.mkdir(parents=True)
    data = segment.path.read_bytes()
    (copy / segment.path.name).write_bytes(data[: HEADER_BYTES + 400])
    reader = StreamReader(copy)
    assert words_of(reader) == list(range(1, 101))
    os.truncate(copy / segment.path.name, HEADER_BYTES)
    again = StreamReader(copy)
    assert again.poll() is None


def test_damaged_header_is_skipped_and_named_once(tmp_path: Path) -> None:
    """A segment without a sound header is left out, and the next piece does not follow."""
    writer = StreamWriter(tmp_path, "toy")
    first = writer.next_segment(0, TOTALS)
    publish(first, 0, [1])
    publish(writer.next_segment(1, TOTALS), 0, [2])
    with first.path.open("r+b") as file:
        file.write(b"garbage")
    reader = StreamReader(writer.path)
    assert words_of(reader) == [2]
    assert words_of(reader) == []
    assert len(reader.damaged) == 1


def test_lock(tmp_path: Path) -> None:
    """One writer at a time; alive as long as the lock is held."""
    path = tmp_path / "lock"
    assert is_alive(path) is False
    lock = WriterLock(path, 0o600)
    assert is_alive(path) is True
    with pytest.raises(BlockingIOError):
        WriterLock(path, 0o600)
    lock.release()
    lock.release()
    assert is_alive(path) is False
    WriterLock(path, 0o600).release()


def test_directories_that_hold_no_streams(tmp_path: Path) -> None:
    """A missing directory is an error that says what to do; a link is no stream."""
    with pytest.raises(RecordingError, match="KVMON_DIR"):
        find_streams(tmp_path / "missing")
    assert find_streams(tmp_path) == []
    writer = StreamWriter(tmp_path, "a/../b", 2)
    (tmp_path / "link").symlink_to(writer.path)
    assert find_streams(tmp_path) == [tmp_path / stream_name("a/../b", 2)]
