"""What the scripts of the page read: the numbers of a report, rounded to what can be seen."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from kvmon.report.incident import Chart, FailureDetail, MemoryOverTime, Pool, Report, Stream

__all__ = ["page_data"]

_DIGITS = 6


def page_data(report: Report) -> dict[str, Any]:
    """Ready for `json.dumps`."""
    return {"streams": [_stream(stream) for stream in report.streams]}


def _stream(stream: Stream) -> dict[str, Any]:
    times = stream.times
    return {
        "number": stream.number,
        "start": stream.start,
        "end": stream.end,
        "times": {
            "edges": _rounded(times.edges),
            "known": None if times.known is None else _rounded(times.known),
        },
        "findings": [{"start": finding.start, "end": finding.end} for finding in stream.findings],
        "charts": [_chart(chart) for chart in stream.charts],
        "pools": [_pool(pool) for pool in stream.pools],
    }


def _pool(pool: Pool) -> dict[str, Any]:
    return {
        "number": pool.number,
        "charts": [_chart(chart) for chart in pool.charts],
        "marks": _rounded(pool.marks),
        "map": None if pool.memory is None else _memory(pool.memory, pool.name),
        "failures": [_failure(failure) for failure in pool.failures],
    }


def _chart(chart: Chart) -> dict[str, Any]:
    lines = []
    for line in chart.lines:
        made: dict[str, Any] = {"label": line.label, "colour": line.colour}
        for name, values in (("last", line.last), ("min", line.low), ("max", line.high)):
            if values is not None:
                made[name] = _rounded(values)
        lines.append(made | {name: True for name in ("over", "dashed") if getattr(line, name)})
    return {"unit": chart.unit, "kind": chart.kind, "top": chart.top, "lines": lines}


def _memory(memory: MemoryOverTime, pool: str) -> dict[str, Any]:
    return {
        "cells": b64encode(memory.cells).decode("ascii"),
        "edges": _rounded(memory.edges),
        "rows": memory.rows,
        "capacity": memory.capacity,
        "description": f"Memory of pool {pool} over time, lowest address at the top. The charts above say the same in "
        "numbers. Plus and minus zoom, arrow keys move, 0 shows all.",
    }


def _failure(failure: FailureDetail) -> dict[str, Any]:
    return {
        "at": failure.at,
        "sentence": failure.sentence,
        "shares": [[state, round(share, _DIGITS)] for state, share in failure.shares],
        "map": None if failure.map is None else b64encode(failure.map).decode("ascii"),
        "map_says": failure.map_says,
    }


def _rounded(values: Sequence[float | None]) -> list[float | int | None]:
    """Six significant digits below a million, whole numbers above; what is whole is written without a point."""
    said: list[float | int | None] = []
    for value in values:
        if value is None:
            said.append(None)
        elif value == int(value):
            said.append(int(value))
        else:
            short = float(f"{value:.{_DIGITS}g}") if abs(value) < 1e6 else round(value)
            said.append(int(short) if short == int(short) else short)
    return said
