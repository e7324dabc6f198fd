"""The pieces of a recorded stream: what a directory holds now, of a living engine or of a dead one.

Reads what was published when reading began, and no further, so that copying a busy engine ends. Nothing of the
recording is changed, locked or mapped, and the key of the page hashes is never opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvmon.capture.pieces import Frames, Hole, Piece, StreamFacts, Tail
from kvmon.errors import InputError, NewerFormatError, RecordingError, SystemRefused
from kvmon.events import Kind, record_words
from kvmon.events.wire import LONG
from kvmon.recording import Header, Position, StreamReader
from kvmon.recording import Piece as RawPiece
from kvmon.recording.layout import HEADER_BYTES, segment_name
from kvmon.state import ScanEnd, find_frame, scan

__all__ = ["Life", "facts_of", "read_recorded", "segment_times"]

_LONGEST_LOOK = 1 << 16  # words of a damaged frame that are looked at
_CLOSING = (LONG << 8 | Kind.STEP, LONG << 8 | Kind.TICK)
_ATTEMPTS, _PAUSE_S = (
    3,
    0.01,
)  # how often a bad tail of a living writer is read again: its stores may arrive out of order

Words = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Life:
    """From here on the pieces are of this life of the engine: frames are counted from its start."""

    facts: StreamFacts
    segment: int


def read_recorded(
    path: Path, *, first: int | None = None, stop: int | None = None, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Life | Piece]:
    """Everything in the stream at `path`, oldest first; a Life before its pieces, and before whatever was damaged ahead
    of it, unless there is none.

    `first` and `stop` (exclusive) are indexes of segments. With `first`, what lies before it is not called missing.

    Raises NewerFormatError where a segment is of a newer format, RecordingError where the stream cannot be read.
    """
    last = max(_segments(path), default=0) if stop is None else stop - 1
    reader = StreamReader(path, None if first is None else Position(first, 0))
    walk = _Walk(reader, sleep, first is None)
    try:
        while reader.position.segment <= last:
            raw = reader.poll() or reader.open_tail()
            if walk.began or raw is None:
                yield from walk.damaged_headers()
            if raw is None or raw.at.segment > last:
                break
            yield from walk.pieces(raw)
    finally:
        reader.close()


def segment_times(path: Path) -> list[tuple[int, int]]:
    """(index, monotonic ns when it began) of the segments of a stream whose headers are sound."""
    times = []
    for index in _segments(path):
        try:
            with open(path / segment_name(index), "rb") as file:
                times.append((index, Header.unpack(file.read(HEADER_BYTES), segment_name(index)).mono_ns))
        except (FileNotFoundError, RecordingError, NewerFormatError):
            continue
        except PermissionError:
            raise _no_permission(path) from None
    return times


def _segments(path: Path) -> list[int]:
    try:
        return sorted(int(file.name[:-4]) for file in path.glob("*.seg") if file.name[:-4].isdigit())
    except PermissionError:
        raise _no_permission(path) from None


def _no_permission(path: Path) -> SystemRefused:
    return SystemRefused(f"no permission to read {path}: run as the engine's user or set KVMON_GROUP")


def facts_of(header: Header) -> StreamFacts:
    """What a segment's header says about its stream."""
    return StreamFacts(
        engine=header.engine,
        rank=header.rank,
        epoch=header.epoch,
        boot_id=header.boot_id,
        pid=header.pid,
        wall_ns=header.wall_ns,
        mono_ns=header.mono_ns,
        totals=header.totals,
    )


