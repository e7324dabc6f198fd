"""Is the writer of a stream alive: a POSIX record lock, which the kernel drops with its process and shows across
containers.

A lock of this kind is not inherited by fork, and it is dropped when its process closes *any* descriptor of the file.
So a process that holds one must never open the file again: `held_here` is asked first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

__all__ = ["WriterLock", "is_alive"]

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid
_held: dict[
    tuple[int, int], int
] = {}  # (device, inode) -> pid that took it, so that a forked child does not believe it
_BUSY = (errno.EACCES, errno.EAGAIN)


class WriterLock:
    """The exclusive right to write one stream, for as long as this process lives or until `release`."""

    def __init__(self, path: Path, mode: int) -> None:
        """Take the lock.

        Raises BlockingIOError where another writer holds it, in this process or another, OSError where the file
        cannot be made.
        """
        if _held_here(path):
            raise BlockingIOError(errno.EAGAIN, "this process already writes the stream", str(path))
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(self._fd)
            on_disk = os.stat(path)
            if (status.st_dev, status.st_ino) != (on_disk.st_dev, on_disk.st_ino):
                raise BlockingIOError(errno.EAGAIN, "the lock was replaced while it was taken", str(path))
        except OSError:
            os.close(self._fd)
            raise
        self._key = (status.st_dev, status.st_ino)
        _held[self._key] = os.getpid()

    def release(self) -> None:
        """Let the stream go; a second call does nothing."""
        if self._fd >= 0:
            if _held.get(self._key) == os.getpid():
                del _held[self._key]
            os.close(self._fd)
            self._fd = -1


def _held_here(path: Path) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return _held.get((status.st_dev, status.st_ino)) == os.getpid()


def is_alive(path: Path) -> bool | None:
    """Whether some process holds the lock at `path`; None where that cannot be seen (no permission)."""
    if _held_here(path):
        return True
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        asked = fcntl.fcntl(fd, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        return bool(_FLOCK.unpack(asked)[0] != fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno in _BUSY else None
    finally:
        os.close(fd)
