"""The lives in a capture file or a recording directory: one engine's rank from its start to its end, each a stream.

One face for both sources. A capture has an index and checkpoints, so it is entered anywhere; a recording is read from
its begin. Invariant: a life ends with the last frame that was there when it was opened, however much a living engine
adds meanwhile. Nothing is changed or kept open behind `close`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from kvmon.capture.copying import select_streams
from kvmon.capture.layout import ChunkKind
from kvmon.capture.pieces import Frames, Hole, Piece, StreamFacts, apply_piece
from kvmon.capture.reader import CapturedStream, CaptureReader
from kvmon.capture.recorded import Life as NewLife
from kvmon.capture.recorded import facts_of, read_recorded
from kvmon.errors import ConfigError, InputError
from kvmon.recording import Header, StreamReader, headers
from kvmon.recording.layout import SEALED_CLOSED
from kvmon.state import FrameTable, ScanEnd, StreamState

__all__ = ["Life", "Lives", "open_lives", "split"]

Ints = npt.NDArray[np.int64]


class Life(ABC):
    """One life of one rank.

    name        `<engine>-<rank>`, with `#2` behind it for the second life of that name, and so on
    first_ns, last_ns   time of its first and last frame; None where it has none
    died        whether its writer died without closing it; None where that cannot be seen
    damage      what could not be read so far, in words
    """

    def __init__(self, name: str, facts: StreamFacts, first_ns: int | None, last_ns: int | None) -> None:
        self.name = name
        self.facts = facts
        self.first_ns = first_ns
        self.last_ns = last_ns
        self.died: bool | None = None
        self.damage: list[str] = []

    @abstractmethod
    def begin(self, before_ns: int | None = None, until_ns: int | None = None) -> tuple[StreamState, Iterator[Piece]]:
        """A state and the pieces that follow it.

        The state of its begin; with `before_ns` as late a one as there is, at or before that. The last piece is the one
        that holds `until_ns`, without it that of the last frame. Words of a piece are good until the next one is asked
        for.
        """

    def stored_ns(self) -> list[int]:
        """Times at which a state is stored, in their order: from each of them `begin` can begin."""
        return []

    def state_at(self, time_ns: int) -> StreamState:
        """The state after the last frame that ended at or before `time_ns`.

        Raises ConfigError where there is no frame so early.
        """
        self.check(time_ns)
        state, pieces = self.begin(time_ns, time_ns)
        for piece in pieces:
            until, after = split(piece, time_ns)
            if until is not None:
                apply_piece(state, until)
            if after is not None:
                break
        return state

    def state_within(self, time_ns: int, frame: int, word: int) -> tuple[StreamState, int]:
        """The state before the record at `word` of `frame`, which ended at `time_ns`, after all records before it; and
        the end of the frame before.

        Raises InputError where that frame cannot be read.
        """
        state, pieces = self.begin(time_ns - 1, time_ns)
        for piece in pieces:
            if isinstance(piece, Frames) and int(piece.table.numbers[-1]) >= frame:
                at = int(np.searchsorted(piece.table.numbers, frame))
                if int(piece.table.numbers[at]) != frame:
                    break
                start = int(piece.table.ends[at - 1]) if at else 0
                if at:
                    apply_piece(state, _first(piece, at))
                before = state.time_ns
                state.apply_part(piece.words[start : start + word].copy(), frame, time_ns)
                return state, before
            apply_piece(state, piece)
        raise InputError(f"{self.name} has no frame {frame} that can be read: 'kvmon verify' says what is there")

    def check(self, time_ns: int) -> None:
        """Raise ConfigError where there is no frame at or before this time."""
        if self.first_ns is None or self.last_ns is None:
            raise ConfigError(f"{self.name} has no whole frame: it has no state at any time")
        if time_ns < self.first_ns:
            raise ConfigError(f"{self.name} has no state at {time_ns} ns: its first frame ended at {self.first_ns} ns")


class Lives(ABC):
    """All lives of a source, in its order; a context manager."""

    def __init__(self) -> None:
        self.lives: list[Life] = []

    def named(self, name: str | None) -> list[Life]:
        """Those of this name: one life, or all of a rank; all without one.

        Raises ConfigError where there is none.
        """
        found = [life for life in self.lives if name in (None, life.name, life.facts.name)]
        if not found:
            names = ", ".join(dict.fromkeys(life.name for life in self.lives)) or "none"
            raise ConfigError(f"no stream '{name}' here: there is {names}")
        return found

    @abstractmethod
    def damage(self) -> list[str]:
        """What of the source was found not to be sound so far, by whatever was read of it."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the source."""

    def __enter__(self) -> Lives:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_lives(path: Path) -> Lives:
    """The lives in a capture file or in a recording directory, of a dead engine or of a living one.

    Raises InputError where `path` is neither or no life of it can be read, SystemRefused where it may not be.
    """
    source = _RecordedLives(path) if path.is_dir() else _CapturedLives(path)
    if not source.lives:
        source.close()
        raise InputError(f"{path} holds nothing that can be read: 'kvmon verify {path}' says what is there")
    return source


