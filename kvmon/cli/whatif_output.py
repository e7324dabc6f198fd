"""What-ifs for people: one table, readable at 80 columns and without colour, and what its numbers stand on.

Invariant: this only draws; every word and number is `kvmon.report.what_if`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kvmon.replay.asked import Answered
    from kvmon.report.what_if import ComparisonText

__all__ = ["print_answers"]

_WIDTH = 80
_COLUMNS = 4  # of numbers in a table


def print_answers(answered: Sequence[Answered]) -> None:
    """Print what was compared, stream by stream."""
    from kvmon.cli.console import QuietPipe
    from kvmon.report.what_if import comparison_text

    console = QuietPipe(highlight=False, soft_wrap=False)
    console = QuietPipe(highlight=False, width=_WIDTH) if console.width < _WIDTH else console
    for one in answered:
        console.print()
        for part in _parts(comparison_text(one)):
            console.print(part)


def _parts(said: ComparisonText) -> Iterator[RenderableType]:
    if said.missing:
        yield from _wrapped(f"what-if: {said.missing}", "")
        return
    yield f"{said.name}, replayed without a change: {said.calibrated}"
    for doubt in said.doubts:
        yield from _wrapped(f"  take with care: {doubt}", "     ")
    for proposed in said.proposed:
        yield from _wrapped(f"  {proposed.verdict}: checked: {proposed.said}", "     ")
    if not said.asked:
        return
    yield ""
    if said.long:
        yield _long_table(said)
        yield ""
        yield from _best(said)
    else:
        yield from _tables(said)
        yield ""
    for label, lines in (("assumed", said.assumed), ("range", said.ranges)):
        for line in lines:
            yield from _wrapped(f"  {label}: {line}", "     ")


def _wrapped(text: str, indent: str) -> list[str]:
    return wrap(text, _WIDTH - 1, subsequent_indent=indent, break_on_hyphens=False) or [""]


def _tables(said: ComparisonText) -> Iterator[RenderableType]:
    """Measures down, runs across; a letter for each what-if."""
    for run in said.runs:
        if run.text:
            yield from _wrapped(f"  {run.heading}  {run.text}", "     ")
    without_change = [place for place, run in enumerate(said.runs) if not run.text]
    places = list(without_change)
    for place in range(len(without_change), len(said.runs)):
        if len(places) == _COLUMNS:
            yield ""
            yield _table(said, places)
            places = without_change[-1:]
        places.append(place)
    yield ""
    yield _table(said, places)


def _table(said: ComparisonText, places: Sequence[int]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for place in places:
        table.add_column(said.runs[place].heading, justify="right", overflow="fold")
    for measure in said.rows(places):
        table.add_row(f"  {measure.label}" if measure.part else measure.label, *measure.cells)
    return table


def _long_table(said: ComparisonText) -> RenderableType:
    """A line for each what-if."""
    from rich.table import Table

    headings, lines = said.lines()
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(headings[0], overflow="fold", ratio=1)
    for heading in headings[1:]:
        table.add_column(heading, justify="left" if heading == "verdict" else "right", no_wrap=heading != "verdict")
    for run, line in zip(said.runs, lines, strict=True):
        table.add_row(*line, style="bold" if run.points_at else None)
    return table


def _best(said: ComparisonText) -> Iterator[str]:
    """The what-ifs to point at, in a line that needs no colour."""
    found = [run.text for run in said.runs if run.points_at]
    if found:
        more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
        yield from _wrapped(f"  best: {found[0]}{more}: {said.best}", "     ")
