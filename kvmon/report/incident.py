"""The report of an incident as plain data: what the HTML page draws, and nothing that only it would know.

    Report      the answer, one or more streams, what was replayed with a change
    Stream      one life of one engine and rank: facts, findings, curves that all its pools share, completeness
    Pool        its curves, its memory over time, its refused allocations
    Chart       curves over the buckets of its stream; Line: one of them, with its extremes in each bucket

Collected by `incident_collect.py`, drawn by `html/`. Invariants: a number that is not known is None, never zero; times
are seconds from the stream's first event; the same capture gives the same report. Nothing here reads a capture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from kvmon.report.what_if import ComparisonText

__all__ = [
    "Chart",
    "FailureDetail",
    "FindingText",
    "Known",
    "Line",
    "MemoryOverTime",
    "Pool",
    "Report",
    "Stream",
    "Table",
    "Times",
]

Numbers = Sequence[float | None]
Unit = Literal["count", "bytes", "ratio", "seconds"]


@dataclass(frozen=True)
class Times:
    """Buckets between one edge and the next, in seconds, and the known share of each, 0 to 1; None where all are known
    whole."""

    edges: Sequence[float]
    known: Sequence[float] | None = None


@dataclass(frozen=True)
class Line:
    """One curve: its value at the end of each bucket and, where they are drawn, its extremes in it.

    colour  a name of the page's palette
    over    drawn over a stack instead of being part of it; of such a line the extremes count
    """

    label: str
    colour: str
    last: Numbers | None = None
    low: Numbers | None = None
    high: Numbers | None = None
    over: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves of one unit on one axis, which ends at `top` where that is given, else at the highest value in sight."""

    title: str
    description: str
    unit: Unit
    kind: Literal["stack", "lines", "bars"]
    lines: tuple[Line, ...]
    top: float | None = None


@dataclass(frozen=True)
class MemoryOverTime:
    """States and fills of all addresses over time: a column between one edge and the next, in seconds.

    cells   columns x `rows` bytes, moment by moment, lowest address first: an index into `memory_map.MAP_STATES` in
            the high half, the used share in sixteenths in the low one; 255 where nothing is known
    """

    cells: bytes
    rows: int
    edges: Sequence[float]
    capacity: int


@dataclass(frozen=True)
class FailureDetail:
    """One refused allocation: the cells of a table row, a sentence, and the memory just before it.

    shares  of the capacity by state, which sum to 1
    map     one column as in MemoryOverTime, and how it is to be introduced; None where nothing is known
    """

    at: float
    cells: tuple[str, ...]
    sentence: str
    shares: tuple[tuple[str, float], ...]
    map: bytes | None = None
    map_says: str = ""


@dataclass(frozen=True)
class Table:
    """Text in rows; `numeric` names the columns that are numbers."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pool:
    """One pool of a stream; `marks` are the times of refused allocations, `refused` how many there were in all."""

    number: int
    name: str
    facts: tuple[tuple[str, str], ...]
    charts: tuple[Chart, ...]
    memory: MemoryOverTime | None
    failures: tuple[FailureDetail, ...]
    failure_head: tuple[str, ...]
    marks: tuple[float, ...]
    refused: int
    reasons: Table | None = None


@dataclass(frozen=True)
class FindingText:
    """One finding in words; `rows` are label and text."""

    verdict: str
    pool: str
    confidence: str
    start: float
    end: float
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Known:
    """How complete the evidence is, in sentences; `whole` when there is nothing to say against it."""

    whole: bool
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Stream:
    """One life of one engine and rank, `start` to `end` in seconds; `times` are the buckets of all its charts."""

    number: int
    name: str
    summary: str
    verdict: str
    facts: tuple[tuple[str, str], ...]
    start: float
    end: float
    times: Times
    findings: tuple[FindingText, ...]
    charts: tuple[Chart, ...]
    pools: tuple[Pool, ...]
    known: Known
    overview: Table | None = None


@dataclass(frozen=True)
class Report:
    """Everything: `verdict` and `sentence` answer what went wrong; `what_if` is what was replayed with a change, or why
    it could not be; empty where nothing was to be."""

    source: str
    version: str
    verdict: str
    sentence: str
    streams: tuple[Stream, ...]
    what_if: tuple[ComparisonText, ...] = ()
    glossary: tuple[tuple[str, str], ...] = field(default=())
