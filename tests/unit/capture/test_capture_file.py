"""A capture file.

What was written is read, state at a time is the fold up to it, and damage is said and never raised.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kvmon.capture import CaptureReader, CaptureWriter, Frames, Hole, StreamFacts, Tail, apply_piece
from kvmon.capture.layout import FILE_BYTES, TRAILER_BYTES, ChunkKind
from kvmon.errors import CaptureError, ConfigError, InputError, NewerFormatError, SystemRefused
from kvmon.events import Kind, encode
from kvmon.state import FrameTable, ScanEnd, StreamState, scan
from tests.unit.capture.traffic import frame, record, same, words_of

Words = npt.NDArray[np.uint32]
FACTS = StreamFacts(
    "toy", 3, bytes(range(16)), bytes(range(16, 32)), 42, 1_700_000_000_000_000_000, 5, (1, 2) + (0,) * 414
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Words:
    """The words of 600 steps of an engine."""
    directory = tmp_path_factory.mktemp("recording")
    record(directory, 600)
    return words_of(directory / "toy-0")


def write(path: Path, words: Words, chunks: int = 1, **options: int | None) -> Path:
    """A capture of one stream, its frames in so many chunks."""
    table = scan(words)
    with CaptureWriter(path, **options) as writer:  # type: ignore[arg-type]
        sink = writer.add_stream(FACTS)
        for part in np.array_split(np.arange(len(table.ends)), chunks):
            begin = int(table.ends[part[0] - 1]) if part[0] else 0
            sink.write(words[begin : int(table.ends[part[-1]])])
            sink.flush()
    return path


def folded(words: Words, until_ns: int | None = None, *, detail: bool = True) -> StreamState:
    """The state that folding the words without a capture gives."""
    state, table = StreamState(detail=detail), scan(words)
    count = len(table.ends) if until_ns is None else int((table.times <= until_ns).sum())
    state.apply_frames(
        words, FrameTable(table.ends[:count], table.numbers[:count], table.times[:count], 0, ScanEnd.ALL)
    )
    return state


def test_what_was_written_is_read(tmp_path: Path, words: Words) -> None:
    """Facts, words and tables of frames come back as they were given, in their order."""
    with CaptureReader(write(tmp_path / "x.kvmon", words, 7)) as reader:
        (stream,) = reader.streams
        assert stream.facts == FACTS
        pieces = [piece for piece in reader.pieces(stream) if isinstance(piece, Frames)]
        assert len(pieces) == 7
        assert (np.concatenate([piece.words for piece in pieces]) == words).all()
        table = scan(words)
        assert np.concatenate([piece.table.numbers for piece in pieces]).tolist() == table.numbers.tolist()
        assert np.concatenate([piece.table.times for piece in pieces]).tolist() == table.times.tolist()
        assert (stream.frames, stream.words) == (len(table.ends), len(words))
        assert (stream.first_time_ns, stream.last_time_ns) == (table.times[0], table.times[-1])
        assert reader.closed_in_order and reader.check() == []


@pytest.mark.parametrize("detail", [True, False])
@pytest.mark.parametrize("every", [None, 500])
def test_the_state_at_a_time_is_the_fold_up_to_it(
    tmp_path: Path, words: Words, detail: bool, every: int | None
) -> None:
    """With and without checkpoints, and with detail or without, every number is that of folding from the start."""
    path = write(tmp_path / "x.kvmon", words, 20, checkpoint_operations=every)
    with CaptureReader(path) as reader:
        (stream,) = reader.streams
        checkpoints = [chunk for chunk in stream.chunks if chunk.kind == ChunkKind.CHECKPOINT]
        assert bool(checkpoints) == (every is not None)
        first, last = int(scan(words).times[0]), int(scan(words).times[-1])
        rng = random.Random(4)
        for time_ns in (first, last, last + 10**12, *(rng.randint(first, last) for _ in range(12))):
            assert same(reader.state_at(stream, time_ns, detail=detail), folded(words, time_ns, detail=detail))
        assert same(reader.fold(stream, detail=detail), folded(words, detail=detail))
        with pytest.raises(ConfigError, match="no state at"):
            reader.state_at(stream, first - 1)


def test_a_damaged_checkpoint_costs_time_and_no_truth(tmp_path: Path, words: Words) -> None:
    """Without its checkpoints the state at a time is folded from further back, and the damage is said."""
    path = write(tmp_path / "x.kvmon", words, 20, checkpoint_operations=500)
    with CaptureReader(path) as reader:
        chunks = [chunk for chunk in reader.streams[0].chunks if chunk.kind == ChunkKind.CHECKPOINT]
    for chunk in chunks:
        flip(path, chunk.payload_at + 9)
    with CaptureReader(path) as reader:
        (stream,) = reader.streams
        assert same(reader.state_at(stream, int(scan(words).times[-1])), folded(words))
        assert [damage.offset for damage in reader.damage] == [chunk.offset for chunk in reversed(chunks)]


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def test_many_streams_share_a_file(tmp_path: Path, words: Words) -> None:
    """Streams whose chunks alternate come back each on its own."""
    table = scan(words)
    half = int(table.ends[len(table.ends) // 2])
    with CaptureWriter(tmp_path / "x.kvmon") as writer:
        sinks = [writer.add_stream(StreamFacts("engine", rank)) for rank in range(3)]
        for part in (words[:half], words[half:]):
            for sink in sinks:
                sink.write(part)
                sink.flush()
    with CaptureReader(tmp_path / "x.kvmon") as reader:
        assert [stream.name for stream in reader.streams] == ["engine-0", "engine-1", "engine-2"]
        for stream in reader.streams:
            pieces = [piece.words for piece in reader.pieces(stream) if isinstance(piece, Frames)]
            assert (np.concatenate(pieces) == words).all()


def test_holes_and_tails_come_back(tmp_path: Path, words: Words) -> None:
    """What the writer was told is missing stands between the frames, and an unclosed frame at the end."""
    table = scan(words)
    first, second = int(table.ends[9]), int(table.ends[19])
    tail = np.array(encode(Kind.ALLOC, units=[1, 2]), np.uint32)
    hole = Hole("the frame's checksum is wrong", 10, 10, 3, True)
    with CaptureWriter(tmp_path / "x.kvmon") as writer:
        sink = writer.add_stream(FACTS)
        for piece in (Frames(words[:first], scan(words[:first])), hole):
            sink.add(piece)
        sink.write(words[second:])
        sink.add(Tail(tail))
    with CaptureReader(tmp_path / "x.kvmon") as reader:
        pieces = list(reader.pieces(reader.streams[0]))
        assert [type(piece) for piece in pieces] == [Frames, Hole, Frames, Tail]
        assert pieces[1] == hole
        assert isinstance(pieces[3], Tail) and (pieces[3].words == tail).all()


def test_a_frame_longer_than_a_chunk_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are cut between frames; one frame that fits no chunk gets its own."""
    monkeypatch.setattr("kvmon.capture.writer.CHUNK_WORDS", 64)
    bodies = [[encode(Kind.ALLOC, units=range(1, count))] for count in (3, 200, 5, 7, 90)]
    words = np.array([w for n, body in enumerate(bodies) for w in frame(n, n + 1, [[*body[0]]])], np.uint32)
    long = np.array(frame(5, 9, [encode(Kind.AUDIT_SLICE, start=1, status=[1 << 31] * 300)]), np.uint32)
    with CaptureWriter(tmp_path / "x.kvmon") as writer:
        sink = writer.add_stream(FACTS)
        sink.write(words)
        sink.write(long)
    with CaptureReader(tmp_path / "x.kvmon") as reader:
        pieces = [piece.words for piece in reader.pieces(reader.streams[0]) if isinstance(piece, Frames)]
        assert max(len(piece) for piece in pieces) == len(long)
        assert (np.concatenate(pieces) == np.concatenate((words, long))).all()


