"""Turns rows into panels with a place: Grafana's grid of 24 columns, filled from left to right.

Invariant: no two panels overlap, every line of a row is full, and the number of a panel depends on its title alone, so
that a link to it outlives what is put before it.
"""

from __future__ import annotations

from zlib import crc32

from kvmon.dashboards.source.part import Json
from kvmon.dashboards.source.trouble import SourceError, within

__all__ = ["COLUMNS", "laid_out"]

COLUMNS = 24
"""Of a page, whatever its width."""

_NUMBERS = 1_000_000


def laid_out(rows: list[Json]) -> list[Json]:
    """Every panel with `gridPos` and `id`; a row with a title is a panel too, and holds its own while it is folded.

    Raises SourceError where a line is not full, or two panels have the same title.
    """
    made: list[Json] = []
    numbers: dict[int, str] = {}
    y = 0
    for row in rows:
        with within(f"row '{row['title'] or 'first row'}'"):
            heading = None
            if row["title"] is not None:
                heading = {
                    "collapsed": row["collapsed"],
                    "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
                    "id": _number(f"row {row['title']}", numbers),
                    "panels": [],
                    "title": row["title"],
                    "type": "row",
                }
                made.append(heading)
                y += 1
            panels, y = _lines(row["panels"], row["height"], y, numbers)
            if heading is not None and row["collapsed"]:
                heading["panels"] = panels
            else:
                made += panels
    return made


def _lines(panels: list[Json], height: int, y: int, numbers: dict[int, str]) -> tuple[list[Json], int]:
    """The panels of a row with their places, and the first free line below them."""
    placed: list[Json] = []
    x = highest = 0
    for panel in panels:
        width, own = panel.pop("width"), panel.pop("height", height)
        if x + width > COLUMNS:
            raise SourceError(f"'{panel['title']}' does not fit: {COLUMNS - x} of {COLUMNS} columns are left for it")
        if x and own != highest:
            raise SourceError(f"'{panel['title']}' is {own} high beside panels of {highest}: make them equal")
        place = {"h": own, "w": width, "x": x, "y": y}
        placed.append({**panel, "gridPos": place, "id": _number(panel["title"], numbers)})
        x, highest = x + width, own
        if x == COLUMNS:
            x, y = 0, y + own
    if x:
        raise SourceError(f"the last line has {x} of {COLUMNS} columns: make its panels wider")
    return placed, y


def _number(title: str, numbers: dict[int, str]) -> int:
    number = crc32(title.encode()) % _NUMBERS + 1
    if number in numbers:
        other = numbers[number]
        why = "stands twice" if other == title else f"gets the same number as '{other}'"
        raise SourceError(f"the title '{title}' {why}: give it another one")
    numbers[number] = title
    return number
