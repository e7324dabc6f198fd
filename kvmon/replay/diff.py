"""What changed between two recordings, or two stretches of one: streams side by side, the most important change first.

Invariant: the sources are read and never changed, and each source once, so that two stretches of a living engine's
recording meet at one moment. The same sources give the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmon.errors import ConfigError, InputError
from kvmon.replay.diff_changes import GROUPS, Change, changes_between
from kvmon.replay.export.window import Window, parse_window
from kvmon.replay.lives import Life, Lives, open_lives
from kvmon.replay.picture import Picture, picture_of
from kvmon.units import format_duration

__all__ = ["SCHEMA", "Diff", "Side", "StreamDiff", "diff", "parse_side", "split_at"]

SCHEMA = 1
"""Version of what `Diff.as_json` gives; fields may be added to a version, never changed."""

_FELT = ("verdicts", "lost", "waits")
_CAUSES, _EFFECTS = ("settings", "traffic"), ("waits", "memory", "work")
_NAMED = 2  # other changes of a group in a headline


@dataclass(frozen=True)
class Side:
    """A capture or recording, or a stretch of it; `text` is how people call it."""

    path: Path
    window: Window | None
    text: str


@dataclass(frozen=True)
class StreamDiff:
    """One stream on both sides and what changed, most important first."""

    before: Picture
    after: Picture
    changes: tuple[Change, ...]

    @property
    def name(self) -> str:
        """Its name, both where it has two."""
        return " and ".join(dict.fromkeys((self.before.name, self.after.name)))

    @property
    def headline(self) -> str:
        """The most important change in a sentence, and what changed with it: what may have caused it, if it is
        something that users feel, else what came of it."""
        if not self.changes:
            rest = ", as far as it was seen" if self.before.missing or self.after.missing else ""
            return f"nothing that matters has changed{rest}"
        first = self.changes[0]
        groups = _CAUSES if first.group in _FELT else _EFFECTS
        also = [part for group in groups for part in self._few(group)]
        return f"{first.words}; with it changed {', '.join(also)}" if also else first.words

    def _few(self, group: str) -> list[str]:
        found = [change.words for change in self.changes[1:] if change.group == group]
        more = len(found) - _NAMED
        return found[:_NAMED] + ([f"{more} more of {group}"] if more > 0 else [])

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "headline": self.headline,
            "changes": [change.as_json() for change in self.changes],
            "before": self.before.as_json(),
            "after": self.after.as_json(),
        }


@dataclass(frozen=True)
class Diff:
    """Both sides: streams that are in both, the one with the most important change first, and names of those that are
    in one alone."""

    before: Side
    after: Side
    streams: tuple[StreamDiff, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Whether anything that matters has."""
        return any(stream.changes for stream in self.streams) or bool(self.only_before or self.only_after)

    @property
    def headline(self) -> str:
        """That of the first stream, with its name where there are more."""
        first = self.streams[0]
        alone = [f"{name} is in {side} only" for names, side in self._alone for name in names]
        if not first.changes and alone:
            more = f" and {len(alone) - _NAMED} more" if len(alone) > _NAMED else ""
            return f"{', '.join(alone[:_NAMED])}{more}; {first.headline} in what both have"
        if len(self.streams) == 1:
            return first.headline
        if not first.changes:
            return f"{first.headline} in any of {len(self.streams)} streams"
        key = first.changes[0].name
        alike = sum(bool(one.changes) and one.changes[0].name == key for one in self.streams) - 1
        return f"{first.name}{f' and {alike} more' if alike else ''}: {first.headline}"

    @property
    def _alone(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        return (self.only_before, "A"), (self.only_after, "B")

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "schema": SCHEMA,
            "before": self.before.text,
            "after": self.after.text,
            "changed": self.changed,
            "headline": self.headline,
            "streams": [stream.as_json() for stream in self.streams],
            "only_before": list(self.only_before),
            "only_after": list(self.only_after),
        }


def parse_side(text: str) -> Side:
    """`PATH`, or `PATH@FROM..UNTIL` with either bound left out. Raises ConfigError for what is no stretch of time."""
    path, at, bounds = text.rpartition("@")
    if not at or "/" in bounds or Path(text).exists() or not (".." in bounds or Path(path).exists()):
        return Side(Path(text), None, text)
    begin, dots, end = bounds.partition("..")
    if not dots or not (begin or end):
        raise ConfigError(f"'@{bounds}' is no stretch of time: write {path}@FROM..UNTIL, {path}@FROM.. or @..UNTIL")
    return Side(Path(path), parse_window(begin or None, end or None), text)


def split_at(path: Path, moment: str) -> tuple[Side, Side]:
    """What came before a moment, and what came since. Raises ConfigError for what is no time."""
    return (
        Side(path, parse_window(None, moment), f"{path} until {moment}"),
        Side(path, parse_window(moment, None), f"{path} since {moment}"),
    )


