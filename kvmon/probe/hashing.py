"""Keyed hashes of prefix pages: equal pages can be recognised within one recording directory, and nowhere else.

The key is 32 random bytes in `DIR/key` (0600), made once by whoever comes first and never copied. What is recorded is
64 bits of a keyed BLAKE2b a page, so that nobody without the key can test a guess at a prompt. Nothing here raises,
and nothing of a page is kept.
"""

from __future__ import annotations

import contextlib
import os
import stat
from array import array
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

__all__ = ["PageHasher"]

_KEY_BYTES = 32
_NAME = "key"


class PageHasher:
    """Hashes pages under the key of a recording directory.

    `available` says whether there is a key. `refused` counts prompts that were not hashed at all (no key, or pages
    that are no bytes), `cut` those that had more pages than the caller's limit.
    """

    def __init__(self, directory: Path) -> None:
        """Use the key of `directory`, or make it; a directory that cannot hold one gives a hasher without hashes."""
        key = _key_of(Path(directory))
        self._keyed = None if key is None else blake2b(key=key, digest_size=8)
        self.refused = self.cut = 0

    @property
    def available(self) -> bool:
        """Whether there is a key to hash with."""
        return self._keyed is not None

    def words(self, pages: Iterable[bytes], limit: int) -> array[int]:
        """Hashes of the first `limit` pages, two words each, low half first; a half that is zero is written as 1.

        About half a microsecond a page: the caller keeps `limit` within what its step may cost.
        """
        if self._keyed is None:
            self.refused += 1
            return array("I")
        copy = self._keyed.copy
        digests: list[bytes] = []
        try:
            for page in pages:
                if len(digests) >= limit:
                    self.cut += 1
                    break
                one = copy()
                one.update(page)
                digests.append(one.digest())
        except Exception:  # a guest: pages that are no bytes must not raise into the engine
            self.refused += 1
            return array("I")
        words = array("I", b"".join(digests))
        return array("I", [word or 1 for word in words]) if 0 in words else words


def _key_of(directory: Path) -> bytes | None:
    path = directory / _NAME
    key = _read(path)
    if key is None and not path.is_symlink():
        with contextlib.suppress(OSError):
            _make(directory, path)
        key = _read(path)
    return key


def _make(directory: Path, path: Path) -> None:
    """A whole key appears under its name or none does; whoever links second leaves the first one's."""
    unnamed = directory / f".key-{os.getpid()}-{os.urandom(8).hex()}"
    fd = os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, os.urandom(_KEY_BYTES))
        os.link(unnamed, path)
    finally:
        os.close(fd)
        os.unlink(unnamed)


def _read(path: Path) -> bytes | None:
    """The key; None where there is none, or one that others could have read or planted."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        private = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
        key = os.read(fd, _KEY_BYTES + 1) if private else b""
    except OSError:
        return None
    finally:
        os.close(fd)
    return key if len(key) == _KEY_BYTES else None
