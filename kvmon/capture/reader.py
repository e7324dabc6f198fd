"""The reading half of a capture: streams, their pieces in order, and the state at a time.

A file that is cut off or damaged opens as far as it is sound: `damage` says what is not, and holes stand among the
pieces where something is missing. Chunks are decompressed by threads of their own while the caller folds the ones
before. Nothing is written.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import zstandard

from kvmon.capture.columns import Joiner, merge_planes
from kvmon.capture.index import Damage, Index, open_capture, read_index, read_payload
from kvmon.capture.layout import CHUNK_WORDS, ChunkHeader, ChunkKind
from kvmon.capture.pieces import Frames, Hole, Piece, StreamFacts, Tail, apply_piece
from kvmon.capture.read_ahead import ReadAhead
from kvmon.errors import CaptureError, ConfigError, NewerFormatError, RecordingError
from kvmon.state import FrameTable, ScanEnd, StreamState
from kvmon.state.checkpoint import load

__all__ = ["PART_WORDS", "CaptureReader", "CapturedStream"]

_THREADS = 2
PART_WORDS = 1 << 17
"""A chunk is handed on in parts of about so many words, so that folding begins before all of it is made."""

Words = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class CapturedStream:
    """One stream of a capture. Times are ns of the engine's monotonic clock, None while it has no frame."""

    number: int
    facts: StreamFacts
    chunks: tuple[ChunkHeader, ...]

    @property
    def name(self) -> str:
        """Engine and rank."""
        return self.facts.name

    @property
    def frames(self) -> int:
        """Frames that the headers promise."""
        return sum(chunk.frames for chunk in self._of(ChunkKind.FRAMES))

    @property
    def unit_operations(self) -> int:
        """Unit-operations that the headers promise."""
        return sum(chunk.unit_operations for chunk in self._of(ChunkKind.FRAMES))

    @property
    def words(self) -> int:
        """Words of whole frames that the headers promise."""
        return sum(chunk.words for chunk in self._of(ChunkKind.FRAMES))

    @property
    def stored_bytes(self) -> int:
        """Bytes of the stream's payloads in the file, checkpoints included."""
        return sum(chunk.stored_bytes for chunk in self.chunks)

    @property
    def first_time_ns(self) -> int | None:
        """Time of the first frame."""
        frames = self._of(ChunkKind.FRAMES)
        return frames[0].first_time_ns if frames else None

    @property
    def last_time_ns(self) -> int | None:
        """Time of the last frame."""
        frames = self._of(ChunkKind.FRAMES)
        return frames[-1].last_time_ns if frames else None

    def _of(self, kind: ChunkKind) -> list[ChunkHeader]:
        return [chunk for chunk in self.chunks if chunk.kind == kind]


