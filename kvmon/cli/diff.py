"""`kvmon diff`: what changed between two captures, or between two stretches of one.

Wiring and words only: `kvmon.replay.diff` compares, this says it in 80 columns or as one object.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import click

from kvmon.errors import ConfigError, InputError

if TYPE_CHECKING:
    from kvmon.replay.diff import Diff, Side, StreamDiff
    from kvmon.replay.diff_changes import Change
    from kvmon.replay.picture import Picture

__all__ = ["command"]

_WIDTH = 80
_LONGEST_LABEL, _LONGEST_CELL = 36, 12  # of a table of 80 columns
_MISSING_SHOWN = 3
_MOST_TIMES = 1000
_HEADINGS = {"lost": "requests lost or refused", "waits": "waiting", "work": "engine"}


@click.command("diff")
@click.argument("before", metavar="A")
@click.argument("after", metavar="[B]", required=False)
@click.option("--since", metavar="TIME", help="Compare what came before this moment of A with what came since.")
@click.option("--stream", metavar="NAME", help="Only this stream, ENGINE-RANK or ENGINE-RANK#LIFE.")
@click.option("--all", "all_", is_flag=True, help="Every number, also those that did not change.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object, with every number.")
def command(before: str, after: str | None, since: str | None, stream: str | None, all_: bool, json_: bool) -> None:
    """Say what changed from A to B, the most important change first.

    A and B are capture files or recording directories, or a stretch of one: X.kvmon@..12m and X.kvmon@12m.. are its
    first twelve minutes and the rest, X.kvmon@-1h.. its last hour. 'kvmon diff /var/run/kvmon --since -1h' compares the
    last hour with all that came before it. TIME is +90s or 12m30s from the begin, -30s from the end,
    2026-11-23T08:45:04Z, or ns of the engine's clock.

    Verdicts come first, then requests that were lost and how long they waited, settings, traffic, memory and the
    engine's work. A number is told when it changed by a tenth and by more than chance would; what a side does not know
    is never compared. Streams belong together by their names.

    Exit code 0 when nothing that matters has changed, 1 when something has, 2 for a stretch of time or an option that
    cannot work, 3 for a file that cannot be read.
    """
    from kvmon.cli.streams import reading
    from kvmon.replay.diff import diff, parse_side

    if (after is None) == (since is None):
        raise ConfigError("two sides are needed: give A and B, or A with --since")
    sides = _since(before, since) if after is None else (parse_side(before), parse_side(after))
    for side in sides:
        if not side.path.is_file() and not side.path.is_dir():
            what = "is neither a capture nor a directory" if side.path.exists() else "is not there"
            raise InputError(f"{side.path} {what}: give a capture file or a recording directory")
    with reading([side.path for side in sides], "comparing") as advance:
        found = diff(*sides, stream=stream, progress=advance)
    click.echo(json.dumps(found.as_json(), indent=2) if json_ else "\n".join(_lines(found, all_=all_)))
    if found.changed:
        raise click.exceptions.Exit(1)


def _since(text: str, moment: str | None) -> tuple[Side, Side]:
    from kvmon.replay.diff import parse_side, split_at

    side = parse_side(text)
    if side.window is not None:
        raise ConfigError("--since divides all of A: leave out the stretch behind its @")
    return split_at(side.path, moment or "")


def _lines(found: Diff, *, all_: bool) -> Iterator[str]:
    yield from _filled(found.headline)
    yield ""
    for letter, side, alone in (("A", found.before, found.only_before), ("B", found.after, found.only_after)):
        yield f"{letter}: {side.text}"
        yield from (f"   {name} is on this side only" for name in alone)
    for place, stream in enumerate(found.streams):
        yield ""
        yield from _filled(f"{stream.name}: {stream.headline}") if place else (stream.name,)
        for letter, picture in (("A", stream.before), ("B", stream.after)):
            yield from _side(letter, picture)
        yield from _changes(stream, all_=all_)


def _side(letter: str, picture: Picture) -> Iterator[str]:
    from kvmon.units import counted, format_duration

    requests = counted(picture.counts["arrived"], "request") if picture.counts else "requests not seen"
    verdict = picture.verdict or "verdict not known"
    yield f"   {letter}: {format_duration(picture.seconds)}, {requests}, {verdict}"
    for text in picture.missing[:_MISSING_SHOWN]:
        yield from _filled(f"not seen: {text}", "      ")
    if len(picture.missing) > _MISSING_SHOWN:
        yield f"      and {len(picture.missing) - _MISSING_SHOWN:,} more that were not seen"


def _changes(stream: StreamDiff, *, all_: bool) -> Iterator[str]:
    """Group by group: a table, and what does not fit into it in words. The verdict of the headline stands there."""
    from kvmon.replay.diff_changes import GROUPS

    told = [change for change in stream.changes if change.group != "verdicts" or change is not stream.changes[0]]
    told += _unchanged(stream) if all_ else []
    rows = {change.name: row for change in told if (row := _row(change)) is not None}
    widths = [max(len(row[column]) for row in [("", "A", "B", ""), *rows.values()]) for column in range(4)]
    if rows:
        yield ""
        yield _line(("", "A", "B", ""), widths)
    for group in GROUPS:
        mine = [change for change in told if change.group == group]
        if mine:
            yield _HEADINGS.get(group, group)
        for change in mine:
            yield from (_line(rows[change.name], widths),) if change.name in rows else _filled(change.words, "  ")


def _unchanged(stream: StreamDiff) -> list[Change]:
    """Every other number, as a change that is none."""
    from kvmon.replay.diff_changes import Change, numbers_of

    told = {change.name for change in stream.changes}
    return [
        Change(number.group, name, number.label, "", one and one.value, other and other.value, unit=number.unit)
        for name, number, one, other in numbers_of(stream.before, stream.after)
        if name not in told
    ]


def _row(change: Change) -> tuple[str, str, str, str] | None:
    """A line of the table; None for what is said in words."""
    from kvmon.replay.diff_changes import spoken

    one, other = spoken(change.before, change.unit), spoken(change.after, change.unit)
    fits = len(change.label) <= _LONGEST_LABEL and max(len(one), len(other)) <= _LONGEST_CELL
    if change.group == "verdicts" or not (fits or change.unit):
        return None
    return change.label, one, other, _by(change) if change.unit else ""


def _by(change: Change) -> str:
    """By how much: points of a share, else a factor."""
    before, after = change.before, change.after
    if before is None or after is None or before == after:
        return ""
    if change.unit == "ratio":
        return f"{(after - before) * 100:+.1f} points"
    if not before or not after:
        return "gone" if before else "new"
    factor = after / before
    if factor > _MOST_TIMES:
        return f"> {_MOST_TIMES:,} times"
    return f"{(factor - 1) * 100:+.0f} %" if factor < 2 else f"{factor:,.3g} times"


def _line(row: tuple[str, str, str, str], widths: Sequence[int]) -> str:
    label, one, other, by = row
    return f"  {label:<{widths[0]}}  {one:>{widths[1]}}  {other:>{widths[2]}}  {by:>{widths[3]}}".rstrip()


def _filled(text: str, indent: str = "") -> list[str]:
    return fill(text, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  " if indent else "").splitlines()
