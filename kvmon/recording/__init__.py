"""How events survive: preallocated segment files, written by one process, followed or read after its death by
others.
"""

from __future__ import annotations

from kvmon.recording.layout import Header
from kvmon.recording.liveness import WriterLock, is_alive
from kvmon.recording.reader import Live, Piece, Position, StreamReader, find_streams, headers
from kvmon.recording.writer import DEFAULT_BUDGET, SegmentWriter, StreamWriter

__all__ = [
    "DEFAULT_BUDGET",
    "Header",
    "Live",
    "Piece",
    "Position",
    "SegmentWriter",
    "StreamReader",
    "StreamWriter",
    "WriterLock",
    "find_streams",
    "headers",
    "is_alive",
]
