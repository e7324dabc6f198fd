"""Which chunks a capture holds: from its index, or by looking for them where there is none.

Only headers are read here, never a payload. What is not sound is named with its place in the file; nothing is repaired.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import zstandard

from kvmon.capture.layout import (
    CHUNK_BYTES,
    CHUNK_MAGIC,
    FILE_BYTES,
    TRAILER_BYTES,
    ChunkHeader,
    ChunkKind,
    unpack_file_header,
    unpack_headers,
    unpack_trailer,
)
from kvmon.errors import CaptureError, SystemRefused

__all__ = ["Damage", "Index", "damaged_headers", "open_capture", "read_index", "read_payload"]

_SEARCH_BYTES = 1 << 20
_NO_SUCH_PATH = (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)
_NO_FILE = (errno.ENXIO, errno.ENODEV)  # of a socket, or a device that is not there


@dataclass(frozen=True, slots=True)
class Damage:
    """Something in the file that is not sound: what, and from which byte on."""

    what: str
    offset: int
    stream: int | None = None

    def __str__(self) -> str:
        """In a line, for people."""
        return f"byte {self.offset}: {self.what}"


@dataclass(frozen=True, slots=True)
class Index:
    """Headers of all chunks that were found, in the order of the file, and what was not sound; `closed` says that the
    writer finished the file."""

    headers: list[ChunkHeader]
    damage: list[Damage]
    closed: bool


def open_capture(path: Path) -> int:
    """A descriptor of the file. Raises CaptureError where it is none, SystemRefused where it cannot be read.

    Never waits: a pipe that nobody writes to is no file either.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise CaptureError(f"no file {path}: make one with 'kvmon capture DIR -o {path.name}'") from None
    except OSError as error:
        if error.errno in _NO_SUCH_PATH:
            raise CaptureError(f"no file {path}: {error.strerror}: give the path of a capture") from None
        if error.errno in _NO_FILE:
            raise _neither(path) from None
        raise SystemRefused(f"cannot read {path}: {error.strerror}: check its permissions") from None
    kind = os.fstat(fd).st_mode
    if stat.S_ISREG(kind):
        return fd
    os.close(fd)
    if stat.S_ISDIR(kind):
        raise CaptureError(
            f"{path} is a directory: give a capture file, or make one with 'kvmon capture {path} -o X.kvmon'"
        )
    raise _neither(path)


def read_index(fd: int, name: str) -> Index:
    """What the file holds.

    Raises CaptureError where it is no capture or empty, NewerFormatError where it is of a newer version.
    """
    size = os.fstat(fd).st_size
    if size == 0:
        raise CaptureError(f"{name} is empty: make the capture again")
    damage: list[Damage] = []
    if not unpack_file_header(os.pread(fd, FILE_BYTES, 0), name):
        damage.append(Damage("the file's header is damaged", 0))
    indexed = _from_index(fd, size)
    if indexed is not None:
        return Index(indexed, damage, True)
    found = _scan(fd, size, damage)
    return Index(found, damage, False)


def read_payload(fd: int, header: ChunkHeader, decompressor: zstandard.ZstdDecompressor) -> bytes | None:
    """The decompressed payload of a chunk; None where it is not sound."""
    stored = os.pread(fd, header.stored_bytes, header.payload_at)
    if len(stored) != header.stored_bytes or zlib.crc32(stored) != header.payload_crc:
        return None
    try:
        payload = decompressor.decompress(stored, max_output_size=header.raw_bytes)
    except zstandard.ZstdError:
        return None
    return payload if len(payload) == header.raw_bytes else None


def damaged_headers(path: Path, headers: Iterable[ChunkHeader]) -> list[Damage]:
    """Which of these headers, that an index told, are not sound where they stand in the file: without the index their
    chunks would be lost. Raises as `open_capture`."""
    fd = open_capture(path)
    try:
        return [
            Damage("the header of this chunk is damaged; the index has it", header.offset, header.stream)
            for header in headers
            if ChunkHeader.unpack(os.pread(fd, CHUNK_BYTES, header.offset), header.offset) != header
        ]
    finally:
        os.close(fd)


def _neither(path: Path) -> CaptureError:
    return CaptureError(f"{path} is neither a capture nor a directory: give one of them")


def _from_index(fd: int, size: int) -> list[ChunkHeader] | None:
    trailer = unpack_trailer(os.pread(fd, TRAILER_BYTES, max(0, size - TRAILER_BYTES)))
    if trailer is None:
        return None
    at, chunks = trailer
    header = ChunkHeader.unpack(os.pread(fd, CHUNK_BYTES, at), at) if at < size else None
    if header is None or header.kind != ChunkKind.INDEX:
        return None
    payload = read_payload(fd, header, zstandard.ZstdDecompressor())
    headers = None if payload is None else unpack_headers(payload)
    return headers if headers is not None and len(headers) == chunks else None


def _scan(fd: int, size: int, damage: list[Damage]) -> list[ChunkHeader]:
    """Every chunk whose header is sound and that lies in the file as a whole."""
    headers: list[ChunkHeader] = []
    at, closed = FILE_BYTES, False
    while at + CHUNK_BYTES <= size:
        header = ChunkHeader.unpack(os.pread(fd, CHUNK_BYTES, at), at)
        if header is None:
            if unpack_trailer(os.pread(fd, TRAILER_BYTES, at)) is not None:
                break
            following = _next_magic(fd, at + 1, size)
            damage.append(Damage("no chunk begins here" + ("" if following else ", and none follows"), at))
            if following is None:
                break
            at = following
        elif header.end > size:
            damage.append(Damage("the file ends in this chunk", at, header.stream))
            at = header.end
        elif header.kind == ChunkKind.INDEX:
            closed = True
            break
        else:
            headers.append(header)
            at = header.end
    if closed:
        damage.append(Damage("the index at the end is damaged; the chunks were found without it", at))
    else:
        damage.append(Damage("the file was cut off, or its writer was stopped: there is no index", size))
    return headers


def _next_magic(fd: int, at: int, size: int) -> int | None:
    while at < size:
        block = os.pread(fd, _SEARCH_BYTES, at)
        found = block.find(CHUNK_MAGIC)
        while found >= 0:
            if ChunkHeader.unpack(os.pread(fd, CHUNK_BYTES, at + found), at + found) is not None:
                return at + found
            found = block.find(CHUNK_MAGIC, found + 1)
        at += max(1, len(block) - len(CHUNK_MAGIC) + 1)
    return None
