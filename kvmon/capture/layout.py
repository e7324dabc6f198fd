"""The layout of a capture file. The only description; writer and reader both stand on it. Little-endian, in bytes:

       0  file header (64)
               0 magic "KVMONCAP"   8 version   12 bytes of this header   16 wall clock ns when it was begun
              60 CRC-32 of 0..60
      64  chunks, each at a multiple of 8:
            chunk header (96)
               0 magic   8 kind (2)   10 stream (2)   12 reserved
              16 bytes of the payload in the file   20 bytes when decompressed   24 CRC-32 of the payload in the file
              28 words   32 number of the first frame (8)   40 frames   44 unit-operations
              48 time of the first frame ns (8)   56 time of the last frame ns (8)
              64 unit-operations of the stream before it (8)   72 number of the chunk in the file (8)
              80 offset of this header in the file (8)   88 reserved   92 CRC-32 of 0..92
            payload, one zstd frame, then zeros up to a multiple of 8
    last  trailer (32)
               0 offset of the index chunk (8)   8 chunks before it (8)   16 magic "KVMONEND"   24 CRC-32 of 0..24

    kind  STREAM      facts about a stream as JSON; its chunks carry its number, from 0
          FRAMES      whole frames as columns (`columns.py`)
          CHECKPOINT  the state of the stream after the frames before it (`kvmon.state.checkpoint`), as 4 planes of
                      bytes; its first frame is the one that follows
          HOLE        something is missing here, as JSON
          TAIL        words of a frame that a dead writer never closed, as they are
          INDEX       the headers of all chunks before it, as they are

Chunks of a stream stand in its order; those of several streams may alternate. Each can be read alone. Without a
trailer (a writer that was killed, a file cut off) the chunks are found one after the other; after damage the next
magic is looked for, and a header that names another offset than its own is not one. Times are of the engine's
monotonic clock; STREAM has the anchors.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.errors import CaptureError, NewerFormatError

__all__ = [
    "CHUNK_BYTES",
    "CHUNK_MAGIC",
    "CHUNK_WORDS",
    "FILE_BYTES",
    "LARGEST_PAYLOAD",
    "TRAILER_BYTES",
    "VERSION",
    "ChunkHeader",
    "ChunkKind",
    "pack_file_header",
    "pack_trailer",
    "padded",
    "unpack_file_header",
    "unpack_headers",
    "unpack_trailer",
]

VERSION = 1
CHUNK_WORDS = 1 << 20
"""Words that a chunk holds at most, unless a single frame is longer."""
FILE_BYTES, CHUNK_BYTES, TRAILER_BYTES = 64, 96, 32
CHUNK_MAGIC = b"\x9dKVCHNK\n"
LARGEST_PAYLOAD = 1 << 30
"""No payload is longer, in the file or decompressed: a header that says so is damaged."""
_FILE_MAGIC, _END_MAGIC = b"KVMONCAP", b"KVMONEND"
_FILE = struct.Struct("<8sIIQ36xI")
_CHUNK = struct.Struct("<8sHHIIIIIQIIqqQQQII")
_TRAILER = struct.Struct("<QQ8sI4x")
_FIELDS = np.dtype(
    "S8, <u2, <u2, <u4, <u4, <u4, <u4, <u4, <u8, <u4, <u4, <i8, <i8, <u8, <u8, <u8, <u4, <u4",
)


class ChunkKind(IntEnum):
    """What a chunk holds; numbers are never reused, and a reader skips those it does not know."""

    STREAM = 1
    FRAMES = 2
    CHECKPOINT = 3
    HOLE = 4
    TAIL = 5
    INDEX = 6


class ChunkHeader(NamedTuple):
    """One chunk; see the drawing."""

    kind: int
    stream: int
    stored_bytes: int
    raw_bytes: int
    payload_crc: int
    words: int = 0
    first_frame: int = 0
    frames: int = 0
    unit_operations: int = 0
    first_time_ns: int = 0
    last_time_ns: int = 0
    before: int = 0
    number: int = 0
    offset: int = 0

    def pack(self) -> bytes:
        """The header's bytes."""
        kind, stream, *rest = self
        head = _CHUNK.pack(CHUNK_MAGIC, kind, stream, 0, *rest, 0, 0)[:-4]
        return head + struct.pack("<I", zlib.crc32(head))

    @classmethod
    def unpack(cls, raw: bytes, offset: int) -> ChunkHeader | None:
        """The header at `offset` of the file; None where these bytes are none."""
        if (
            len(raw) != CHUNK_BYTES
            or raw[:8] != CHUNK_MAGIC
            or struct.unpack("<I", raw[-4:])[0] != zlib.crc32(raw[:-4])
        ):
            return None
        _, kind, stream, _, *rest, _, _ = _CHUNK.unpack(raw)
        header = cls(kind, stream, *rest)
        sound = header.offset == offset and max(header.stored_bytes, header.raw_bytes) <= LARGEST_PAYLOAD
        return header if sound else None

    @property
    def payload_at(self) -> int:
        """Offset of the payload in the file."""
        return self.offset + CHUNK_BYTES

    @property
    def end(self) -> int:
        """Offset of the next chunk."""
        return self.payload_at + padded(self.stored_bytes)


def padded(length: int) -> int:
    """The length with its padding."""
    return (length + 7) // 8 * 8


def unpack_headers(raw: bytes) -> list[ChunkHeader] | None:
    """All headers of an index; None where one of them is none."""
    if len(raw) % CHUNK_BYTES:
        return None
    table: npt.NDArray[np.void] = np.frombuffer(raw, _FIELDS)
    if len(table) and not (table["f0"] == CHUNK_MAGIC).all():
        return None
    columns = [table[name].tolist() for name in _FIELDS.names or () if name not in ("f0", "f3", "f16", "f17")]
    return [ChunkHeader(*row) for row in zip(*columns, strict=True)]


def pack_file_header(wall_ns: int) -> bytes:
    """The first bytes of a capture begun at `wall_ns`."""
    head = _FILE.pack(_FILE_MAGIC, VERSION, FILE_BYTES, wall_ns, 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(head))


def unpack_file_header(raw: bytes, name: str) -> bool:
    """Whether the header is whole; `name` is for the message.

    Raises CaptureError where this is no capture, NewerFormatError where its version is newer than ours.
    """
    if raw[:8] != _FILE_MAGIC:
        raise CaptureError(f"{name} is no kvmon capture: give a file that 'kvmon capture' or 'kvmon simulate' wrote")
    if len(raw) < FILE_BYTES or struct.unpack("<I", raw[60:64])[0] != zlib.crc32(raw[:60]):
        return False
    version = _FILE.unpack(raw)[1]
    if version > VERSION:
        raise NewerFormatError(f"{name} has capture format {version}, this kvmon reads up to {VERSION}: upgrade kvmon")
    return True


def pack_trailer(index_at: int, chunks: int) -> bytes:
    """The last bytes of a capture that was closed in order."""
    head = struct.pack("<QQ8s", index_at, chunks, _END_MAGIC)
    return head + struct.pack("<I4x", zlib.crc32(head))


def unpack_trailer(raw: bytes) -> tuple[int, int] | None:
    """(offset of the index, chunks before it); None where these bytes are no trailer."""
    if len(raw) != TRAILER_BYTES or raw[16:24] != _END_MAGIC:
        return None
    index_at, chunks, _, crc = _TRAILER.unpack(raw)
    return (index_at, chunks) if crc == zlib.crc32(raw[:24]) else None
