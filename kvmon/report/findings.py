"""Findings in words, for every report."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from kvmon.diagnosis import Evidence, Finding
from kvmon.units import counted, format_bytes, format_clock, format_duration, format_ratio

__all__ = ["finding_lines", "spoken"]

_WIDTH = 80
_INDENT = 14


def finding_lines(findings: Sequence[Finding], start_ns: int) -> list[str]:
    """Each finding in a few lines, the first one first; times count from `start_ns`."""
    lines: list[str] = []
    for number, finding in enumerate(findings, start=1):
        where = f"pool {finding.pool_name}, {finding.confidence}"
        start, end = (format_clock((time_ns - start_ns) / 1e9) for time_ns in (finding.start_ns, finding.end_ns))
        lines += ["", f"{number}. {finding.verdict}  ({where}, {start} to {end})"]
        lines += _labelled("what", f"{finding.summary}.")
        lines += _labelled("evidence", "; ".join(spoken(part) for part in finding.evidence))
        if finding.events:
            lines += _labelled("events", ", ".join(f"frame {frame} word {word}" for frame, word in finding.events))
        if finding.completeness.missing:
            lines += _labelled("not seen", "; ".join(finding.completeness.missing))
        lines += _labelled("avoided by", finding.avoided)
        lines += _labelled("safest now", finding.lever)
    return lines


def spoken(part: Evidence) -> str:
    """One number with its unit."""
    if part.unit == "ratio":
        return f"{part.name} {format_ratio(part.value)}"
    if part.unit == "s":
        return f"{part.name} {format_duration(part.value)}"
    if part.unit == "bytes":
        return f"{part.name} {format_bytes(part.value)}"
    if part.unit in part.name or part.unit == "class":
        return f"{part.name} {part.value:,.0f}"
    return f"{part.name} {counted(round(part.value), part.unit.removesuffix('s'))}"


def _labelled(label: str, text: str) -> list[str]:
    first = f"   {label:<{_INDENT - 3}}"
    return wrap(text, _WIDTH, initial_indent=first, subsequent_indent=" " * _INDENT)
