"""The writing half of a recording: preallocated segments that are followed by the next, retired by budget, never
truncated.

The writer owns files and headers; what is in the words is the probe's business. Every failure is an OSError or a
BlockingIOError for the probe to count; nothing is retried here and nothing is printed. Standard library only: it
lives in the engine's process.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvmon.recording.layout import (
    HEADER_BYTES,
    HEARTBEAT,
    LIVE_AT,
    SEALED_CLOSED,
    SEALED_FOLLOWED,
    STATE,
    Header,
    segment_name,
    stream_name,
)
from kvmon.recording.liveness import WriterLock

__all__ = ["DEFAULT_BUDGET", "SegmentWriter", "StreamWriter"]

DEFAULT_BUDGET = 256 << 20
_SEGMENTS = 64  # segments a budget is cut into
_SMALLEST, _LARGEST = 64 << 10, 4 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class SegmentWriter:
    """One mapped segment: `words` to store records in, `live` for the fields of the live part."""

    index: int
    path: Path
    words: memoryview
    live: memoryview

    def seal(self, state: int) -> None:
        """Say in the header how it ended; the mapping goes when the last view of it does."""
        self.live[STATE] = state


class StreamWriter:
    """All segments of one stream, written by one process.

    `epoch` names the life of the engine (drawn when not given); `budget` bounds the bytes on disk, the segment being
    written included; `clock` and `wall` give nanoseconds. `note_refusal=False` for a second writer that was counted
    before and only asks again.
    """

    def __init__(
        self,
        directory: Path,
        engine: str,
        rank: int = 0,
        *,
        epoch: bytes | None = None,
        budget: int = DEFAULT_BUDGET,
        group_readable: bool = False,
        note_refusal: bool = True,
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        """Take the stream's lock and look at what an earlier life left; the first segment comes with `next_segment`.

        Raises BlockingIOError where another writer has the stream, OSError where the directory cannot be used.
        """
        self._engine, self._rank = engine, rank
        self._clock, self._wall = clock, wall
        self._mode = 0o640 if group_readable else 0o600
        self.path = directory / stream_name(engine, rank)
        self.path.mkdir(mode=0o700, exist_ok=True)
        try:
            self._lock = WriterLock(self.path / "lock", self._mode)
        except BlockingIOError:
            if note_refusal:
                self._note_refused()
            raise
        self.epoch = epoch or os.urandom(16)
        self._boot_id = _read_boot_id()
        self.segment_bytes = min(max(budget // _SEGMENTS, _SMALLEST), _LARGEST) // 4096 * 4096
        self.keep = max(budget // self.segment_bytes, 2)
        self.current: SegmentWriter | None = None
        self.retired = 0
        try:
            if group_readable:  # said again, because the process's umask may have taken it away
                self.path.chmod(0o750)
                (self.path / "lock").chmod(self._mode)
            for leftover in self.path.glob(".new-*"):
                leftover.unlink(missing_ok=True)
        except OSError:
            self._lock.release()
            raise

    def next_segment(self, first_frame: int, totals: Sequence[int]) -> SegmentWriter:
        """Make, map and announce the next segment, retire what the budget no longer allows, and seal the current one.

        On a disk smaller than the budget the oldest segment makes room for the next, so that the recording goes on at
        the size it has. Raises OSError where that is not enough or the directory is gone; the current segment then
        stays as it is.
        """
        existing = self._existing()
        index = (existing[-1] if existing else 0) + 1
        over = max(0, len(existing) + 1 - self.keep)
        self._retire(existing[:over])
        header = Header(
            engine=self._engine,
            rank=self._rank,
            index=index,
            first_frame=first_frame,
            data_words=(self.segment_bytes - HEADER_BYTES) // 4,
            wall_ns=max(0, self._wall()),
            mono_ns=max(0, self._clock()),
            pid=os.getpid(),
            boot_id=self._boot_id,
            epoch=self.epoch,
            totals=tuple(totals),
        )
        try:
            segment = self._create(index, header.pack())
        except OSError as error:
            rest = existing[over:]
            if error.errno not in _NO_SPACE or len(rest) < 2:
                raise
            self._retire(rest[:1])
            segment = self._create(index, header.pack())
        if self.current is not None:
            self.current.seal(SEALED_FOLLOWED)
        self.current = segment
        return segment

    def _retire(self, indexes: Sequence[int]) -> None:
        for index in indexes:
            (self.path / segment_name(index)).unlink(missing_ok=True)
            self.retired += 1

    def _note_refused(self) -> None:
        """One byte more in `refused`: how often a second writer was turned away."""
        with contextlib.suppress(OSError):
            fd = os.open(
                self.path / "refused", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, self._mode
            )
            os.write(fd, b".")
            os.close(fd)

    def _existing(self) -> list[int]:
        return sorted(int(name[:-4]) for name in os.listdir(self.path) if name.endswith(".seg") and name[:-4].isdigit())

    def _create(self, index: int, header: bytes) -> SegmentWriter:
        path, unnamed = self.path / segment_name(index), self.path / f".new-{index:08d}"
        fd = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, self._mode)
        try:
            os.fchmod(fd, self._mode)
            if self._mode & 0o040:  # the directory's group, where that is not the main one of this process
                with contextlib.suppress(OSError):
                    os.fchown(fd, -1, self.path.stat().st_gid)
            os.posix_fallocate(fd, 0, self.segment_bytes)
            mapping = mmap.mmap(fd, self.segment_bytes)
            mapping[: len(header)] = header
            os.rename(unnamed, path)
        except Exception:
            with contextlib.suppress(OSError):
                os.unlink(unnamed)
            raise
        finally:
            os.close(fd)
        view = memoryview(mapping)
        live = view[LIVE_AT : LIVE_AT + 64].cast("Q")
        live[HEARTBEAT] = self._clock()
        return SegmentWriter(index, path, view[HEADER_BYTES:].cast("I"), live)

    def close(self) -> None:
        """Seal the stream as ended in order and let it go."""
        if self.current is not None:
            self.current.seal(SEALED_CLOSED)
            self.current = None
        self._lock.release()

    def release(self) -> None:
        """Let the stream go but keep the current segment mapped: nothing can be written any more, its header can
        still say so.
        """
        self._lock.release()

    def abandon(self) -> None:
        """Let go of everything without touching a file: for the child after a fork."""
        self.current = None


def _read_boot_id() -> bytes:
    """Sixteen bytes that name this boot of the machine; zeros where the kernel does not say."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return bytes.fromhex(text.strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)
