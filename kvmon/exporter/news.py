"""What changes about engines and their recordings, told in the log once each time: followed, gone, unreadable.

Nothing is decided here; a scrape says the same in numbers. What is remembered is bounded by what is followed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from kvmon.exporter.follow import DirectoryFollower, Life

__all__ = ["News"]

_LOG = logging.getLogger(__name__)


class _Engine(NamedTuple):
    """One life of an engine."""

    engine: str
    rank: int
    epoch: bytes

    def facts(self, path: Path) -> dict[str, object]:
        """What a line of the log says about it."""
        return {"engine": self.engine, "rank": self.rank, "directory": str(path)}


class News:
    """Remembers what was told."""

    def __init__(self) -> None:
        self._problems: set[Path] = set()
        self._living: dict[Path, _Engine] = {}

    def tell(self, followers: DirectoryFollower) -> None:
        """Log what has changed since the last time."""
        streams = {stream.path: stream.problem for stream in followers.streams if stream.problem}
        problems = {**followers.problems, **streams}
        for path in problems.keys() - self._problems:
            _LOG.warning("%s", problems[path])
        self._problems = set(problems)
        living = {
            stream.path: _Engine(stream.engine, stream.rank, stream.header.epoch)
            for stream in followers.streams
            if stream.header is not None and stream.life is not Life.DEAD
        }
        for path, engine in self._living.items():
            if living.get(path) != engine:
                _LOG.info("an engine is gone", extra=engine.facts(path))
        for path, engine in living.items():
            if self._living.get(path) != engine:
                _LOG.info("an engine is followed", extra=engine.facts(path))
        self._living = living
