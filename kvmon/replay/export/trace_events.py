"""Events of the trace format that ui.perfetto.dev and chrome://tracing read, put into their order as they are written.

The format is Chrome's "Trace Event Format": phases B and E open and close a slice of a track, X is a whole slice, C a
counter, i an instant, M a name. Times are in microseconds, here with three digits behind the point.

Invariant: events of a process leave in the order of their times, and of equal times in the order in which they came,
so that slices nest. One that comes later than `flush` allows is moved to the earliest time that is left; a whole slice
then ends when it ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["ProcessEvents", "process_names", "track_names"]

Args = Mapping[str, Any]


def process_names(write: Callable[[str], None], pid: int, name: str) -> None:
    """The name and the place of a process."""
    write(_text({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}))
    write(_text({"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}))


def track_names(write: Callable[[str], None], pid: int, tid: int, name: str) -> None:
    """The same of a track in it. A viewer shows its number behind its name."""
    write(_text({"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}))
    write(_text({"ph": "M", "pid": pid, "tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}}))


class ProcessEvents:
    """Events of one process `pid`; `write` takes the text of each when its time has come. `zero_ns` is time 0, and
    nothing is earlier."""

    def __init__(self, pid: int, zero_ns: int, write: Callable[[str], None]) -> None:
        self.pid = pid
        self._zero = zero_ns
        self._write = write
        self._pending: list[tuple[int, int, int | None, dict[str, Any]]] = []
        self._count = 0
        self._flushed = zero_ns

    def begin(self, tid: int, time_ns: int, name: str, args: Args) -> None:
        """A slice of a track opens."""
        self._add(time_ns, {"ph": "B", "tid": tid, "name": name, "args": args})

    def end(self, tid: int, time_ns: int, args: Args | None = None) -> None:
        """The slice that was opened last in this track closes."""
        self._add(time_ns, {"ph": "E", "tid": tid, **({"args": args} if args else {})})

    def slice(self, tid: int, time_ns: int, duration_ns: int, name: str, args: Args) -> None:
        """A whole slice."""
        self._add(time_ns, {"ph": "X", "tid": tid, "name": name, "args": args}, duration_ns)

    def instant(self, tid: int, time_ns: int, name: str, args: Args) -> None:
        """A moment in a track."""
        self._add(time_ns, {"ph": "i", "s": "t", "tid": tid, "name": name, "args": args})

    def counter(self, time_ns: int, name: str, values: Args) -> None:
        """Values that hold from now on."""
        self._add(time_ns, {"ph": "C", "name": name, "args": values})

    def flush(self, until_ns: int | None = None) -> None:
        """Write what is not later than this time, without one everything."""
        self._pending.sort(key=lambda event: event[:2])
        count = len(self._pending)
        if until_ns is not None:
            count = next((k for k, event in enumerate(self._pending) if event[0] > until_ns), count)
            self._flushed = max(self._flushed, until_ns)
        for time_ns, _, duration_ns, event in self._pending[:count]:
            took = "" if duration_ns is None else f'"dur":{_microseconds(duration_ns)},'
            head = f'{{"pid":{self.pid},"ts":{_microseconds(time_ns - self._zero)},{took}'
            self._write(head + _text(event)[1:])
        del self._pending[:count]

    def _add(self, time_ns: int, event: dict[str, Any], duration_ns: int | None = None) -> None:
        self._count += 1
        at_ns = max(time_ns, self._flushed)
        if duration_ns is not None:
            duration_ns = max(time_ns + duration_ns - at_ns, 0)
        self._pending.append((at_ns, self._count, duration_ns, event))


def _microseconds(ns: int) -> str:
    """Exactly: a float would round."""
    sign = "-" if ns < 0 else ""
    return f"{sign}{abs(ns) // 1000}.{abs(ns) % 1000:03d}"


def _text(event: Args) -> str:
    return json.dumps(event, separators=(",", ":"))
