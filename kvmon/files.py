"""Files that are whole or not there: what is written goes to a name beside the one asked for, and takes it at the end.

Invariant: nothing but a regular file is ever replaced, no link to one either, and one that was not to be replaced never
is; what is made is readable by its owner alone, unless its maker wants it read by others.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from kvmon.errors import InputError, SystemRefused

__all__ = ["NewFile", "write_whole"]

_AT_ONCE = 8192
_OWN = 0o600


class NewFile:
    """A file in the making. `what` names it in messages, such as "the trace"; `force` replaces one that is there.
    `mode` is what the file has in the end; another than the usual one does not heed the umask.

    Raises InputError where `path` is taken, is no regular file, or has no directory, SystemRefused where it cannot be
    written.
    """

    def __init__(self, path: Path, what: str, *, force: bool, mode: int = _OWN) -> None:
        self.path = path
        self._force = force
        self._mode = mode
        self._open = False
        self._may_take_name()
        self._unnamed = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            self._fd = os.open(
                self._unnamed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, _OWN
            )
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"no directory {path.parent}: make it, or give another place for {what}") from None
        except OSError as error:
            raise self._refused(error) from None
        self._open = True

    def write(self, *parts: bytes) -> None:
        """Append. Raises SystemRefused, with nothing left behind, where the disk is full or refuses."""
        try:
            for part in parts:
                view = memoryview(part)
                while view:
                    view = view[os.write(self._fd, view) :]
        except OSError as error:
            self.abort()
            raise self._refused(error) from None

    def close(self) -> None:
        """Give the file its name. Raises InputError where that was taken meanwhile, SystemRefused as `write`."""
        try:
            if self._mode != _OWN:
                os.fchmod(self._fd, self._mode)
            os.fsync(self._fd)
            self._may_take_name()
            os.replace(self._unnamed, self.path)
        except OSError as error:
            self.abort()
            raise self._refused(error) from None
        except InputError:
            self.abort()
            raise
        self._open = False
        os.close(self._fd)

    def abort(self) -> None:
        """Leave nothing behind; nothing where the file has its name."""
        if self._open:
            self._open = False
            with contextlib.suppress(OSError):
                os.close(self._fd)
            with contextlib.suppress(OSError):
                os.unlink(self._unnamed)

    def _may_take_name(self) -> None:
        if self.path.is_symlink():
            raise InputError(f"{self.path} is a link: give the name of the file itself")
        if not self.path.name or (self.path.exists() and not self.path.is_file()):
            raise InputError(f"{self.path} is no file: give the name of a file")
        if self.path.exists() and not self._force:
            raise InputError(f"{self.path} exists: give another name, or --force to replace it")

    def _refused(self, error: OSError) -> SystemRefused:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return SystemRefused(f"the disk is full: {self.path} was not written; free some room or give another place")
        return SystemRefused(f"cannot write {self.path}: {error.strerror or error}; give another place")


def write_whole(path: Path, parts: Iterable[str], what: str, *, force: bool) -> None:
    """Write a text file (UTF-8) from its parts. Raises as `NewFile`, and whatever `parts` raises."""
    file, rest = NewFile(path, what, force=force), iter(parts)
    try:
        while batch := "".join(islice(rest, _AT_ONCE)):
            file.write(batch.encode())
        file.close()
    finally:
        file.abort()
