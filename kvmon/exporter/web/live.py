"""The web configuration as it is on disk now, so that certificates, users and headers rotate without a restart.

Each connection and each request asks for it: that costs a stat of each file, and a reading only where one has changed.
A broken new version is logged once, and the one before it stays in use. Invariant: a door that was shut at the start is
never opened by a version that merely lacks a key, such as one that is half written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from kvmon.errors import InputError, KvmonError
from kvmon.exporter.web.config import WebConfig, read_web_config
from kvmon.exporter.web.door import Tls

__all__ = ["LiveWebConfig"]

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 5.0  # a version may be broken for a file that it names and that is not watched yet
_MOST_READINGS = 3
_Version = tuple[tuple[int, ...], ...]


class LiveWebConfig:
    """What `file` says; not for more than one thread."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read it. Raises InputError or SystemRefused, naming file and key."""
        self._file = file
        self._clock = clock
        self._config = read_web_config(file)
        self._seen: _Version = ()
        self._broken: str | None = None
        self._tried_at = clock()
        self._read()
        for note in self._config.notes:
            _LOG.warning(note, extra={"file": str(file)})

    def now(self) -> WebConfig:
        """What it says now, or said when it was last in order."""
        found = _version(self._config.files)
        if found != self._seen or (self._broken and self._clock() - self._tried_at >= _RETRY_SECONDS):
            self._seen, self._tried_at = found, self._clock()
            try:
                self._read()
            except KvmonError as error:
                if str(error) != self._broken:
                    _LOG.error(f"the web configuration has changed and cannot be used, the one before stays: {error}")
                self._broken = str(error)
            else:
                self._broken = None
                _LOG.info("the web configuration has changed and is in use", extra={"file": str(self._file)})
        return self._config

    def tls(self) -> Tls:
        """How to agree on TLS now. Only where the configuration had TLS at the start, which it then keeps."""
        tls = self.now().tls
        assert tls is not None
        return tls

    @property
    def has_tls(self) -> bool:
        """Whether it had TLS at the start."""
        return self._config.tls is not None

    def _read(self) -> None:
        """Read it, and again where it names other files than before, so that what is watched was looked at first."""
        for _ in range(_MOST_READINGS):
            files = self._config.files
            seen = _version(files)
            config = read_web_config(self._file)
            self._check(config)
            self._config, self._seen = config, seen
            if config.files == files:
                break

    def _check(self, config: WebConfig) -> None:
        if (config.tls is None) != (self._config.tls is None):
            raise InputError(
                f"{self._file}: tls_server_config cannot come or go while it is served: restart the exporter"
            )
        gone = sorted(self._config.guards - config.guards)
        if gone:
            raise InputError(
                f"{self._file}: {gone[0]} is gone, which would let anybody in: restart the exporter if that is meant"
            )


def _version(files: tuple[Path, ...]) -> _Version:
    """What changes when one of the files does."""
    return tuple(map(_version_of, files))


def _version_of(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError as error:
        return (error.errno or 0,)
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev
