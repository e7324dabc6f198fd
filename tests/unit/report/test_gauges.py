"""Bars that sum, items that flow, glyphs that can be told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from kvmon.report import MemoryMap
from kvmon.report.gauges import ASCII, STYLES, UNICODE, Glyphs, apportion, flow, gauge, map_lines, states_bar
from kvmon.report.memory_map import MAP_STATES


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=8), st.integers(0, 300))
def test_parts_of_a_bar_sum_to_its_width(parts: list[int], width: int) -> None:
    """Every part is within a cell of its share, and whatever is there is seen where there is room for it."""
    cells = apportion(parts, width)
    total = sum(parts)
    assert sum(cells) == (width if total else 0)
    assert min(cells) >= 0
    assert all(part or not cell for part, cell in zip(parts, cells, strict=True))
    if total and width >= 8 * len(parts):
        assert all(cell or not part for part, cell in zip(parts, cells, strict=True))
        assert all(abs(cell - part * width / total) < len(parts) for part, cell in zip(parts, cells, strict=True))


@given(st.lists(st.text("abc xyz", min_size=1, max_size=60), max_size=8), st.integers(4, 40))
def test_items_flow_within_the_width_and_nothing_is_lost(words: list[str], width: int) -> None:
    """No line is longer than the width, and all characters but spaces are still there, in order."""
    lines = [line.plain for line in flow([Text(word) for word in words], width)]
    assert all(len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(words).replace(" ", "")


def test_a_style_ends_with_its_item() -> None:
    """The style of an item does not colour the one behind it."""
    (line,) = flow([Text("one", "red"), Text("two")], 40)
    assert [(span.start, span.end, span.style) for span in line.spans] == [(0, 3, "red")]


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_every_state_reads_without_colour(glyphs: Glyphs) -> None:
    """No two states share a glyph, and every glyph is one column wide."""
    used = [glyph for grades in glyphs.grades.values() for glyph in grades]
    assert len(used) == len(set(used))
    assert all(cell_len(glyph) == 1 for glyph in used)
    assert set(glyphs.grades) == set(STYLES) == set(MAP_STATES)
    assert glyphs is UNICODE or "".join(used).isascii()


@given(st.sampled_from(MAP_STATES), st.floats(0, 1), st.floats(0, 1))
def test_a_fuller_cell_never_looks_emptier(state: str, one: float, other: float) -> None:
    """Grades follow the fill, and only 7/8 and more look full."""
    grades = UNICODE.grades[state]
    low, high = sorted((one, other))
    assert grades.index(UNICODE.of(state, low)) <= grades.index(UNICODE.of(state, high))
    if len(grades) > 1:
        assert (UNICODE.of(state, one) == grades[-1]) == (one >= 7 / 8)


@given(st.integers(1, 500), st.integers(1, 60), st.integers(1, 12))
def test_a_map_fills_its_lines(capacity: int, width: int, rows: int) -> None:
    """At most `rows` lines, all of `width` cells but the last."""
    lines = map_lines(MemoryMap(bytes(capacity), bytes(capacity)), width, rows, UNICODE)
    assert 1 <= len(lines) <= rows
    assert all(line.cell_len == width for line in lines[:-1])
    assert 1 <= lines[-1].cell_len <= width


def test_bars_are_exactly_as_wide_as_they_may_be() -> None:
    """The bar of states and a gauge take their whole width; a gauge shows what is not zero."""
    assert states_bar({"active": 1, "free": 2}, 31, UNICODE).plain == "█" * 10 + "·" * 21
    assert gauge(1, 10_000, 10, "red", ASCII).plain == "#........."
    assert gauge(0, 10_000, 10, "red", ASCII).plain == ".........."
    assert gauge(20_000, 10_000, 10, "red", ASCII).plain == "##########"
