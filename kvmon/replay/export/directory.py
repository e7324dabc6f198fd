"""A directory that is whole or not there: what is written goes to a name beside the one asked for, and takes it at the
end.

Invariant: with `force` a directory is replaced only if nothing is in it that an export has not written; nothing else is
ever removed. Directories and files are readable by their owner alone.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from kvmon.errors import InputError, SystemRefused

__all__ = ["NewDirectory"]


class NewDirectory:
    """A directory in the making; a context manager, which leaves nothing behind where it ends in an exception.

    `own` are the names of files that it may hold, itself or in folders in it. Raises InputError where `path` is taken
    or has no directory to be in, SystemRefused where it cannot be written.
    """

    def __init__(self, path: Path, own: Collection[str], *, force: bool) -> None:
        self.path = path
        self._own = frozenset(own)
        self._force = force
        self._may_take_name()
        self._unnamed = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            shutil.rmtree(self._unnamed, ignore_errors=True)  # of a process with our number that was killed
            self._unnamed.mkdir(0o700)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"no directory {path.parent}: make it, or give another place for the export") from None
        except OSError as error:
            raise self.refused(error) from None

    def folder(self, name: str) -> Path:
        """A folder in it, made now; the directory itself for an empty name."""
        folder = self._unnamed / name if name else self._unnamed
        try:
            folder.mkdir(0o700, exist_ok=True)
        except OSError as error:
            raise self.refused(error) from None
        return folder

    def close(self) -> None:
        """Give the directory its name."""
        old = self.path.with_name(f".{self.path.name}.{os.getpid()}.old")
        try:
            self._may_take_name()
            if self.path.exists():
                os.replace(self.path, old)
            os.replace(self._unnamed, self.path)
        except OSError as error:
            with suppress(OSError):  # what was there has its name again; nothing where it has not lost it
                os.replace(old, self.path)
            raise self.refused(error) from None
        shutil.rmtree(old, ignore_errors=True)

    def abort(self) -> None:
        """Leave nothing behind; nothing where it has its name."""
        shutil.rmtree(self._unnamed, ignore_errors=True)

    def refused(self, error: OSError) -> SystemRefused:
        """What the machine said, in one line."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return SystemRefused(f"the disk is full: {self.path} was not written; free some room or give another place")
        return SystemRefused(f"cannot write {self.path}: {error.strerror or error}; give another place")

    def __enter__(self) -> NewDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.abort()

    def _may_take_name(self) -> None:
        path = self.path
        if path.is_symlink():
            raise InputError(f"{path} is a link: give the name of the directory itself")
        if not path.name or (path.exists() and not path.is_dir()):
            raise InputError(f"{path} is no directory: a Parquet export is one, give another name")
        if not path.exists():
            return
        if not self._force:
            raise InputError(f"{path} exists: give another name, or --force to replace it")
        foreign = next((file for file in sorted(path.rglob("*")) if not self._is_own(file)), None)
        if foreign is not None:
            raise InputError(f"{path} holds {foreign.name}, which no export has written: give another name")

    def _is_own(self, file: Path) -> bool:
        return file.is_dir() or (file.is_file() and not file.is_symlink() and file.name in self._own)
