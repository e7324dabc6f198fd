"""Which curves a report shows, and on which axes: from a timeline to charts.

Memory is in bytes where the size of a unit is known, else in units. A chart of which nothing is known is left out.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from kvmon.replay.timeline_model import Curve, PoolTimeline, Timeline
from kvmon.report.incident import Chart, Line, Unit

__all__ = ["numbers", "pool_charts", "stream_charts"]

Floats = npt.NDArray[np.float64]

_STACK = (("active", "active"), ("pinned", "pinned"), ("deferred", "deferred"), ("cached", "cached"))
_SLOTS = (("written", "active"), ("tail", "deferred"), ("reserved", "reserved"))
_REASON_COLOURS = ("bad", "deferred", "pinned", "active", "cached", "soft", "accent", "reserved", "unknown", "ink")


def numbers(values: Floats) -> list[float | None]:
    """Plain numbers, None for what is not known."""
    return [None if value != value else value for value in values.tolist()]


def pool_charts(pool: PoolTimeline, timeline: Timeline) -> tuple[Chart, ...]:
    """The charts of one pool."""
    return tuple(_known([_memory(pool), _largest(pool, timeline), _fragmentation(pool), _slots(pool), _refused(pool)]))


def stream_charts(timeline: Timeline) -> tuple[Chart, ...]:
    """The charts of what the pools of a stream share."""
    return tuple(_known([_requests(timeline), _tokens(timeline), _steps(timeline), _hits(timeline)]))


def _known(charts: Iterable[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart is not None and chart.lines]


def _scale(pool: PoolTimeline) -> tuple[float, Unit]:
    return (float(pool.unit_bytes), "bytes") if pool.unit_bytes else (1.0, "count")


def _line(label: str, colour: str, curve: Curve, scale: float = 1.0, *, dashed: bool = False) -> Line | None:
    """A curve with its extremes; None where nothing of it is known."""
    if not curve.known:
        return None
    return Line(
        label,
        colour,
        numbers(curve.last * scale),
        numbers(curve.least * scale),
        numbers(curve.most * scale),
        dashed=dashed,
    )


def _lines(*lines: Line | None) -> tuple[Line, ...]:
    return tuple(line for line in lines if line is not None)


def _memory(pool: PoolTimeline) -> Chart | None:
    scale, unit = _scale(pool)
    curves = pool.curves
    stack = [
        Line(name, colour, numbers(curves[name].last * scale))
        for name, colour in _STACK
        if curves[name].known and np.nanmax(curves[name].most) > 0
    ]
    if not curves["capacity"].known:
        return None
    most = Line(
        "not available, at most",
        "bad",
        high=numbers((curves["capacity"].most - curves["available"].least) * scale),
        over=True,
        dashed=True,
    )
    return Chart(
        "Memory by state",
        "up to the capacity of the pool; dashed: the most within each moment that was neither free nor cached",
        unit,
        "stack",
        (*stack, most),
        top=float(np.nanmax(curves["capacity"].most)) * scale,
    )


def _largest(pool: PoolTimeline, timeline: Timeline) -> Chart:
    scale, unit = _scale(pool)
    need = timeline.curves["head_need"] if pool.number == min(one.number for one in timeline.pools) else None
    contiguous = pool.contiguity != "none"
    return Chart(
        "Largest free block against the need" if contiguous else "Free memory against the need",
        "what the allocator could grant, and what the request at the head of the queue waits for"
        if contiguous
        else "any unit fits; what the request at the head of the queue waits for",
        unit,
        "lines",
        _lines(
            _line("free", "soft", pool.curves["free"], scale, dashed=contiguous),
            _line("available by evicting", "cached", pool.curves["available"], scale, dashed=True)
            if pool.curves["cached"].known and np.nanmax(pool.curves["cached"].most) > 0
            else None,
            _line("largest free block", "active", pool.curves["largest_free"], scale) if contiguous else None,
            None if need is None else _need(need, scale),
        ),
    )


def _need(need: Curve, scale: float) -> Line | None:
    """What the head of the queue waits for; no line while nobody waits for memory."""
    waited = np.where(need.most > 0, need.most, np.nan) * scale
    return Line("need at the head of the queue", "need", numbers(waited)) if np.isfinite(waited).any() else None


def _fragmentation(pool: PoolTimeline) -> Chart | None:
    if pool.contiguity == "none":
        return None
    return Chart(
        "Fragmentation",
        "1 - longest run / free, a trend; lost: what the head of the queue cannot get of what is free",
        "ratio",
        "lines",
        _lines(
            _line("external fragmentation", "active", pool.curves["external_fragmentation"]),
            _line("lost(need at the head)", "need", pool.curves["lost_at_head"]),
        ),
        top=1.0,
    )


def _slots(pool: PoolTimeline) -> Chart | None:
    curves = pool.curves
    if not curves["written"].known:
        return None
    return Chart(
        "Token slots of active memory",
        "written: hold keys and values; tail: the rest of a last page; reserved: set aside",
        "count",
        "stack",
        tuple(Line(name, colour, numbers(curves[name].last)) for name, colour in _SLOTS),
    )


def _refused(pool: PoolTimeline) -> Chart:
    return Chart(
        "Refused allocations by reason",
        "once a wait of a request",
        "count",
        "bars",
        tuple(
            Line(reason, colour, numbers(counts))
            for (reason, counts), colour in zip(sorted(pool.failures.items()), _REASON_COLOURS, strict=False)
        ),
    )


def _requests(timeline: Timeline) -> Chart:
    curves = timeline.curves
    return Chart(
        "Requests",
        "as the steps say; waiting for memory: refused, and not over it",
        "count",
        "lines",
        _lines(
            _line("running", "active", curves["running"]),
            _line("waiting", "deferred", curves["waiting"]),
            _line("waiting for memory", "need", curves["waiting_for_memory"]),
            _line("preempted", "pinned", curves["preempted"], dashed=True)
            if curves["preempted"].known and np.nanmax(curves["preempted"].most) > 0
            else None,
        ),
    )


def _tokens(timeline: Timeline) -> Chart:
    seconds = np.diff(timeline.edges_ns) / 1e9
    return Chart(
        "Tokens a second",
        "computed; computed again: thrown away by preemptions",
        "count",
        "lines",
        tuple(
            Line(label, colour, numbers(timeline.counts[name] / seconds))
            for name, label, colour in (
                ("prefill_tokens", "prefill", "cached"),
                ("decode_tokens", "decode", "active"),
                ("recomputed_tokens", "computed again", "need"),
            )
            if name != "recomputed_tokens" or np.nansum(timeline.counts[name]) > 0
        ),
    )


def _steps(timeline: Timeline) -> Chart:
    return Chart(
        "Duration of a step",
        "the last one, and the shortest and longest of each moment",
        "seconds",
        "lines",
        _lines(_line("step", "active", timeline.curves["step_seconds"])),
    )


def _hits(timeline: Timeline) -> Chart | None:
    lookups, hits = timeline.counts["lookup_tokens"], timeline.counts["hit_tokens"]
    if not np.nansum(lookups):
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(lookups > 0, hits / lookups, np.nan)
    return Chart(
        "Prefix cache hits",
        "prompt tokens found, of those looked up; nothing where none was looked up",
        "ratio",
        "lines",
        (Line("hit ratio", "cached", numbers(ratio)),),
        top=1.0,
    )
