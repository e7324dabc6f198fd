"""A capture or a recording as a trace for ui.perfetto.dev: two processes a life, drawn by `life_trace.py`.

The JSON of Chrome's Trace Event Format, compressed where the name of the file ends in `.gz`. Time 0 is ten seconds
before the first frame; `otherData` says when that was. Where there are more frames than a viewer takes, counters and
steps are told once an interval. Invariant: the file is whole or not there; it is written as the source is read, so
memory does not depend on its length.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kvmon.errors import ConfigError, InputError
from kvmon.files import NewFile
from kvmon.replay.export.following import Follower
from kvmon.replay.export.life_trace import LifeTrace
from kvmon.replay.export.trace_events import ProcessEvents
from kvmon.replay.export.window import Window
from kvmon.replay.lives import Life, open_lives
from kvmon.replay.when import rfc3339

__all__ = ["LARGE_BYTES", "MOST_FRAMES", "Traced", "export_perfetto"]

Within = tuple[int | None, int | None]

LARGE_BYTES = 200 << 20
"""JSON that takes ui.perfetto.dev minutes and gigabytes of the browser's memory."""
MOST_FRAMES = 100_000
"""Of which each counter and each step is told, if nothing else is wanted: some 60 MiB of JSON."""
_POINTS = 20_000  # else
_LEAD_NS = 10_000_000_000  # of time 0 before the first frame: what began before that begins there
_AT_ONCE = 1 << 18
_GZIP = 31  # window bits of zlib for a gzip file


@dataclass
class Traced:
    """What came out: events, bytes of JSON before any compression, lives, and what is missing, in words.

    every_ns    how often counters and steps are told, 0 = after every frame
    """

    every_ns: int = 0
    events: int = 0
    json_bytes: int = 0
    lives: int = 0
    missing: list[str] = field(default_factory=list)


class _TooMany(Exception):
    """There are more than `MOST_FRAMES`."""


class _Read:
    """Tells `progress` each word once, also where the source is read anew."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress
        self._words = self._told = 0

    def tell(self, words: int) -> None:
        """So many more were read."""
        self._words += words
        if self._words > self._told:
            self._progress(self._words - self._told)
            self._told = self._words

    def begin_anew(self) -> None:
        """From the first one."""
        self._words = 0


def export_perfetto(
    source: Path,
    out: Path,
    *,
    every_ns: int | None = None,
    window: Window | None = None,
    force: bool = False,
    progress: Callable[[int], None] = lambda words: None,
) -> Traced:
    """Write the trace `out` from a capture file or a recording directory.

    every_ns    how often counters and steps are told, 0 = after every frame; None = after every frame where there are
                no more than `MOST_FRAMES`, else `_POINTS` times
    window      only what is in it
    progress    is told words as they are read

    Raises ConfigError for a window in which nothing is, InputError where `source` is neither or has no whole frame, or
    `out` is taken, SystemRefused where it cannot be written.
    """
    with open_lives(source) as lives:
        there = [life for life in lives.lives if life.first_ns is not None]
        if not there:
            raise InputError(f"{source} has no whole frame to draw: 'kvmon verify {source}' says what is there")
        bounds = [(None, None)] * len(there) if window is None else window.of(there)
        chosen = [(life, within) for life, within in zip(there, bounds, strict=True) if within is not None]
        if not chosen:
            raise ConfigError(f"{source} holds nothing {window}: 'kvmon verify {source}' says what is there")
        read = _Read(progress)
        if every_ns is None:
            try:
                return _write(source, out, chosen, 0, MOST_FRAMES, force, read.tell)
            except _TooMany:
                read.begin_anew()
                every_ns = _round_up(max(_span(life, within) for life, within in chosen) // _POINTS)
        return _write(source, out, chosen, every_ns, None, force, read.tell)


def _write(
    source: Path,
    out: Path,
    chosen: list[tuple[Life, Within]],
    every_ns: int,
    most: int | None,
    force: bool,
    progress: Callable[[int], None],
) -> Traced:
    """Raises _TooMany behind `most` frames."""
    done, frames = Traced(every_ns, lives=len(chosen)), 0
    zero = max(min(life.facts.wall_time_ns(_begin(life, within)) for life, within in chosen) - _LEAD_NS, 0)
    known = any(life.facts.wall_ns for life, _ in chosen)
    file = NewFile(out, "the trace", force=force)
    try:
        writer = _JsonWriter(file, compress=out.name.endswith(".gz"))
        writer.head(
            {
                "source": source.name,
                "time_0": rfc3339(zero) if known else f"{zero} ns of the engine's clock",
                "counters_and_steps": f"every {every_ns / 1e6:g} ms" if every_ns else "every step",
            }
        )
        for place, (life, within) in enumerate(chosen):
            follower = Follower(life, every_ns=every_ns, begin_ns=within[0], end_ns=within[1], progress=progress)
            engine, requests = (
                ProcessEvents(2 * place + pid, zero - life.facts.wall_time_ns(0), writer.event) for pid in (1, 2)
            )
            trace = LifeTrace(follower, engine, requests, writer.event, sampled=every_ns > 0)
            for batch in follower.batches():
                frames += len(batch.records.table.ends)
                if most is not None and frames > most:
                    raise _TooMany
                trace.apply(batch)
            trace.close()
            done.missing += follower.missing()
        writer.close()
        file.close()
    finally:
        file.abort()
    done.events, done.json_bytes = writer.events, writer.bytes
    return done


def _begin(life: Life, within: Within) -> int:
    first = life.first_ns or 0
    return first if within[0] is None else max(first, within[0])


def _span(life: Life, within: Within) -> int:
    last = life.last_ns or 0
    return (last if within[1] is None else min(last, within[1])) - _begin(life, within)


def _round_up(ns: int) -> int:
    """To 1, 2 or 5 times a power of ten, a microsecond at the least."""
    scale = 1000
    while True:
        for step in (1, 2, 5):
            if step * scale >= ns:
                return step * scale
        scale *= 10


class _JsonWriter:
    """An object with a list of events, a line each."""

    def __init__(self, file: NewFile, *, compress: bool) -> None:
        self.events = self.bytes = 0
        self._file = file
        self._zip = zlib.compressobj(wbits=_GZIP) if compress else None
        self._waiting: list[str] = []
        self._size = 0

    def head(self, other: dict[str, str]) -> None:
        """The begin of the file, once."""
        self._put(f'{{"displayTimeUnit":"ms","otherData":{json.dumps(other)},"traceEvents":[')

    def event(self, text: str) -> None:
        """One more event."""
        self._put(f",\n{text}" if self.events else f"\n{text}")
        self.events += 1

    def close(self) -> None:
        """The end of the file."""
        self._put("\n]}\n")
        self._out()
        if self._zip is not None:
            self._file.write(self._zip.flush())

    def _put(self, text: str) -> None:
        self._waiting.append(text)
        self._size += len(text)
        if self._size >= _AT_ONCE:
            self._out()

    def _out(self) -> None:
        data = "".join(self._waiting).encode()
        self.bytes += len(data)
        self._file.write(data if self._zip is None else self._zip.compress(data))
        self._waiting.clear()
        self._size = 0
