"""What a stream's files say of it, for `kvmon doctor`: its newest segment, its lock, what turned others away.

Invariant: whatever is in the way is told in words, and nothing is changed. Standard library alone, so that it works in
an engine's environment; only the newest segments are opened, so that it answers at once.
"""

from __future__ import annotations

import contextlib
import json
import stat
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvmon.errors import InputError, NewerFormatError, RecordingError, SystemRefused

if TYPE_CHECKING:
    from kvmon.events import Event
    from kvmon.recording import Header, Live

__all__ = ["Stream", "read_stream"]


@dataclass
class Stream:
    """What the newest segment of a stream says; `problem` where it cannot be read."""

    path: Path
    alive: bool | None = None
    header: Header | None = None
    live: Live | None = None
    config: Mapping[str, Any] | None = None
    last_step: Event | None = None
    bytes: int = 0
    refused: int = 0
    problem: str = ""

    @property
    def name(self) -> str:
        """Engine and rank, or the folder where nothing says them."""
        return f"{self.header.engine}-{self.header.rank}" if self.header else self.path.name

    @property
    def age_seconds(self) -> float | None:
        """Since its last frame: by the clock that both share while it lives, else by the wall's."""
        if self.header is None or self.live is None:
            return None
        if self.alive:
            return max(0, time.monotonic_ns() - self.live.heartbeat_ns) / 1e9
        return max(0, time.time_ns() - self.header.wall_ns - self.live.heartbeat_ns + self.header.mono_ns) / 1e9


def read_stream(path: Path) -> Stream:
    """One stream, whatever state it is in."""
    stream = Stream(path)
    try:
        _read_into(stream)
    except (RecordingError, NewerFormatError, SystemRefused) as error:
        stream.problem = str(error)
    except OSError as error:
        stream.problem = f"cannot be read ({error.strerror or error}): run as the engine's user or set KVMON_GROUP"
    return stream


def _read_into(stream: Stream) -> None:
    from kvmon.recording import Position, StreamReader, headers, is_alive

    segments = sorted(stream.path.glob("*.seg"))
    for file in (stream.path / "lock", *segments):
        with contextlib.suppress(FileNotFoundError):  # the oldest may go at any moment
            status = file.lstat()
            if not stat.S_ISREG(status.st_mode):
                stream.problem = f"{file.name} is no regular file, so nobody made it but by hand: move it away"
                return
            stream.bytes += status.st_size
    with contextlib.suppress(OSError):
        stream.refused = (stream.path / "refused").lstat().st_size
    stream.alive = is_alive(stream.path / "lock")
    for header in islice(headers(stream.path), 2):  # the newest one may hold no whole frame yet
        if stream.header is not None and header.epoch != stream.header.epoch:
            break
        reader = StreamReader(stream.path, Position(header.index, 0))
        try:
            piece = reader.poll() or reader.open_tail()
            stream.header, stream.live = stream.header or header, stream.live or reader.live()
        finally:
            reader.close()
        if piece is not None:
            words = array("I", piece.data)
            stream.config, stream.last_step = _config(words), _last_step(words)
            break
    if stream.header is None:
        if stream.alive:
            stream.problem = "its engine lives, but has no segment: is there room, and may it write here?"
        elif segments:
            stream.problem = "no segment can be read: damaged, or not of kvmon: move it away"
        else:
            stream.problem = "its engine ended before it recorded anything: see its log"


def _config(words: array[int]) -> Mapping[str, Any] | None:
    """The engine's configuration, which every segment begins with."""
    from kvmon.events import Kind, decode

    with contextlib.suppress(InputError, ValueError, IndexError, RecursionError):  # damaged
        first = next(decode(words), None)
        if first is not None and first.kind is Kind.ENGINE_CONFIG:
            config = json.loads(first.fields["text"])
            return config if isinstance(config, dict) else None
    return None


def _last_step(words: array[int]) -> Event | None:
    """The record that closes the last frame, if it is a step."""
    from kvmon.events import Kind, decode, record_words

    for at in range(len(words) - 1, max(-1, len(words) - 64), -1):
        with contextlib.suppress(InputError, IndexError):
            if record_words(words, at) == len(words) - at:
                last = next(decode(words, at), None)
                if last is not None and last.kind in (Kind.STEP, Kind.TICK):
                    return last if last.kind is Kind.STEP else None
    return None