class CaptureReader:
    """One capture file. Use it as a context manager, or `close` it.

    `damage` holds what was found not to be sound so far: opening reads headers alone, so damage inside a chunk shows
    when it is read.
    """

    def __init__(self, path: Path) -> None:
        """Open the file at `path`.

        Raises CaptureError where it is no capture or holds no stream, NewerFormatError where its version is newer than
        ours, SystemRefused where it cannot be read.
        """
        self.path = path
        self._fd = open_capture(path)
        self._local = threading.local()
        self._room: deque[Words] = deque()  # memory for words that was touched before,
        self._scratch: Words = np.empty(0, np.uint32)  # and for a checkpoint
        self._pool: ThreadPoolExecutor | None = None
        try:
            index = read_index(self._fd, path.name)
            self.damage: list[Damage] = list(index.damage)
            self.closed_in_order = index.closed
            self.streams: list[CapturedStream] = self._find_streams(index)
        except BaseException:
            os.close(self._fd)
            raise
        self.size_bytes = os.fstat(self._fd).st_size

    # -- reading --

    def pieces(
        self,
        stream: CapturedStream,
        *,
        after: ChunkHeader | None = None,
        until_ns: int | None = None,
        reuse: bool = False,
    ) -> Iterator[Piece]:
        """The pieces of a stream in their order, from its beginning or behind the chunk `after`, up to the one that
        holds `until_ns`.

        With `reuse` the words of a piece are good only until the next one is asked for: faster, because no new memory
        is touched. Reading begins with this call.
        """
        chunks = [chunk for chunk in stream.chunks if after is None or chunk.offset > after.offset]
        if until_ns is not None:
            chunks = [chunk for chunk in chunks if chunk.first_time_ns <= until_ns]
        expected = after.first_frame or None if after is not None else None
        least = CHUNK_WORDS if reuse else 0

        def read(chunk: ChunkHeader, room: Words | None) -> Iterator[Piece]:
            return self._parts(chunk, room, until_ns, least)

        return self._in_order(stream, ReadAhead(chunks, read, self._threads, self._room if reuse else None), expected)

    def _in_order(
        self, stream: CapturedStream, ahead: Iterable[tuple[ChunkHeader, Piece | None]], expected: int | None
    ) -> Iterator[Piece]:
        """The pieces with a hole where something is missing; `expected` is the number of the first frame, if known."""
        for chunk, piece in ahead:
            if piece is None:
                self._damaged(chunk, "this chunk is damaged")
                yield _missing(chunk, expected)
                continue
            if isinstance(piece, Frames):
                first = int(piece.table.numbers[0])
                if expected is not None and first > expected and not self._said_so(stream, chunk):
                    yield Hole("chunks of the capture are lost here", expected, first - expected, damaged=True)
                expected = int(piece.table.numbers[-1]) + 1
            yield piece

    def begin(
        self, stream: CapturedStream, *, detail: bool = True, verify: bool = False
    ) -> tuple[StreamState, ChunkHeader | None]:
        """The state before the first frame, and the chunk to read after.

        A capture of the last minutes begins with a checkpoint.
        """
        for chunk in stream.chunks:
            if chunk.kind == ChunkKind.CHECKPOINT:
                state = self._checkpoint(chunk, detail, verify)
                if state is not None:
                    return state, chunk
            elif chunk.kind != ChunkKind.STREAM:
                break
        return StreamState(detail=detail, verify=verify), None

    def enter(
        self,
        stream: CapturedStream,
        time_ns: int,
        until_ns: int | None = None,
        *,
        detail: bool = True,
        verify: bool = False,
    ) -> tuple[StreamState, Iterator[Piece]]:
        """The state at the last checkpoint that was taken at or before `time_ns`, and the pieces that follow it, as
        `pieces` gives them; those are read while the checkpoint is."""
        for chunk in reversed(stream.chunks):
            if chunk.kind == ChunkKind.CHECKPOINT and chunk.last_time_ns <= time_ns:
                pieces = self.pieces(stream, after=chunk, until_ns=until_ns, reuse=True)
                state = self._checkpoint(chunk, detail, verify)
                if state is not None:
                    return state, pieces
        state, after = self.begin(stream, detail=detail, verify=verify)
        return state, self.pieces(stream, after=after, until_ns=until_ns, reuse=True)

    def fold(self, stream: CapturedStream, *, detail: bool = True, verify: bool = False) -> StreamState:
        """The state after the last event of the stream."""
        state, after = self.begin(stream, detail=detail, verify=verify)
        for piece in self.pieces(stream, after=after, reuse=True):
            apply_piece(state, piece)
        return state

    def state_at(
        self, stream: CapturedStream, time_ns: int, *, detail: bool = True, verify: bool = False
    ) -> StreamState:
        """The state after the last frame that ended at or before `time_ns`; from the nearest checkpoint on.

        Raises ConfigError where the stream has no frame so early.
        """
        if stream.first_time_ns is None or time_ns < stream.first_time_ns:
            first = (
                "it has no frames"
                if stream.first_time_ns is None
                else f"its first frame ended at {stream.first_time_ns} ns"
            )
            raise ConfigError(f"{stream.name} has no state at {time_ns} ns: {first}")
        state, pieces = self.enter(stream, time_ns, time_ns, detail=detail, verify=verify)
        for piece in pieces:
            if isinstance(piece, Frames):
                late = piece.table.times > time_ns
                if late.any():
                    count = int(late.argmax())
                    apply_piece(state, Frames(piece.words, _first(piece.table, count)))
                    break
            apply_piece(state, piece)
        return state

    def check(self) -> list[Damage]:
        """Read every payload; all damage of the file, in its order."""
        decompressor = zstandard.ZstdDecompressor()
        for stream in self.streams:
            for chunk in stream.chunks:
                if read_payload(self._fd, chunk, decompressor) is None:
                    self._damaged(chunk, "this chunk is damaged")
        return sorted(self.damage, key=lambda damage: damage.offset)

    def close(self) -> None:
        """Let the file go; a second call does nothing."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> CaptureReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- inside --

    def _find_streams(self, index: Index) -> list[CapturedStream]:
        by_number: dict[int, list[ChunkHeader]] = {}
        for header in index.headers:
            by_number.setdefault(header.stream, []).append(header)
        streams = []
        for number, chunks in sorted(by_number.items()):
            facts = None
            described = next((chunk for chunk in chunks if chunk.kind == ChunkKind.STREAM), None)
            if described is not None:
                payload = read_payload(self._fd, described, zstandard.ZstdDecompressor())
                try:
                    facts = None if payload is None else StreamFacts.from_json(json.loads(payload))
                except (CaptureError, ValueError):
                    facts = None
            if facts is None:
                at = chunks[0].offset if described is None else described.offset
                self.damage.append(
                    Damage("the description of this stream is damaged: its engine is not known", at, number)
                )
                facts = StreamFacts(f"stream{number}")
            streams.append(CapturedStream(number, facts, tuple(chunks)))
        return streams

    def _threads(self) -> ThreadPoolExecutor:
        if self._fd < 0:
            raise CaptureError(f"{self.path.name} was closed: open it again")
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="kvmon-capture")
        return self._pool

    def _tools(self) -> tuple[zstandard.ZstdDecompressor, Joiner]:
        """A decompressor and a joiner for this thread alone."""
        if not hasattr(self._local, "tools"):
            self._local.tools = (zstandard.ZstdDecompressor(), Joiner())
        tools: tuple[zstandard.ZstdDecompressor, Joiner] = self._local.tools
        return tools

    def _parts(self, chunk: ChunkHeader, room: Words | None, until_ns: int | None, least: int) -> Iterator[Piece]:
        """What a chunk holds, as it is made. Runs in a thread; raises ValueError where it is not sound."""
        decompressor, joiner = self._tools()
        payload = read_payload(self._fd, chunk, decompressor)
        if payload is None:
            raise ValueError("this chunk is damaged")
        if chunk.kind == ChunkKind.HOLE:
            said = json.loads(payload)
            what, frames, word = str(said["reason"]), int(said["frames"]), int(said["word"])
            yield Hole(what, said["frame"], frames, word, bool(said["damaged"]))
        elif chunk.kind == ChunkKind.TAIL:
            yield Tail(np.frombuffer(payload, np.uint32).copy())
        else:
            fits = room is not None and len(room) >= chunk.words
            out = room if room is not None and fits else np.empty(max(chunk.words, least), np.uint32)
            yield from self._frames(joiner, payload, out, chunk.words, until_ns)

    def _frames(self, joiner: Joiner, payload: bytes, out: Words, words: int, until_ns: int | None) -> Iterator[Frames]:
        begin = 0
        try:
            for ends, numbers, times in joiner.parts(payload, out[:words], until_ns, PART_WORDS):
                if len(ends) == 0:
                    raise ValueError("this chunk holds no frame")
                end = int(ends[-1])
                yield Frames(out[begin:end], FrameTable(ends - begin, numbers, times, end - begin, ScanEnd.ALL))
                begin = end
        except CaptureError as error:
            raise ValueError(str(error)) from None

    def _checkpoint(self, chunk: ChunkHeader, detail: bool, verify: bool) -> StreamState | None:
        payload = read_payload(self._fd, chunk, self._tools()[0])
        if payload is None:
            self._damaged(chunk, "this checkpoint is damaged; folding begins before it")
            return None
        size = len(payload) // 4
        if len(self._scratch) < size:  # memory that is new costs more than what is done with it
            self._scratch = np.empty(size + size // 4, np.uint32)
        raw = self._scratch[:size]
        merge_planes(np.frombuffer(payload, np.uint8), 4, raw)
        try:
            return load(raw.view(np.uint8).data, detail=detail, verify=verify)
        except (NewerFormatError, RecordingError):
            return None  # of another kvmon: the events say the same, from further back

    def _said_so(self, stream: CapturedStream, chunk: ChunkHeader) -> bool:
        """Whether the capture itself says that something is missing right before this chunk."""
        before = [
            other for other in stream.chunks if other.offset < chunk.offset and other.kind != ChunkKind.CHECKPOINT
        ]
        return bool(before) and before[-1].kind == ChunkKind.HOLE

    def _damaged(self, chunk: ChunkHeader, what: str) -> None:
        damage = Damage(what, chunk.offset, chunk.stream)
        if damage not in self.damage:
            self.damage.append(damage)


def _missing(chunk: ChunkHeader, expected: int | None) -> Hole:
    if chunk.kind != ChunkKind.FRAMES:
        what = "the open frame at the end" if chunk.kind == ChunkKind.TAIL else "a note about a hole"
        return Hole(f"{what} is damaged", expected, damaged=True)
    return Hole("a chunk of the capture is damaged", chunk.first_frame, chunk.frames, damaged=True)


def _first(table: FrameTable, count: int) -> FrameTable:
    ends = table.ends[:count]
    consumed = int(ends[-1]) if count else 0
    return FrameTable(ends, table.numbers[:count], table.times[:count], consumed, ScanEnd.ALL)
