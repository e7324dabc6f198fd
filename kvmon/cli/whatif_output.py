"""What-ifs for people: one table, readable at 80 columns and without colour, and what its numbers stand on.

Invariant: nothing is computed here; a number that is not known is a dash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvmon.replay.asked import Answered
    from kvmon.replay.calibration import Calibration
    from kvmon.replay.outcome import Outcome
    from kvmon.replay.whatif import Comparison

__all__ = ["print_answers"]

_WIDTH = 80
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_COLUMNS = 4  # of numbers in a table
_LONG = 8  # more what-ifs than so many are one line each
_DASH = "-"

Cell = tuple["Outcome", "Outcome"]


def print_answers(answered: Sequence[Answered]) -> None:
    """Print what was compared, stream by stream."""
    from kvmon.cli.console import QuietPipe

    console = QuietPipe(highlight=False, soft_wrap=False)
    console = QuietPipe(highlight=False, width=_WIDTH) if console.width < _WIDTH else console
    for one in answered:
        console.print()
        for part in _parts(one):
            console.print(part)


def _parts(one: Answered) -> Iterator[RenderableType]:
    if one.comparison is None:
        yield from _wrapped(f"what-if: {one.missing}", "")
        return
    comparison = one.comparison
    yield f"{one.name}, replayed without a change: {_calibrated(comparison.calibration)}"
    for doubt in comparison.doubts:
        yield from _wrapped(f"  take with care: {doubt}", "     ")
    for proposal in one.proposals:
        yield from _wrapped(f"  {proposal.verdict}: {proposal.said}", "     ")
    if not comparison.answers:
        return
    yield ""
    if len(comparison.answers) > _LONG:
        yield _long_table(comparison)
    else:
        yield from _tables(comparison)
    yield ""
    for line in dict.fromkeys((*comparison.assumptions, *_ranges(comparison))):
        yield from _wrapped(f"  assumed: {line}" if line in comparison.assumptions else f"  range: {line}", "     ")


def _wrapped(text: str, indent: str) -> list[str]:
    return wrap(text, _WIDTH - 1, subsequent_indent=indent, break_on_hyphens=False) or [""]


def _calibrated(calibration: Calibration) -> str:
    if calibration.exact:
        return f"the same in all {calibration.steps:,} steps"
    if calibration.curve_mean_ratio is None:
        return calibration.quality
    return f"{calibration.quality}, memory in use {calibration.curve_mean_ratio:.1%} of the pool off on average"


def _ranges(comparison: Comparison) -> Iterator[str]:
    for one in (comparison.unchanged, *comparison.answers):
        yield from one.ranges


def _tables(comparison: Comparison) -> Iterator[RenderableType]:
    """Measures down, runs across; a letter for each what-if."""
    lettered = list(zip(_LETTERS, comparison.answers, strict=False))
    for letter, one in lettered:
        yield from _wrapped(f"  {letter}  {one.what_if.text}", "     ")
    columns = _without_change(comparison)
    for letter, one in lettered:
        if len(columns) == _COLUMNS:
            yield ""
            yield _table(comparison, columns)
            columns = _without_change(comparison)[-1:]
        columns.append((letter, (one.least, one.most)))
    yield ""
    yield _table(comparison, columns)


def _without_change(comparison: Comparison) -> list[tuple[str, Cell]]:
    """The recording and its replays without a change, those that differ."""
    found: list[tuple[str, Cell]] = [("recorded", (comparison.recorded, comparison.recorded))]
    replayed = comparison.calibration.replayed
    for name, cell in (
        ("replayed", (replayed, replayed)),
        ("no change", (comparison.unchanged.least, comparison.unchanged.most)),
    ):
        if cell != found[-1][1]:
            found.append((name, cell))
    return found


def _table(comparison: Comparison, columns: Sequence[tuple[str, Cell]]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right", overflow="fold")
    for label, say in _measures(comparison):
        cells = [_cell(say(low), say(high)) for _, (low, high) in columns]
        if any(cell not in (_DASH, "0") for cell in cells) or label in _ALWAYS:
            table.add_row(label, *cells)
    return table


def _cell(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _refused_for(reason: str, one: Outcome) -> str:
    return f"{one.failures.get(reason, 0):,}"


def _measures(comparison: Comparison) -> list[tuple[str, Callable[[Outcome], str]]]:
    reasons = dict.fromkeys(
        reason
        for outcome in (comparison.recorded, *(one.most for one in (comparison.unchanged, *comparison.answers)))
        for reason in outcome.failures
    )
    by_reason = [(f"  {reason}", partial(_refused_for, reason)) for reason in sorted(reasons)]
    return [
        ("requests lost", lambda one: f"{one.lost:,}"),
        ("  hung up", lambda one: f"{one.hung_up:,}"),
        ("  not ended", lambda one: f"{one.unfinished:,}" + (" (cut)" if one.cut_short else "")),
        ("refused allocations", lambda one: f"{one.refused_allocations:,}"),
        *by_reason,
        ("memory, peak", lambda one: _ratio(one.peak_ratio)),
        ("memory, mean", lambda one: _ratio(one.mean_ratio)),
        ("waited for memory", lambda one: _seconds(one.wait_s)),
        ("  95 % of waits", lambda one: _seconds(one.wait_p95_s)),
        ("preemptions", lambda one: f"{one.preemptions:,}"),
        ("tokens recomputed", lambda one: f"{one.recomputed_tokens:,}"),
        ("prefix hits", lambda one: _ratio(one.hit_ratio)),
        ("free, fragmented", lambda one: _ratio(one.free_at_fragmentation_ratio)),
        ("  largest of it", lambda one: _ratio(one.largest_at_fragmentation_ratio)),
        ("done after", lambda one: _seconds(one.duration_s)),
        ("tokens a second", lambda one: _DASH if one.tokens_per_s is None else f"{one.tokens_per_s:,.0f}"),
        ("verdict", lambda one: one.verdict.replace("_", " ")),
    ]


_ALWAYS = ("requests lost", "verdict")


def _long_table(comparison: Comparison) -> RenderableType:
    """A line for each what-if."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("what-if", overflow="fold", ratio=1)
    for heading in ("lost", "refused", "peak", "waited", "preempted", "hits", "verdict"):
        table.add_column(heading, justify="left" if heading == "verdict" else "right", no_wrap=heading != "verdict")
    rows: list[tuple[str, Cell]] = [
        ("recorded", (comparison.recorded, comparison.recorded)),
        *((one.what_if.text, (one.least, one.most)) for one in (comparison.unchanged, *comparison.answers)),
    ]
    for name, (low, high) in rows:
        says: list[Callable[[Outcome], str]] = [
            lambda one: f"{one.lost:,}",
            lambda one: f"{one.refused_allocations:,}",
            lambda one: _ratio(one.peak_ratio),
            lambda one: _seconds(one.wait_s),
            lambda one: f"{one.preemptions:,}",
            lambda one: _ratio(one.hit_ratio),
            lambda one: one.verdict.replace("_", " "),
        ]
        table.add_row(name, *(_cell(say(low), say(high)) for say in says))
    return table


def _ratio(value: float | None) -> str:
    from kvmon.units import format_ratio

    return _DASH if value is None else format_ratio(value)


def _seconds(value: float | None) -> str:
    from kvmon.units import format_duration

    if value is None:
        return _DASH
    return "0" if value == 0 else format_duration(value)
