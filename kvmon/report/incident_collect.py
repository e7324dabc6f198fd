"""From timelines to the report of an incident: every number comes from the timeline, none is computed twice.

The first stream with the most important finding gives the answer. Nothing here reads a capture or draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kvmon.diagnosis import HEALTHY, VERDICTS, Finding
from kvmon.events import FAILURE_REASONS
from kvmon.replay.asked import Answered
from kvmon.replay.timeline_model import UNKNOWN_CELL, Failure, PoolMap, PoolTimeline, Timeline
from kvmon.report.findings import spoken
from kvmon.report.glossary import GLOSSARY
from kvmon.report.incident import (
    FailureDetail,
    FindingText,
    Known,
    MemoryOverTime,
    Pool,
    Report,
    Stream,
    Table,
    Times,
)
from kvmon.report.incident_charts import pool_charts, stream_charts
from kvmon.report.what_if import ComparisonText, Proposed, comparison_text
from kvmon.report.words import refusal_sentence, wall_time
from kvmon.units import counted, format_bytes, format_clock, format_count, format_duration, format_ratio

__all__ = ["incident_report"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

_FAILURES = 200
_OVERVIEW_ROWS = 20
_FAILURE_HEAD = ("number", "time", "request", "needed", "free", "largest block", "evictable", "reason", "cause")
_FACTS = (
    ("engine_version", "engine version"),
    ("model", "model"),
    ("adapter", "recorded by"),
    ("fidelity", "fidelity"),
    ("admission", "admission"),
    ("eviction", "eviction"),
    ("reserve", "reservation"),
    ("preemption", "preemption"),
    ("max_sequences", "sequences at most"),
    ("token_budget", "tokens a step at most"),
    ("watermark", "watermark"),
)


def incident_report(
    source: str, timelines: Sequence[Timeline], version: str, answered: Sequence[Answered] = ()
) -> Report:
    """The report of what `source` holds; `answered` is what was replayed with a change, of its streams or of others."""
    compared, own = _compared(timelines, answered)
    found = [(timeline, finding) for timeline in timelines for finding in timeline.findings]
    found.sort(key=lambda pair: (VERDICTS[pair[1].verdict].rank, -pair[1].paid))
    verdict = found[0][1].verdict if found else HEALTHY
    partly = any(timeline.damage or not timeline.pools for timeline in timelines)
    rest = ", as far as it can be read" if partly else ""
    sentence = found[0][1].summary if found else f"nothing was found{rest}"
    return Report(
        source=source,
        version=version,
        verdict=verdict,
        sentence=f"{sentence[0].upper()}{sentence[1:]}.",
        streams=tuple(
            _stream(place + 1, timeline, own[place].proposed if place in own else ())
            for place, timeline in enumerate(timelines)
        ),
        what_if=tuple(compared),
        glossary=GLOSSARY,
    )


def _compared(
    timelines: Sequence[Timeline], answered: Sequence[Answered]
) -> tuple[list[ComparisonText], dict[int, ComparisonText]]:
    """What was replayed, in words, called as the page calls its stream; and the same by the place of the timeline."""
    own: dict[int, ComparisonText] = {}
    said = []
    for one in answered:
        text = comparison_text(one)
        place = next((i for i, line in enumerate(timelines) if i not in own and line.facts == one.facts), None)
        if place is not None:
            text = own[place] = text if one.source else replace(text, name=timelines[place].name)
        said.append(text)
    return said, own


def _stream(number: int, timeline: Timeline, proposed: Sequence[Proposed]) -> Stream:
    begin = timeline.begin_ns
    edges = [0.0, *((int(edge) - begin) / 1e9 for edge in timeline.edges_ns[1:])]
    known = None if bool(np.all(timeline.known >= 1)) else timeline.known.tolist()
    steps, failures = counted(timeline.steps, "step"), counted(timeline.failure_count, "refused allocation")
    return Stream(
        number=number,
        name=timeline.name,
        summary=f"{format_duration(edges[-1])}, {steps}, {failures}",
        verdict=timeline.verdict,
        facts=_stream_facts(timeline),
        start=edges[0],
        end=edges[-1],
        times=Times(edges, known),
        findings=tuple(_finding(finding, begin, proposed) for finding in timeline.findings),
        charts=stream_charts(timeline),
        pools=tuple(_pool(pool, timeline) for pool in timeline.pools),
        known=_completeness(timeline),
        overview=_overview(timeline) if timeline.pools else None,
    )


def _stream_facts(timeline: Timeline) -> tuple[tuple[str, str], ...]:
    facts = [("engine", f"{timeline.facts.engine}, rank {timeline.facts.rank}")]
    if timeline.facts.wall_ns:
        facts.append(("begin", wall_time(timeline.facts.wall_time_ns(timeline.begin_ns))))
        facts.append(("end", wall_time(timeline.facts.wall_time_ns(timeline.end_ns))))
    for key, label in _FACTS:
        value = timeline.config.get(key)
        if value not in (None, "", False):
            facts.append((label, f"{value:,}" if isinstance(value, int) else str(value)))
    return tuple(facts)


def _finding(finding: Finding, begin: int, proposed: Sequence[Proposed]) -> FindingText:
    rows = [
        ("what", f"{finding.summary}."),
        ("evidence", "; ".join(spoken(part) for part in finding.evidence)),
        ("events", ", ".join(f"frame {frame:,} word {word}" for frame, word in finding.events)),
        ("not seen", "; ".join(finding.completeness.missing)),
        ("avoided by", finding.avoided),
        ("checked", next((one.said for one in proposed if one.verdict == finding.verdict), "")),
        ("safest now", finding.lever),
    ]
    return FindingText(
        verdict=finding.verdict,
        pool=finding.pool_name,
        confidence=finding.confidence,
        start=(finding.start_ns - begin) / 1e9,
        end=(finding.end_ns - begin) / 1e9,
        rows=tuple((label, text) for label, text in rows if text),
    )


def _pool(pool: PoolTimeline, timeline: Timeline) -> Pool:
    begin = timeline.begin_ns
    mine = [failure for failure in timeline.failures if failure.refusal.pool == pool.number]
    shown = _spread(mine, _FAILURES)
    totals = {reason: int(np.nansum(counts)) for reason, counts in sorted(pool.failures.items())}
    return Pool(
        number=pool.number,
        name=pool.name,
        facts=_pool_facts(pool),
        charts=pool_charts(pool, timeline),
        memory=_memory(pool.map, begin, pool.capacity),
        failures=tuple(_failure(failure, pool, begin) for failure in shown),
        failure_head=_FAILURE_HEAD,
        marks=tuple((failure.refusal.time_ns - begin) / 1e9 for failure in mine),
        refused=sum(totals.values()),
        reasons=Table("by reason", ("reason", "refused"), tuple((r, f"{n:,}") for r, n in totals.items()), (1,))
        if totals
        else None,
    )


def _spread(failures: Sequence[Failure], most: int) -> list[Failure]:
    """At most so many, evenly over all of them, the first and the last one among them."""
    if len(failures) <= most:
        return list(failures)
    return [failures[round(i * (len(failures) - 1) / (most - 1))] for i in range(most)]


def _pool_facts(pool: PoolTimeline) -> tuple[tuple[str, str], ...]:
    size = f"{format_count(pool.capacity)} units of {counted(pool.unit_tokens, 'token')}"
    if pool.unit_bytes:
        size = f"{format_bytes(pool.capacity * pool.unit_bytes)}: {size}, {format_bytes(pool.unit_bytes)} each"
    needs = {"none": "any unit fits", "preferred": "a request prefers one run", "required": "a request needs one run"}
    return (("size", size), ("layout", f"{pool.layout}, {needs[pool.contiguity]}"), ("tier", pool.tier))


def _cells(state: Bytes, used: Bytes) -> bytes:
    cells = (state.astype(np.uint8) << 4) | (used >> 4)
    return bytes(np.where(state == UNKNOWN_CELL, UNKNOWN_CELL, cells).astype(np.uint8).tobytes())


def _memory(map_: PoolMap, begin: int, capacity: int) -> MemoryOverTime | None:
    if not len(map_.taken_ns) or not bool((map_.taken_ns >= 0).any()):
        return None
    return MemoryOverTime(
        cells=_cells(map_.state, map_.used),
        rows=map_.state.shape[1],
        edges=[max(0.0, (int(edge) - begin) / 1e9) for edge in map_.edges_ns],
        capacity=capacity,
    )


def _failure(failure: Failure, pool: PoolTimeline, begin: int) -> FailureDetail:
    refusal = failure.refusal
    seconds = (refusal.time_ns - begin) / 1e9
    column = int(np.clip(np.searchsorted(pool.map.edges_ns, refusal.time_ns) - 1, 0, len(pool.map.taken_ns) - 1))
    taken = int(pool.map.taken_ns[column])
    exactly = bool(pool.map.refused[column]) and taken == refusal.time_ns
    says = (
        "The pool by address just before"
        if exactly
        else f"The pool by address at {format_clock((taken - begin) / 1e9)}"
    )
    return FailureDetail(
        at=seconds,
        cells=(
            f"{failure.number:,}",
            format_clock(seconds),
            "" if refusal.request is None else f"{refusal.request:,}",
            f"{refusal.need:,}",
            f"{refusal.free:,}",
            "" if refusal.largest is None else f"{refusal.largest:,}",
            f"{refusal.evictable:,}",
            FAILURE_REASONS[refusal.reason],
            refusal.cause,
        ),
        sentence=refusal_sentence(refusal, contiguous=pool.contiguity == "required"),
        shares=_shares(failure),
        map=None if taken < 0 else _cells(pool.map.state[column], pool.map.used[column]),
        map_says="" if taken < 0 else says,
    )


def _shares(failure: Failure) -> tuple[tuple[str, float], ...]:
    """The capacity by state at a refused allocation; whole reserved units are shown apart from active ones."""
    refusal = failure.refusal
    reserved = min(refusal.reserved_slots // max(refusal.unit_tokens, 1), refusal.active)
    parts = (
        ("active", refusal.active - reserved),
        ("reserved", reserved),
        ("pinned", refusal.pinned),
        ("deferred", refusal.deferred),
        ("cached", refusal.evictable),
        ("free", refusal.free),
    )
    return tuple((state, units / refusal.capacity) for state, units in parts if units > 0)


def _overview(timeline: Timeline) -> Table:
    """The curves of the first pool in twenty rows."""
    pool = timeline.pools[0]
    groups = np.array_split(np.arange(timeline.buckets), min(_OVERVIEW_ROWS, timeline.buckets))
    rows = []
    for group in groups:
        start = (int(timeline.edges_ns[group[0]]) + 1 - timeline.begin_ns) / 1e9
        taken = pool.curves["capacity"].most - pool.curves["available"].least
        rows.append(
            (
                format_clock(start),
                _share(np.nanmax(taken[group]) if np.isfinite(taken[group]).any() else None, pool.capacity),
                _extreme(pool.curves["largest_free"].least[group], np.nanmin),
                _extreme(timeline.curves["head_need"].most[group], np.nanmax),
                _extreme(timeline.curves["waiting"].most[group], np.nanmax),
                f"{sum(int(np.nansum(counts[group])) for counts in pool.failures.values()):,}",
            )
        )
    return Table(
        f"Pool {pool.name}, units",
        ("from", "most in use", "smallest largest free block", "largest need at the head", "most waiting", "refused"),
        tuple(rows),
        numeric=(1, 2, 3, 4, 5),
    )


def _share(value: float | None, capacity: int) -> str:
    return "not known" if value is None else format_ratio(value / capacity)


def _extreme(values: Floats, pick: Callable[[Floats], float]) -> str:
    return f"{pick(values):,.0f}" if np.isfinite(values).any() else "not known"


def _completeness(timeline: Timeline) -> Known:
    """What the evidence lacks, in sentences."""
    share = float(np.average(timeline.known, weights=np.diff(timeline.edges_ns))) if timeline.buckets else 0.0
    said = [f"damaged: {text}" for text in timeline.damage]
    if not timeline.pools:
        said.append("no pool was seen: the recording has lost its begin, or the engine none")
    for gap in timeline.gaps:
        at = format_clock((gap.begin_ns - timeline.begin_ns) / 1e9)
        until = format_clock((gap.end_ns - timeline.begin_ns) / 1e9)
        lost = f"; {counted(gap.frames, 'frame')} missing" if gap.frames else ""
        lost += f"; {counted(gap.records, 'record')} missing" if gap.records else ""
        said.append(f"not known from {at} to {until}: {gap.reason}{lost}")
    fidelity = str(timeline.config.get("fidelity", "exact"))
    if fidelity != "exact":
        said.append(f"the adapter's fidelity is {fidelity}: numbers that it cannot know are left out")
    whole = not said and share >= 1
    first = "Every event of this time was read." if whole else f"{format_ratio(share)} of the time is known whole."
    return Known(whole, (first, *(f"{text[0].upper()}{text[1:]}." for text in said)))
