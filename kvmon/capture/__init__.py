"""What is kept and shared of a recording: a compressed, checksummed, seekable archive of one or many streams."""

from __future__ import annotations

from kvmon.capture.index import Damage
from kvmon.capture.pieces import Frames, Hole, Piece, StreamFacts, Tail, apply_piece
from kvmon.capture.reader import CapturedStream, CaptureReader
from kvmon.capture.writer import CaptureWriter, StreamSink

__all__ = [
    "CaptureReader",
    "CaptureWriter",
    "CapturedStream",
    "Damage",
    "Frames",
    "Hole",
    "Piece",
    "StreamFacts",
    "StreamSink",
    "Tail",
    "apply_piece",
]
