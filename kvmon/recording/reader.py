"""The reading half of a recording: follow a stream while it is written, or read what a dead process left.

Files are read, never mapped: a file that somebody truncates would kill a process that maps it. What comes out are raw
words in pieces of whole frames, in order, with every hole named; whether a frame is sound is for the decoder to say,
which can ask to read a piece again. Nothing is written here.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kvmon.errors import NewerFormatError, RecordingError, SystemRefused
from kvmon.recording.layout import (
    CLOSED,
    CURSOR,
    HEADER_BYTES,
    HEARTBEAT,
    LIVE_AT,
    LOST,
    LOST_WHY,
    SEALED_CLOSED,
    SEALED_FOLLOWED,
    STATE,
    Header,
    segment_name,
)
from kvmon.recording.liveness import is_alive

__all__ = ["Live", "Piece", "Position", "StreamReader", "find_streams", "headers"]

_PIECE_WORDS = 1 << 20


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a stream: index of the segment, words into it."""

    segment: int
    word: int


@dataclass(frozen=True, slots=True)
class Live:
    """The live part of a segment's header as it was read."""

    cursor: int
    closed: int
    heartbeat_ns: int
    lost: int
    lost_why: int
    state: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive words of one segment.

    `data` holds little-endian words, whole frames unless `open_tail`: then what a dead writer had published of a
    frame that it never closed. `follows` says that nothing is missing between the piece before and this one.
    """

    header: Header
    at: Position
    data: bytes
    open_tail: bool = False
    follows: bool = True


class _Segment:
    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self.header = Header.unpack(os.pread(self.fd, HEADER_BYTES, 0), path.name)
        except (RecordingError, NewerFormatError):
            os.close(self.fd)
            raise
        self._room = max(0, os.fstat(self.fd).st_size - HEADER_BYTES) // 4

    def live(self) -> Live:
        raw = os.pread(self.fd, 48, LIVE_AT)
        fields = struct.unpack("<6Q", raw.ljust(48, b"\0"))
        limit = min(self.header.data_words, self._room)
        return Live(
            cursor=min(fields[CURSOR], limit),
            closed=min(fields[CLOSED], limit),
            heartbeat_ns=fields[HEARTBEAT],
            lost=fields[LOST],
            lost_why=fields[LOST_WHY],
            state=fields[STATE],
        )

    def words(self, start: int, end: int) -> bytes:
        data = os.pread(self.fd, max(0, end - start) * 4, HEADER_BYTES + start * 4)
        return data[: len(data) // 4 * 4]

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class StreamReader:
    """Follows one stream, from the oldest segment that is there or from a given position."""

    def __init__(self, path: Path, start: Position | None = None) -> None:
        """`path` is the stream's directory. Nothing is opened before the first `poll`."""
        self.path = path
        self._segment: _Segment | None = None
        self._at = start or Position(0, 0)
        self._follows = start is not None
        self.skipped_segments = 0
        self.damaged: list[str] = []

    @property
    def position(self) -> Position:
        """Where the next piece begins."""
        return self._at

    def alive(self) -> bool | None:
        """Whether a writer lives; None where that cannot be seen."""
        return is_alive(self.path / "lock")

    def live(self) -> Live | None:
        """The live part of the segment being read; None before the first one."""
        return self._segment.live() if self._segment else None

    def backlog_words(self) -> int:
        """Words published in the current segment that were not handed out yet."""
        return max(0, self._segment.live().cursor - self._at.word) if self._segment else 0

    def ended(self) -> bool:
        """Whether the stream was closed in order and everything was handed out."""
        live = self.live()
        return bool(live and live.state == SEALED_CLOSED and self._at.word >= live.cursor)

    def poll(self) -> Piece | None:
        """The next piece of whole frames, None when there is nothing new.

        Raises NewerFormatError where a segment is of a newer format, RecordingError where the stream's directory is
        gone.
        """
        while True:
            segment = self._segment or self._open_next()
            if segment is None:
                return None
            live = segment.live()
            if self._at.word < live.closed:
                piece = self._take(segment, min(live.closed, self._at.word + _PIECE_WORDS))
                if piece is not None:
                    return piece
            if live.state != SEALED_FOLLOWED or self._at.word < live.closed:
                if not self._newer_exists():
                    if not self._begun_anew(segment):
                        return None
                    continue
                live = segment.live()  # what was published between the look at it and the look at its successor
                if live.closed <= self._at.word < live.cursor:
                    tail = self._take(segment, live.cursor)
                    if tail is not None:
                        return replace(tail, open_tail=True)
                piece = self._take(segment, live.closed)
                if piece is not None:
                    return piece
                self._follows = self._at.word >= live.closed
            self._leave()

    def open_tail(self) -> Piece | None:
        """What a dead writer published of its last, unclosed frame; None while it lives or where there is none."""
        if self._segment is None or self.alive() is not False:
            return None
        live = self._segment.live()
        if live.state == SEALED_FOLLOWED or self._at.word != live.closed or live.cursor <= live.closed:
            return None
        tail = self._take(self._segment, live.cursor)
        return None if tail is None else replace(tail, open_tail=True)

    def rewind(self, to: Position) -> None:
        """Read again from `to`, which lies in the segment being read."""
        if to.segment == self._at.segment:
            self._at = to

    def close(self) -> None:
        """Let the current segment go."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _take(self, segment: _Segment, end: int) -> Piece | None:
        """The words up to `end`; None where there are none, or somebody cut the file and they are gone."""
        data = segment.words(self._at.word, end)
        if not data:
            return None
        piece = Piece(segment.header, self._at, data, follows=self._follows)
        self._at = Position(self._at.segment, self._at.word + len(data) // 4)
        self._follows = True
        return piece

    def _indexes(self) -> list[int]:
        return _indexes(self.path)

    def _newer_exists(self) -> bool:
        return any(index > self._at.segment for index in self._indexes())

    def _leave(self) -> None:
        self.close()
        self._at = Position(self._at.segment + 1, 0)

    def _begun_anew(self, segment: _Segment) -> bool:
        """Whether the stream was removed and written again from its first segment on; then that is read next."""
        if os.fstat(segment.fd).st_nlink or not self._indexes():
            return False
        self.close()
        self._at, self._follows = Position(0, 0), False
        return True

    def _open_next(self) -> _Segment | None:
        for index in self._indexes():
            if index < self._at.segment:
                continue
            try:
                self._segment = _Segment(self.path / segment_name(index))
            except FileNotFoundError:
                continue  # retired between the listing and now
            except RecordingError as error:
                if str(error) not in self.damaged:
                    self.damaged.append(str(error))
                self._follows = False
                continue
            except PermissionError:
                raise _no_permission(self.path, index) from None
            if index != self._at.segment:
                self.skipped_segments += index - self._at.segment if self._at.segment else 0
                self._follows = False
                self._at = Position(index, 0)
            return self._segment
        return None


def headers(path: Path) -> Iterator[Header]:
    """Headers of the segments of a stream, newest first; damaged ones, and those retired meanwhile, are left out.

    Raises RecordingError where the stream's directory is gone, SystemRefused where it may not be read, NewerFormatError
    where a segment is of a newer format.
    """
    for index in reversed(_indexes(path)):
        try:
            segment = _Segment(path / segment_name(index))
        except PermissionError:
            raise _no_permission(path, index) from None
        except (OSError, RecordingError):
            continue
        segment.close()
        yield segment.header


def _no_permission(path: Path, index: int) -> SystemRefused:
    name = f"{path.name}/{segment_name(index)}"
    return SystemRefused(f"no permission to read {name}: run as the engine's user or set KVMON_GROUP")


def _indexes(path: Path) -> list[int]:
    try:
        names = os.listdir(path)
    except PermissionError:
        raise SystemRefused(f"no permission to read {path}: run as the engine's user or set KVMON_GROUP") from None
    except OSError as error:
        raise RecordingError(f"cannot read the stream {path.name}: {error.strerror}") from None
    return sorted(int(name[:-4]) for name in names if name.endswith(".seg") and name[:-4].isdigit())


def find_streams(directory: Path) -> list[Path]:
    """The streams of a recording directory, sorted by name.

    Raises RecordingError where the directory is missing or is not one, SystemRefused where it may not be read. An empty
    one is no error: an engine may come.
    """
    try:
        entries = sorted(directory.iterdir())
    except FileNotFoundError:
        raise RecordingError(f"no directory {directory}: give the one the engine has in KVMON_DIR") from None
    except NotADirectoryError:
        raise RecordingError(f"{directory} is not a directory: give the one the engine has in KVMON_DIR") from None
    except PermissionError:
        raise SystemRefused(f"no permission to read {directory}: run as the engine's user or set KVMON_GROUP") from None
    streams = []
    for entry in entries:
        with contextlib.suppress(OSError):
            if entry.is_dir() and not entry.is_symlink() and (entry / "lock").exists():
                streams.append(entry)
    return streams