def split(piece: Piece, time_ns: int) -> tuple[Piece | None, Frames | None]:
    """What of a piece ended at or before `time_ns`, and the frames that ended later."""
    if not isinstance(piece, Frames):
        return piece, None
    late = piece.table.times > time_ns
    if not late.any():
        return piece, None
    count = int(late.argmax())
    if count == 0:
        return None, piece
    table, at = piece.table, int(piece.table.ends[count - 1])
    rest = FrameTable(
        table.ends[count:] - at, table.numbers[count:], table.times[count:], table.consumed - at, table.end
    )
    return _first(piece, count), Frames(piece.words[at:], rest)


def _first(piece: Frames, count: int) -> Frames:
    table, end = piece.table, int(piece.table.ends[count - 1])
    numbers, times = table.numbers[:count], table.times[:count]
    return Frames(piece.words[:end], FrameTable(table.ends[:count], numbers, times, end, ScanEnd.ALL))


def _numbered(names: Sequence[str]) -> list[str]:
    """Each name once: the second of its kind has `#2` behind it."""
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique


class _CapturedLife(Life):
    def __init__(self, name: str, reader: CaptureReader, stream: CapturedStream) -> None:
        super().__init__(name, stream.facts, stream.first_time_ns, stream.last_time_ns)
        self.died = True if any(chunk.kind == ChunkKind.TAIL for chunk in stream.chunks) else None
        self._reader = reader
        self._stream = stream

    def begin(self, before_ns: int | None = None, until_ns: int | None = None) -> tuple[StreamState, Iterator[Piece]]:
        reader, stream = self._reader, self._stream
        if before_ns is not None:
            return reader.enter(stream, before_ns, until_ns)
        state, after = reader.begin(stream)
        return state, reader.pieces(stream, after=after, until_ns=until_ns, reuse=True)

    def stored_ns(self) -> list[int]:
        return [chunk.last_time_ns for chunk in self._stream.chunks if chunk.kind == ChunkKind.CHECKPOINT]


class _CapturedLives(Lives):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._reader = CaptureReader(path)
        streams = self._reader.streams
        names = _numbered([stream.name for stream in streams])
        self.lives = [_CapturedLife(name, self._reader, stream) for name, stream in zip(names, streams, strict=True)]
        for life in self.lives:
            life.damage = [str(damage) for damage in self._reader.damage]

    def damage(self) -> list[str]:
        return [str(damage) for damage in self._reader.damage]

    def close(self) -> None:
        self._reader.close()


class _RecordedLife(Life):
    def __init__(self, name: str, path: Path, segments: list[Header], oldest: bool, died: bool | None) -> None:
        ahead = (times for header in segments for times in _times(path, header.index))
        back = (times for header in reversed(segments) for times in list(_times(path, header.index))[-1:])
        first, last = next(ahead, None), next(back, None)
        super().__init__(
            name,
            facts_of(segments[0]),
            None if first is None else int(first[0]),
            None if last is None else int(last[-1]),
        )
        self.died = died
        self.met: list[str] = []  # what was damaged, of what was read so far
        self._path = path
        self._first = None if oldest else segments[0].index
        self._stop = segments[-1].index + 1

    def begin(self, before_ns: int | None = None, until_ns: int | None = None) -> tuple[StreamState, Iterator[Piece]]:
        return StreamState(), self._pieces(until_ns)

    def _pieces(self, until_ns: int | None) -> Iterator[Piece]:
        for piece in read_recorded(self._path, first=self._first, stop=self._stop):
            if isinstance(piece, NewLife):
                continue
            if isinstance(piece, Hole) and piece.damaged and piece.reason not in self.met:
                self.met.append(piece.reason)
            until, after = split(piece, self.last_ns or 0)
            if until is not None:
                yield until
            if after is not None or (
                isinstance(piece, Frames) and until_ns is not None and piece.table.times[-1] > until_ns
            ):
                return


def _times(path: Path, segment: int) -> Iterator[Ints]:
    """Times of the frames of a segment, piece by piece."""
    for piece in read_recorded(path, first=segment, stop=segment + 1):
        if isinstance(piece, Frames):
            yield piece.table.times


class _RecordedLives(Lives):
    def __init__(self, path: Path) -> None:
        super().__init__()
        for stream in select_streams(path):
            lives: list[list[Header]] = []
            for header in reversed(list(headers(stream))):
                if not lives or lives[-1][-1].epoch != header.epoch:
                    lives.append([])
                lives[-1].append(header)
            names = _numbered([facts_of(life[0]).name for life in lives])
            for place, (name, segments) in enumerate(zip(names, lives, strict=True)):
                died = True if place + 1 < len(lives) else _died(stream)
                self.lives.append(_RecordedLife(name, stream, segments, place == 0, died))

    def damage(self) -> list[str]:
        return [reason for life in self.lives if isinstance(life, _RecordedLife) for reason in life.met]

    def close(self) -> None:
        """Nothing is open."""


def _died(path: Path) -> bool | None:
    """Whether the writer of the newest life is gone and did not close it in order."""
    reader = StreamReader(path)
    try:
        alive = reader.alive()
        while reader.poll() is not None:
            pass
        live = reader.live()
    finally:
        reader.close()
    return None if alive is None else not alive and (live is None or live.state != SEALED_CLOSED)
