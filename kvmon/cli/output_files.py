"""Several files into a folder, all of them or none: what `kvmon alerts` and `kvmon dashboards` write.

They hold no secret, and whoever reads them runs as a user of its own, so everybody may read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from kvmon.errors import InputError, SystemRefused
from kvmon.files import NewFile

__all__ = ["write_files"]

_READABLE = 0o644


def write_files(texts: Mapping[Path, str], what: str, *, force: bool) -> list[Path]:
    """Write each text (UTF-8) that its file does not say already, and make the folders; the files that were written.

    `what` names them in messages. Raises InputError where a file says something else and `force` is not given, or a
    folder is none, SystemRefused where something cannot be written; then no file has changed.
    """
    for folder in dict.fromkeys(path.parent for path in texts):
        _make(folder)
    due = [path for path, text in texts.items() if not _says(path, text)]
    with ExitStack() as stack:
        files = []
        for path in due:
            file = NewFile(path, what, force=force, mode=_READABLE)
            stack.callback(file.abort)
            file.write(texts[path].encode())
            files.append(file)
        for file in files:
            file.close()
    return due


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder} is no folder: give another one with -o") from None
    except OSError as error:
        raise SystemRefused(f"cannot make {folder}: {error.strerror}; give another folder with -o") from None


def _says(path: Path, text: str) -> bool:
    """Whether a file is there and the same."""
    try:
        return not path.is_symlink() and path.read_bytes() == text.encode()
    except OSError:
        return False