# -- damage --


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Words]:
    """The bytes of a small capture of six chunks, and its words."""
    words = np.array(
        [w for n in range(12) for w in frame(n, 1000 + n, [encode(Kind.ALLOC, units=[n + 1, n + 20])])], np.uint32
    )
    path = write(tmp_path_factory.mktemp("small") / "x.kvmon", words, 6, checkpoint_operations=8)
    return path.read_bytes(), words


def read_all(path: Path) -> tuple[list[Words], list[str]]:
    """The frames of each piece of a capture, and what it says is not sound; fails on any error but kvmon's own."""
    with CaptureReader(path) as reader:
        pieces = []
        for stream in reader.streams:
            state = StreamState()
            for piece in reader.pieces(stream):
                apply_piece(state, piece)
                if isinstance(piece, Frames):
                    pieces.append(piece.words)
        return pieces, [str(damage) for damage in reader.check()]


def test_a_file_cut_at_every_byte_opens_as_far_as_it_is_sound(tmp_path: Path, small: tuple[bytes, Words]) -> None:
    """For every length.

    Every chunk that is whole is read, the damage is said, and nothing but kvmon's errors is raised.
    """
    data, words = small
    path = tmp_path / "cut.kvmon"
    path.write_bytes(data)
    with CaptureReader(path) as reader:
        ends = [chunk.end for chunk in reader.streams[0].chunks if chunk.kind == ChunkKind.FRAMES]
    for length in range(len(data)):
        path.write_bytes(data[:length])
        if length < 8:
            with pytest.raises(CaptureError, match=r"empty|no kvmon capture"):
                CaptureReader(path)
            continue
        pieces, damage = read_all(path)
        whole = sum(length >= end for end in ends)
        assert len(pieces) == whole, length
        assert damage, length
        got = np.concatenate(pieces) if pieces else words[:0]
        assert (got == words[: len(got)]).all()