class _Walk:
    """Turns raw pieces into pieces; remembers which frame should come next."""

    def __init__(self, reader: StreamReader, sleep: Callable[[float], None], from_the_start: bool) -> None:
        self._reader = reader
        self._from_the_start = from_the_start
        self._sleep = sleep
        self._epoch: bytes | None = None
        self._expected: int | None = None
        self._named = 0

    @property
    def began(self) -> bool:
        """Whether a life has begun."""
        return self._epoch is not None

    def damaged_headers(self) -> Iterator[Hole]:
        """Segments that could not even be opened, once each."""
        for what in self._reader.damaged[self._named :]:
            yield Hole(what, self._expected, damaged=True)
        self._named = len(self._reader.damaged)

    def pieces(self, raw: RawPiece) -> Iterator[Life | Piece]:
        """The frames of a raw piece, with what is missing before and inside."""
        header = raw.header
        if header.epoch != self._epoch:
            wanted = self._from_the_start or self._epoch is not None
            self._epoch, self._expected = header.epoch, None
            yield Life(facts_of(header), header.index)
            damaged = list(self.damaged_headers())  # of the first life, or of one before it
            yield from damaged
            if header.first_frame > 0 and wanted:
                lost = f"frames are missing before segment {header.index}"
                yield Hole(lost if damaged else "older segments were retired", 0, header.first_frame)
            self._expected = header.first_frame if raw.at.word == 0 else None
        elif raw.at.word == 0 and self._expected is not None and header.first_frame != self._expected:
            missing = header.first_frame - self._expected
            yield Hole(f"frames are missing before segment {header.index}", self._expected, max(missing, 0))
            self._expected = header.first_frame
        words = _words(raw.data)
        if raw.open_tail:
            yield Tail(words)
            return
        yield from self._frames(raw, words)

    def _frames(self, raw: RawPiece, words: Words) -> Iterator[Piece]:
        at = 0
        while at < len(words):
            table = scan(words[at:])
            if table.consumed:
                self._expected = int(table.numbers[-1]) + 1
                yield Frames(words[at : at + table.consumed], replace(table, end=ScanEnd.ALL))
                at += table.consumed
            if at >= len(words):
                return
            again = self._again(raw, at)
            if again is not None:
                words = again
                continue
            following = find_frame(words, at)
            yield self._damage(words, at, table.end, len(words) if following is None else following)
            if following is None:
                return
            at = following

    def _again(self, raw: RawPiece, at: int) -> Words | None:
        """The piece read once more, where that makes the frame at `at` sound.

        Only a living writer's words can still change.
        """
        if self._reader.alive() is False:
            return None
        for _ in range(_ATTEMPTS):
            self._sleep(_PAUSE_S)
            self._reader.rewind(raw.at)
            once_more = self._reader.poll()
            if once_more is None or once_more.at != raw.at or len(once_more.data) < len(raw.data):
                return None
            words = _words(once_more.data)[: len(raw.data) // 4]
            self._reader.rewind(Position(raw.at.segment, raw.at.word + len(words)))
            if scan(words[at:]).consumed:
                return words
        return None

    def _damage(self, words: Words, at: int, why: ScanEnd, following: int) -> Hole:
        reasons = {
            ScanEnd.NO_RECORD: "a word of the frame begins no record",
            ScanEnd.CHECKSUM: "the frame's checksum is wrong",
            ScanEnd.LENGTH: "the frame says another length than it has",
        }
        number = scan(words[following:], verify=False).numbers
        missing = int(number[0]) - self._expected if len(number) and self._expected is not None else 1
        hole = Hole(
            reasons.get(why, "the frame is not whole"), self._expected, max(missing, 1), _wrong_word(words, at), True
        )
        self._expected = int(number[0]) if len(number) else None
        return hole


def _words(data: bytes) -> Words:
    """The words, in memory of our own: kernels are compiled for that alone."""
    return np.frombuffer(data, "<u4").astype(np.uint32, copy=True)


def _wrong_word(words: Words, at: int) -> int:
    """Where the structure of the frame at `at` breaks, counted from its start; 0 where only its checksum is wrong."""
    frame, place = words[at : at + _LONGEST_LOOK].tolist(), 0
    try:
        while place < len(frame):
            size = record_words(frame, place)
            if frame[place] >> 19 in _CLOSING:
                return 0
            place += size
    except InputError:
        return place
    return 0
