"""Follow all streams of recording directories: engines come and go, several at once, each with its ranks.

`StreamFollower` follows one of them. A stream that vanishes from its directory is forgotten; a directory that
vanishes keeps its streams as they were, and says so in `problems`. Nothing is written and nothing is served here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kvmon.errors import RecordingError, SystemRefused
from kvmon.exporter.follow.continuation import Saved
from kvmon.exporter.follow.stream import DEFAULT_STALL_SECONDS, Progress, StreamFollower
from kvmon.recording import find_streams

__all__ = ["DirectoryFollower"]


class DirectoryFollower:
    """Follows every stream of `directories`; see `StreamFollower` for the other parameters.

    `continued` is asked with a stream's directory and the epoch of its engine.
    """

    def __init__(
        self,
        directories: Path | Sequence[Path],
        *,
        fold_dead: bool = True,
        diagnosing: bool = True,
        stall_seconds: float = DEFAULT_STALL_SECONDS,
        continued: Callable[[Path, bytes], Saved | None] = lambda path, epoch: None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.directories = [directories] if isinstance(directories, Path) else list(directories)
        self.problems: dict[Path, str] = {}
        self._fold_dead = fold_dead
        self._diagnosing = diagnosing
        self._stall_seconds = stall_seconds
        self._continued = continued
        self._clock = clock
        self._streams: dict[Path, StreamFollower] = {}

    @property
    def streams(self) -> list[StreamFollower]:
        """One follower a stream, by path."""
        return [self._streams[path] for path in sorted(self._streams)]

    @property
    def caught_up(self) -> bool:
        """Whether everything that was there has been folded once."""
        return all(stream.caught_up for stream in self._streams.values())

    def look(self) -> None:
        """See which streams came and which are gone. A directory that cannot be read is a problem, not an error."""
        for directory in self.directories:
            try:
                found = set(find_streams(directory))
            except (RecordingError, SystemRefused, OSError) as error:
                self.problems[directory] = str(error)
                continue
            self.problems.pop(directory, None)
            for path in [path for path in self._streams if path.parent == directory and path not in found]:
                self._streams.pop(path).close()
            for path in found - set(self._streams):
                self._streams[path] = self._follow(path)

    def poll(self) -> bool:
        """Look for streams and fold a piece of each; True when one of them had something."""
        self.look()
        moved = [stream.poll() is not Progress.NOTHING for stream in self.streams]
        return any(moved)

    def catch_up(self) -> None:
        """Fold until every stream has been read to its end once; for what looks at a directory and goes."""
        while self.poll() or not self.caught_up:
            pass

    def close(self) -> None:
        """Let go of every file."""
        for stream in self._streams.values():
            stream.close()

    def _follow(self, path: Path) -> StreamFollower:
        return StreamFollower(
            path,
            fold_dead=self._fold_dead,
            diagnosing=self._diagnosing,
            stall_seconds=self._stall_seconds,
            continued=lambda epoch: self._continued(path, epoch),
            clock=self._clock,
        )
