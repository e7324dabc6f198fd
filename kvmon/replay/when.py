"""A moment of a recording as people write it.

    +90s  12m30s  +1:23.4       so long after the first frame
    -30s                        so long before the last one
    2026-11-23T08:45:04.5Z      on the wall clock, with its zone (RFC 3339)
    1234567890123               ns of the engine's monotonic clock, as `--json` and exports have them
    failure:3  failure:-1       just before the third refused allocation, or the last one, was refused
    worst                       the end of the frame that hurt most (see `timeline.read_timelines`)

Only parsing: which time that is in a recording is for `moment.py` to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

from kvmon.errors import ConfigError

__all__ = ["When", "parse_when", "rfc3339"]

_UNITS = {"d": 86_400_000_000_000, "h": 3_600_000_000_000, "m": 60_000_000_000, "s": 1_000_000_000, "ms": 1_000_000}
_PART = r"\d+(?:\.\d+)?(?:ms|[dhms])"
_DURATION = re.compile(rf"([+-]?)((?:{_PART})+)", re.IGNORECASE)
_STOPWATCH = re.compile(r"([+-]?)(?:(\d{1,6}):)?(\d{1,6}):(\d\d)(?:\.(\d{1,9}))?")
_WALL = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)?",
)
_CLOCK = re.compile(r"(\d{1,19})(?:ns)?")
_FAILURE = re.compile(r"failure:([+-]?\d{1,9})", re.IGNORECASE)
_LONGEST = 1 << 62


@dataclass(frozen=True)
class When:
    """`kind` says what `value` counts: ns after the `begin` or before the `end`, ns of the `clock`, ns since 1970 on
    the `wall`, the number of a `failure` (negative from the end); nothing for the `worst` moment."""

    kind: Literal["begin", "end", "clock", "wall", "failure", "worst"]
    value: int
    text: str


def parse_when(text: str) -> When:
    """The moment that `text` names. Raises ConfigError where it names none."""
    said = text.strip()
    if said.lower() == "worst":
        return When("worst", 0, said)
    if match := _FAILURE.fullmatch(said):
        if int(match.group(1)) == 0:
            raise ConfigError("refused allocations count from 1, or from -1 at the end: there is no failure:0")
        return When("failure", int(match.group(1)), said)
    if match := _CLOCK.fullmatch(said):
        return When("clock", _sane(int(match.group(1)), said), said)
    if match := _DURATION.fullmatch(said):
        parts = re.findall(r"(\d+)(?:\.(\d+))?(ms|[dhms])", match.group(2).lower())
        ns = sum(int(whole) * _UNITS[unit] + _fraction(part, _UNITS[unit]) for whole, part, unit in parts)
        return When("end" if match.group(1) == "-" else "begin", _sane(ns, said), said)
    if match := _STOPWATCH.fullmatch(said):
        sign, hours, minutes, seconds, part = match.groups()
        ns = int(hours or 0) * _UNITS["h"] + int(minutes) * _UNITS["m"] + int(seconds) * _UNITS["s"]
        return When("end" if sign == "-" else "begin", ns + _fraction(part or "", _UNITS["s"]), said)
    if match := _WALL.fullmatch(said):
        day, time, part, zone = match.groups()
        if zone is None:
            raise ConfigError(f"'{said}' has no zone: write Z for UTC behind it, or one such as +01:00")
        try:
            moment = datetime.fromisoformat(f"{day}T{time}{zone.upper().replace('Z', '+00:00')}")
            seconds = int(moment.astimezone(timezone.utc).timestamp())
        except (ValueError, OverflowError):
            raise ConfigError(f"'{said}' is no date and time: check its numbers") from None
        return When("wall", seconds * _UNITS["s"] + _fraction(part or "", _UNITS["s"]), said)
    raise ConfigError(
        f"'{text}' names no moment: write +90s, -30s, 2026-11-23T08:45:04Z, ns of the engine's clock, "
        "failure:N or worst"
    )


def rfc3339(wall_ns: int) -> str:
    """`2026-11-23T08:45:04.500Z` for ns since 1970."""
    moment = datetime.fromtimestamp(wall_ns // 1_000_000_000, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{wall_ns % 1_000_000_000 // 1_000_000:03d}Z"


def _fraction(digits: str, unit: int) -> int:
    return int(digits) * unit // 10 ** len(digits) if digits else 0


def _sane(ns: int, said: str) -> int:
    if ns >= _LONGEST:
        raise ConfigError(f"'{said[:40]}' is beyond every clock: give less")
    return ns