def test_a_flipped_bit_is_said_and_costs_one_chunk(tmp_path: Path, small: tuple[bytes, Words]) -> None:
    """A changed byte, at each third place of the file, is found, and at most the chunk it lies in is lost."""
    data, _ = small
    path = tmp_path / "flipped.kvmon"
    with CaptureReader(_written(path, data)) as reader:
        padding = {
            at for chunk in reader.streams[0].chunks for at in range(chunk.payload_at + chunk.stored_bytes, chunk.end)
        }
        headers = {at for chunk in reader.streams[0].chunks for at in range(chunk.offset, chunk.payload_at)}
    for offset in range(8, len(data), 3):
        changed = bytearray(data)
        changed[offset] ^= 1 << offset % 8
        pieces, damage = read_all(_written(path, bytes(changed)))
        assert len(pieces) >= 5, offset
        if offset not in padding | headers and not len(data) - 4 <= offset:  # the index has the headers too
            assert damage or offset > len(data) - TRAILER_BYTES - 8, offset


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_random_damage_never_raises(tmp_path: Path, small: tuple[bytes, Words]) -> None:
    """Bytes overwritten, cut out or doubled in many places: the file opens, or one error of kvmon says why not."""
    data, _ = small
    path, rng = tmp_path / "x.kvmon", random.Random(7)
    opened = 0
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            at, length = rng.randrange(8, len(changed)), rng.randint(1, 200)
            action = rng.randrange(3)
            if action == 0:
                changed[at : at + length] = rng.randbytes(len(changed[at : at + length]))
            elif action == 1:
                del changed[at : at + length]
            else:
                changed[at:at] = changed[at : at + length]
        read_all(_written(path, bytes(changed)))
        opened += 1
    assert opened == 150


