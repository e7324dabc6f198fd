"""The layout of a recording: directory, segment file, header. The only description; writer and reader both stand on it.

    DIR/                            the recording directory, shared with the sidecar
      key                           secret of the page hashes, 0600, made once, never copied
      <engine>-<rank>/              one stream: one scheduler with its allocator
        lock                        a POSIX record lock is held on it while the writer lives
        refused                     a byte for each second writer that was turned away
        00000001.seg ...            segments, oldest retired first

A segment is preallocated and mapped; it is unlinked whole and never truncated, because truncating a mapped file kills
the process that mapped it. Little-endian, in bytes:

       0  static part, written before the file gets its name, CRC-32 at 1020
          0 magic  8 version  12 header bytes  16 words of data  24 index of the segment  32 number of its first frame
          40 wall anchor ns  48 monotonic anchor ns  56 pid  64 boot id (16)  80 epoch (16)  96 rank
          104 length of the engine's name  112 engine's name (128)
    1024  live part, each field a store of 8 aligned bytes
          0 cursor: words published   8 closed: words up to the last closed frame   16 heartbeat, monotonic ns
          24 records lost   32 reasons of the loss, a bit each   40 state (0 open, 1 followed, 2 closed in order)
    2048  totals when the segment began: STREAM_SLOTS, then POOL_SLOTS for each of MAX_POOLS pools
    8192  words

The epoch is drawn when a writer opens the stream: frames of two epochs belong to two lives of the engine.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from kvmon.errors import NewerFormatError, RecordingError
from kvmon.events.totals import MAX_POOLS, POOL_SLOTS, STREAM_SLOTS
from kvmon.events.wire import FORMAT_VERSION

__all__ = [
    "CLOSED",
    "CURSOR",
    "HEADER_BYTES",
    "HEARTBEAT",
    "LIVE_AT",
    "LOST",
    "LOST_WHY",
    "SEALED_CLOSED",
    "SEALED_FOLLOWED",
    "SEALED_OPEN",
    "STATE",
    "TOTALS_AT",
    "TOTAL_SLOTS",
    "Header",
    "segment_name",
    "stream_name",
]

MAGIC = b"KVMONSEG"
HEADER_BYTES = 8192
LIVE_AT, TOTALS_AT = 1024, 2048
TOTAL_SLOTS = STREAM_SLOTS + POOL_SLOTS * MAX_POOLS
CURSOR, CLOSED, HEARTBEAT, LOST, LOST_WHY, STATE = range(6)
"""Index of each field of the live part, in 8-byte words."""
SEALED_OPEN, SEALED_FOLLOWED, SEALED_CLOSED = range(3)

_STATIC = struct.Struct("<8sIIQQQQQQ16s16sQI4x128s")
_CRC_AT = 1020


def segment_name(index: int) -> str:
    """File name of the segment with this index; names sort as indexes do."""
    return f"{index:08d}.seg"


def stream_name(engine: str, rank: int) -> str:
    """Directory name of a stream; characters that a file system may not like become `_`."""
    safe = "".join(c if c.isalnum() or c in "._" else "_" for c in engine)[:64] or "engine"
    return f"{safe}-{rank}"


@dataclass(frozen=True, slots=True)
class Header:
    """The static part of a segment's header and its totals."""

    engine: str
    rank: int
    index: int
    first_frame: int
    data_words: int
    wall_ns: int
    mono_ns: int
    pid: int
    boot_id: bytes
    epoch: bytes
    totals: tuple[int, ...] = field(default=(0,) * TOTAL_SLOTS, repr=False)

    def pack(self) -> bytes:
        """The first HEADER_BYTES of the file, the live part zero."""
        name = self.engine.encode()[:128]
        static = _STATIC.pack(
            MAGIC,
            FORMAT_VERSION,
            HEADER_BYTES,
            self.data_words,
            self.index,
            self.first_frame,
            self.wall_ns,
            self.mono_ns,
            self.pid,
            self.boot_id,
            self.epoch,
            self.rank,
            len(name),
            name,
        )
        page = bytearray(HEADER_BYTES)
        page[: len(static)] = static
        struct.pack_into(f"<{TOTAL_SLOTS}Q", page, TOTALS_AT, *self.totals)
        covered = bytes(page[:_CRC_AT]) + bytes(page[TOTALS_AT:])
        struct.pack_into("<I", page, _CRC_AT, zlib.crc32(covered))
        return bytes(page)

    @classmethod
    def unpack(cls, page: bytes, name: str) -> Header:
        """Read a header; `name` is for the message.

        Raises RecordingError where this is no sound header, NewerFormatError where the version is newer than ours.
        """
        if len(page) < HEADER_BYTES or page[:8] != MAGIC:
            raise RecordingError(f"{name} is no segment of a kvmon recording")
        _magic, version, header_bytes, *rest = _STATIC.unpack_from(page)
        if version > FORMAT_VERSION:
            raise NewerFormatError(
                f"{name} has format {version}, this kvmon reads up to {FORMAT_VERSION}: upgrade kvmon"
            )
        covered = page[:_CRC_AT] + page[TOTALS_AT:HEADER_BYTES]
        if zlib.crc32(covered) != struct.unpack_from("<I", page, _CRC_AT)[0] or header_bytes != HEADER_BYTES:
            raise RecordingError(f"{name} has a damaged header")
        words, index, first, wall, mono, pid, boot, epoch, rank, length, raw = rest
        return cls(
            engine=raw[:length].decode("utf-8", "replace"),
            rank=rank,
            index=index,
            first_frame=first,
            data_words=words,
            wall_ns=wall,
            mono_ns=mono,
            pid=pid,
            boot_id=boot,
            epoch=epoch,
            totals=struct.unpack_from(f"<{TOTAL_SLOTS}Q", page, TOTALS_AT),
        )
