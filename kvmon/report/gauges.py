"""The small drawings of a terminal: glyphs and colours by state, the memory map, bars, items that flow over lines.

Every state has a glyph of its own, so that a drawing reads without colour; terminals without UTF-8 get ASCII. Widths
are exact: a bar fills what it was given, and its parts sum to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.text import Text

from kvmon.report.memory_map import MemoryMap

__all__ = ["ASCII", "STYLES", "UNICODE", "Glyphs", "apportion", "flow", "gauge", "map_lines", "states_bar"]

_GAP = "   "
_FULL = 7 / 8
STYLES = {
    "active": "bright_cyan",
    "reserved": "yellow",
    "cached": "green",
    "pinned": "magenta",
    "deferred": "bright_red",
    "free": "bright_black",
}
"""Colour of each state, from the sixteen that every terminal has."""


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Characters of one column each. A state's grades go from little to fully used."""

    grades: dict[str, str]
    bar: str
    rest: str

    def of(self, state: str, fill: float) -> str:
        """The glyph of a cell: the fullest from 7/8 on, below that in even steps."""
        grades = self.grades[state]
        if fill >= _FULL:
            return grades[-1]
        return grades[int(fill / _FULL * (len(grades) - 1))]

    def full(self, state: str) -> str:
        """The glyph of a state for bars and legends."""
        return self.grades[state][-1]


UNICODE = Glyphs(
    grades={"active": "░▒▓█", "reserved": "=", "cached": "○●", "pinned": "△▲", "deferred": "◇◆", "free": "·"},
    bar="━",
    rest="·",
)
ASCII = Glyphs(
    grades={"active": "-+*#", "reserved": "=", "cached": "oO", "pinned": "pP", "deferred": "dD", "free": "."},
    bar="#",
    rest=".",
)


def map_lines(map_: MemoryMap, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    """At most `rows` lines of `width` cells in order of address; fewer where the pool has fewer units."""
    cells = map_.cells(width * rows)
    lines = []
    for first in range(0, len(cells), width):
        line = Text(no_wrap=True)
        for state, run in groupby(cells[first : first + width], key=lambda cell: cell.state):
            line.append("".join(glyphs.of(state, cell.fill) for cell in run), STYLES[state])
        lines.append(line)
    return lines


def apportion(parts: Sequence[int], width: int) -> list[int]:
    """Whole cells for each part by largest remainder, summing to `width`; what is not zero gets one if it can."""
    total = sum(parts)
    if total == 0:
        return [0] * len(parts)
    cells = [part * width // total for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda i: (-(parts[i] * width % total), i))
    for index in by_remainder[: width - sum(cells)]:
        cells[index] += 1
    for index, part in enumerate(parts):
        largest = max(range(len(cells)), key=cells.__getitem__)
        if part and not cells[index] and cells[largest] > 1:
            cells[largest] -= 1
            cells[index] = 1
    return cells


def states_bar(units: dict[str, int], width: int, glyphs: Glyphs) -> Text:
    """One line in which every state has its share of the capacity."""
    line = Text(no_wrap=True)
    for state, cells in zip(units, apportion(list(units.values()), width), strict=True):
        line.append(glyphs.full(state) * cells, STYLES[state])
    return line


def gauge(value: int, full: int, width: int, style: str, glyphs: Glyphs) -> Text:
    """`value` of `full` as a bar of `width`; anything above zero is seen."""
    cells = 0 if full <= 0 else min(width, max(int(value > 0), round(width * value / full)))
    return Text.assemble((glyphs.bar * cells, style), (glyphs.rest * (width - cells), STYLES["free"]), no_wrap=True)


def flow(items: Iterable[Text], width: int) -> list[Text]:
    """Items side by side, as many on a line as fit in `width`; an item that alone is too long is wrapped at its
    words."""
    lines: list[Text] = []
    for item in items:
        if lines and lines[-1].cell_len + len(_GAP) + item.cell_len <= width:
            lines[-1].append(_GAP).append_text(item)
        else:
            # appended to a text without a style, so that the style of an item ends with it
            lines += [Text().append_text(part) for part in _wrapped(item, width)]
    return lines


def _wrapped(item: Text, width: int) -> list[Text]:
    """Lines of at most `width`, broken between words; a word that is longer is broken where it must."""
    lines, start, plain = [], 0, item.plain
    while len(plain) - start > width:
        space = plain.rfind(" ", start, start + width + 1)
        stop = space if space > start else start + width
        lines.append(item[start:stop])
        start = stop + (space > start)
    return [*lines, item[start:]]