def diff(
    before: Side, after: Side, *, stream: str | None = None, progress: Callable[[int], None] = lambda words: None
) -> Diff:
    """Compare each stream that both sides have, by name; where each has one, those two. Of an engine that has been
    started anew in between, its last life before and its first one after.

    Raises ConfigError for a window in which there is nothing and an unknown stream, InputError where a side is no
    capture and no recording, or no stream of it can be compared.
    """
    with ExitStack() as stack:
        sources: dict[Path, Lives] = {}
        for path in (before.path, after.path):
            if path.resolve() not in sources:
                sources[path.resolve()] = stack.enter_context(open_lives(path))
        sides = [_stretches(sources[side.path.resolve()], side, stream) for side in (before, after)]
        pairs, alone = _paired(*sides)
        if not pairs:
            there = (", ".join(one.life.name for one in side) for side in sides)
            raise InputError(
                f"no stream is on both sides: A has {next(there)}, B has {next(there)}; give one engine on each side"
            )
        found, empty = [], [before, after]
        for one, other in pairs:
            pictures = one.picture(progress), other.picture(progress)
            if all(picture.frames for picture in pictures):
                found.append(StreamDiff(*pictures, changes_between(*pictures)))
                continue
            empty = [side for side, picture in zip((before, after), pictures, strict=True) if not picture.frames]
            for names, picture in zip(alone, pictures, strict=True):
                names += [picture.name] if picture.frames else []
    if not found:
        for side in empty:
            if side.window is None:
                raise InputError(f"{side.text} holds no frame that can be read: 'kvmon verify' says what is there")
        raise ConfigError(f"nothing happened in {empty[0].text}: give a longer stretch of time")
    only_before, only_after = map(tuple, alone)
    return Diff(before, after, tuple(sorted(found, key=_order)), only_before, only_after)


@dataclass(frozen=True)
class _Stretch:
    """A life from one moment to another."""

    life: Life
    begin_ns: int | None = None
    end_ns: int | None = None

    def picture(self, progress: Callable[[int], None]) -> Picture:
        return picture_of(self.life, self.begin_ns, self.end_ns, progress)


def _stretches(source: Lives, side: Side, stream: str | None) -> list[_Stretch]:
    """The lives of a side that have something in its window."""
    try:
        chosen = [life for life in source.named(stream) if life.first_ns is not None]
    except ConfigError as error:
        raise ConfigError(f"{side.path}: {error}") from None
    if not chosen:
        raise InputError(f"{side.path} holds no frame that can be read: 'kvmon verify {side.path}' says what is there")
    if side.window is None:
        return [_Stretch(life) for life in chosen]
    found = [
        _Stretch(life, *bounds)
        for life, bounds in zip(chosen, side.window.of(chosen), strict=True)
        if bounds is not None
    ]
    if not found:
        first = min(life.facts.wall_time_ns(life.first_ns or 0) for life in chosen)
        last = max(life.facts.wall_time_ns(life.last_ns or 0) for life in chosen)
        long = format_duration((last - first) / 1e9)
        raise ConfigError(f"{side.path} holds nothing {side.window}: it is {long} long, from +0s on")
    return found


def _paired(
    before: Sequence[_Stretch], after: Sequence[_Stretch]
) -> tuple[list[tuple[_Stretch, _Stretch]], tuple[list[str], list[str]]]:
    """Those that belong together, and the names of those that are alone."""
    if len(before) == len(after) == 1:
        return [(before[0], after[0])], ([], [])
    pairs = _by_name(before, after, lambda one: one.life.name)
    ranks = {one.life.facts.name for one, _ in pairs}
    left = [[one for one in side if one.life.facts.name not in ranks] for side in (before, after)]
    pairs += _by_name(left[0], left[1][::-1], lambda one: one.life.facts.name)
    paired = [[pair[place].life.name for pair in pairs] for place in range(2)]
    alone = [
        [one.life.name for one in side if one.life.name not in names]
        for side, names in zip((before, after), paired, strict=True)
    ]
    return pairs, (alone[0], alone[1])


def _by_name(
    before: Sequence[_Stretch], after: Sequence[_Stretch], name: Callable[[_Stretch], str]
) -> list[tuple[_Stretch, _Stretch]]:
    """Of several of one name the last one."""
    mine, yours = ({name(one): one for one in side} for side in (before, after))
    return [(one, yours[called]) for called, one in mine.items() if called in yours]


def _order(found: StreamDiff) -> tuple[int, float]:
    if not found.changes:
        return len(GROUPS), 0.0
    return GROUPS.index(found.changes[0].group), -found.changes[0].size
