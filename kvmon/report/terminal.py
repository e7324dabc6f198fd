"""Draw a `Screen` for a terminal of a given size: one panel a pool, as much detail as there is room.

Only draws: every number comes from the view. Nothing exceeds the width and height that were given.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kvmon.report.gauges import ASCII, STYLES, UNICODE, Glyphs, flow
from kvmon.report.panel import PoolPanel
from kvmon.report.view import PoolView, Screen, StreamView
from kvmon.report.words import condition_words

__all__ = ["grid", "heading", "render"]

_WIDE = 76  # a panel that would be narrower beside another one is drawn below it
_CONDITION_STYLES = {
    "alive": "bold green",
    "idle": "bold cyan",
    "stalled": "bold yellow",
    "dead": "bold red",
    "ended": "bold",
    "unseen": "bold yellow",
    "replayed": "bold",
}


def render(
    screen: Screen, width: int, height: int | None = None, *, ascii_only: bool = False, hint: str = ""
) -> RenderableType:
    """The whole screen at `width` columns; within `height` lines, or as many as it takes. `hint` stands at the top
    right."""
    glyphs = ASCII if ascii_only else UNICODE
    count = len(screen.streams)
    head = heading(screen.directory, f"{count} stream{'s' * (count != 1)}", hint, width)
    panels = [(stream, pool) for stream in screen.streams for pool in (stream.pools or (None,))]
    problems = [line for problem in screen.problems for line in flow([Text(f"! {problem}", "bold yellow")], width)]
    if height is not None:
        problems = problems[: height // 3]
        height -= 1 + len(problems)
    return Group(head, *problems, grid(panels, width, height, glyphs))


def heading(title: str, detail: str, hint: str, width: int) -> Text:
    """One line: what is shown, and at its right end what can be typed."""
    left = Text.assemble(("kvmon ", "bold"), title, "  ", (detail, STYLES["free"]), no_wrap=True)
    left.truncate(max(1, width - len(hint) - 2 * bool(hint)), overflow="ellipsis")
    left.append(" " * (width - left.cell_len - len(hint)))
    return left.append(hint, STYLES["free"])


def grid(
    panels: Sequence[tuple[StreamView, PoolView | None]],
    width: int,
    height: int | None,
    glyphs: Glyphs,
    *,
    columns: int | None = None,
) -> RenderableType:
    """Panels beside and below each other within `height`; what does not fit is counted in a last line."""
    if not panels:
        return Text("no engine has recorded here yet", STYLES["free"])
    across = columns or max(1, min(len(panels), width // _WIDE))
    rows = -(-len(panels) // across)
    shown = rows
    if height is not None:
        shown = max(1, min(rows, height // PoolPanel.LEAST_HEIGHT))
    left_out = len(panels) - shown * across
    share = None if height is None else (height - (left_out > 0)) // shown
    widths = [width // across + (column < width % across) for column in range(across)]
    drawn: list[RenderableType] = []
    for row in range(shown):
        cells = panels[row * across : (row + 1) * across]
        drawn.append(_side_by_side(cells, widths, share, glyphs))
    if left_out > 0:
        rest = Text(f"{left_out} more: enlarge the window, or name one with --engine", STYLES["free"], no_wrap=True)
        rest.truncate(width, overflow="ellipsis")
        drawn.append(rest)
    return Group(*drawn)


def _side_by_side(
    panels: Sequence[tuple[StreamView, PoolView | None]], widths: Sequence[int], height: int | None, glyphs: Glyphs
) -> RenderableType:
    """One row of panels of the same height, their maps in the same number of lines."""
    inside = None if height is None else height - 2
    bodies = [
        None if pool is None else PoolPanel(stream, pool, max(1, width - 4), glyphs)
        for (stream, pool), width in zip(panels, widths, strict=False)
    ]
    map_rows = min((body.map_rows(inside) for body in bodies if body is not None), default=0)
    contents = [
        flow([_why_nothing(stream)], max(1, width - 4)) if body is None else body.lines(inside, map_rows)
        for (stream, _), body, width in zip(panels, bodies, widths, strict=False)
    ]
    tallest = max(len(lines) for lines in contents) + 2
    table = Table.grid(padding=0)
    for width in widths:
        table.add_column(width=width)
    table.add_row(
        *(
            _framed(stream, pool, lines, width, tallest, glyphs)
            for (stream, pool), lines, width in zip(panels, contents, widths, strict=False)
        )
    )
    return table


def _framed(
    stream: StreamView, pool: PoolView | None, lines: list[Text], width: int, height: int, glyphs: Glyphs
) -> Panel:
    condition = condition_words(stream.condition, stream.silent_seconds, stream.last_event_wall_ns, stream.moment)
    name = f"{stream.engine}/{stream.rank}" + ("" if pool is None else f" {pool.name}")
    style = _CONDITION_STYLES[stream.condition]
    title = Text.assemble((name, "bold"), " ", (condition, style))
    title.truncate(max(8, width - 6), overflow="ellipsis")
    return Panel(
        Group(*lines),
        title=title,
        title_align="left",
        box=box.ASCII if glyphs is ASCII else box.ROUNDED,
        border_style=style.removeprefix("bold").strip() or STYLES["free"],
        width=width,
        height=height,
        padding=(0, 1),
    )


def _why_nothing(stream: StreamView) -> Text:
    if not stream.converged and stream.last_event_wall_ns is not None:
        return Text("converging: read from the middle; numbers appear when the engine's audit has gone round once")
    return Text("no pool is attached yet")
