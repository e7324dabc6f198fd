"""The writing half of a capture: frames in, compressed chunks out, in bounded memory.

Invariant: a file with the name that was asked for is whole. What is written goes to a temporary name beside it, which
takes the name when the writer closes and goes away when it does not. Each stream is folded while it is written, so
that a checkpoint can be left every so many unit-operations. The file is readable by its owner alone.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from kvmon.capture.column_kernels import count_events
from kvmon.capture.columns import Splitter, split_planes
from kvmon.capture.layout import CHUNK_WORDS, ChunkHeader, ChunkKind, pack_file_header, pack_trailer, padded
from kvmon.capture.pieces import Frames, Hole, Piece, StreamFacts, Tail
from kvmon.errors import CaptureError
from kvmon.files import NewFile
from kvmon.state import FrameTable, ScanEnd, StreamState, scan
from kvmon.state.checkpoint import dump

__all__ = ["CHECKPOINT_OPERATIONS", "CaptureWriter", "StreamSink"]

CHECKPOINT_OPERATIONS = 1 << 18
"""Unit-operations between two checkpoints; a seek folds half of it on average."""
_LEAST_APPENDED = 1 << 14  # words that are taken at once although a checkpoint is nearly due
_OPERATIONS_A_UNIT = 5  # a large pool is checkpointed less often: checkpoints are a bounded share of the file

Words = npt.NDArray[np.uint32]


class CaptureWriter:
    """Writes one capture. Use it as a context manager: an exception inside leaves no file behind.

    `checkpoint_operations` = None leaves out checkpoints and the fold they need: for a stream nobody will seek in.
    """

    def __init__(
        self,
        path: Path,
        *,
        force: bool = False,
        checkpoint_operations: int | None = CHECKPOINT_OPERATIONS,
        level: int = 1,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        """Begin a capture at `path`; `force` replaces one that is there. `level` is zstd's.

        Raises InputError where `path` is taken or its directory is missing, SystemRefused where it cannot be written.
        """
        self.path = path
        self.checkpoint_operations = checkpoint_operations
        self._file = NewFile(path, "the capture", force=force)
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._splitter: Splitter | None = None
        self._headers: list[bytes] = []
        self._sinks: list[StreamSink] = []
        self._at = 0
        self._open = True
        self._put(pack_file_header(wall()))

    @property
    def bytes_written(self) -> int:
        """Bytes of the file so far."""
        return self._at

    def add_stream(self, facts: StreamFacts, *, state: StreamState | None = None) -> StreamSink:
        """Begin a stream. `state` is what came before its first frame, where that is known.

        It becomes its first checkpoint.
        """
        sink = StreamSink(self, len(self._sinks), state)
        self._sinks.append(sink)
        self.add_chunk(ChunkKind.STREAM, sink.number, json.dumps(facts.as_json(), separators=(",", ":")).encode())
        if state is not None:
            sink.add_checkpoint()
        return sink

    def split(self, words: Words) -> bytes:
        """The columns of frames; for the sinks, which share the room it takes."""
        if self._splitter is None:
            self._splitter = Splitter()
        return self._splitter.split(words)

    def add_chunk(self, kind: ChunkKind, stream: int, payload: bytes, **facts: int) -> None:
        """Append a chunk; `facts` are fields of its header. For the sinks."""
        if not self._open:
            raise CaptureError(f"{self.path} is closed: nothing can be added to it")
        stored = self._compressor.compress(payload)
        header = ChunkHeader(
            kind,
            stream,
            len(stored),
            len(payload),
            zlib.crc32(stored),
            number=len(self._headers),
            offset=self._at,
            **facts,
        ).pack()
        self._headers.append(header)
        self._put(header, stored, bytes(padded(len(stored)) - len(stored)))

    def close(self) -> None:
        """Write what is left, the index and the trailer, and give the file its name; a second call does nothing."""
        if not self._open:
            return
        try:
            for sink in self._sinks:
                sink.flush()
            index_at, chunks = self._at, len(self._headers)
            self.add_chunk(ChunkKind.INDEX, 0, b"".join(self._headers))
            self._put(pack_trailer(index_at, chunks))
            self._file.close()
        finally:
            self.abort()

    def abort(self) -> None:
        """Leave nothing behind."""
        self._open = False
        self._file.abort()

    def __enter__(self) -> CaptureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _put(self, *parts: bytes) -> None:
        self._file.write(*parts)
        self._at += sum(len(part) for part in parts)


class StreamSink:
    """Takes the pieces of one stream in their order. Made by `CaptureWriter.add_stream`."""

    def __init__(self, writer: CaptureWriter, number: int, state: StreamState | None) -> None:
        self.number = number
        self.frames = self.unit_operations = self.words = self.holes = 0
        self.first_time_ns: int | None = None
        self.last_time_ns: int | None = None
        self._writer = writer
        self._folds = writer.checkpoint_operations is not None
        self._state = state or (StreamState() if self._folds else None)
        self._buffer: Words = np.empty(0, np.uint32)
        self._used = self._pending_operations = self._since_checkpoint = 0
        self._tables: list[FrameTable] = []

    def write(self, words: Words, table: FrameTable | None = None) -> None:
        """Append whole frames; `table` is what `kvmon.state.scan` says about them, when the caller has asked it.

        Raises CaptureError where `words` are not whole frames, SystemRefused where the disk is full.
        """
        if table is None:
            table = scan(words, verify=False)
        if table.end is not ScanEnd.ALL or table.consumed != len(words):
            raise CaptureError(f"word {table.consumed} begins no whole frame: a capture takes whole frames only")
        start = first = 0
        while first < len(table.ends):
            due = self._interval - self._since_checkpoint - self._pending_operations
            room = min(CHUNK_WORDS - self._used, max(due, _LEAST_APPENDED))  # a word is one operation at most, or a run
            last = int(np.searchsorted(table.ends, start + room, "right"))
            if last <= first:
                if self._used and self._used + int(table.ends[first]) - start > CHUNK_WORDS:
                    self.flush()
                    continue
                last = first + 1
            end = int(table.ends[last - 1])
            self._append(words[start:end], table, first, last, start)
            start, first = end, last
            if self._since_checkpoint + self._pending_operations >= self._interval:
                self.flush()

    def hole(self, hole: Hole) -> None:
        """Say that something is missing here."""
        self.flush()
        self.holes += 1
        described = {"reason": hole.reason, "frame": hole.frame, "frames": hole.frames, "word": hole.word}
        self._chunk(ChunkKind.HOLE, json.dumps({**described, "damaged": hole.damaged}).encode())
        if self._state is not None and (hole.damaged or hole.frames):
            self._state.gap(damaged=int(hole.damaged))

    def tail(self, words: Words) -> None:
        """Append the records of a frame that its writer never closed."""
        self.flush()
        self._chunk(ChunkKind.TAIL, np.ascontiguousarray(words, np.uint32).tobytes(), words=len(words))
        if self._state is not None:
            self._state.apply_open(words)

    def add(self, piece: Piece) -> None:
        """Append a piece of whatever kind."""
        if isinstance(piece, Frames):
            self.write(piece.words, piece.table)
        elif isinstance(piece, Hole):
            self.hole(piece)
        elif isinstance(piece, Tail):
            self.tail(piece.words)

    def flush(self) -> None:
        """Write the frames that wait as a chunk, and a checkpoint when one is due."""
        if self._used == 0:
            return
        words, operations = self._buffer[: self._used], self._pending_operations
        table = _joined(self._tables)
        self._writer.add_chunk(
            ChunkKind.FRAMES,
            self.number,
            self._writer.split(words),
            words=len(words),
            first_frame=int(table.numbers[0]),
            frames=len(table.numbers),
            unit_operations=operations,
            first_time_ns=int(table.times[0]),
            last_time_ns=int(table.times[-1]),
            before=self.unit_operations,
        )
        if self.first_time_ns is None:
            self.first_time_ns = int(table.times[0])
        self.last_time_ns = int(table.times[-1])
        self.frames += len(table.numbers)
        self.words += len(words)
        self.unit_operations += operations
        self._since_checkpoint += operations
        self._used, self._pending_operations, self._tables = 0, 0, []
        if self._state is not None and self._folds:
            self._state.apply_frames(words, table)
        if self._since_checkpoint >= self._interval:
            self._since_checkpoint = 0
            if self._folds:
                self.add_checkpoint()

    def add_checkpoint(self) -> None:
        """Write the state after everything so far."""
        if self._state is not None:
            planes = split_planes(np.frombuffer(dump(self._state), np.uint32))
            self._chunk(ChunkKind.CHECKPOINT, planes, first_frame=self._state.next_frame or 0)
            self._since_checkpoint = 0

    @property
    def _interval(self) -> int:
        every = self._writer.checkpoint_operations
        units = len(self._state._status) if self._state is not None else 0
        return max(every or CHECKPOINT_OPERATIONS, _OPERATIONS_A_UNIT * units)

    def _append(self, words: Words, table: FrameTable, first: int, last: int, start: int) -> None:
        if len(self._buffer) < self._used + len(words):
            grown = np.empty(max(CHUNK_WORDS, self._used + len(words)), np.uint32)
            grown[: self._used] = self._buffer[: self._used]
            self._buffer = grown
        self._buffer[self._used : self._used + len(words)] = words
        moved = table.ends[first:last] - start + self._used
        self._tables.append(FrameTable(moved, table.numbers[first:last], table.times[first:last], 0, ScanEnd.ALL))
        self._used += len(words)
        self._pending_operations += int(count_events(words)[1])

    def _chunk(self, kind: ChunkKind, payload: bytes, **facts: Any) -> None:
        time_ns = self.last_time_ns or 0
        self._writer.add_chunk(
            kind,
            self.number,
            payload,
            before=self.unit_operations,
            first_time_ns=time_ns,
            last_time_ns=time_ns,
            **facts,
        )


def _joined(tables: list[FrameTable]) -> FrameTable:
    """The table of everything that was appended."""
    columns = (np.concatenate([getattr(table, name) for table in tables]) for name in ("ends", "numbers", "times"))
    ends, numbers, times = columns
    return FrameTable(ends, numbers, times, int(ends[-1]), ScanEnd.ALL)
