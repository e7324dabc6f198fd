"""From when to when: two moments as people write them, on the clock of each life of a source.

Invariant: a moment means the same in every life of a source: they are compared on the wall clock, and where there is
none, as one clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvmon.errors import ConfigError
from kvmon.replay.lives import Life
from kvmon.replay.when import When, parse_when

__all__ = ["Window", "parse_window"]


@dataclass(frozen=True)
class Window:
    """Everything behind `begin`, up to `end`; None is without a bound."""

    begin: When | None
    end: When | None

    def __str__(self) -> str:
        parts = ("from", self.begin), ("until", self.end)
        return " ".join(f"{word} {when.text}" for word, when in parts if when is not None)

    def of(self, lives: Sequence[Life]) -> list[tuple[int | None, int | None] | None]:
        """(begin, end) in ns of the clock of each life; None where it has nothing there.

        Raises ConfigError for a moment on the wall clock where a life has none.
        """
        there = [life for life in lives if life.first_ns is not None and life.last_ns is not None]
        found: list[tuple[int | None, int | None] | None] = []
        for life in lives:
            if life not in there:
                found.append(None)
                continue
            begin, end = _time(life, self.begin, there), _time(life, self.end, there)
            first, last = life.first_ns or 0, life.last_ns or 0
            empty = (begin is not None and begin >= last) or (end is not None and end < first)
            found.append(None if empty or (begin is not None and end is not None and begin >= end) else (begin, end))
        return found


def parse_window(begin: str | None, end: str | None) -> Window | None:
    """From two texts; None without either. Raises ConfigError for what is no time."""
    if begin is None and end is None:
        return None
    return Window(_bound(begin), _bound(end))


def _bound(text: str | None) -> When | None:
    when = None if text is None else parse_when(text)
    if when is not None and when.kind in ("failure", "worst"):
        raise ConfigError(f"'{when.text}' bounds no stretch of time: give one such as +90s, -30s or one with a zone")
    return when


def _time(life: Life, when: When | None, lives: Sequence[Life]) -> int | None:
    """A moment on the clock of this life."""
    if when is None:
        return None
    if when.kind == "clock":
        return when.value
    if when.kind == "wall" and not life.facts.wall_ns:
        raise ConfigError(f"{life.name} has no wall clock: give a time such as +90s or -30s instead of {when.text}")
    wall = when.value
    if when.kind == "begin":
        wall += min(one.facts.wall_time_ns(one.first_ns or 0) for one in lives)
    elif when.kind == "end":
        wall = max(one.facts.wall_time_ns(one.last_ns or 0) for one in lives) - wall
    return wall - life.facts.wall_time_ns(0)
