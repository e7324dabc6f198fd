"""Chunks that are read by threads before anybody asks for them, in their order.

Invariant: at most AHEAD chunks are on their way, and memory that was handed back is used again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from kvmon.capture.layout import ChunkHeader, ChunkKind
from kvmon.capture.pieces import Piece

__all__ = ["ReadAhead"]

_AHEAD = 3
_READ = (ChunkKind.FRAMES, ChunkKind.HOLE, ChunkKind.TAIL)

Words = npt.NDArray[np.uint32]
Submit = Callable[[ChunkHeader, Words | None], "Future[Piece | None]"]


class ReadAhead:
    """Reads `chunks` by `submit`, which takes a chunk and room for its words; begins at once.

    `room` holds memory that may be used; None = every piece gets new memory.
    """

    def __init__(self, chunks: Iterable[ChunkHeader], submit: Submit, room: deque[Words] | None) -> None:
        self._following = iter([chunk for chunk in chunks if chunk.kind in _READ])
        self._submit = submit
        self._room = room
        self._waiting: deque[tuple[ChunkHeader, Future[Piece | None]]] = deque()
        self._fill()

    def next(self) -> tuple[ChunkHeader, Piece | None] | None:
        """The next chunk with what it holds, None where it is not sound; None at the end."""
        self._fill()
        if not self._waiting:
            return None
        chunk, job = self._waiting.popleft()
        return chunk, job.result()

    def give_back(self, words: Words) -> None:
        """Nobody needs these words any more."""
        if self._room is not None:
            self._room.append(words if words.base is None else words.base)

    def cancel(self) -> None:
        """What is on its way is not wanted."""
        for _, job in self._waiting:
            job.cancel()

    def _fill(self) -> None:
        while len(self._waiting) < _AHEAD and (chunk := next(self._following, None)) is not None:
            spare = self._room.popleft() if self._room and chunk.kind == ChunkKind.FRAMES else None
            self._waiting.append((chunk, self._submit(chunk, spare)))
