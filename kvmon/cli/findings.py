"""Findings in words, for `kvmon replay`."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmon.diagnosis import Evidence, Finding

__all__ = ["finding_lines", "spoken"]

_WIDTH = 100
_INDENT = 14


def finding_lines(findings: Sequence[Finding], start_ns: int) -> list[str]:
    """Each finding in a few lines, the first one first; times count from `start_ns`."""
    lines: list[str] = []
    for number, finding in enumerate(findings, start=1):
        where = f"pool {finding.pool_name}, {finding.confidence}"
        when = f"{_clock(finding.start_ns - start_ns)} to {_clock(finding.end_ns - start_ns)}"
        lines += ["", f"{number}. {finding.verdict}  ({where}, {when})"]
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
    from kvmon.units import counted, format_bytes, format_duration, format_ratio

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


def _clock(ns: int) -> str:
    """`1:23.4` of minutes and seconds, hours in front where there are some."""
    tenths = round(max(ns, 0) / 1e8)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{head}:{tenths // 10:02d}.{tenths % 10}"