def test_a_lost_chunk_is_a_hole(tmp_path: Path, small: tuple[bytes, Words]) -> None:
    """Where the index is gone and a chunk with it, the frames that are missing are named."""
    data, _ = small
    path = _written(tmp_path / "x.kvmon", data)
    with CaptureReader(path) as reader:
        chunk = [chunk for chunk in reader.streams[0].chunks if chunk.kind == ChunkKind.FRAMES][2]
    changed = bytearray(data[:-TRAILER_BYTES])
    changed[chunk.offset : chunk.end] = bytes(chunk.end - chunk.offset)
    with CaptureReader(_written(path, bytes(changed))) as reader:
        holes = [piece for piece in reader.pieces(reader.streams[0]) if isinstance(piece, Hole)]
        assert [(hole.frame, hole.frames) for hole in holes] == [(4, 2)]
        assert any(f"byte {chunk.offset}: no chunk begins here" in str(damage) for damage in reader.damage)


# -- refusals --


def test_an_existing_file_is_not_replaced(tmp_path: Path, words: Words) -> None:
    """A name that is taken is an error before anything is written, unless the caller insists."""
    path = _written(tmp_path / "x.kvmon", b"mine")
    with pytest.raises(InputError, match="--force"):
        CaptureWriter(path)
    assert path.read_bytes() == b"mine"
    write(path, words, force=True)
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_error_leaves_no_file(tmp_path: Path, words: Words) -> None:
    """When the caller fails half way, neither the file nor a part of it is left."""
    with pytest.raises(ZeroDivisionError), CaptureWriter(tmp_path / "x.kvmon") as writer:
        writer.add_stream(FACTS).write(words)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_file(words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while writing is one line, and nothing is left on it."""
    real, written = os.write, 0

    def full(fd: int, data: bytes) -> int:
        nonlocal written
        written += 1
        if written > 4:
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr("kvmon.files.os.write", full)
    with pytest.raises(SystemRefused, match="disk is full"), CaptureWriter(tmp_path / "x.kvmon") as writer:
        writer.add_stream(FACTS).write(words)
    assert list(tmp_path.iterdir()) == []


def _newer(data: bytes) -> bytes:
    import struct
    import zlib

    head = data[:8] + struct.pack("<I", 99) + data[12:60]
    return head + struct.pack("<I", zlib.crc32(head)) + data[FILE_BYTES:]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path, data: None, CaptureError, "no file"),
        (lambda path, data: path.mkdir(), CaptureError, "is a directory"),
        (lambda path, data: path.write_bytes(b""), CaptureError, "is empty"),
        (lambda path, data: path.write_bytes(b"PAR1" * 90), CaptureError, "no kvmon capture"),
        (lambda path, data: path.write_bytes(_newer(data)), NewerFormatError, "upgrade kvmon"),
    ],
)
def test_what_is_no_capture_is_refused(
    tmp_path: Path,
    small: tuple[bytes, Words],
    make: Callable[[Path, bytes], object],
    error: type[Exception],
    message: str,
) -> None:
    """A missing, empty, foreign or newer file is one error that says what to do."""
    make(tmp_path / "x.kvmon", small[0])
    with pytest.raises(error, match=message):
        CaptureReader(tmp_path / "x.kvmon")


def test_words_that_are_no_whole_frames_are_refused(tmp_path: Path, words: Words) -> None:
    """A sink takes whole frames only."""
    with pytest.raises(CaptureError, match="whole frames only"), CaptureWriter(tmp_path / "x.kvmon") as writer:
        writer.add_stream(FACTS).write(words[:-1])


def test_an_output_without_a_directory_is_refused(tmp_path: Path) -> None:
    """A directory that is not there, or a name that is one, is one error each."""
    with pytest.raises(InputError, match="no directory"):
        CaptureWriter(tmp_path / "missing" / "x.kvmon")
    with pytest.raises(InputError, match="no file"):
        CaptureWriter(tmp_path, force=True)
