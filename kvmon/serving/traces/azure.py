"""Azure's LLM inference trace (2023): CSV with `TIMESTAMP`, `ContextTokens`, `GeneratedTokens`.

Timestamps are wall clock with seven decimals; only their differences count. The trace names no prefixes.

Invariant: rows are taken as they stand; a bad one is an error with its line number, never skipped.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from kvmon.errors import TraceError
from kvmon.serving.traces.columns import LATEST_NS, Rows, cells, tokens
from kvmon.serving.workload import Workload

__all__ = ["looks_like_azure", "read_azure"]

_FIELDS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]


def looks_like_azure(first_line: str) -> bool:
    """Whether a line is the header of the trace."""
    return [name.strip() for name in first_line.split(",")][:3] == _FIELDS


def read_azure(path: Path, lines: list[str]) -> Workload:
    """The trace in the `lines` of `path`. Raises TraceError with the line of the first bad row."""
    if not lines or not looks_like_azure(lines[0]):
        raise TraceError(f"{path}, line 1: the header {','.join(_FIELDS)} is needed")
    rows = Rows()
    before = -1
    for number, line in enumerate(lines[1:], start=2):
        where = f"{path}, line {number}"
        row = cells(line, where)
        if not row:
            continue
        if len(row) < 3:
            raise TraceError(f"{where}: {len(row)} columns instead of 3: the line may be cut off")
        arrival = _nanoseconds(row[0], where)
        if arrival < before:
            raise TraceError(f"{where}: arrives before the line above it: sort the trace by TIMESTAMP")
        before = arrival
        rows.add(arrival, tokens(row[1], where, "ContextTokens"), tokens(row[2], where, "GeneratedTokens"))
    return rows.workload(path.name, 0)


def _nanoseconds(text: str, where: str) -> int:
    """Nanoseconds since 1970 of `2023-11-16 18:15:46.6805900`; datetime itself reads six decimals only."""
    head, _, fraction = text.partition(".")
    try:
        moment = datetime.strptime(head, "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc)
        digits = int(fraction[:9].ljust(9, "0")) if fraction else 0
    except ValueError as error:
        raise TraceError(
            f"{where}: TIMESTAMP is '{text}': a date like 2023-11-16 18:15:46.6805900 is needed"
        ) from error
    arrival = int(moment.timestamp()) * 1_000_000_000 + digits
    if not -LATEST_NS <= arrival <= LATEST_NS:
        raise TraceError(f"{where}: TIMESTAMP is '{text}': a date within 140 years of 1970 is needed")
    return arrival
