"""Curves of one life as counters of a trace: memory of each pool by state, its largest free block, the requests.

A viewer draws a counter on until it is told another value, and has none for what is not known: times whose past is not
known are slices of a track of their own. Invariant: a value that is told is one of `kvmon.replay.timeline_model`; told
once an interval, the most and the least within it stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from kvmon.replay.export.trace_events import ProcessEvents, track_names
from kvmon.replay.timeline_model import PoolTimeline, Timeline

__all__ = ["CounterTracks"]

Floats = npt.NDArray[np.float64]

_STATES = ("active", "cached", "pinned", "deferred", "free")
_REQUESTS = ("running", "waiting", "waiting_for_memory")
_STATE_OF_NOTHING = "the state is not known"


class CounterTracks:
    """Counters of the process `events.pid`, and its track `tid` of what is not known, which `announce` names when there
    is something. `sampled`: curves are of intervals, not of frames."""

    def __init__(self, events: ProcessEvents, tid: int, announce: Callable[[str], None], *, sampled: bool) -> None:
        self._events = events
        self._tid = tid
        self._announce: Callable[[str], None] | None = announce
        self._sampled = sampled
        self._last: dict[str, Mapping[str, int]] = {}
        self._dark = False

    def apply(self, curves: Timeline) -> None:
        """Take a stretch of curves."""
        ends = curves.edges_ns[1:].tolist()
        said = {name.replace("_", " "): curves.curves[name].last for name in _REQUESTS}
        self._count(ends, "requests", said, 1)
        for pool in curves.pools:
            for name, values, scale in self._of_pool(pool):
                self._count(ends, name, values, scale)
        self._darken(curves.edges_ns[:-1].tolist(), (curves.known < 1).tolist())

    def close(self, end_ns: int) -> None:
        """Nothing follows."""
        if self._dark:
            self._events.end(self._tid, end_ns)

    def _of_pool(self, pool: PoolTimeline) -> Iterator[tuple[str, dict[str, Floats], int]]:
        unit, scale = ("bytes", pool.unit_bytes) if pool.unit_bytes else ("units", 1)
        curves = pool.curves
        yield f"{pool.name} memory ({unit})", {name: curves[name].last for name in _STATES}, scale
        yield f"{pool.name} in one piece ({unit})", {"free": curves["largest_free"].last}, scale
        if self._sampled:  # between two samples something may have come and gone
            extremes = {"most active": curves["active"].most, "least in one piece": curves["largest_free"].least}
            yield f"{pool.name} extremes ({unit})", extremes, scale

    def _count(self, ends: list[int], name: str, values: Mapping[str, Floats], scale: int) -> None:
        """A counter event wherever a value is another one; what is not known is left out."""
        known = [key for key, column in values.items() if np.isfinite(column).any()]
        columns = [values[key].tolist() for key in known]
        for time_ns, *row in zip(ends, *columns, strict=True):
            said = {key: int(value) * scale for key, value in zip(known, row, strict=True) if value == value}
            if said and said != self._last.get(name):
                self._last[name] = said
                self._events.counter(time_ns, name, said)

    def _darken(self, begins: list[int], dark: list[bool]) -> None:
        for begin_ns, now in zip(begins, dark, strict=True):
            if now and self._announce is not None:
                track_names(self._announce, self._events.pid, self._tid, "not known")
                self._announce = None
            if now and not self._dark:
                self._events.begin(self._tid, begin_ns, _STATE_OF_NOTHING, {})
            elif self._dark and not now:
                self._events.end(self._tid, begin_ns)
            self._dark = now
