"""Chunks that are read by threads before anybody asks for them, in their order and part by part.

Invariant: at most _AHEAD chunks are on their way. Memory that was handed back is used again, and never while a thread
still writes to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.capture.layout import ChunkHeader, ChunkKind
from kvmon.capture.pieces import Frames, Piece

__all__ = ["ReadAhead"]

_AHEAD = 3
_READ = (ChunkKind.FRAMES, ChunkKind.HOLE, ChunkKind.TAIL)

Words = npt.NDArray[np.uint32]
Read = Callable[[ChunkHeader, Words | None], Iterator[Piece]]


class _Reading(NamedTuple):
    """A chunk on its way: its parts as they come, then None; in the end the future says whether it was sound."""

    chunk: ChunkHeader
    parts: SimpleQueue[Piece | None]
    job: Future[bool]


class ReadAhead:
    """Reads `chunks` by `read` in the `threads` that it is given, and begins at once.

    `read` takes a chunk and room for its words; it may raise ValueError where the chunk is not sound. `room` holds
    memory that may be used; None = every chunk gets new memory.
    """

    def __init__(
        self,
        chunks: Iterable[ChunkHeader],
        read: Read,
        threads: Callable[[], ThreadPoolExecutor],
        room: deque[Words] | None,
    ) -> None:
        self._following = iter([chunk for chunk in chunks if chunk.kind in _READ])
        self._read = read
        self._threads = threads
        self._room = room
        self._waiting: deque[_Reading] = deque()
        self._fill()

    def __iter__(self) -> Iterator[tuple[ChunkHeader, Piece | None]]:
        """The chunks with what they hold, part by part; None behind the parts of one that is not sound.

        Words are good until the next part is asked for.
        """
        held: Words | None = None
        try:
            while self._waiting:
                reading = self._waiting[0]
                while (part := reading.parts.get()) is not None:
                    held = part.words if isinstance(part, Frames) else None
                    yield reading.chunk, part
                self._waiting.popleft()
                if not reading.job.result():
                    yield reading.chunk, None
                self._give_back(held)
                held = None
                self._fill()
        finally:  # what is on its way is not wanted; what a thread has begun it finishes, and then the memory is free
            for reading in self._waiting:
                if not reading.job.cancel():
                    reading.job.result()
            self._waiting.clear()
            self._give_back(held)

    def _give_back(self, words: Words | None) -> None:
        if self._room is not None and words is not None:
            self._room.append(words if words.base is None else words.base)

    def _fill(self) -> None:
        while len(self._waiting) < _AHEAD and (chunk := next(self._following, None)) is not None:
            spare = self._room.popleft() if self._room and chunk.kind == ChunkKind.FRAMES else None
            parts: SimpleQueue[Piece | None] = SimpleQueue()
            job = self._threads().submit(self._run, chunk, spare, parts)
            job.add_done_callback(lambda done, parts=parts: parts.put(None) if done.cancelled() else None)  # type: ignore[misc]
            self._waiting.append(_Reading(chunk, parts, job))

    def _run(self, chunk: ChunkHeader, room: Words | None, parts: SimpleQueue[Piece | None]) -> bool:
        """Read a chunk in a thread; whether it was sound."""
        try:
            for part in self._read(chunk, room):
                parts.put(part)
        except (ValueError, KeyError, TypeError):
            return False
        finally:
            parts.put(None)
        return True
